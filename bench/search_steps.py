"""What a step costs while keep-states are searched, and after that: all against a plain step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from bench.dynamic_training import Batch
from bench.search_sizes import (
    BUDGET,
    COMPACT_TARGET,
    ISING_TARGET,
    MARGIN_TARGET,
    RUN_TARGET,
    TIGHT,
    SearchSizes,
)
from bench.search_training import LONG, SearchTraining, macs_of
from bench.speed.ratio import Check, Outcome, Ratio
from bench.speed.rounds import Settings, Turn, clocked, interleave
from passes.methods.ising.method import FALL, refresh_steps

_TARGETS = {"margin": MARGIN_TARGET, "ising": ISING_TARGET}
_TOLD = {"margin": "margin energy", "ising": "Ising energy"}


@dataclass(frozen=True, slots=True)
class _Case:
    """What is searched.

    Attributes:
        energy: The energy.
        budget: The budget.
        multiple: Of which channel counts are multiples.
    """

    energy: str
    budget: str
    multiple: int | None = None

    def __str__(self) -> str:
        widths = "" if self.multiple is None else f", widths in multiples of {self.multiple}"
        return f"{_TOLD[self.energy]}, {self.budget}{widths}"


# Runtimes compute whole vectors of channels: at odd widths a small network gains little time.
_CASES = (
    _Case("margin", BUDGET),
    _Case("margin", BUDGET, multiple=8),
    _Case("margin", TIGHT),
    _Case("ising", BUDGET),
)


@dataclass(slots=True)
class _Searched:
    """A search that goes on, and a network whose search is over.

    Attributes:
        case: What is searched.
        training: Searches as long as it is measured.
        once: What a run pays once, in seconds: planning, the first population, the first step with
            its choice of a back end, and the step that cuts the network.
        compact: The network that is left.
    """

    case: _Case
    training: SearchTraining
    once: float
    compact: SearchTraining


def measure_steps(sizes: SearchSizes, settings: Settings) -> Outcome:
    """A search step, a step of the small network, and the whole run, by energy and budget."""
    data = sizes.task.batches(2)
    plain = SearchTraining(sizes.task.subject.model(), data)
    found = [_searched(sizes, data, case) for case in _CASES]
    turns = [clocked(partial(plain.steps, sizes.steps))]
    for one in found:
        turns += _turns(one, sizes)
    interleave(turns, 1)  # the first steps allocate memory and prepare kernels
    rounds = interleave(turns, settings.rounds)
    ratios: list[Ratio] = []
    for place, one in enumerate(found):
        ratios += _ratios(sizes, one, [_picked(row, place, sizes) for row in rounds])
    return Outcome(tuple(ratios), tuple(_still(one) for one in found))


def _searched(sizes: SearchSizes, data: list[Batch], case: _Case) -> _Searched:
    config = sizes.search(case.energy, case.multiple)
    training = SearchTraining(sizes.task.subject.model(), data, config, case.budget, LONG)
    # The budget falls, and then stays: the moment when it has fallen as far as in the mean.
    training.number = round(LONG * config.search_share * FALL * (1 - FALL / 2))
    first = clocked(training.step)()
    # Its search takes two steps; the first of them chooses the back end.
    compact = SearchTraining(sizes.task.subject.model(), data, config, case.budget, 8)
    compact.step()
    last = clocked(compact.step)()
    return _Searched(case, training, training.begin_seconds + first + last, compact)


def _turns(one: _Searched, sizes: SearchSizes) -> list[Turn]:
    """Steps of the search, the step at which couplings follow the weights, and small steps."""
    return [
        clocked(partial(one.training.steps, sizes.steps)),
        clocked(partial(_refreshing, one.training)),
        clocked(partial(one.compact.steps, sizes.steps)),
    ]


def _refreshing(training: SearchTraining) -> None:
    """A step that is taken for the first one at which couplings and importances follow."""
    number = training.number
    training.step(training.method.config.refresh)
    training.number = number


def _picked(
    row: tuple[float, ...], place: int, sizes: SearchSizes
) -> tuple[float, float, float, float]:
    """Seconds of one plain step, search step, refreshing step and small step."""
    search, refreshing, small = row[1 + 3 * place : 4 + 3 * place]
    return row[0] / sizes.steps, search / sizes.steps, refreshing, small / sizes.steps


def _ratios(
    sizes: SearchSizes,
    one: _Searched,
    rounds: list[tuple[float, float, float, float]],
) -> list[Ratio]:
    config = one.training.method.config
    share, count = config.search_share, sizes.run_steps
    every = refresh_steps(config, round(share * count))
    steps, runs, small = [], [], []
    for plain, search, refreshing, compact in rounds:
        mean = ((every - 1) * search + refreshing) / every
        whole = one.once + count * (share * mean + (1 - share) * compact)
        steps.append((mean, plain))
        small.append((compact, plain))
        runs.append((whole, count * plain))
    left = macs_of(one.compact.graph) / one.compact.macs
    task = f"{sizes.task.name}, {sizes.task.images}, {sizes.states} states"
    name = f"{task}, {one.case}"
    run = f"the whole run of {count} steps, {share:.0%} of them search"
    return [
        Ratio(f"{name}: a search step", "a plain step", _TARGETS[one.case.energy], tuple(steps)),
        Ratio(
            f"a step after the commit, {left:.1%} of the MACs",
            "a plain step",
            COMPACT_TARGET,
            tuple(small),
        ),
        Ratio(run, "as many plain steps", RUN_TARGET, tuple(runs)),
    ]


def _still(one: _Searched) -> Check:
    """That what was timed was a search that went on, and a network that was cut."""
    told = one.training.method.report().get("search", {})
    holds = one.training.searching and not one.compact.searching
    detail = f"{told.get('generation', 0)} generations, by {told.get('compared_by') or 'couplings'}"
    if "diversity" in told:
        detail += f", states differ in {told['diversity']:.0%} of the nodes"
    return Check(
        f"{one.case}: the search went on, and ended in the cut network",
        holds,
        detail,
    )
