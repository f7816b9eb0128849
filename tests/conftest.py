"""Which cases of long parametrized tests belong to `make test`."""

from __future__ import annotations

from collections import defaultdict

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Make all cases of a test slow but for as many as `spread` says, evenly over their list."""
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("spread") and not item.get_closest_marker("slow"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for own in cases.values():
        [count] = own[0].get_closest_marker("spread").args
        fast = {number * len(own) // count for number in range(count)}
        for number, item in enumerate(own):
            if number not in fast:
                item.add_marker(pytest.mark.slow)
