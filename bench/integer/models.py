"""The models of the tables: one with trained weights and real data, the others random."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import transform
from bench.zoo import resnet20
from bench.zoo.data import load_data
from energy_model.errors import StorageError

WEIGHTS = Path("weights") / "cifar10_resnet20_jpeg.pt"
# As the weights were trained.
DATA = "cifar10-jpeg:normalize=imagenet"
IMAGES = 512
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model and its data.

    Attributes:
        model: In evaluation mode.
        unlabelled: Batches of training images without their classes.
        test: Labelled test batches.
    """

    model: nn.Module
    unlabelled: tuple[Tensor, ...]
    test: Iterable[Any]


def trained_resnet20(root: Path, *, images: int = IMAGES, data: str = DATA) -> Trained:
    """ResNet-20 on CIFAR-10 as JPEG.

    Args:
        root: Folder of data sets and weights.
        images: Number of unlabelled training images.
        data: Name of the data set, see `bench.zoo.data.load_data`.

    Raises:
        StorageError: Data or weights are missing.
    """
    path = root / WEIGHTS
    if not path.exists():
        raise StorageError(
            "the trained weights are not there",
            where=str(path),
            remedy="Name the folder of data by --data-root or TRANSFORM_DATA.",
        )
    model = resnet20()
    model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    training = load_data(data, root=root, batch_size=_BATCH).train
    first = (inputs for inputs, _ in islice(iter(training), -(-images // _BATCH)))
    test = load_data(data, root=root, batch_size=100).test
    return Trained(
        model.eval(), tuple(torch.split(torch.cat([*first])[:images], _BATCH)), test or ()
    )


def torchvision_model(name: str, **arguments: Any) -> nn.Module:
    """A model of torchvision with random weights, always the same."""
    import_module("bench.zoo")  # makes torchvision importable on a CPU-only torch
    builder = import_module("torchvision.models").get_model_builder(name)
    return seeded(lambda: builder(weights=None, **arguments))


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """What a function builds with seed 0, in evaluation mode; the global generator stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # inside a fork of the random state
        return build().eval()


def random_batches(*shape: int, count: int = 8, seed: int = 0) -> tuple[Tensor, ...]:
    """Standard normal batches of a shape."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, generator=generator) for _ in range(count))


def half_channels(model: nn.Module, example: Tensor) -> nn.Module:
    """The model without a random half of the units of every free group of channels."""
    found = transform.structure(model, example)
    return found.shrunk(found.random_state(0))


class EncoderLayer(nn.Module):
    """A transformer layer of plain modules, norms first (Vaswani et al., NeurIPS 2017).

    Args:
        width: Features of a token; a multiple of 64, the width of a head.
        hidden: Features between the two linear layers.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, tokens, width)` to the same shape."""
        y = self.norm1(x)
        parts = [
            part(y).unflatten(-1, (self.heads, 64)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        ]
        mixed = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        result: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return result


def encoder(width: int = 512, layers: int = 6) -> nn.Module:
    """A stack of transformer layers with random weights."""
    return seeded(lambda: nn.Sequential(*(EncoderLayer(width, 4 * width) for _ in range(layers))))
