"""Rows of a sensitivity: ratios, ranks with ties, and what is shown."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_model import load_hardware
from energy_model.errors import ArgumentError
from transform.sensitivity_table import Sensitivity, SensitivityRow


def row(layer, change, saved=(1, 1, 1), metric=0.5):
    return SensitivityRow(
        layer=layer,
        sparsity=0.5,
        weights=10,
        removed=5 if any(saved) else 0,
        loss_before=0.0,
        loss_after=change,
        metric_before=metric,
        metric_after=metric,
        bytes=saved[0],
        energy=saved[1],
        macs=saved[2],
    )


def made(*rows, metric="top-1"):
    return Sensitivity(tuple(rows), load_hardware("eyeriss"), "cross entropy", metric, 7)


def names(rows):
    return [row.layer for row in rows]


def test_each_rank_has_its_own_order():
    found = made(row("a", 6.0, (1, 2, 6)), row("b", 6.0, (2, 6, 1)), row("c", 6.0, (6, 1, 2)))
    assert names(found.ranked("bytes")) == ["c", "b", "a"]
    assert names(found.ranked("energy")) == names(found.ranked()) == ["b", "a", "c"]
    assert names(found.ranked("macs")) == ["a", "c", "b"]


def test_help_comes_before_harm_and_nothing_saved_last():
    found = made(row("none", 0.0, (0, 0, 0)), row("harm", 2.0), row("help", -1.0), row("zero", 0.0))
    assert names(found.ranked("bytes")) == ["help", "zero", "harm", "none"]


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), max_size=12))
def test_ranks_are_sorted_and_stable(pairs):
    rows = [row(str(n), float(c), (s, s, s)) for n, (c, s) in enumerate(pairs)]
    ranked = made(*rows).ranked("bytes")
    assert sorted(map(int, names(ranked))) == list(range(len(rows)))
    for one, other in pairwise(ranked):
        if one.per_byte is None:
            assert other.per_byte is None
        elif other.per_byte is not None:
            assert one.per_byte <= other.per_byte
        if one.per_byte == other.per_byte:
            assert int(one.layer) < int(other.layer)


def test_an_unknown_rank_is_refused():
    with pytest.raises(ArgumentError, match="'joules' is no rank"):
        made(row("a", 1.0)).ranked("joules")


def test_results_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        made().rows = ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        row("a", 1.0).removed = 3


def test_what_is_shown():
    found = made(row("conv[0:8]", 1e-3, (100, 1000, 10), 0.25), row("idle", 0.0, (0, 0, 0)))
    text = str(found)
    assert "conv[0:8]" in text
    for shown in ("+0.001", "1.00e-05 (1)", "1.00e-06 (1)", "1.00e-04 (1)", "25.00 %"):
        assert shown in text
    [idle] = [line for line in text.splitlines() if "idle" in line]
    assert idle.split()[-5:-2] == ["-", "-", "-"]


def test_a_metric_that_need_not_be_a_share_is_no_percentage():
    text = str(made(row("a", 1.0, metric=27.5), metric="psnr"))
    assert "psnr" in text
    assert "27.5" in text
    assert "2750" not in text


def test_an_empty_table_prints():
    assert "hardware eyeriss" in str(made())
