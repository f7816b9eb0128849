"""Rules as data: a way to rewire is a row of policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from energy_model.errors import ArgumentError
from passes.dynamic.policies import (
    Allocate,
    AtRandom,
    BelowThreshold,
    ByGradient,
    BySurvivors,
    DownToTarget,
    Drop,
    Grow,
    SameSite,
    SmallestOfAll,
    SmallestOfEach,
)
from passes.dynamic.pruning_steps import PruningSteps
from passes.dynamic.schedule import Schedule

Start = Literal["uniform", "er", "erk"]
Need = Literal["gradients"]
NewValues = Literal["zero", "normal"]


@dataclass(frozen=True)
class Rule:
    """A way to train sparse.

    Attributes:
        name: As users write it.
        start: Law of how many cells every tensor has at first; with `prune`, in the end.
        schedule: When and how much is rewired; or
        prune: when a dense start is pruned to the budget. Neither: masks never change.
        drop: What is dropped; `None` nothing.
        allocate: Which sites get it back.
        grow: Where they grow; `None` nowhere, so that every drop is for good.
        just_dropped: What was just dropped may be chosen again, and then keeps its value and its
            state in the optimizer.
        needs: What the policies read beside values.
        threshold: Of the first event, for drops below a threshold.
        new_values: Of what grows: `"zero"` leaves the function of the network as it is;
            `"normal"` draws N(0, 2 / (outputs x kernel)), for linear layers N(0, 1 / inputs).
    """

    name: str
    start: Start = "erk"
    schedule: Schedule | None = None
    prune: PruningSteps | None = None
    drop: Drop | None = None
    allocate: Allocate = field(default_factory=SameSite)
    grow: Grow | None = None
    just_dropped: bool = False
    needs: frozenset[Need] = frozenset()
    threshold: float = 1e-3
    new_values: NewValues = "zero"

    def __post_init__(self) -> None:
        timed = [when for when in (self.schedule, self.prune) if when is not None]
        if len(timed) != (self.drop is not None) or (self.prune and self.grow):
            raise ArgumentError(
                "a drop belongs to a schedule or to prunes, and what is pruned does not grow",
                where=f"rule {self.name!r}",
                remedy="Give a drop and a schedule, a drop and prune, or none of them.",
            )


_RIGL = Schedule(every=100, share=0.3, decay="cosine", stop_share=0.75)
_ROWS = (
    Rule("static", start="uniform"),
    # Zhu and Gupta, ICLR workshops 2018; `PruningSteps(form="exponential")` is the other law.
    Rule("gradual", start="uniform", prune=PruningSteps(), drop=DownToTarget()),
    # Mocanu et al., Nature Communications 2018.
    Rule(
        "set",
        start="er",
        schedule=Schedule(every=1, unit="epochs", share=0.3),
        drop=SmallestOfEach(by_sign=True),
        grow=AtRandom(),
    ),
    # The same as Mostafa and Wang, ICML 2019, compare with.
    Rule(
        "set_uniform",
        start="uniform",
        schedule=Schedule(every=100, share=0.1),
        drop=SmallestOfEach(),
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
RULES: Mapping[str, Rule] = MappingProxyType({rule.name: rule for rule in _ROWS})
