"""What it costs to run a population of keep-states, by every back end, against a plain forward."""

from __future__ import annotations

from functools import partial

import torch

from bench.dynamic_sizes import STATED
from bench.search_sizes import BUDGET, SearchSizes
from bench.search_training import HARDWARE
from bench.speed.ratio import Check, Outcome, Ratio
from bench.speed.rounds import Settings, clocked, interleave, over_first
from energy_model.budget import Budget
from energy_model.hardware import load_hardware
from passes.graph import ModelGraph
from passes.inputs import Call, as_call
from passes.ising.choose_backend import choose_backend, make_scorings
from passes.ising.start import initial_population
from passes.methods.ising.config import Ising
from passes.methods.ising.setting import Setting
from passes.rewrite.live_gates import LiveGates, attach_gates
from passes.tracing.trace import trace
from transform.limits import Subject
from transform.pipeline import resolve


def measure_backends(sizes: SearchSizes, settings: Settings) -> Outcome:
    """Seconds of a population over those of a forward of the whole network, on as many samples."""
    found = Outcome()
    for samples in sizes.scored:
        found += _at(sizes, samples, settings)
    return found


def _at(sizes: SearchSizes, samples: int, settings: Settings) -> Outcome:
    """At one number of samples."""
    gates, population, call = _scene(sizes, samples)
    plain = sizes.task.subject.model()
    scorings = make_scorings(gates)
    chosen = choose_backend(scorings, population, call)
    agree = [name for name in scorings if name not in chosen.dropped]
    turns = [clocked(partial(_forward, plain, call))]
    turns += [clocked(partial(scorings[name].outputs, population, call)) for name in agree]
    interleave(turns, 1)  # the first runs allocate memory and prepare kernels
    rounds = interleave(turns, settings.light_rounds)
    what = f"{samples} samples, {len(population)} states"
    ratios = [
        Ratio(f"{what}: {name}", f"a forward of {samples}", STATED, over_first(rounds, place))
        for place, name in enumerate(agree, start=1)
    ]
    checks = [
        Check(
            f"{what}: {name} computes what {agree[0]} does",
            name not in chosen.dropped,
            f"dropped: {chosen.dropped[name]}" if name in chosen.dropped else "used",
        )
        for name in scorings
        if name != agree[0]
    ]
    return Outcome(tuple(ratios), tuple(checks))


def _scene(sizes: SearchSizes, samples: int) -> tuple[LiveGates, torch.Tensor, Call]:
    """Gates in the network, states as a search draws them first, and samples."""
    task, hardware = sizes.task, load_hardware(HARDWARE)
    model = task.subject.model()
    generator = torch.Generator().manual_seed(0)
    call = as_call(model, torch.randn((samples, *task.input_shape), generator=generator))
    graph: ModelGraph = trace(model, call, train=False)
    config = Ising(states=sizes.states)
    limits = resolve(Budget.parse(BUDGET), Subject(graph, hardware))
    setting = Setting.of(graph, hardware, limits, config)
    scores = setting.scores(graph, config, None)
    rates = setting.repair.keep_rates()
    population = initial_population(setting.repair, sizes.states, scores, generator, keep=rates)
    return attach_gates(graph, setting.groups, setting.layout), population, call


@torch.no_grad()
def _forward(model: torch.nn.Module, call: Call) -> object:
    return call(model)
