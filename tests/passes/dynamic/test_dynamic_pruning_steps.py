"""Gradual pruning: the published list of sparsities, counts that end at the target."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_model.errors import ArgumentError
from passes.dynamic.pruning_steps import (
    PruningSteps,
    cubic_sparsity,
    exponential_sparsity,
    target_counts,
)
from passes.dynamic.schedule import Clock

PUBLISHED = [
    0.1284, 0.2439, 0.3473, 0.4392, 0.5203, 0.5913, 0.6528, 0.7056, 0.7503, 0.7875,
    0.8180, 0.8424, 0.8614, 0.8757, 0.8859, 0.8928, 0.8970, 0.8991, 0.8999, 0.9000,
]  # fmt: skip
FORMS = st.sampled_from(["cubic", "exponential"])


def test_the_cubic_list_to_four_digits():
    assert [round(s, 4) for s in PruningSteps().sparsities(0.9)] == PUBLISHED


def test_exponential_prunes_a_constant_share_of_survivors():
    left = [1.0, *(1 - s for s in PruningSteps(form="exponential").sparsities(0.9))]
    shares = [1 - after / before for before, after in itertools.pairwise(left)]
    assert all(math.isclose(share, 1 - 0.1 ** (1 / 20)) for share in shares)
    assert round(shares[0], 4) == 0.1087


def test_share_of_survivors_of_the_cubic_form():
    sparsities = [0.0, *PruningSteps().sparsities(0.9)]
    for j in range(20):
        share = 1 - (1 - sparsities[j + 1]) / (1 - sparsities[j])
        s = [0.9 * (1 - (1 - i / 20) ** 3) for i in (j, j + 1)]
        assert math.isclose(share, 1 - (1 - s[1]) / (1 - s[0]), rel_tol=1e-9)


def test_the_general_cubic():
    options = {"final": 0.8, "initial": 0.2, "start": 10, "length": 40}
    assert [cubic_sparsity(t, **options) for t in (0, 10)] == [0.2, 0.2]
    assert [cubic_sparsity(t, **options) for t in (50, 99)] == [0.8, 0.8]
    assert math.isclose(cubic_sparsity(30, **options), 0.8 - 0.6 / 8)
    with pytest.raises(ArgumentError, match="length"):
        cubic_sparsity(0, final=0.5, length=0)
    assert exponential_sparsity(0, final=0.9) == 0


def test_when_the_published_run_prunes():
    run = PruningSteps(interval=2)
    clock = Clock(48, 7)
    assert [step // 7 for step in run.steps(clock)] == list(range(0, 40, 2))
    assert all(step % 7 == 6 for step in run.steps(clock))  # the last step of the epoch
    assert run.epochs == 48
    late = PruningSteps(number=3, interval=5, start_epoch=4, post_epochs=0)
    assert late.epochs == 15
    assert late.steps(Clock(15, 1)) == (4, 9, 14)
    with pytest.raises(ArgumentError, match="epoch 14"):
        late.steps(Clock(14, 1))


@given(st.integers(1, 40), st.integers(1, 300))
def test_prunes_without_an_interval_fit_into_any_training(number, steps):
    run = PruningSteps(number=number)
    found = run.steps(Clock(1, steps))
    assert run.epochs is None
    assert 1 <= len(found) <= number
    assert list(found) == sorted(set(found))
    assert 0 <= found[0] <= found[-1] < max(1, 0.75 * steps)
    if 0.75 * steps >= number:
        assert len(found) == number
        gaps = [b - a for a, b in itertools.pairwise((-1, *found))]
        assert max(gaps) - min(gaps) <= 1


@given(st.floats(0, 0.9999), st.integers(1, 40), FORMS, st.integers(1, 10**7))
def test_counts_never_rise_and_end_at_the_target(target, number, form, cells):
    run = PruningSteps(number=number, form=form)
    counts = target_counts(cells, run.sparsities(target))
    assert len(counts) == number
    assert counts[-1] == round((1 - target) * cells)
    assert all(after <= before for before, after in itertools.pairwise((cells, *counts)))
    for count, sparsity in zip(counts, run.sparsities(target), strict=True):
        assert abs(count - (1 - sparsity) * cells) <= 1


@given(st.integers(1, 1000), st.data())
def test_a_final_count_of_a_budget_is_kept(cells, data):
    final = data.draw(st.integers(0, cells))
    counts = target_counts(cells, PruningSteps().sparsities(0.9), final)
    assert counts[-1] == final
    assert all(after <= before for before, after in itertools.pairwise((cells, *counts)))


@pytest.mark.parametrize(
    ("sparsities", "final"), [([], None), ([1.5], None), ([math.nan], None), ([0.5], 11)]
)
def test_counts_that_cannot_be(sparsities, final):
    with pytest.raises(ArgumentError, match="target_counts"):
        target_counts(10, sparsities, final)


def test_steps_are_data():
    run = PruningSteps(interval=3, form="exponential", start_epoch=3)
    assert PruningSteps.from_dict(json.loads(json.dumps(run.to_dict()))) == run


@pytest.mark.parametrize(
    "options",
    [
        {"number": 0},
        {"interval": 0},
        {"start_epoch": -1},
        {"post_epochs": 1.5},
        {"form": "linear"},
    ],
)
def test_fields_that_are_refused(options):
    (field,) = options
    with pytest.raises(ArgumentError, match=rf"PruningSteps\.{field}"):
        PruningSteps(**options)
