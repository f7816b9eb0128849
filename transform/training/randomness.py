"""All randomness of a training run: seeded inside, restored outside, saved in between."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from passes.isolation import preserved_random_state


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run with the global generators seeded; the caller's states come back afterwards.

    Dropout and most data loaders draw from the global generators, so a run must own them.
    """
    with preserved_random_state(device):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 -- a user's transforms may draw from it
        yield


def random_state(device: torch.device) -> dict[str, Any]:
    """The global generators' states, for a checkpoint."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position],
        "numpy_gauss": [has_gauss, cached],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Continue from `random_state`."""
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position = state["numpy"]
    full = (name, keys.numpy().astype(np.uint32), position, *state["numpy_gauss"])
    np.random.set_state(full)  # noqa: NPY002
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


class Stream:
    """The global generators as one of several users sees them, unmoved by what others draw.

    Args:
        seed: Where they start.
        device: Whose generator belongs to them besides those of the CPU.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        with seeded(seed, device):
            self._state = random_state(device)

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """Go on where this stream stopped; the caller's states come back afterwards."""
        with preserved_random_state(self.device):
            set_random_state(self._state, self.device)
            try:
                yield
            finally:
                self._state = random_state(self.device)


def loader_generators(data: Iterable[Any]) -> list[torch.Generator]:
    """Generators that a data loader owns: its own, and that of its sampler."""
    owners = (data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None))
    found = (getattr(owner, "generator", None) for owner in owners)
    unique = {id(g): g for g in found if isinstance(g, torch.Generator)}
    return list(unique.values())
