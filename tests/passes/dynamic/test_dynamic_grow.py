from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import ArgumentError, TrainingError
from passes.dynamic import grow
from passes.dynamic.grow import at_random, candidates, largest
from passes.dynamic.random_keys import key_of

MASKS = st.lists(st.booleans(), max_size=60).map(lambda m: torch.tensor(m, dtype=torch.bool))


def chi_square_bound(degrees):
    """About the 1 - 1e-5 quantile (Wilson and Hilferty)."""
    return degrees * (1 - 2 / (9 * degrees) + 4.27 * math.sqrt(2 / (9 * degrees))) ** 3


@settings(max_examples=60)
@given(free=MASKS, count=st.integers(0, 70), key=st.integers(-(1 << 63), (1 << 63) - 1))
def test_at_random_chooses_exactly_as_many_free_cells(free, count, key):
    before = free.clone()
    chosen = at_random(free, count, key)
    assert chosen.dtype == torch.bool and chosen.shape == free.shape
    assert int(chosen.sum()) == min(count, int(free.sum()))
    assert not (chosen & ~free).any()
    again = at_random(free, count, key)
    assert torch.equal(chosen, again)
    chosen ^= True  # not the mask itself, which stays as it was
    assert torch.equal(free, before)


@pytest.mark.spread(1)
@pytest.mark.parametrize(("cells", "count"), [(80, 10), (40, 20), (12, 11)])
def test_at_random_is_uniform(cells, count):
    free = torch.ones(cells + 4, dtype=torch.bool)
    free[[0, 7, 9, 10]] = False
    events = 10_000 // count
    hits, pairs = torch.zeros(cells + 4), torch.zeros(cells + 4, cells + 4)
    for event in range(events):
        chosen = at_random(free, count, key_of(1, event, "site")).float()
        hits += chosen
        pairs += chosen[:, None] * chosen
    assert not hits[~free].any()
    expected = events * count / cells
    # Without replacement the counts vary less, by the finite population's factor.
    statistic = float(((hits[free] - expected) ** 2 / expected).sum()) * (cells - 1)
    assert statistic / (cells - count) < chi_square_bound(cells - 1)
    if count > 1:  # cells are chosen together as often as they should be
        upper = pairs[free][:, free].triu(1)
        rate = count * (count - 1) / cells / (cells - 1)
        deviation = (upper[upper.new_ones(cells, cells).triu(1) > 0] / events - rate).abs().max()
        assert deviation < 5.5 * math.sqrt(rate * (1 - rate) / events)


def test_both_ways_are_taken_and_both_are_exact(monkeypatch):
    free, taken = torch.ones(2_000, dtype=torch.bool), []
    for name in ("_by_keys", "_by_rejection"):
        way = getattr(grow, name)
        spy = lambda *a, name=name, way=way: (taken.append(name), way(*a))[1]  # noqa: E731
        monkeypatch.setattr(grow, name, spy)
    assert int(at_random(free, 200, 3).sum()) == 200
    assert taken == ["_by_rejection", "_by_keys"]  # the surplus goes by keys
    taken.clear()
    assert int(at_random(free, 900, 3).sum()) == 900
    assert taken == ["_by_keys"]
    # Draws that never find enough fall back to keys, so that it always ends.
    monkeypatch.setattr(grow, "uniform_indices", lambda *a, **k: torch.zeros(9, dtype=torch.int64))
    taken.clear()
    assert int(at_random(free, 200, 3).sum()) == 200
    assert taken == ["_by_rejection", "_by_keys"]


def test_rejection_goes_on_where_one_batch_is_not_enough(monkeypatch):
    free, starts = torch.ones(2_000, dtype=torch.bool), []
    draw = grow.uniform_indices

    def few(key, n, below, device, *, start):
        starts.append(start)
        return draw(key, 90, below, device, start=start)

    monkeypatch.setattr(grow, "uniform_indices", few)
    assert int(at_random(free, 200, 3).sum()) == 200
    assert len(starts) == 3 and starts[2] == 2 * starts[1]


def test_keys_and_not_a_generator_decide():
    free = torch.ones(3_000, dtype=torch.bool)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    found = {
        tuple(at_random(free, 50, key_of(s, e, n)).nonzero().flatten().tolist())
        for s in (0, 1)
        for e in (0, 1)
        for n in ("a", "b")
    }
    assert len(found) == 8
    assert torch.equal(torch.get_rng_state(), state)
    golden = at_random(free, 6, key_of(0, 0, "golden")).nonzero().flatten().tolist()
    assert golden == [653, 823, 1538, 2280, 2535, 2655]
    golden = at_random(free[:12], 6, key_of(0, 0, "golden")).nonzero().flatten().tolist()
    assert golden == [0, 1, 2, 3, 5, 9]


@settings(max_examples=50)
@given(
    cells=st.lists(
        st.tuples(st.sampled_from([-3.0, -1.0, -0.0, 0.0, 1.0, 2.5]), st.booleans()), max_size=30
    ),
    count=st.integers(0, 33),
)
def test_largest_is_that_of_a_stable_sort(cells, count):
    scores = torch.tensor([c[0] for c in cells])
    free = torch.tensor([c[1] for c in cells], dtype=torch.bool)
    order = sorted(free.nonzero().flatten().tolist(), key=lambda i: (-abs(scores[i]), i))
    before = scores.clone()
    assert largest(scores, free, count).nonzero().flatten().tolist() == sorted(order[:count])
    assert torch.equal(scores, before)


def test_largest_of_equal_scores_and_of_half_precision():
    free = torch.tensor([0, 1, 1, 0, 1]) > 0
    assert largest(torch.zeros(5), free, 2).nonzero().flatten().tolist() == [1, 2]
    scores = torch.tensor([9, 1, -3, 9, 2], dtype=torch.bfloat16, requires_grad=True)
    assert largest(scores, free, 1).nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_scores_without_an_order_are_refused_where_they_count(bad, count):
    scores, free = torch.tensor([1.0, bad, 2.0]), torch.ones(3) > 0
    with pytest.raises(TrainingError, match="fc: 1 of 3 scores"):
        largest(scores, free, count, name="fc")
    largest(scores, torch.tensor([1, 0, 1]) > 0, count)


@settings(max_examples=60)
@given(
    cells=st.lists(st.sampled_from(["free", "kept", "dropped"]), max_size=25),
    count=st.integers(0, 30),
    just_dropped=st.booleans(),
)
def test_candidates_are_what_was_inactive_before_the_drop(cells, count, just_dropped):
    mask = torch.tensor([c != "free" for c in cells], dtype=torch.bool)
    dropped = torch.tensor([c == "dropped" for c in cells], dtype=torch.bool)
    found = candidates(mask, dropped, count, just_dropped=just_dropped)
    free, gone = int((~mask).sum()), int(dropped.sum())
    grown = found.certain | largest(torch.ones(len(cells)), found.open, found.count)
    assert int(grown.sum()) == min(count, free + gone)
    assert int(found.certain.sum()) + found.count == int(grown.sum())
    assert not (found.certain & found.open).any()
    assert not (grown & mask & ~dropped).any()
    if just_dropped:
        assert torch.equal(found.open, ~mask | dropped) and not found.certain.any()
        assert found.returned == 0
    else:
        assert int((grown & dropped).sum()) == found.returned == max(0, min(count - free, gone))
        if found.returned:
            assert torch.equal(found.certain, ~mask) and torch.equal(found.open, dropped)
        elif count <= free:
            assert torch.equal(found.open, ~mask) and not found.certain.any()


def test_arguments_that_do_not_fit_are_refused():
    mask = torch.tensor([1, 0, 1]) > 0
    calls = [
        lambda: candidates(mask, ~mask, 1),
        lambda: candidates(mask, mask, -1),
        lambda: candidates(mask, mask[:2], 1),
        lambda: candidates(mask.float(), mask, 1),
        lambda: at_random(mask, -1, 0),
        lambda: at_random(mask.float(), 1, 0),
        lambda: largest(torch.ones(3), mask, -1),
        lambda: largest(torch.ones(2), mask, 1),
        lambda: largest(torch.ones(3), mask.float(), 1),
    ]
    for call in calls:
        with pytest.raises(ArgumentError):
            call()
