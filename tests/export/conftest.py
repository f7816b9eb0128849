"""What holds for all files that these tests write."""

from __future__ import annotations

import pytest

from export import qdq_parity


@pytest.fixture(scope="session", autouse=True)
def any_processor():
    """Let files stand whose products saturate where the processor has no exact ones.

    Otherwise half of these tests would hang on the machine. That such a file is refused is tested
    with errors made up for it, and everything else is compared rounding by rounding.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qdq_parity, "GROSS", float("inf"))
        yield
