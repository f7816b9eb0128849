"""The logic of ratios and verdicts, on synthetic rounds: nothing here takes time."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.measurement import (
    NOISE_LIMIT,
    Measurement,
    Report,
    compare,
    relative_spread,
    sign_test,
)


def made(name, rounds, **changes):
    values = {
        "path": f"models/{name}.onnx",
        "bytes": 1_234_567,
        "bytes_zstd": 234_567,
        "load_ms": 12.345,
        "median_ms": float(np.median(rounds)),
        "minimum_ms": min(rounds),
        "spread": relative_spread(tuple(rounds)),
        "cpu_ms": 1.5,
        "peak_rss_bytes": 98_765_432,
        "threads": 1,
        "batch": 1,
        "runtime": "onnxruntime 1.31.1 CPUExecutionProvider",
        "machine": "a CPU",
        "round_ms": tuple(rounds),
        "runs_per_round": 10,
    }
    return Measurement(**(values | changes))


def report(first, second):
    return Report((made("first", first), made("second", second)))


STEADY = [10.0, 10.1, 9.9, 10.2, 10.0, 9.8, 10.1]


def test_ratios_are_paired_by_round():
    """A machine that slows down by half an hour's drift leaves every paired ratio at one half."""
    drift = [1.0, 1.02, 1.05, 1.08, 1.1, 1.12, 1.15]
    found = report([10 * d for d in drift], [5 * d for d in drift]).comparisons[0]
    assert (found.ratio, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (found.faster, found.slower, found.conclusive) == (7, 0, True)
    assert "2.00x faster than models/first.onnx" in found.verdict


def test_slower_is_said_as_slower():
    found = report(STEADY, [3 * ms for ms in STEADY])
    assert found.conclusive
    assert "3.00x slower" in found.verdicts[0]
    assert "faster" not in found.verdicts[0]


def test_the_ratio_is_not_that_of_the_medians():
    # Medians 2 and 2, but the paired ratios are 3, 0.5, 2 / 3.
    found = compare(made("a", [1.0, 4.0, 2.0]), made("b", [3.0, 2.0, 4 / 3]))
    assert found.ratio == pytest.approx(2 / 3)


def test_a_difference_that_rounds_do_not_agree_on_is_not_conclusive():
    found = report(STEADY, STEADY[::-1])
    assert not found.conclusive
    assert "not conclusive" in found.verdicts[0]
    assert "faster" not in str(found)
    assert "slower" not in str(found)


@pytest.mark.parametrize(
    ("factor", "said"), [(1.04, False), (0.96, False), (1.06, True), (0.94, True)]
)
def test_a_steady_difference_below_the_resolution_is_not_claimed(factor, said):
    """Two processes of one file differ steadily by as much."""
    found = report(STEADY, [factor * ms for ms in STEADY])
    assert found.conclusive == said
    assert ("er than" in found.verdicts[0]) == said


def test_noise_forbids_a_conclusion_even_with_a_large_ratio():
    noisy = [10.0, 20.0, 10.0, 22.0, 9.0, 21.0, 10.0]
    found = report(noisy, [ms / 5 for ms in noisy])
    assert found.comparisons[0].noise > NOISE_LIMIT
    assert not found.conclusive
    assert "the machine is too noisy to conclude" in found.verdicts[0]
    assert "faster" not in str(found)


def test_too_few_rounds_conclude_nothing():
    for rounds in range(1, 9):
        found = report([10.0] * rounds, [5.0] * rounds)
        assert found.conclusive == (rounds >= 6)


def test_one_model_alone_is_conclusive_when_steady():
    assert Report((made("a", STEADY),)).conclusive
    assert Report((made("a", STEADY),)).verdicts == ()
    noisy = Report((made("a", [1.0, 2.0, 3.0, 4.0]),))
    assert not noisy.conclusive
    assert "too noisy" in noisy.verdicts[0]


def test_spread_is_the_interquartile_range_over_the_median():
    assert relative_spread((1.0, 2.0, 3.0, 4.0, 5.0)) == pytest.approx((4 - 2) / 3)
    assert relative_spread((7.0,)) == 0


@given(st.integers(0, 30), st.integers(0, 30))
def test_sign_test_is_the_exact_binomial(successes, failures):
    rounds = successes + failures
    uneven = abs(successes - failures)
    same = [k for k in range(rounds + 1) if abs(2 * k - rounds) >= uneven]
    exact = sum(math.comb(rounds, k) for k in same) / 2**rounds
    assert sign_test(successes, failures) == pytest.approx(exact)
    assert sign_test(successes, failures) == sign_test(failures, successes)


times = st.floats(0.1, 100)


@given(st.lists(st.tuples(times, times), min_size=1, max_size=12), st.floats(0.5, 2))
def test_ratios_do_not_depend_on_the_unit_and_never_claim_against_the_rounds(pairs, scale):
    first, second = zip(*pairs, strict=True)
    found = report(first, second).comparisons[0]
    scaled = report([t * scale for t in first], [t * scale for t in second]).comparisons[0]
    assert scaled.ratio == pytest.approx(found.ratio)
    assert found.low <= found.ratio <= found.high
    if "faster" in found.verdict:
        assert found.faster > found.slower
        assert found.high < 1 / 1.05


def test_models_of_other_rounds_cannot_be_compared():
    with pytest.raises(ValueError, match="argument 2"):
        compare(made("a", STEADY), made("b", STEADY[:3]))


def test_the_table_has_units_and_says_unavailable():
    first = made("first", STEADY, energy=27_445_303_656)
    second = made("second", [ms / 2 for ms in STEADY], energy=6_861_325_914, joules=0.25)
    text = str(Report((first, second)))
    cells = [re.split(r"  +", line.strip()) for line in text.splitlines()]
    rows = {label: answers for label, *answers in cells}
    assert rows["measured energy, J"] == ["unavailable", "0.25"]
    assert rows["modelled energy, MAC/sample"] == ["27,445,303,656", "6,861,325,914"]
    assert rows["file, bytes"] == ["1,234,567", "1,234,567"]
    assert rows["time / first (quartiles)"] == ["1", "0.500 (0.500-0.500)"]
    assert "threads 1, batch 1, 7 interleaved rounds, a CPU" in text
    assert text.endswith(Report((first, second)).verdicts[0])
    assert all(line == line.rstrip() for line in text.splitlines())


def test_to_dict_is_json_with_none_for_what_is_unknown():
    plain = report(STEADY, [ms / 2 for ms in STEADY]).to_dict()
    again = json.loads(json.dumps(plain))
    assert again == plain
    assert again["measurements"][0]["joules"] is None
    assert again["measurements"][1]["round_ms"] == [ms / 2 for ms in STEADY]
    assert again["comparisons"][0]["conclusive"] is again["conclusive"] is True
