"""Networks in training while keep-states of their channels are searched, one step at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from bench.dynamic_training import Batch as Pair
from energy_model.budget import Budget
from energy_model.errors import ArgumentError
from energy_model.hardware import load_hardware
from passes.graph import ModelGraph
from passes.inputs import Batch, as_call
from passes.methods.base import Run
from passes.methods.ising.config import Ising
from passes.methods.ising.method import IsingPruning
from passes.tracing.trace import trace
from transform.limits import Subject
from transform.pipeline import resolve

HARDWARE = "eyeriss"
# So long that no search ends while it is measured.
LONG = 10**6
_LR = 0.02


class SearchTraining:
    """A network in training by SGD with momentum, dense or with the method `ising`.

    The order of a step is that of `compress`, without what it does besides.

    Args:
        model: The network; it is trained in place.
        data: Batches (inputs, labels) on the CPU, over and over again.
        config: How is searched; `None` trains it dense.
        budget: What is left in the end.
        steps: How long training is said to be, in optimizer steps.

    Attributes:
        graph: The traced network.
        optimizer: Of all parameters.
        number: Of the last step.
        begin_seconds: What planning and preparing the search took.
        macs: Multiply-accumulates of one sample before anything is removed.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Sequence[Pair],
        config: Ising | None = None,
        budget: str = "macs<=50%",
        steps: int = LONG,
    ) -> None:
        self.data = [Batch(as_call(model, inputs), labels) for inputs, labels in data]
        self.graph = trace(model.train(), self.data[0].call, train=False)
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=_LR, momentum=0.9, weight_decay=1e-4
        )
        self.number = 0
        self.begin_seconds = 0.0
        self.macs = macs_of(self.graph)
        self._method: IsingPruning | None = None
        if config is not None:
            run = self._run(budget, steps)
            start = time.perf_counter()
            self._method = _prepared(self.graph, config, run)
            self.begin_seconds = time.perf_counter() - start

    @property
    def method(self) -> IsingPruning:
        """The method of a training that has one.

        Raises:
            ArgumentError: It is dense.
        """
        if self._method is None:
            raise ArgumentError("a dense training has no search", remedy="Give a configuration.")
        return self._method

    @property
    def searching(self) -> bool:
        """Whether the channels are still there, and a search goes on."""
        return self._method is not None and not self._method.can_be_result()

    def step(self, number: int | None = None) -> None:
        """One step, and what the method does after it.

        Args:
            number: Which step of the training it is taken for, from 1; `None` is the next one.
        """
        self.number = self.number + 1 if number is None else number
        batch = self.data[self.number % len(self.data)]
        outputs = batch.call(self.graph.runnable)
        loss = F.cross_entropy(outputs, batch.targets)
        if self._method is not None:
            loss = self._method.on_loss(loss, batch, outputs)
        loss.backward()  # type: ignore[no-untyped-call]
        if self._method is not None:
            self._method.on_gradients(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self._method is not None:
            self._method.on_step(self.number, self.optimizer)

    def steps(self, count: int) -> None:
        """So many steps."""
        for _ in range(count):
            self.step()

    def _run(self, budget: str, steps: int) -> Run:
        subject = Subject(self.graph, load_hardware(HARDWARE))
        run = Run(
            torch.Generator().manual_seed(0),
            one_shot=False,
            limits=resolve(Budget.parse(budget), subject),
            costs=subject.costs,
            total_steps=steps,
        )
        calls = [batch.call for batch in self.data]
        return replace(
            run,
            labelled=lambda count: self.data[0].rows(torch.arange(count)),
            batches=lambda count: iter(calls[:count]),
        )


def macs_of(graph: ModelGraph) -> int:
    """Multiply-accumulates of one sample."""
    return int(Subject(graph, load_hardware(HARDWARE)).costs.total.macs)


def _prepared(graph: ModelGraph, config: Ising, run: Run) -> IsingPruning:
    """The method in the model, with its first population."""
    assert run.costs is not None
    method = IsingPruning(config)
    method.observe(graph, run)
    plan = method.plan(graph, run.costs, run.limits, one_shot=False)
    method.prepare(graph, plan, run)
    return method
