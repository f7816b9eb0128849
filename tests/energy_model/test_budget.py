from __future__ import annotations

import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_model.budget import Budget, Limit
from energy_model.errors import ArgumentError, BudgetError
from energy_model.hardware import Hardware, load_hardware
from energy_model.measures import MEASURES

EYERISS = load_hardware("eyeriss")


def only(budget: Budget) -> Limit:
    (limit,) = budget.limits
    return limit


def test_every_form_reads_alike() -> None:
    budget = Budget(energy="25%", size="2 MB")
    assert (
        budget
        == Budget.parse("energy<=25%, size<=2 MB")
        == Budget.parse("size <= 2MB,energy<=0.25")
    )
    assert budget == Budget.parse({"size": 2_000_000, "energy": 0.25}) == Budget.parse(budget)
    assert hash(budget) == hash(Budget(size="2000 kB", energy=0.25))
    assert pickle.loads(pickle.dumps(budget)) == budget
    assert str(budget) == "energy<=25%, size<=2 MB"
    assert [limit.key for limit in budget] == ["energy", "size"]
    assert len(budget) == 2
    assert budget.get("size") == Limit("size", Fraction(2_000_000), "B")
    assert budget.get("ram") is None


def test_shares_are_exact() -> None:
    # In floating point 0.1 * 61470 is 6147.000000000001 and 0.29 * 100 is 28.999999999999996.
    assert only(Budget(nonzeros="10%")).resolve(61_470) == 6147
    assert only(Budget(nonzeros=0.29)).resolve(100) == 29
    assert only(Budget(nonzeros=np.float64(0.1))) == only(Budget(nonzeros=0.1))
    assert only(Budget(energy="25%")).resolve(27_445_303_656) == 6_861_325_914
    assert only(Budget(energy=1.0)).resolve(7) == only(Budget(energy="100%")).resolve(7) == 7


@pytest.mark.parametrize(
    ("text", "unit", "absolute"),
    [
        ("energy<=20G", "MAC", 20 * 10**9),
        ("energy<=1 MAC", "MAC", 1),
        ("energy<=1.5 GMACs", "MAC", 1_500_000_000),
        ("size<=40 kB", "B", 40_000),
        ("archive<=1 KiB", "B", 1024),
        ("ram<=1.9 B", "B", 1),
        ("weight_bits<=2 Mbit", "bit", 2_000_000),
        ("weight_bits<=2 kB", "bit", 16_000),
        ("nonzeros<=20k", "weight", 20_000),
        ("nonzeros<=1 weight", "weight", 1),
        ("params<=7", "param", 7),
        ("macs<=1.5G", "MAC", 1_500_000_000),
        ("sparse_macs<=5M", "MAC", 5_000_000),
        ("sparse_macs<=2.5 kMACs", "MAC", 2500),
        ("latency<=3 ms", "s", 0.003),
        ("latency<=500us", "s", 0.0005),
    ],
)
def test_absolute_limits(text: str, unit: str, absolute: float) -> None:
    limit = only(Budget.parse(text))
    assert (limit.unit, limit.relative, limit.resolve()) == (unit, False, absolute)
    assert only(Budget.parse(str(limit))) == limit


def test_integers_are_absolute() -> None:
    assert only(Budget(size=40_000)).resolve() == 40_000
    assert only(Budget(macs=np.int64(5))).resolve() == 5
    assert only(Budget(nonzeros="25")).resolve() == 25


def test_sparsity_is_a_limit_on_nonzeros() -> None:
    for budget in (
        Budget.parse("sparsity>=90%"),
        Budget.parse("sparsity >= 0.9"),
        Budget(sparsity=0.9),
        Budget.parse({"sparsity": "90%"}),
    ):
        assert budget == Budget(nonzeros="10%")
    assert only(Budget(sparsity=0.9)).resolve(61_470) == 6147


def test_macs_and_sparse_macs_are_two_limits() -> None:
    budget = Budget.parse("latency<=1 ms, sparse_macs<=10%, macs<=50%")
    assert [limit.key for limit in budget] == ["macs", "sparse_macs", "latency"]
    assert str(budget) == "macs<=50%, sparse_macs<=10%, latency<=1 ms"
    assert budget.get("sparse_macs") == only(Budget(sparse_macs=0.1))
    assert only(Budget(sparse_macs="10%")).resolve(416_529) == 41_652


def test_latency_may_be_relative() -> None:
    limit = only(Budget(latency="50%"))
    assert limit.resolve(0.004) == 0.002
    assert isinstance(limit.resolve(0.004), float)


def test_joules_need_a_profile_that_knows_them() -> None:
    limit = only(Budget(energy="3 mJ"))
    assert str(limit) == "energy<=3 mJ"
    assert limit.resolve(hardware=Hardware("chip", joules_per_mac=1e-12)) == 3 * 10**9
    with pytest.raises(BudgetError, match=r"energy<=3 mJ is in joules, but profile 'eyeriss'"):
        limit.resolve(hardware=EYERISS)
    with pytest.raises(BudgetError, match="no hardware profile"):
        limit.resolve()


@pytest.mark.parametrize("base", [None, float("nan"), -1])
def test_shares_need_a_base(base: float | None) -> None:
    with pytest.raises(BudgetError, match="relative to the original, whose energy is"):
        only(Budget(energy=0.5)).resolve(base)


@pytest.mark.parametrize("key", list(MEASURES))
def test_one_has_two_readings_and_both_are_shown(key: str) -> None:
    word = MEASURES[key].unit
    for one in ({key: 1}, {key: "1"}, f"{key}<=1"):
        with pytest.raises(BudgetError) as error:
            Budget.parse(one)
        assert f'{key}="100%" (or 1.0)' in str(error.value)
        assert f'{key}="1 {word}"' in str(error.value)
    # What the message proposes is understood.
    assert only(Budget(**{key: "100%"})) == only(Budget(**{key: 1.0}))
    one_unit = only(Budget(**{key: f"1 {word}"}))
    assert (one_unit.value, one_unit.unit) == (1, word)
    assert only(Budget.parse(str(one_unit))) == one_unit


@pytest.mark.parametrize(
    ("quantity", "converted"),
    [
        ("2G", "macs<=1 GMAC"),
        ("3 GFLOPs", "macs<=1.5 GMAC"),
        ("50%", "macs<=50%"),
        (0.5, "macs<=50%"),
        (6, "macs<=3 MAC"),
        (1, "macs<=50%"),
        ("much", "macs<=50%"),
    ],
)
def test_flops_are_converted_in_the_error(quantity, converted: str) -> None:
    with pytest.raises(BudgetError, match="1 MAC = 2 FLOPs") as error:
        Budget(flops=quantity)
    assert f'"{converted}"' in str(error.value)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("", "the budget is empty"),
        ({}, "the budget is empty"),
        ("energy", "cannot read 'energy'"),
        ("energy=25%", r'cannot read .*Write "energy<=25%"'),
        ("energy<25%", "cannot read"),
        ("energy: 25%", "cannot read"),
        ("<=25%", "cannot read"),
        ("energy<=", "cannot read"),
        ("energy<=25%,", "cannot read ''"),
        ("energy>=25%", r'wrong direction. Write "energy<=25%"'),
        ("sparsity<=90%", "wrong direction.*sparsity>=90%"),
        ("sparsity>=100%", "not a share between 0 and 100%"),
        ("sparsity>=0%", "not a share"),
        ("sparsity>=90", "not a share"),
        ({"sparsity": 1}, "not a share"),
        ({"sparsity": None}, "not a share"),
        ("energy<=25%, energy<=20%", "two limits on energy: energy<=25% and energy<=20%"),
        ("nonzeros<=25%, sparsity>=90%", "two limits on nonzeros"),
        ({"enrgy": 0.5}, "unknown key 'enrgy'. Did you mean energy.*Known keys: energy, size"),
        ({3: 0.5}, "unknown key '3'"),
        ("sparse_mac<=10%", "Did you mean sparse_macs"),
        ("sparse_macs>=10%", r'wrong direction. Write "sparse_macs<=10%"'),
        ("sparse_macs<=10% x 3 bit", "a share at 3 bits"),
        ("sparse_macs<=5 MB", "unknown unit 'MB'"),
        ({"energy": 1.5}, "energy: 1.5 is a share above 1"),
        ("energy<=150%", "1.5 is a share above 1"),
        ({"energy": 0}, "energy: a limit of 0 leaves nothing"),
        ("size<=0 kB", "a limit of 0 leaves nothing"),
        ("size<=0.5 B", "a limit of 0 leaves nothing"),
        ({"energy": 0.0}, "a limit of 0 leaves nothing"),
        ({"energy": -3}, "a limit of -3 leaves nothing"),
        ("energy<=-5%", "leaves nothing"),
        ({"latency": -3}, "leaves nothing"),
        ({"energy": float("nan")}, "nan is not a limit"),
        ({"energy": float("inf")}, "inf is not a limit"),
        ({"energy": True}, "True is not a limit"),
        ({"energy": None}, "None is not a limit"),
        ({"energy": [0.5]}, "is not a limit"),
        ({"energy": "a lot"}, "energy: 'a lot' is not a number with a unit"),
        ({"size": "2 KB"}, '"kB" for 1000 bytes or "KiB" for 1024 bytes'),
        ({"size": "2 J"}, "unknown unit 'J'"),
        ({"energy": "2 MJ"}, "Did you mean mJ"),
        ({"latency": 3}, "3 has no unit.*3 ms"),
        ({"latency": "3 MS"}, "Did you mean ms"),
        (0.25, "float is not a budget"),
        (None, "NoneType is not a budget"),
    ],
)
def test_budgets_that_cannot_be_read(budget, message: str) -> None:
    with pytest.raises(BudgetError, match=message) as error:
        Budget.parse(budget)
    assert isinstance(error.value, (ArgumentError, ValueError))
    assert error.value.remedy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("energy", Fraction(1, 3)), "no finite decimal form"),
        (("energy", Fraction(1, 2), "B"), "'B' is not a unit of this limit"),
        (("size", Fraction(1, 2), "B"), "1/2 is not a whole number of B"),
        (("speed", Fraction(1, 2)), "unknown key"),
    ],
)
def test_impossible_limits(arguments: tuple, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Limit(*arguments)


def limits(key: str) -> st.SearchStrategy[Limit]:
    shares = st.integers(1, 10**6).map(lambda n: Limit(key, Fraction(n, 10**6)))
    whole = st.integers(1, 10**13).map(lambda n: Limit(key, Fraction(n), MEASURES[key].unit))
    tiny = st.integers(1, 10**9).map(lambda n: Limit("energy", Fraction(n, 10**9), "J"))
    return shares | whole | tiny if key == "energy" else shares | whole


@pytest.mark.slow
@given(st.sets(st.sampled_from(list(MEASURES)), min_size=1), st.data())
def test_text_and_dict_read_back(keys: set[str], data: st.DataObject) -> None:
    budget = Budget.from_limits(data.draw(limits(key)) for key in keys)
    assert Budget.parse(str(budget)) == budget
    assert Budget.from_dict(budget.to_dict()) == budget


@given(st.integers(1, 10**6), st.integers(0, 10**15))
def test_resolved_share_is_the_largest_integer_below_it(millionths: int, base: int) -> None:
    found = Limit("nonzeros", Fraction(millionths, 10**6)).resolve(base)
    assert isinstance(found, int)
    assert found * 10**6 <= millionths * base < (found + 1) * 10**6
