"""Bring a structure below a limit on its latency: predict, choose, really measure, correct."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from energy_model.errors import InfeasibleBudget
from energy_model.resolved import ResolvedLimit, limit_on
from energy_model.timing import RESOLUTION, Timing, Verdict, relative_noise
from energy_model.units import format_seconds
from passes.graph import Decision, ModelGraph
from passes.rewrite.shrink import shrink
from passes.structure.costs import LATENCY
from passes.structure.groups import ChannelGroups
from passes.structure.select import Selection
from passes.structure.state import State, full_state

_TRIALS = 6
# Left free beside the noise, as the next measurement will not be the same.
_SPARE = 0.01
# Of what is aimed at; a structure that leaves no more unused is not enlarged.
_UNUSED = 0.07
# A prediction that was too low is followed by one that is lower by at least so much.
_STEP = 0.03


@dataclass(frozen=True, slots=True, eq=False)
class Timed:
    """A structure, and what its file took.

    Attributes:
        selection: The structure; its `reached` holds the predicted latency.
        timing: The measured one.
        verdict: What that says about the limit.
        trials: Files that were measured until then.
    """

    selection: Selection
    timing: Timing
    verdict: Verdict
    trials: int

    @property
    def predicted(self) -> float:
        """Seconds, as predicted."""
        return float(self.selection.reached[LATENCY])

    @property
    def reached(self) -> dict[str, float]:
        """What the structure costs, with the measured latency."""
        return {**self.selection.reached, LATENCY: self.timing.seconds}

    @property
    def details(self) -> dict[str, Any]:
        """For the plan; JSON values."""
        return {
            "predicted": self.predicted,
            "measured": self.timing.seconds,
            "spread": self.timing.spread,
            "verdict": self.verdict,
            "trials": self.trials,
        }


def told(details: dict[str, Any], limit: ResolvedLimit) -> Decision:
    """What the decisions say of a structure whose latency was fitted.

    Args:
        details: Of a `Timed`.
        limit: The limit on the latency.
    """
    verdict = details["verdict"]
    why = "the limit is met" if verdict == "met" else "undecidable within the noise"
    spread = f"the rounds vary by {details['spread']:.1%}"
    return Decision(
        "",
        "latency measured on the exported file",
        f"{why}: {format_seconds(details['measured'])}, {spread}, {limit.limit} allows "
        f"{format_seconds(limit.maximum)}; {details['trials']} structures were measured",
        f"predicted {format_seconds(details['predicted'])}",
        f"measured {format_seconds(details['measured'])}",
    )


@dataclass(frozen=True, slots=True)
class LatencyFit:
    """Chooses structures by predicted latency until one meets the limit as measured.

    Attributes:
        select: The best structure within limits, that on the latency being a predicted one; raises
            InfeasibleBudget where there is none.
        smallest: The smallest structure.
        measure: What the file of a structure takes.
    """

    select: Callable[[Sequence[ResolvedLimit]], Selection]
    smallest: Callable[[], Selection]
    measure: Callable[[State], Timing]

    def fit(self, limits: Sequence[ResolvedLimit]) -> Timed:
        """Find the structure.

        The first one is chosen with room for the noise. The measurements that follow close in on
        the limit from both sides: what is allowed next is where the last two structures say that
        the limit will be, between the largest that met it and the smallest that did not. It ends
        with a structure that leaves little unused.

        Args:
            limits: The budget, with a limit on the latency.

        Returns:
            The largest structure that was measured to meet the limit; if none was, one of which the
            noise does not let that be said.

        Raises:
            InfeasibleBudget: The smallest structure is too slow, as measured; or another limit
                cannot be met.
        """
        limit = limit_on(limits, LATENCY)
        assert limit is not None
        found: list[Timed] = []
        allowed: float | None = _aim(limit, RESOLUTION)
        while allowed is not None and len(found) < _TRIALS:
            # What is predicted of the smallest one decides nothing: its file does.
            selection = self._select(limits, allowed) or self.smallest()
            if any(_same(selection, other.selection) for other in found):
                break
            found.append(self._timed(selection, limit, len(found) + 1))
            allowed = _allowed_next(found, limit)
        return _best(found) or self._least(limit, found)

    def _select(self, limits: Sequence[ResolvedLimit], allowed: float) -> Selection | None:
        """The structure with a predicted latency, if there is one."""
        predicted = [replace(x, maximum=allowed) if x.key == LATENCY else x for x in limits]
        try:
            return self.select(predicted)
        except InfeasibleBudget as error:
            if error.limit != LATENCY:
                raise
            return None

    def _timed(self, selection: Selection, limit: ResolvedLimit, trial: int) -> Timed:
        timing = self.measure(selection.state)
        return Timed(selection, timing, timing.verdict(limit.maximum, limit.base_spread), trial)

    def _least(self, limit: ResolvedLimit, found: Sequence[Timed]) -> Timed:
        """The smallest structure, after all others were too slow."""
        smallest = self.smallest()
        known = [timed for timed in found if _same(timed.selection, smallest)]
        least = known[0] if known else self._timed(smallest, limit, len(found) + 1)
        if least.verdict != "exceeded":
            return least
        spread = f"the rounds vary by {least.timing.spread:.1%}"
        raise InfeasibleBudget(
            f"{limit.limit} allows {limit.amount(limit.maximum)}, and the file of the smallest "
            f"structure takes {limit.amount(least.timing.seconds)} as measured ({spread})",
            limit=LATENCY,
            asked=limit.maximum,
            tightest=least.timing.seconds,
            remedy="Raise the limit, lower the channel multiple or the least that layers keep, or "
            "measure on a machine with less other work.",
        )


def _aim(limit: ResolvedLimit, noise: float) -> float:
    """Seconds that leave room for the noise of the next measurement."""
    return float(limit.maximum * (1 - noise) * (1 - _SPARE))


def _allowed_next(found: Sequence[Timed], limit: ResolvedLimit) -> float | None:
    """The predicted latency that the next structure may have; `None` where there is none to try.

    Args:
        found: What was measured, in order.
        limit: The limit.
    """
    last = found[-1]
    aim = _aim(limit, relative_noise(last.timing.spread, limit.base_spread))
    if last.verdict == "met" and last.timing.seconds >= (1 - _UNUSED) * aim:
        return None
    low = max((timed.predicted for timed in found if timed.verdict == "met"), default=0.0)
    high = min((t.predicted for t in found if t.verdict != "met"), default=math.inf)
    wanted = _predicted_at(aim, found)
    if last.verdict != "met":
        wanted = min(wanted, (1 - _STEP) * high)
    if high == math.inf:
        return wanted if wanted > low else None
    if not low < (1 - _STEP) * high:
        return None
    return wanted if low < wanted < high else (low + high) / 2


def _predicted_at(seconds: float, found: Sequence[Timed]) -> float:
    """What is predicted of a structure that would take so long as measured.

    By the line through the last two measurements, or in proportion to the last one; the line is
    trusted no further than a factor of two from that.
    """
    last = found[-1]
    ratio = last.predicted * seconds / last.timing.seconds
    if len(found) == 1:
        return ratio
    rise = last.timing.seconds - found[-2].timing.seconds
    run = last.predicted - found[-2].predicted
    if rise * run <= 0:
        return ratio
    line = last.predicted + (seconds - last.timing.seconds) * run / rise
    return min(max(line, ratio / 2), 2 * ratio)


def of_cut(
    graph: ModelGraph, groups: ChannelGroups, latency: Callable[[ModelGraph], Timing]
) -> Callable[[State], Timing]:
    """Measures the file of a model without the units that a state drops.

    Args:
        graph: The traced model; only copied.
        groups: Its channel groups.
        latency: What the file of a finished model takes.
    """

    def measure(state: State) -> Timing:
        cut = copy.deepcopy(graph)
        shrink(cut, groups, {**full_state(groups), **state})
        return latency(cut)

    return measure


def _same(one: Selection, other: Selection) -> bool:
    return all(np.array_equal(keep, other.state[name]) for name, keep in one.state.items())


def _best(found: Sequence[Timed]) -> Timed | None:
    """The largest structure that meets the limit, or else one of which nobody can say."""
    for verdict in ("met", "undecidable"):
        kept = [timed for timed in found if timed.verdict == verdict]
        if kept:
            # As the last one was allowed least, it is the most certain of those nobody can decide.
            return max(kept, key=lambda t: t.predicted) if verdict == "met" else kept[-1]
    return None
