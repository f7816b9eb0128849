"""Small models for the method `joint`, its runs, and recounts that trust none of its books."""

from __future__ import annotations

import copy

import torch
from lenet_problem import costs_of, limits_of, traced
from torch import nn

from passes.graph import LayerRule, ModelGraph
from passes.methods.base import Run
from passes.methods.joint import SPEC, Joint, JointCompression
from passes.methods.joint.alternation import Alternation
from passes.methods.phases import Phase
from passes.methods.plan import Plan

__all__ = ["costs_of", "limits_of", "traced"]


class Small(nn.Module):
    """A convolution with its norm, a tied pair of layers, and a classifier: 24 + 36 + 30 weights.

    Input `(N, 2, 3, 3)`, 5 classes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.first, self.second = nn.Linear(4, 9), nn.Linear(4, 9)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x))).flatten(2)
        x = torch.relu(self.second(self.first(x)[..., :4])).mean(-1)
        return self.head(torch.cat([x, x], dim=1))


X = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(1))
LAYERS = ("conv", "first", "head")
SIZE = 24 + 36 + 30


def small(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Small()
    return model.eval()


def small_graph(seed: int = 0) -> ModelGraph:
    return traced(small(seed), X)


def method_of(**options: object) -> JointCompression:
    method = SPEC.build(Joint(**options))
    assert isinstance(method, JointCompression)
    return method


def compressed(graph: ModelGraph, budget: str | int, **options: object) -> Plan:
    """Compress a graph in one shot; a number is one of nominal bits."""
    text = budget if isinstance(budget, str) else f"weight_bits<={budget} bit"
    limits = limits_of(graph, text)
    method, run = method_of(**options), Run(limits=limits)
    method.observe(graph, run)
    plan = method.plan(graph, costs_of(graph), limits)
    method.prepare(graph, plan, run)
    method.finalize(graph, run)
    return plan


def bits_of(graph: ModelGraph) -> dict[str, int]:
    """Bits in which every weight is written; those of its type without levels."""
    return {
        site.name: written.bits
        if (written := graph.encodings.get(site.name) or graph.codebooks.get(site.name))
        else graph.weight(site).element_size() * 8
        for site in graph.compressible
    }


def nominal(graph: ModelGraph) -> int:
    """Bits times nonzeros, with integers."""
    return sum(
        bits * int((graph.weight(graph.by_name[name]) != 0).sum())
        for name, bits in bits_of(graph).items()
    )


def check_written(graph: ModelGraph) -> None:
    """Every weight has at most `2^bits` values beside zero, and its codebook holds all of them."""
    for site in graph.compressible:
        weight = graph.weight(site)
        assert bool(torch.isfinite(weight).all())
        if site.name in graph.codebooks:
            book = graph.codebooks[site.name]
            book.check(weight, site.name)
            values = torch.unique(weight[weight != 0])
            assert len(values) <= 2**book.bits
            assert set(values.float().tolist()) <= set(
                book.levels.to(weight.dtype).float().tolist()
            )
        if site.name in graph.encodings:
            encoding = graph.encodings[site.name]
            encoding.check(weight, site.name)
            assert len(torch.unique(weight[weight != 0])) <= 2**encoding.bits - 2


def leave(graph: ModelGraph, **densities: float) -> ModelGraph:
    """The graph with rules: a least share of the weights by layer."""
    graph.rules = {name: LayerRule(share) for name, share in densities.items()}
    return graph


STEPS, EPOCHS = 5, 4
CLASSES = torch.arange(16) % 5


def batch(number: int) -> torch.Tensor:
    return torch.randn(16, 2, 3, 3, generator=torch.Generator().manual_seed(100 + number))


class Training:
    """A prepared method, its model, and a loop as `transform` runs it: 4 epochs of 5 steps.

    Attributes:
        seen: What the method reports after every step.
    """

    def __init__(
        self,
        budget: str = "weight_bits<=2%",
        *,
        model: nn.Module | None = None,
        epochs: int = EPOCHS,
        **options: object,
    ) -> None:
        self.graph = traced((model or small()).train(), X)
        self.method = method_of(**{"project_every": 2, "dual_every": 4, "start": 1.0} | options)
        limits = limits_of(self.graph, budget)
        steps = {"total_steps": STEPS * epochs, "epoch_steps": STEPS}
        self.run = Run(one_shot=False, limits=limits, costs=costs_of(self.graph), **steps)
        self.maximum, self.step, self.seen = int(limits[0].maximum), 0, []
        plan = self.method.plan(self.graph, costs_of(self.graph), limits, one_shot=False)
        self.method.prepare(self.graph, plan, self.run)
        parameters = self.graph.module.parameters()
        self.optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)

    @property
    def alternation(self) -> Alternation:
        assert self.method._training is not None
        return self.method._training

    def weights(self) -> dict[str, torch.Tensor]:
        return {s.name: self.graph.weight(s).clone() for s in self.graph.sites}

    def backward(self) -> None:
        """Gradients of the next batch."""
        self.step += 1
        loss = nn.functional.cross_entropy(self.graph.runnable(batch(self.step)), CLASSES)
        self.optimizer.zero_grad()
        self.method.on_loss(loss, None, None).backward()

    def one_step(self) -> None:
        self.backward()
        self.method.on_gradients(self.optimizer)
        self.optimizer.step()
        self.method.on_step(self.step, self.optimizer)
        self.seen.append(self.method.report())

    def train(self, first: int = 0, last: int = EPOCHS) -> Training:
        """Epochs as the training loop numbers them."""
        if first == 0 and last:
            self.method.on_phase_start(Phase())
        for epoch in range(first, last):
            self.graph.module.train()
            for _ in range(STEPS):
                self.one_step()
            self.method.on_epoch(epoch, self.optimizer)
        return self

    def state(self) -> list:
        parts = (self.graph.runnable, self.method, self.optimizer)
        return copy.deepcopy([*(part.state_dict() for part in parts), self.step])

    def load(self, state: list) -> None:
        self.graph.runnable.load_state_dict(state[0])
        self.method.load_state_dict(state[1])
        self.optimizer.load_state_dict(state[2])
        self.step = state[3]

    def finished(self) -> dict[str, torch.Tensor]:
        """The state of the finished model, which is within its budget and on its levels."""
        self.method.finalize(self.graph, self.run)
        assert nominal(self.graph) <= self.maximum
        check_written(self.graph)
        assert not any("parametrizations" in name for name, _ in self.graph.module.named_modules())
        return {k: v.clone() for k, v in self.graph.runnable.state_dict().items()}


class Attention(nn.Module):
    """Attention whose projections are parts of one parameter, and a convolution: `(N, 2, 3, 3)`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        return self.head(self.attention(x, 2 * x, x)[0].mean(1))


def attention() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Attention().to(memory_format=torch.channels_last)
