"""The models that are measured, and their weighted projection problems."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor, nn

from energy_model.budget import Budget
from energy_model.hardware import load_hardware
from passes.inputs import as_call
from passes.methods.problem import Problem, build_problem
from passes.methods.sparsify import ONE_SHOT_DENSITY
from passes.tracing.trace import trace
from transform.limits import Subject as Counted
from transform.pipeline import resolve


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with random weights.

    Attributes:
        name: For people.
        factory: `package.module:callable`.
        input_shape: Shape of its example input, the batch first.
    """

    name: str
    factory: str
    input_shape: tuple[int, ...]

    def model(self, seed: int = 0) -> nn.Module:
        """The model in evaluation mode, as its authors initialise it; same seed, same weights."""
        import_module("bench.zoo")  # makes torchvision importable on a CPU-only torch
        module, _, attribute = self.factory.partition(":")
        build = getattr(import_module(module), attribute)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # inside a fork of the random state
            model: nn.Module = build()
        return model.eval()

    def example(self, seed: int = 0) -> Tensor:
        """A standard normal input of `input_shape`, float32."""
        return torch.randn(self.input_shape, generator=torch.Generator().manual_seed(seed))

    def problem(self, budget: str) -> Problem:
        """What one-shot compression to `budget` solves: the model's own prices and minimums."""
        model, hardware = self.model(), load_hardware("eyeriss")
        graph = trace(model, as_call(model, self.example()), train=False)
        counted = Counted(graph, hardware)
        limits = resolve(Budget.parse(budget), counted)
        return build_problem(
            graph, counted.costs, limits, min_per_layer=1, min_density=ONE_SHOT_DENSITY
        )


ALEXNET = Subject("AlexNet", "torchvision.models:alexnet", (1, 3, 224, 224))
RESNET50 = Subject("ResNet-50", "torchvision.models:resnet50", (1, 3, 224, 224))
DENSENET121 = Subject("DenseNet-121", "torchvision.models:densenet121", (1, 3, 224, 224))
MOBILENET_V3 = Subject("MobileNetV3", "torchvision.models:mobilenet_v3_large", (1, 3, 224, 224))
RESNET18 = Subject("ResNet-18", "torchvision.models:resnet18", (1, 3, 224, 224))
RESNET18_32 = Subject("ResNet-18 at 32 x 32", "bench.zoo:resnet18", (1, 3, 32, 32))


def concatenated(problem: Problem) -> Tensor:
    """All weights of a problem in one flat tensor: what the sort is given."""
    return torch.cat([weight.detach().reshape(-1) for weight in problem.weights])
