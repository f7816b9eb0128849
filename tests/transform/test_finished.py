"""What is said of a model that has lost its dead channels."""

from __future__ import annotations

import pytest

from passes.graph import Decision
from passes.rewrite.dead_structure import REMOVED
from transform.certificate import Certificate, CertificateRow, Source
from transform.finished import unspent

DEAD = [Decision("conv", REMOVED, "3 always zero")]


def certificate(*used):
    rows = [
        CertificateRow("energy", "energy<=25%", 400, 100, reached, "MAC", "exact", "model", "m", "")
        for reached in used
    ]
    return Certificate(tuple(rows), Source("model", ""), None, {})


@pytest.mark.parametrize(
    ("used", "told"),
    [((94,), "94 of 100"), ((20, 60), "60 of 100"), ((95,), ""), ((20, 100), ""), ((), "")],
)
def test_a_budget_that_the_dead_have_left_unused_is_told(used, told):
    found = unspent(certificate(*used), DEAD)
    assert [decision.what for decision in found] == (
        [f"the budget is not used up: {told}"] if told else []
    )


def test_nothing_is_told_where_nothing_was_dead():
    assert unspent(certificate(10), [Decision("", "one shot", "no data")]) == []
