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
    SignChanged,
    SmallestOfAll,
    SmallestOfEach,
)
from passes.dynamic.pruning_steps import PruningSteps
from passes.dynamic.schedule import Schedule
from passes.dynamic.walk import Walk

Start = Literal["uniform", "er", "erk"]
Need = Literal["gradients", "signs"]
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
            state in the optimizer. With `walk` it starts anew like any other.
        needs: What the policies read beside values.
        threshold: Of the first event, for drops below a threshold.
        new_values: Of what grows: `"zero"` leaves the function of the network as it is;
            `"normal"` draws N(0, 2 / (outputs x kernel)), for linear layers N(0, 1 / inputs).
        walk: How active connections move at random until the schedule stops; `None`: they do not.
            Then cells are single weights, and grow at zero.
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
    walk: Walk | None = None

    def __post_init__(self) -> None:
        timed = [when for when in (self.schedule, self.prune) if when is not None]
        if len(timed) != (self.drop is not None) or (self.prune and self.grow):
            raise ArgumentError(
                "a drop belongs to a schedule or to prunes, and what is pruned does not grow",
                where=f"rule {self.name!r}",
                remedy="Give a drop and a schedule, a drop and prune, or none of them.",
            )
        walks = self.walk is not None
        if walks and (self.schedule is None or self.new_values != "zero"):
            raise ArgumentError(
                "what walks does so by a schedule, and grows at zero",
                where=f"rule {self.name!r}",
                remedy="Give a schedule, and new_values='zero'.",
            )
        if "signs" in self.needs and not walks:
            raise ArgumentError(
                "only connections that walk have signs",
                where=f"rule {self.name!r}",
                remedy="Give a walk.",
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
    # Bellec et al., ICLR 2018; the walk of Mostafa and Wang is in `Walk`.
    Rule(
        "deepr",
        start="uniform",
        schedule=Schedule(every=1, step_zero=True),
        drop=SignChanged(),
        grow=AtRandom(),
        just_dropped=True,
        needs=frozenset({"signs"}),
        walk=Walk(),
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
    # What won where these were compared at equal budgets: ERK at first, drops by what the loss
    # would feel, growth where its gradient is, and little flow between layers.
    Rule(
        "dsr_plus",
        schedule=_RIGL,
        drop=SmallestOfAll("saliency"),
        allocate=BySurvivors(damping=0.1),
        grow=ByGradient(),
        just_dropped=True,
        needs=frozenset({"gradients"}),
    ),
)
RULES: Mapping[str, Rule] = MappingProxyType({rule.name: rule for rule in _ROWS})
