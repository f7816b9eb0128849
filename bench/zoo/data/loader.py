"""Batches from images in memory: a fixed order, or a new one in every epoch that can be resumed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench.zoo.data.augment import Augmentation
from bench.zoo.data.images import Images
from bench.zoo.data.normalize import Normalization
from energy_model.errors import ArgumentError, StorageError

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Examples:
    """Some rows of a data set.

    Attributes:
        images: The pixels of the whole data set.
        targets: Its classes, int64 `(N,)`.
        rows: The rows that are meant, int64 `(n,)`.
    """

    images: Images
    targets: torch.Tensor
    rows: torch.Tensor

    def __len__(self) -> int:
        return len(self.rows)


class Batches:
    """The examples in their order, in batches `(inputs, targets)`; any number of times.

    Inputs are `(n, C, H, W)`, float32 where a normalisation is given, and targets int64 `(n,)`. The
    last batch may be smaller.

    Args:
        examples: What is batched.
        batch_size: Examples in a batch, at least 1.
        normalize: From pixels to inputs; None leaves them.

    Raises:
        ArgumentError: A batch size below 1.
    """

    def __init__(
        self, examples: Examples, batch_size: int, normalize: Normalization | None
    ) -> None:
        if batch_size < 1:
            raise ArgumentError(
                f"a batch of {batch_size} is empty", where="batch_size", remedy="Take at least 1."
            )
        self.examples = examples
        self.batch_size = batch_size
        self.normalize = normalize

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.examples) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self._batches(self.examples.rows, self._normalized)

    def _batches(
        self, order: torch.Tensor, prepare: Callable[[torch.Tensor], torch.Tensor]
    ) -> Iterator[Batch]:
        for rows in torch.split(order, self.batch_size):
            yield prepare(self.examples.images.take(rows)), self.examples.targets[rows]

    def _normalized(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels if self.normalize is None else self.normalize(pixels)


class ShuffledBatches(Batches):
    """A new random order, and new random changes, in every epoch.

    An epoch begins with each `iter()`, also when it is not run to its end. What happens in it
    depends on the seed and its number alone, so that `state_dict()` at the end of one epoch is
    enough to go on with the next, bit for bit.

    Args:
        examples: What is batched.
        batch_size: Examples in a batch, at least 1.
        normalize: From pixels to inputs; None leaves them.
        augment: Random changes, in the order of application.
        seed: Seed of the order and of the changes, not negative.

    Raises:
        ArgumentError: A batch size below 1 or a negative seed.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        normalize: Normalization | None,
        augment: tuple[Augmentation, ...] = (),
        seed: int = 0,
    ) -> None:
        super().__init__(examples, batch_size, normalize)
        if seed < 0:
            raise ArgumentError(f"the seed {seed} is negative", where="seed", remedy="Take 0.")
        self.augment = augment
        self.seed = seed
        self.epoch = 0

    def __iter__(self) -> Iterator[Batch]:
        generator = _epoch_generator(self.seed, self.epoch)
        self.epoch += 1
        order = torch.randperm(len(self.examples), generator=generator)
        prepare = functools.partial(self._changed, generator=generator)
        return self._batches(self.examples.rows[order], prepare)

    def set_epoch(self, epoch: int) -> None:
        """Let the next epoch be the one of this number."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """The seed, and how many epochs have begun."""
        return {"seed": self.seed, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the epochs of a saved state.

        Raises:
            StorageError: The state is not one of `state_dict()`.
        """
        values = [state.get(key) for key in ("seed", "epoch")]
        seed, epoch = (value if type(value) is int and value >= 0 else None for value in values)
        if seed is None or epoch is None or len(state) != len(values):
            raise StorageError(
                f"{dict(state)!r} is no state of a data loader",
                where="data",
                remedy="Give what its state_dict() returned: seed and epoch, not negative.",
            )
        self.seed, self.epoch = seed, epoch

    def _changed(self, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        before = [change for change in self.augment if not change.after_normalizing]
        after = [change for change in self.augment if change.after_normalizing]
        for change in before:
            pixels = change(pixels, generator)
        inputs = self._normalized(pixels)
        for change in after:
            inputs = change(inputs, generator)
        return inputs


def _epoch_generator(seed: int, epoch: int) -> torch.Generator:
    # Mixed, so that epoch 1 of seed 0 is not epoch 0 of seed 1.
    mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0] >> np.uint64(1)))
