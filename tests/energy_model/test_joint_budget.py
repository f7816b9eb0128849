"""The papers' way to write a nominal size: a share of the weights, each at so many bits."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_model.budget import Budget, Limit, joint_budget
from energy_model.errors import BudgetError

LENET5 = (500, 25_000, 400_000, 5_000)


def resolved(budget, layers=LENET5):
    [limit] = budget.limits
    return limit.resolve(layers=layers)


@pytest.mark.parametrize(
    ("nnz", "bits", "size"), [(0.0054, 3, 6_975), (0.02, 4, 34_440), (0.1, 5, 215_250)]
)
def test_the_published_sizes_of_lenet5(nnz, bits, size):
    budget = joint_budget(nnz, bits)
    assert resolved(budget) == size
    assert resolved(joint_budget(str(nnz), str(bits))) == size


@given(
    st.integers(1, 10_000).map(lambda n: Fraction(n, 10_000)),
    st.integers(1, 320).map(lambda n: Fraction(n, 10)),
    st.lists(st.integers(1, 10**6), max_size=6),
)
def test_every_layer_is_rounded_up_and_the_sum_down(share, bits, layers):
    budget = joint_budget(str(float(share)), str(float(bits)))
    counts = [math.ceil(share * n) for n in layers]
    assert resolved(budget, layers) == math.floor(bits * sum(counts))


@pytest.mark.parametrize(
    ("nnz", "bits", "text"),
    [
        (0.0054, 3, "weight_bits<=0.54% x 3 bit"),
        ("12%", 6, "weight_bits<=12% x 6 bit"),
        (1.0, 2.5, "weight_bits<=100% x 2.5 bit"),
        (0.1, "32", "weight_bits<=10% x 32 bit"),
    ],
)
def test_it_can_be_written_and_read(nnz, bits, text):
    budget = joint_budget(nnz, bits)
    assert str(budget) == text
    assert Budget.parse(text) == budget
    assert (
        Budget.parse(text.replace("bit", "bits").replace("weight_bitss", "weight_bits")) == budget
    )
    assert Budget.parse({"weight_bits": text.split("<=")[1]}) == budget
    assert Budget.from_dict(budget.to_dict()) == budget
    assert Budget(weight_bits=text.split("<=")[1]) == budget
    [limit] = budget.limits
    assert limit.relative


def test_it_stands_beside_other_limits():
    budget = Budget.parse("weight_bits<=0.54% x 3 bit, archive<=3 kB")
    assert {limit.key for limit in budget} == {"weight_bits", "archive"}
    assert budget.get("weight_bits") == joint_budget(0.0054, 3).get("weight_bits")
    assert budget.get("weight_bits") != Limit("weight_bits", Fraction("0.0054"))


@pytest.mark.parametrize("nnz", [0, -0.1, 1.5, "150%", "many", float("nan"), "", None, True])
def test_bad_shares_are_refused(nnz):
    with pytest.raises(BudgetError):
        joint_budget(nnz, 3)


@pytest.mark.parametrize("bits", [0, -3, 33, "three", float("nan"), float("inf"), "", None, True])
def test_bad_bits_are_refused(bits):
    with pytest.raises(BudgetError):
        joint_budget(0.1, bits)


@pytest.mark.parametrize(
    "text",
    [
        "weight_bits<=0.54% x 3",
        "weight_bits<=0.54% x 3 kB",
        "weight_bits<=0.54% x bit",
        "weight_bits<=0.54% x",
        "weight_bits<= x 3 bit",
        "weight_bits<=2000 x 3 bit",
        "weight_bits<=0.54% x 3 bit x 2 bit",
        "weight_bits<=0.54% x 40 bit",
        "weight_bits<=-1% x 3 bit",
        "nonzeros<=1% x 3 bit",
        "energy<=1% x 3 bit",
    ],
)
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(BudgetError):
        Budget.parse(text)


def test_bits_belong_to_a_share_of_weight_bits():
    for key, value, unit in (
        ("nonzeros", Fraction(1, 2), "share"),
        ("weight_bits", Fraction(500), "bit"),
    ):
        with pytest.raises(BudgetError, match="bits"):
            Limit(key, value, unit, Fraction(3))
