"""What a rewiring event costs: against the training steps around it, and against a sort."""

from __future__ import annotations

from functools import partial

import torch

from bench.dynamic_sizes import DENSITY, PERIOD, REWIRING_TARGET, SELECTION_TARGET, STATED, Sizes
from bench.dynamic_training import Training
from bench.speed.ratio import Check, Outcome, Ratio
from bench.speed.rounds import Settings, Turn, clocked, interleave, over_first
from passes.dynamic.drop import smallest_of_all
from passes.dynamic.registry import find_rule

_SHARE = 0.1


def measure_rewiring(sizes: Sizes, settings: Settings) -> Outcome:
    """A step with its share of an event, gradients gathered for it, over a masked step."""
    task = sizes.large
    training = Training(task, task.batches(2), find_rule("dsr_plus"), DENSITY)
    before = sum(training.rewires.counts())
    _rewiring_round(training)  # the first steps allocate memory and prepare kernels
    found = [_rewiring_round(training, late=bool(i % 2)) for i in range(settings.rounds)]
    spread = tuple(
        (((PERIOD - 1) * plain + gathering + event) / PERIOD, plain)
        for plain, gathering, event in found
    )
    name, base = f"{task.name}, {task.images}", "a masked step"
    return Outcome(
        (
            Ratio(f"{name}: a step, events every {PERIOD}", base, REWIRING_TARGET, spread),
            Ratio("a step that gathers dense gradients", base, STATED, over_first(found, 1)),
            Ratio("an event, rule dsr_plus", base, STATED, over_first(found, 2)),
        ),
        (_conserved(training, before, settings.rounds + 1),),
    )


def _rewiring_round(training: Training, *, late: bool = False) -> tuple[float, float, float]:
    """Seconds of a masked step, of one that gathers gradients, and of the event after that.

    The first of them is taken last if `late`.
    """

    def timed(number: int) -> float:
        training.begin(number)
        return clocked(training.gradient_step)()

    plain = 0.0 if late else timed(1)
    gathering, event = timed(PERIOD), clocked(training.rewire)()
    return timed(1) if late else plain, gathering, event


def _conserved(training: Training, before: int, events: int) -> Check:
    """That what was timed were events, and that they kept the number of active weights."""
    engine = training.rewires
    after, total = sum(engine.counts()), sum(m.shape.parameters for m in engine.members)
    return Check(
        f"{events} events keep {before:,} of {total:,} sparse weights",
        before == after and engine.events == events,
        f"{after:,} after {engine.events}",
    )


def measure_selection(sizes: Sizes, settings: Settings) -> Outcome:
    """The exact drop of a tenth of the active weights, and its event, over a sort of all weights.

    A sort of many zeros is faster than one of different numbers: it is measured with both.
    """
    task = sizes.large.small()
    training = Training(task, task.batches(2), find_rule("dsr_exact"), DENSITY)
    training.steps(1)  # the optimizer has a state that events must change
    engine = training.rewires
    masks = [engine.mask(member) for member in engine.members]
    weights = [training.graph.weight(member.site).reshape(-1) for member in engine.members]
    magnitudes = [weight.abs() for weight in weights]
    active = sum(engine.counts())
    select = partial(smallest_of_all, magnitudes, masks, round(_SHARE * active))
    stored = torch.cat(magnitudes)
    different = torch.rand(stored.shape, generator=torch.Generator().manual_seed(0))
    sorts = [clocked(partial(torch.sort, values)) for values in (stored, different)]
    own: list[Turn] = [clocked(select), partial(_event, training)]
    interleave(own, 1)
    rounds = interleave([*sorts, *own], settings.rounds)
    dropped = sum(int(drop.sum()) for drop in select())
    name = f"{task.name}: exact selection of {_SHARE:.0%} of {active:,} active weights"
    zeros = f"torch.sort of all {stored.numel():,} magnitudes, {1 - DENSITY:.0%} of them 0"
    others = "torch.sort of as many different numbers"
    of_selection = tuple((seconds[2], seconds[1]) for seconds in rounds)
    exact = Check("the selection is exact", dropped == round(_SHARE * active), f"{dropped:,}")
    return Outcome(
        (
            Ratio(name, zeros, SELECTION_TARGET, over_first(rounds, 2)),
            Ratio("the same", others, STATED, of_selection),
            Ratio("its whole event, rule dsr_exact", zeros, STATED, over_first(rounds, 3)),
        ),
        (exact, _conserved(training, active, settings.rounds + 1)),
    )


def _event(training: Training) -> float:
    """Seconds of an event; without a step before, it would find what the last one grew at zero."""
    training.begin(1)
    training.gradient_step()
    training.begin(PERIOD)
    return clocked(training.rewire)()
