"""Networks that are trained by a rule on random data, one step of it at a time."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.speed.subjects import Subject
from energy_model.errors import ArgumentError
from passes.dynamic.engine import Member, RewireEngine
from passes.dynamic.rule import Rule
from passes.dynamic.schedule import Clock
from passes.dynamic.start import start_counts
from passes.graph import ModelGraph
from passes.inputs import as_call
from passes.methods.sparse_training.start import first_masks, rescale, shape_of
from passes.tracing.trace import trace

Batch = tuple[Tensor, Tensor]

# So long that no rule stops while it is measured: most do after three quarters.
LONG = Clock(epochs=1000, epoch_steps=540)


@dataclass(frozen=True, slots=True)
class Task:
    """A network, which of its weights are sparse, and how it is trained.

    Attributes:
        name: For people.
        factory: `package.module:callable`.
        input_shape: Of one sample, (channels, height, width).
        batch: Samples of a step.
        dense: Regular expression of the whole names of sites that stay dense.
        lr: Learning rate.
        classes: Of the random labels.
    """

    name: str
    factory: str
    input_shape: tuple[int, ...]
    batch: int = 100
    dense: str = ""
    lr: float = 0.1
    classes: int = 10

    def __post_init__(self) -> None:
        if min(self.batch, *self.input_shape) < 1:
            raise ArgumentError(
                f"a batch of {self.batch} inputs of {self.input_shape} is empty",
                where=self.name,
                remedy="Give sizes from 1.",
            )

    @property
    def subject(self) -> Subject:
        """The network with one sample."""
        return Subject(self.name, self.factory, (1, *self.input_shape))

    @property
    def images(self) -> str:
        """What a step is given, for people."""
        return f"batch {self.batch} of {'x'.join(map(str, self.input_shape))}"

    def small(self, side: int = 64, batch: int = 2) -> Task:
        """The same network with the same weights, and steps that take little time."""
        channels, *sides = self.input_shape
        return replace(self, input_shape=(channels, *(min(s, side) for s in sides)), batch=batch)

    def batches(self, count: int, seed: int = 0) -> list[Batch]:
        """Standard normal inputs and random labels."""
        generator = torch.Generator().manual_seed(seed)
        shape = (self.batch, *self.input_shape)
        return [
            (
                torch.randn(shape, generator=generator),
                torch.randint(self.classes, (self.batch,), generator=generator),
            )
            for _ in range(count)
        ]


class Training:
    """A network in training by SGD with momentum, dense or sparse.

    The order of a step is that of `compress`, without what it does besides.

    Args:
        task: The network.
        data: Its batches, over and over again.
        rule: How it is rewired; `None` trains it dense.
        density: Share of the sparse tensors' weights that are active.
        clock: How long training is said to be.

    Attributes:
        graph: The traced network.
        engine: With the masks; `None` without a rule.
        optimizer: Of all parameters.
        number: Of the next step, from 0.
        taken: Steps that were done.
    """

    def __init__(
        self,
        task: Task,
        data: list[Batch],
        rule: Rule | None = None,
        density: float = 0.1,
        clock: Clock = LONG,
    ) -> None:
        model = task.subject.model().train()
        self.data = data
        self.graph = trace(model, as_call(model, task.subject.example()), train=False)
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=task.lr, momentum=0.9, nesterov=True, weight_decay=1e-4
        )
        self.number = self.taken = 0
        self.engine: RewireEngine | None = None
        if rule is not None:
            self.engine = sparse_engine(self.graph, rule, density, clock, task.dense)
            self.begin(0)

    @property
    def rewires(self) -> RewireEngine:
        """The engine of a training that has one.

        Raises:
            ArgumentError: It is dense.
        """
        if self.engine is None:
            raise ArgumentError("a dense training has no engine", remedy="Give a rule.")
        return self.engine

    def begin(self, number: int) -> None:
        """Take a step, from 0, for the next one."""
        self.number = number
        if self.engine is not None:
            self.engine.watch(number)

    def gradient_step(self) -> None:
        """Forward, backward, and the optimizer's step."""
        inputs, labels = self.data[self.taken % len(self.data)]
        self.taken += 1
        F.cross_entropy(self.graph.runnable(inputs), labels).backward()  # type: ignore[no-untyped-call]
        if self.engine is not None:
            self.engine.before_step(self.number, self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def rewire(self) -> dict[str, Any] | None:
        """What the engine does after the step."""
        return self.rewires.after_step(self.number, self.optimizer)

    def steps(self, count: int) -> None:
        """So many steps, and what the engine does after each."""
        for _ in range(count):
            self.gradient_step()
            if self.engine is not None:
                self.rewire()
            self.begin(self.number + 1)


def sparse_engine(
    graph: ModelGraph, rule: Rule, density: float, clock: Clock, dense: str = ""
) -> RewireEngine:
    """The engine with masks on all sites but those whose names match `dense`."""
    sites = [site for site in graph.compressible if not re.fullmatch(dense, site.name)]
    shapes = [shape_of(graph, site) for site in sites]
    total = round(density * sum(shape.parameters for shape in shapes))
    counts = start_counts(shapes, [1] * len(sites), total, rule.start)
    masks = first_masks(graph, sites, shapes, counts, seed=0)
    if rule.prune is not None:
        masks = {name: torch.ones_like(mask) for name, mask in masks.items()}
    members = []
    for site, shape, count in zip(sites, shapes, counts, strict=True):
        if rule.prune is None:
            rescale(graph, site, count / shape.cells)
        members.append(Member(site, shape, count, movable=count < shape.cells))
    engine = RewireEngine(graph, members, rule, clock, seed=0)
    engine.attach(masks)
    return engine
