"""The table of overheads that the authors publish, on the same six networks.

H. Salehinejad and S. Valaee publish the time of a training step of their search over that of a
plain one, for Flowers-102 and eight keep-states.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from bench.dynamic_sizes import STATED
from bench.dynamic_training import Batch
from bench.search_sizes import BUDGET, SearchSizes
from bench.search_training import SearchTraining
from bench.speed.ratio import Ratio
from bench.speed.rounds import Settings, clocked, interleave, over_first
from passes.structure.groups import channel_groups

CLASSES = 102
# Name, theirs by their README, and the bits of their states.
PUBLISHED = {
    "resnet18": ("ResNet-18", 17.21, 6208),
    "resnet34": ("ResNet-34", 25.12, 9920),
    "resnet50": ("ResNet-50", 19.63, 32448),
    "resnet101": ("ResNet-101", 22.56, 58560),
    "alexnet": ("AlexNet", 28.97, 18662),
    "squeezenet1_1": ("SqueezeNet 1.1", 1.33, 3558),
}
_HEAD = (
    "| network | nodes, theirs | nodes, ours | a plain step | a search step | ours | quartiles "
    "| theirs |\n|---|" + "---:|" * 7
)
_NOTE = (
    "Theirs is by their README: masks made by NumPy for each candidate on the CPU and multiplied "
    "into weights on a GPU, candidates scored on the whole batch, parents not again. Ours: the "
    "margin energy with the defaults, on a CPU with the threads named above; parents and children "
    "on an eighth of the batch, at least 16 samples, all within the budget {budget}. Theirs has a "
    "node for every filter and input of a linear layer, ours for every channel that can go. Both "
    "are ratios to a plain step of the same batch; random images, {classes} classes, {states} "
    "states, {images}. Networks of few images a step pay most: for what does not grow with the "
    "batch, repairing and cutting candidates, and for the 16 samples. Steps at which "
    "importances follow the weights are not among them."
)


@dataclass(frozen=True, slots=True)
class Overhead:
    """One network.

    Attributes:
        network: By torchvision's name.
        nodes: Free channels: the bits of a keep-state.
        ratio: Search steps over plain ones.
    """

    network: str
    nodes: int
    ratio: Ratio

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        _, theirs, bits = PUBLISHED[self.network]
        low, middle, high = self.ratio.quartiles
        return {
            "network": self.network,
            "nodes": self.nodes,
            "nodes_theirs": bits,
            "ratio": middle,
            "quartiles": [low, high],
            "theirs": theirs,
            "pairs": [list(pair) for pair in self.ratio.pairs],
        }

    def __str__(self) -> str:
        name, theirs, bits = PUBLISHED[self.network]
        low, middle, high = self.ratio.quartiles
        search, plain = self.ratio.medians
        spread = f"{low:.2f} to {high:.2f}" if len(self.ratio.pairs) > 1 else "one round"
        return (
            f"| {name} | {bits:,} | {self.nodes:,} | {plain:.2f} s | {search:.2f} s "
            f"| {middle:.2f}x | {spread} | {theirs:.2f}x |"
        )


@dataclass(frozen=True, slots=True)
class Overheads:
    """The table.

    Attributes:
        rows: A row for each network.
        setting: What was measured, for people.
    """

    rows: tuple[Overhead, ...]
    setting: str

    def __str__(self) -> str:
        lines = ["## The six networks of the published table", "", _HEAD, *map(str, self.rows)]
        return "\n".join([*lines, "", self.setting])


def flowers_network(name: str) -> nn.Module:
    """One of the six, for 102 classes, with random weights that are always the same."""
    import_module("bench.zoo")  # makes torchvision importable on a CPU-only torch
    models = import_module("torchvision.models")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # inside a fork of the random state
        model: nn.Module = models.get_model_builder(name)(weights=None, num_classes=CLASSES)
    return model


def measure_published(sizes: SearchSizes, settings: Settings) -> Overheads:
    """A search step with the margin energy over a plain step, network by network."""
    names = tuple(PUBLISHED) if sizes.networks is None else sizes.networks
    images = f"batch {sizes.batch} of 3x{sizes.side}x{sizes.side}"
    setting = _NOTE.format(budget=BUDGET, classes=CLASSES, states=sizes.states, images=images)
    return Overheads(tuple(_overhead(name, sizes, settings) for name in names), setting)


def _overhead(name: str, sizes: SearchSizes, settings: Settings) -> Overhead:
    data = _batches(sizes)
    plain = SearchTraining(flowers_network(name), data)
    search = SearchTraining(flowers_network(name), data, sizes.search("margin"), BUDGET)
    nodes = sum(group.units for group in channel_groups(plain.graph).free)
    turns = [clocked(partial(each.steps, 1)) for each in (plain, search)]
    interleave(turns, 1)  # the first steps allocate memory and choose a back end
    pairs = over_first(interleave(turns, settings.rounds), 1)
    return Overhead(name, nodes, Ratio(PUBLISHED[name][0], "a plain step", STATED, pairs))


def _batches(sizes: SearchSizes) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((sizes.batch, 3, sizes.side, sizes.side), generator=generator)
    # Neighbours differ in class: the first samples can always be compared.
    return [(images, torch.arange(sizes.batch) % CLASSES)]
