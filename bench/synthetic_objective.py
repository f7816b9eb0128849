"""A made-up accuracy of the students of ResNet-18: a search is measured without any training.

What an architecture is worth here is what common sense expects: layers, norms, activations and
channels help, ever less the more there are; a few added skips help, and many do harm.

    cap = sum over the stages s, of width w_s in (64, 128, 256, 512), with c_s in (.9, 1, 1.1, .8):
          c_s (.5 ln(1 + convolutions) + .3 ln(1 + activations) + .3 ln(1 + norms)
               + 1.2 log10(1 + width)) + .04 min(6, k) - .01 max(0, k - 10),  k added skips
    A = 1 / (1 + exp(-1.1 (cap - 15))),   f = C (2 - C) A + .003 N(0, 1)

The noise belongs to the architecture: the same one always gets the same.
"""

from __future__ import annotations

import math
import random

import torch

from bench.zoo.resnet import ResNet
from energy_model.hardware import load_hardware
from passes.architecture.genotype import Genotype
from passes.architecture.phenotype import phenotype_of
from passes.architecture.policy import Policy
from passes.architecture.space import SearchSpace
from passes.embedding.candidates import Costs, Evaluated
from passes.inputs import as_call
from passes.tracing.trace import trace

_STAGES = ((64, 0.9), (128, 1.0), (256, 1.1), (512, 0.8))
_KINDS = (("conv", 0.5), ("act", 0.3), ("norm", 0.3))
_NOISE = 0.003


def resnet18_space(policy: Policy) -> SearchSpace:
    """The students of ResNet-18 for 32 x 32 images and 100 classes, that cost parameters."""
    return _space((2, 2, 2, 2), policy)


def resnet34_space(policy: Policy) -> SearchSpace:
    """The same of ResNet-34."""
    return _space((3, 4, 6, 3), policy)


def _space(blocks: tuple[int, int, int, int], policy: Policy) -> SearchSpace:
    model = ResNet(blocks, 100).eval()
    graph = trace(model, as_call(model, torch.zeros(2, 3, 32, 32)))
    return SearchSpace(graph, load_hardware("eyeriss"), policy, keys=("params",))


class SyntheticObjective:
    """The accuracy and the reward of students.

    Args:
        space: Of ResNet-18 or ResNet-34; groups of equal width are tied.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._whole = space.cost(Genotype())["params"]
        steps = space.structure.steps
        channels = [s.shape[s.channel] if s.shape and s.channel >= 0 else 0 for s in steps]
        self._steps = {
            (width, kind): [
                step.index
                for step, found in zip(steps, channels, strict=True)
                if step.kind == kind and found == width
            ]
            for width, _ in _STAGES
            for kind, _ in _KINDS
        }
        units = [group.units for group in space.structure.groups]
        self._groups = {width: units.index(width) for width, _ in _STAGES}

    def gain(self, costs: Costs) -> float:
        """C (2 - C), with C the share of the parameters that is saved."""
        compression = 1 - costs["params"] / self._whole
        return compression * (2 - compression)

    def accuracy(self, genotype: Genotype) -> float:
        """A, without noise."""
        found = phenotype_of(self.space.structure, genotype)
        capacity = 0.0
        for width, weight in _STAGES:
            kept = 1.2 * math.log10(1 + int(found.kept[self._groups[width]]))
            for kind, share in _KINDS:
                alive = sum(not found.dead[step] for step in self._steps[width, kind])
                kept += share * math.log1p(alive)
            capacity += weight * kept
        skips = len(found.skips)
        capacity += 0.04 * min(6, skips) - 0.01 * max(0, skips - 10)
        return 1 / (1 + math.exp(-1.1 * (capacity - 15)))

    def reward(self, genotype: Genotype) -> float:
        """f, with its noise."""
        exact = self.gain(self.space.cost(genotype)) * self.accuracy(genotype)
        return exact + _NOISE * random.Random(genotype.digest).gauss(0, 1)

    def evaluated(self, genotype: Genotype) -> Evaluated:
        """What a search gets to know: the accuracy that explains the reward."""
        gain = self.gain(self.space.cost(genotype))
        if not gain:
            return Evaluated(genotype, self.accuracy(genotype))
        return Evaluated(genotype, self.reward(genotype) / gain)
