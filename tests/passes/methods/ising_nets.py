"""Small nets and their data, and a search in training, step by step or by `compress`."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import transform
from energy_model.budget import Budget
from energy_model.hardware import load_hardware
from passes.inputs import Batch, as_call
from passes.methods.base import Run
from passes.methods.ising import Ising, IsingPruning
from passes.tracing.trace import trace
from transform.gradients import Gradients
from transform.labelled import Labelled
from transform.limits import Subject
from transform.pipeline import resolve
from transform.unlabelled import Unlabelled

CLASSES = 4


def seeded(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def _conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    ).eval()


def conv_net(seed: int = 0) -> nn.Sequential:
    """Groups of 12 and 16 units; inputs `(N, 2, 6, 6)`."""
    return seeded(_conv_net, seed)


def conv_data(batches: int = 7, size: int = 8, seed: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Batches of noise, the class in one corner of it."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(batches):
        x = torch.randn(size, 2, 6, 6, generator=generator)
        y = torch.randint(CLASSES, (size,), generator=generator)
        x[torch.arange(size), y % 2, :, 0] += 2 * (y // 2 * 2 - 1)[:, None]
        found.append((x, y))
    return found


@cache
def _trained() -> nn.Sequential:
    model = conv_net().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for x, y in conv_data(batches=60, size=16):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def trained_net() -> nn.Sequential:
    """A `conv_net` that knows the classes of `conv_data`."""
    return copy.deepcopy(_trained())


class AttentionNet(nn.Module):
    """A residual stream of 16 with 4 heads and 32 hidden units; inputs `(N, 5, 6)`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.wide, self.back = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.back(torch.relu(self.wide(x)))
        return self.head(x.mean(1))


def attention_data(batches: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(8, 5, 6, generator=generator),
            torch.randint(CLASSES, (8,), generator=generator),
        )
        for _ in range(batches)
    ]


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adadelta": lambda p: torch.optim.Adadelta(p, 1.0, weight_decay=1e-2),
}


class Searching:
    """A training with a search, in the order of the training loop, without what that adds.

    Attributes:
        graph: The traced model.
        method: The method, prepared.
        losses: Of every step.
    """

    def __init__(
        self,
        config: Ising,
        model: nn.Module | None = None,
        data: list[Any] | None = None,
        budget: str = "macs<=50%",
        steps: int = 40,
        optimizer: str = "momentum",
        seed: int = 0,
    ) -> None:
        model = conv_net() if model is None else model
        self.data = conv_data() if data is None else data
        self.graph = trace(model, as_call(model, self.data[0][0]))
        run = run_of(self.graph, self.data, budget, steps=steps, seed=seed)
        self.method = IsingPruning(config)
        self.method.observe(self.graph, run)
        self.plan = self.method.plan(self.graph, run.costs, run.limits, one_shot=False)
        self.method.prepare(self.graph, self.plan, run)
        self.run, self.number, self.losses = run, 0, []
        self.optimizer = OPTIMIZERS[optimizer](model.parameters())
        self.graph.runnable.train()

    @property
    def live(self):
        return self.method._live

    def backward(self) -> None:
        """Forward and backward of the next batch."""
        item = self.data[self.number % len(self.data)]
        batch = Batch(as_call(self.graph.module, item[0]), item[1])
        outputs = batch.call(self.graph.runnable)
        loss = self.method.on_loss(F.cross_entropy(outputs, batch.targets), batch, outputs)
        loss.backward()
        self.losses.append(float(loss.detach()))

    def step(self) -> None:
        """One step, and what the method does after it."""
        self.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.number += 1
        self.method.on_step(self.number, self.optimizer)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()


def run_of(graph, data, budget, *, steps=0, seed=0) -> Run:
    """What `compress` would hand to a method; `steps=0` does not train."""
    subject = Subject(graph, load_hardware("eyeriss"))
    device = torch.device("cpu")
    run = Run(
        torch.Generator().manual_seed(seed),
        one_shot=not steps,
        limits=resolve(Budget.parse(budget), subject),
        costs=subject.costs,
        total_steps=steps,
        batches=Unlabelled(data, graph.module, device),
    )
    if isinstance(data[0], Tensor):
        return run
    labelled = Labelled(data, graph.module, device)
    return replace(run, labelled=labelled, gradients=Gradients(data, None, device))


def compressed(
    model=None, budget="macs<=50%", data=None, *, train=False, search=None, epochs=4, **options
):
    """`compress` by `Ising(**search)`; few generations unless told otherwise."""
    config = Ising(**{"generations": 6} | (search or {}))
    if train is True:
        train = transform.TrainConfig(epochs=epochs, lr=0.05, select="last")
    gc.freeze()  # a run ends with a full collection, which would walk all that tests have imported
    try:
        return transform.compress(
            conv_net() if model is None else model,
            budget,
            conv_data() if data is None else data,
            method=options.pop("method", config),
            train=train,
            progress="none",
            **options,
        )
    finally:
        gc.unfreeze()
