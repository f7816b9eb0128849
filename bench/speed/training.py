"""Training under a budget against plain training: what a projection every ten steps costs."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.speed.ratio import Outcome, Ratio
from bench.speed.rounds import Settings, clocked, interleave, over_first
from bench.speed.subjects import Subject
from energy_model.budget import Budget
from energy_model.hardware import load_hardware
from passes.inputs import as_call
from passes.methods.base import Method, Run
from passes.methods.config import MethodConfig
from passes.methods.energy_projection import EnergyProjection, WeightedProjection
from passes.tracing.trace import trace
from transform.limits import Subject as Counted
from transform.pipeline import resolve
from transform.training.config import TrainConfig
from transform.training.fit import Training, fit
from transform.training.plain import Untouched

TRAINING_TARGET = 1.05
INTERVAL = 10
_CLASSES = 10


def measure_training(
    subject: Subject, settings: Settings, batch: int = 128, budget: str = "energy<=50%"
) -> Outcome:
    """Time ten training steps with one projection over ten without, both by the same loop.

    Args:
        subject: The model; one input's shape is that of its example.
        settings: How to measure.
        batch: Samples of a batch.
        budget: What the weights are projected onto.
    """
    generator = torch.Generator().manual_seed(0)
    data = [
        (
            torch.randn((batch, *subject.input_shape[1:]), generator=generator),
            torch.randint(_CLASSES, (batch,), generator=generator),
        )
    ] * INTERVAL
    config = EnergyProjection(interval=INTERVAL, schedule="none")
    turns = [
        clocked(_Ten(subject, data, budget, method).run)
        for method in (Untouched(MethodConfig()), WeightedProjection(config))
    ]
    interleave(turns, 1)  # the first steps allocate memory and prepare kernels
    rounds = interleave(turns, settings.rounds)
    name = f"{INTERVAL} projected steps of {subject.name}, batch {batch}"
    return Outcome((Ratio(name, "plain steps", TRAINING_TARGET, over_first(rounds, 1)),))


class _Ten:
    """A prepared model and the steps that train it."""

    def __init__(
        self, subject: Subject, data: list[tuple[Tensor, Tensor]], budget: str, method: Method
    ) -> None:
        self.model = subject.model()
        self.graph = trace(self.model, as_call(self.model, subject.example()))
        counted = Counted(self.graph, load_hardware("eyeriss"))
        limits = resolve(Budget.parse(budget), counted)
        self.method = method
        plan = method.plan(self.graph, counted.costs, limits, one_shot=False)
        run = Run(one_shot=False, limits=limits, costs=counted.costs, total_steps=INTERVAL)
        method.prepare(self.graph, plan, run)
        config = TrainConfig(epochs=1, lr=1e-4, schedule="constant")
        self.training = Training(config, data, None, None, "original", None, resume=False)

    def run(self) -> None:
        """Ten steps."""
        fit(
            self.training,
            self.model,
            self.graph,
            self.method,
            None,
            0,
            "",
            lambda: True,
            lambda row: None,
        )
