"""Read data beside a training that is reading it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def read_apart(data: Iterable[Any]) -> Iterator[Any]:
    """An iterator over data that moves no other one.

    A `DataLoader` with persistent workers has one iterator for all who ask: whoever asks a second
    time starts the epoch anew for the first one, or shares its batches. This one has workers of its
    own, which end with it.
    """
    if not getattr(data, "persistent_workers", False):
        return iter(data)
    running = data._iterator  # type: ignore[attr-defined]
    data._iterator = None  # type: ignore[attr-defined]
    try:
        return iter(data)
    finally:
        data._iterator = running  # type: ignore[attr-defined]
