from __future__ import annotations

import json

import pytest

from passes.methods.plan import Plan, PlanRow

PLAN = Plan(
    "energy",
    (PlanRow("conv", 100, 25, "by the budget"), PlanRow("classifier", 1000, 20)),
    reached={"energy": 12345},
    allowed={"energy": 12350},
    gap=0.125,
    details={"next_charges": [7]},
)


def test_survives_json():
    assert Plan.from_dict(json.loads(json.dumps(PLAN.to_dict()))) == PLAN
    assert Plan.from_dict(Plan("empty", ()).to_dict()) == Plan("empty", ())


def test_kept():
    assert PLAN.kept == {"conv": 25, "classifier": 20}


def test_prints_a_line_per_layer_and_limit():
    title, conv, classifier, energy, gap = str(PLAN).splitlines()
    assert title == "plan of method 'energy'"
    assert conv.split() == ["conv", "keep", "25", "(", "25.00", "%)", "by", "the", "budget"]
    assert classifier.split() == ["classifier", "keep", "20", "(", "2.00", "%)"]
    assert energy.strip() == "energy: 12,345 of 12,350 allowed"
    assert gap.strip() == "optimality gap (kept squared weights): at most 0.125"


def test_claims_nothing_without_a_gap():
    assert "gap" not in str(Plan("magnitude", (PlanRow("a", 0, 0),)))


def test_is_a_value():
    with pytest.raises(AttributeError):
        PLAN.gap = 0.0
