"""Data in epochs that depend on a seed and their number alone, whoever reads it and how often."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from passes.derived_seed import derived_seed
from transform.training.randomness import Stream, loader_generators

_END = object()


class EpochData:
    """Reads somebody's data, epoch by epoch, and leaves it as it was.

    Order and augmentation of an epoch come from the global generators or from the loader's own;
    both are seeded anew for every epoch, and nothing that is drawn while the data is read moves
    them. What keeps its place by itself is told the number of the epoch by `set_epoch`, as samplers
    for several devices are, or else starts every epoch from the state it came with, by
    `load_state_dict`. Randomness that data hides elsewhere cannot be governed.

    Args:
        data: Batches, read once an epoch.
        seed: Of all epochs.
        device: Whose generator counts besides those of the CPU.
    """

    def __init__(self, data: Iterable[Any], seed: int, device: torch.device) -> None:
        self.data = data
        self.seed = seed
        self.device = device

    def epoch(self, number: int) -> Generator[Any, None, None]:
        """The batches of an epoch; the same ones for the same number."""
        stream = Stream(derived_seed(self.seed, "data", number), self.device)
        with self._governed():
            with stream.drawn():
                self._turn_to(number)
                items = iter(self.data)
            while True:
                with stream.drawn():
                    item = next(items, _END)
                if item is _END:
                    return
                yield item

    def _turn_to(self, number: int) -> None:
        for index, generator in enumerate(loader_generators(self.data)):
            generator.manual_seed(derived_seed(self.seed, "generator", index, number))
        parts = (self.data, *(getattr(self.data, n, None) for n in ("sampler", "batch_sampler")))
        for part in parts:
            if callable(tell := getattr(part, "set_epoch", None)):
                tell(number)
        if getattr(self.data, "persistent_workers", False):
            # Their random state would go on from the epoch before: they are started anew.
            self.data._iterator = None  # type: ignore[attr-defined]

    @contextmanager
    def _governed(self) -> Iterator[None]:
        """Put the loader's own state back, also after an epoch that is not read to its end."""
        generators = loader_generators(self.data)
        states = [generator.get_state() for generator in generators]
        save, load = (getattr(self.data, n, None) for n in ("state_dict", "load_state_dict"))
        kept = save() if callable(save) and callable(load) else None
        try:
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            if kept is not None and callable(load):
                load(kept)
