"""Rules as data: a way to rewire is a row of policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from energy_model.errors import ArgumentError
from passes.dynamic.policies import (
    Allocate,
    AtRandom,
    BelowThreshold,
    ByGradient,
    BySurvivors,
    Drop,
    Grow,
    SameSite,
    SmallestOfAll,
    SmallestOfEach,
)
from passes.dynamic.schedule import Schedule

Start = Literal["uniform", "er", "erk", "dense"]
Need = Literal["gradients"]


@dataclass(frozen=True)
class Rule:
    """A way to train sparse.

    Attributes:
        name: As users write it.
        start: Law of the first masks.
        schedule: When and how much is rewired; `None` never.
        drop: What is dropped; `None` nothing.
        allocate: Which sites get it back.
        grow: Where they grow; `None` nowhere, so that every drop is for good.
        just_dropped: What was just dropped may be chosen again, and then keeps its value and its
            state in the optimizer.
        needs: What the policies read beside values.
        threshold: Of the first event, for drops below a threshold.
    """

    name: str
    start: Start = "erk"
    schedule: Schedule | None = None
    drop: Drop | None = None
    allocate: Allocate = field(default_factory=SameSite)
    grow: Grow | None = None
    just_dropped: bool = False
    needs: frozenset[Need] = frozenset()
    threshold: float = 1e-3

    def __post_init__(self) -> None:
        if (self.schedule is None) != (self.drop is None):
            raise ArgumentError(
                "a schedule and a drop belong together",
                where=f"rule {self.name!r}",
                remedy="Give both, or none for masks that never change.",
            )


_RIGL = Schedule(every=100, share=0.3, decay="cosine", stop_share=0.75)

RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("static", start="uniform"),
        # Mocanu et al., Nature Communications 2018.
        Rule(
            "set",
            start="er",
            schedule=Schedule(every=1, unit="epochs", share=0.3),
            drop=SmallestOfEach(by_sign=True),
            grow=AtRandom(),
        ),
        # Mostafa and Wang, ICML 2019, with their controller and exactly.
        Rule(
            "dsr",
            start="uniform",
            schedule=Schedule(every=100, share=0.1),
            drop=BelowThreshold(),
            allocate=BySurvivors(),
            grow=AtRandom(),
        ),
        Rule(
            "dsr_exact",
            start="uniform",
            schedule=Schedule(every=100, share=0.1),
            drop=SmallestOfAll(),
            allocate=BySurvivors(),
            grow=AtRandom(),
        ),
        # Evci et al., ICML 2020.
        Rule(
            "rigl",
            schedule=_RIGL,
            drop=SmallestOfEach(),
            grow=ByGradient(),
            just_dropped=True,
            needs=frozenset({"gradients"}),
        ),
        Rule(
            "dsr_plus",
            schedule=_RIGL,
            drop=SmallestOfAll(),
            allocate=BySurvivors(),
            grow=ByGradient(),
            needs=frozenset({"gradients"}),
        ),
    )
}
