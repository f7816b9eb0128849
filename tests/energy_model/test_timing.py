"""What a measured time decides, and what its noise leaves open."""

from __future__ import annotations

import math

import pytest

from energy_model.errors import ArgumentError
from energy_model.timing import RESOLUTION, Timing, relative_noise


@pytest.mark.parametrize(
    ("seconds", "spread", "verdict"),
    [
        (0.90, 0.0, "met"),
        (0.96, 0.0, "undecidable"),
        (1.04, 0.0, "undecidable"),
        (1.06, 0.0, "exceeded"),
        (0.85, 0.2, "undecidable"),
        (1.15, 0.2, "undecidable"),
        (0.79, 0.2, "met"),
        (1.21, 0.2, "exceeded"),
    ],
)
def test_a_limit_of_a_second(seconds, spread, verdict):
    assert Timing(seconds, spread).verdict(1.0) == verdict
    assert Timing(seconds * 1e-6, spread).verdict(1e-6) == verdict


def test_steady_rounds_do_not_make_a_clock_that_knows_everything():
    assert relative_noise(0.0) == Timing(1.0).noise == RESOLUTION
    assert relative_noise(0.3) == Timing(1.0, 0.3).noise == 0.3


@pytest.mark.parametrize("numbers", [(0.0, 0), (-1.0, 0), (math.nan, 0), (math.inf, 0), (1, -0.1)])
def test_what_is_no_time(numbers):
    with pytest.raises(ArgumentError, match="no measured time"):
        Timing(*numbers)
