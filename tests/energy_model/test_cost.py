from __future__ import annotations

import json
from dataclasses import replace

import pytest
from oracle_networks import ORACLE, parse_shape

from energy_model.cost import Cost, CostTable
from energy_model.energy import Energy, layer_energy
from energy_model.errors import ArgumentError
from energy_model.hardware import Hardware, load_hardware
from energy_model.widths import Widths

EYERISS = load_hardware("eyeriss")


def network(name: str, hardware: Hardware = EYERISS) -> CostTable:
    rows = []
    for row in ORACLE[name]["dense"]:
        shape = parse_shape(row["shape"])
        energy = layer_energy(shape, hardware)
        rows.append(
            Cost(
                name=row["name"],
                macs=shape.macs,
                weights=shape.weights,
                nonzeros=shape.weights,
                bits=32,
                energy=energy,
                floor=energy.activations,
                dense=energy.relaxed,
                shape=str(shape),
            )
        )
    return CostTable(tuple(rows), hardware)


def test_total_of_the_published_network() -> None:
    total = network("alexnet").total
    assert (total.name, total.weights, total.bits) == ("total", 61_090_496, 32)
    assert (total.energy.exact, total.energy.relaxed) == (27_276_494_376, 27_445_303_656)
    assert (total.floor, total.dense) == (1_124_577_768, 27_445_303_656)
    # The published share of a network whose weights are all zero.
    assert f"{total.floor / total.dense:.2%}" == "4.10%"


def test_rows_by_name() -> None:
    table = network("lenet5")
    assert table["classifier.2"].weights == 10_080
    assert [row.name for row in table] == [row.name for row in table.rows]
    assert len(table) == 5
    with pytest.raises(ArgumentError, match=r"no layer is named 'classifier.3'. Did you mean clas"):
        table["classifier.3"]


def test_two_rows_of_one_name() -> None:
    row = network("lenet5").rows[0]
    with pytest.raises(ArgumentError, match="several rows are named features"):
        CostTable((row, row), EYERISS)


def test_bits_of_unlike_rows_are_the_mean_over_nonzeros() -> None:
    row = Cost("a", 1, 100, 30, 2, Energy.zero(), 0, 0)
    other = replace(row, name="b", nonzeros=10, bits=8)
    assert Cost.total([row, other]).bits == (30 * 2 + 10 * 8) / 40
    assert Cost.total([row, row]).bits == 2
    assert isinstance(Cost.total([row, row]).bits, int)
    empty = [replace(row, nonzeros=0), replace(other, nonzeros=0, weights=300)]
    assert Cost.total(empty).bits == (100 * 2 + 300 * 8) / 400
    assert Cost.total([replace(cost, weights=0) for cost in empty]).bits == 0


def test_no_rows_cost_nothing() -> None:
    table = CostTable((), EYERISS)
    assert table.total == Cost("total", 0, 0, 0, 0, Energy.zero(), 0, 0)
    assert "total" in str(table)


def test_round_trip_through_json() -> None:
    table = network("lenet5", EYERISS.replace(index_bits=4))
    values = json.loads(json.dumps(table.to_dict()))
    assert values["total"]["energy"]["exact"] == table.total.energy.exact
    assert CostTable.from_dict(values) == table
    assert Cost.from_dict(values["total"]) == table.total


def test_tables_of_before_there_were_widths() -> None:
    table = network("lenet5")
    values = table.to_dict()
    for row in (*values["rows"], values["total"]):
        del row["charged"], row["widths"]
    assert CostTable.from_dict(values) == table
    assert "32/16" in str(CostTable.from_dict(values))


def test_stored_and_charged_bits() -> None:
    first, *_ = network("lenet5").rows
    narrow = replace(first, bits=4, charged=4, widths=Widths(4, 8, 8), nonzeros=30)
    other = replace(first, name="b", bits=32, charged=16, nonzeros=10)
    table = CostTable((narrow, other), EYERISS)
    assert CostTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    assert table.to_dict()["rows"][0]["widths"] == {"weights": 4, "inputs": 8, "outputs": 8}
    assert (table.total.bits, table.total.charged) == (11, 7)
    assert table.total.widths == Widths()
    lines = [line.split() for line in str(table).splitlines()]
    assert [line[5] for line in lines if line[:1] == [first.name]] == ["4/4"]
    assert [line[5] for line in lines if line[:1] == ["b"]] == ["32/16"]
    assert "11/7" in str(table)
    assert "stored/charged" in str(table)
    # One row that does not say leaves the sum unsaid.
    unsaid = replace(other, name="c", charged=None)
    assert CostTable((narrow, unsaid), EYERISS).total.charged is None


def test_rows_of_narrow_operands_add_exactly() -> None:
    energy = Energy(0.5, 0.25, 0.5, 1.75)
    row = Cost("a", 1, 1, 1, 8, energy, 1.75, 3, charged=8)
    total = Cost.total([row, replace(row, name="b")])
    assert (total.floor, total.energy.relaxed, total.dense) == (3.5, 5.5, 6)
    four = Cost.total([total, total])
    assert isinstance(four.floor, int)
    assert Cost.from_dict(json.loads(json.dumps(total.to_dict()))) == total


def test_joules_are_printed_where_they_are_known() -> None:
    table = network("lenet5", load_hardware("horowitz"))
    text = str(table)
    joules = table.total.energy.relaxed * 1e-14
    assert f"({table.total.energy.exact * 1e-14 * 1e6:.4g} uJ, {joules * 1e6:.4g} uJ)" in text
    assert "multiples of 10 fJ, per sample; hardware horowitz" in text
    assert table.to_dict()["unit"] == "multiples of 10 fJ"
    assert max(map(len, text.splitlines())) <= 110
    assert all("uJ" in line for line in text.splitlines() if line.startswith("features."))
    assert "J" not in str(network("lenet5")).replace("JSON", "")


@pytest.mark.parametrize("part", ["rows", "hardware"])
def test_table_that_lacks_a_part(part: str) -> None:
    values = network("lenet5").to_dict()
    del values[part]
    with pytest.raises(ArgumentError, match=f"lacks {part}"):
        CostTable.from_dict(values)


@pytest.mark.parametrize(
    "change", [{"speed": 3}, {"energy": None}, {"widths": {"depth": 3}}, {"widths": {"inputs": 0}}]
)
def test_row_that_cannot_be_read(change: dict) -> None:
    with pytest.raises(ArgumentError, match=r"not a cost|inputs of 0 bits"):
        Cost.from_dict({**network("lenet5").rows[0].to_dict(), **change})


def test_printed_table() -> None:
    text = str(network("alexnet"))
    lines = text.splitlines()
    assert repr(network("alexnet")) == text
    assert "\x1b" not in text
    assert max(map(len, lines)) <= 110
    (row,) = [line for line in lines if line.startswith("features.3 ")]
    assert row.split() == [
        *("features.3", "64x27x27>192", "k5", "p2", "307.2k", "100.0%", "32/16"),
        *("14.7", "2.4", "1.2", "4.98G", "5.038G", "18.4%"),
    ]
    (total,) = [line for line in lines if line.startswith("total ") and "exact" not in line]
    assert total.split() == [
        *("total", "61.09M", "100.0%", "32/16", "88.1", "7.8", "4.1", "27.28G", "27.45G", "100.0%")
    ]
    assert "exact 27,276,494,376, relaxed 27,445,303,656" in text
    assert "multiples of one MAC's energy" in text
    assert "hardware eyeriss" in text
    assert "I %" not in text


def test_printed_positions_notes_and_markup() -> None:
    table = network("lenet5", EYERISS.replace(index_bits=4))
    assert "I %" in str(table)
    first = table.rows[0]
    odd = replace(first, name="[red]x", note="2 uses", energy=replace(first.energy, fallback=True))
    text = str(CostTable((odd,), EYERISS))
    assert "[red]x" in text
    assert "2 uses; strip > cache" in " ".join(text.split())
    assert "exceed the input cache" in text
    assert "exceed" not in str(table)
