"""Masks before training: random, from magnitudes, from another run; and the scale of values."""

from __future__ import annotations

import math

import pytest
import torch

from energy_model.errors import ArgumentError, PreconditionError, TrainingError
from passes.dynamic.random_keys import key_of, normals
from passes.dynamic.start import SparseShape
from passes.dynamic.start_masks import (
    by_magnitude,
    fan_in_factors,
    from_masks,
    rescaled,
    start_masks,
)

SITES = [SparseShape("a", (20, 30)), SparseShape("b", (8, 4, 3, 3), block=9)]


def test_counts_are_exact_and_masks_depend_on_nothing_else():
    masks = start_masks([60, 10], SITES, seed=3)
    assert {name: (m.shape, int(m.sum())) for name, m in masks.items()} == {
        "a": ((600,), 60),
        "b": ((32,), 10),
    }
    other = start_masks([10, 60], SITES[::-1], seed=3)
    assert all(torch.equal(masks[name], other[name]) for name in masks)
    assert not torch.equal(start_masks([60, 10], SITES, seed=4)["a"], masks["a"])
    twin = SparseShape("c", (20, 30))
    assert not torch.equal(start_masks([60], [twin], seed=3)["c"], masks["a"])


def test_all_and_no_cells():
    masks = start_masks([600, 0], SITES, seed=0)
    assert bool(masks["a"].all())
    assert not bool(masks["b"].any())


@pytest.mark.parametrize("counts", [[601, 1], [-1, 1], [1]])
def test_counts_that_do_not_fit(counts):
    with pytest.raises(ArgumentError):
        start_masks(counts, SITES, seed=0)


def test_the_largest_stay():
    magnitudes = {"a": normals(key_of(0, 0, "a"), 600).abs(), "b": torch.arange(32.0)}
    masks = by_magnitude(magnitudes, [60, 10], SITES)
    assert set(magnitudes["a"].topk(60).indices.tolist()) == set(
        torch.nonzero(masks["a"]).flatten().tolist()
    )
    assert torch.nonzero(masks["b"]).flatten().tolist() == list(range(22, 32))


def test_of_equal_cells_the_lowest_index_goes_first():
    magnitudes = {"a": torch.ones(600), "b": torch.zeros(32)}
    masks = by_magnitude(magnitudes, [60, 10], SITES)
    assert torch.nonzero(masks["a"]).flatten().tolist() == list(range(540, 600))
    assert torch.nonzero(masks["b"]).flatten().tolist() == list(range(22, 32))


def test_magnitudes_that_cannot_be_compared():
    good = {"a": torch.ones(600), "b": torch.ones(32)}
    with pytest.raises(TrainingError, match="b"):
        by_magnitude(good | {"b": torch.full((32,), math.nan)}, [1, 1], SITES)
    with pytest.raises(PreconditionError, match="b"):
        by_magnitude(good | {"b": torch.ones(288)}, [1, 1], SITES)
    with pytest.raises(ArgumentError, match="b"):
        by_magnitude({"a": good["a"]}, [1, 1], SITES)


def transferable():
    kernels = torch.zeros(8, 4, 1, 1, dtype=torch.bool)
    kernels[2, 1] = kernels[5, 3] = True
    single = torch.zeros(20, 30, dtype=torch.bool)
    single[3, 4] = True
    return {"a": single, "b": kernels.expand(8, 4, 3, 3).clone()}


def test_masks_are_transferred_as_copies():
    given = transferable()
    masks = from_masks(given, SITES)
    assert torch.nonzero(masks["a"]).flatten().tolist() == [3 * 30 + 4]
    assert torch.nonzero(masks["b"]).flatten().tolist() == [2 * 4 + 1, 5 * 4 + 3]
    again = from_masks(masks, SITES)
    assert all(torch.equal(again[name], masks[name]) for name in masks)
    again["a"].zero_()
    again["b"].zero_()
    assert masks["a"].any()
    assert masks["b"].any()


@pytest.mark.parametrize(
    ("name", "mask", "words"),
    [
        ("a", torch.ones(30, 20, dtype=torch.bool), r"\(30, 20\)"),
        ("a", torch.ones(599, dtype=torch.bool), r"\(599,\)"),
        ("a", torch.ones(20, 30), "float32"),
        ("a", torch.zeros(20, 30, dtype=torch.bool), "no active cell"),
        ("b", torch.ones(8, 4, 3, 3, dtype=torch.bool).tril(), "parts of cells"),
    ],
)
def test_masks_of_another_model(name, mask, words):
    with pytest.raises(PreconditionError, match=words) as caught:
        from_masks(transferable() | {name: mask}, SITES)
    assert caught.value.where == name


def test_names_of_another_model():
    with pytest.raises(ArgumentError, match=r"no sparse tensor takes \['c'\]"):
        from_masks(transferable() | {"c": torch.ones(1, dtype=torch.bool)}, SITES)
    with pytest.raises(ArgumentError, match=r"missing for \['b'\]"):
        from_masks({"a": transferable()["a"]}, SITES)


def test_values_are_rescaled_for_density():
    assert rescaled(0.1, 0.25) == 0.2
    assert rescaled(0.1, 1) == 0.1
    for density in (0, -1, 1.5, math.nan):
        with pytest.raises(ArgumentError, match="density"):
            rescaled(0.1, density)


def test_rescaled_values_keep_the_variance_of_outputs():
    site = SparseShape("w", (50, 400))
    mask = start_masks([2000], [site], seed=1)["w"].reshape(50, 400)
    weight = normals(key_of(1, 0, "w"), 20_000).reshape(50, 400) / math.sqrt(400)
    inputs = normals(key_of(1, 0, "x"), 400 * 2000).reshape(400, 2000)
    dense = float((weight @ inputs).var())
    sparse = float((rescaled(1.0, 0.1) * weight * mask @ inputs).var())
    assert abs(dense - 1) < 0.05
    assert abs(sparse - 1) < 0.1
    factors = fan_in_factors(mask.reshape(-1), site)
    expected = [math.sqrt(400 / n) if n else 1.0 for n in mask.sum(dim=1).tolist()]
    assert torch.allclose(factors, torch.tensor(expected))
    assert abs(float((factors[:, None] * weight * mask @ inputs).var()) - 1) < 0.1


def test_fan_in_counts_parameters_of_cells_and_spares_dead_outputs():
    site = SparseShape("w", (2, 4, 3, 3), block=9)
    mask = torch.tensor([True, False, False, False] + [False] * 4)
    assert fan_in_factors(mask, site).tolist() == [2.0, 1.0]
