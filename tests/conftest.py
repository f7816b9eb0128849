"""Where the random numbers of a test come from, and which long cases belong to `make test`."""

from __future__ import annotations

import os
import random
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# Tests that import ONNX Runtime by themselves want it quiet, too: see `export.quiet_runtime`.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# A gate must not fail on unchanged code, nor on a busy machine: it draws the same examples
# every time and watches no clock. `make test-slow` explores new ones (HYPOTHESIS_PROFILE).
calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("gate", calm, derandomize=True)
settings.register_profile("explore", calm)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed before a test and all of its fixtures: alone or after others, it sees the same model."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (libraries under test draw from it)
    torch.manual_seed(0)


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
