"""What training by a rule costs: steps and epochs against static masks and against dense ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bench.dynamic_sizes import DEEPR_TARGET, DENSITY, MASKED_TARGET, STATED, Sizes
from bench.dynamic_training import Training
from bench.speed.ratio import Outcome, Ratio
from bench.speed.rounds import Settings, clocked, interleave, over_first
from passes.dynamic.registry import find_rule, rules
from passes.dynamic.schedule import Clock

_DENSITIES = (0.1, 0.02)
_BATCHES = 20
_EPOCHS = 20


def measure_deepr(sizes: Sizes, settings: Settings) -> Outcome:
    """Steps of rule deepr over static ones, at two densities."""
    tasks = (
        (sizes.convolutional, sizes.convolutional_steps),
        (sizes.linear, sizes.linear_steps),
    )
    ratios = []
    for task, steps, density in ((t, n, d) for t, n in tasks for d in _DENSITIES):
        data = task.batches(_BATCHES)
        pair = [Training(task, data, find_rule(rule), density) for rule in ("static", "deepr")]
        name = f"{task.name}, {density:.0%} active: steps of rule deepr"
        ratios.append(_compared(name, "steps of rule static", DEEPR_TARGET, pair, steps, settings))
    return Outcome(tuple(ratios))


def measure_masked(sizes: Sizes, settings: Settings) -> Outcome:
    """Steps of rule static over dense ones."""
    task, steps = sizes.convolutional, sizes.convolutional_steps
    data = task.batches(_BATCHES)
    pair = [Training(task, data), Training(task, data, find_rule("static"), DENSITY)]
    name = f"{task.name}, {DENSITY:.0%} active: steps of rule static"
    return Outcome((_compared(name, "dense steps", MASKED_TARGET, pair, steps, settings),))


def _compared(
    name: str, base: str, target: float, pair: Sequence[Training], steps: int, settings: Settings
) -> Ratio:
    """So many steps of the second over those of the first."""
    turns = [clocked(partial(training.steps, steps)) for training in pair]
    interleave(turns, 1)  # the first steps allocate memory and prepare kernels
    return Ratio(name, base, target, over_first(interleave(turns, settings.rounds), 1))


def measure_rules(sizes: Sizes, settings: Settings) -> Outcome:
    """An epoch of every known rule, its events included, over a dense one."""
    task, known, density = sizes.linear, rules(), _DENSITIES[-1]
    data = task.batches(_BATCHES)
    # Rules stop after three quarters of the training at the earliest: all epochs here are before.
    clock = Clock(max(_EPOCHS, 2 * (settings.rounds + 1)), sizes.epoch)
    dense = Training(task, data)
    sparse = [Training(task, data, rule, density, clock) for rule in known.values()]
    turns = [clocked(partial(t.steps, sizes.epoch)) for t in (dense, *sparse)]
    interleave(turns, 1)
    rounds = interleave(turns, settings.rounds)
    base = f"a dense epoch of {task.name}, {sizes.epoch} steps"
    ratios = []
    for place, (name, training) in enumerate(zip(known, sparse, strict=True), start=1):
        events = training.rewires.events * sizes.epoch / training.taken
        label = f"rule {name}, {density:.0%} active, {events:.3g} events an epoch"
        ratios.append(Ratio(label, base, STATED, over_first(rounds, place)))
    return Outcome(tuple(ratios))
