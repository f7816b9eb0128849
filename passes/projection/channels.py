"""Projection of input masks where whole channels can go: entries with a price, channels with one.

A knapsack with fixed charges: keeping any entry of a channel also costs the channel's own price.
For a threshold t an entry is worth its value minus t times its price; a channel is kept if what its
entries are worth together exceeds t times its own price. The kept set shrinks as t grows, and is
optimal for what it costs (Everett, "Generalized Lagrange multiplier method", 1963).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Prices = NDArray[np.int64]
_HALVINGS = 100


def project_channels(
    values: Sequence[Values],
    prices: Sequence[Prices],
    openings: Sequence[Prices],
    capacity: int,
) -> list[NDArray[np.bool_]]:
    """Keep what is worth most within a capacity, by entries and whole channels.

    Args:
        values: One array `(channels, ...)` a mask, not negative; an entry of 0 is never kept.
        prices: int64 arrays of the same shapes, positive.
        openings: int64 arrays `(channels,)`, not negative: the price of a channel of which
            anything is kept.
        capacity: What all that is kept may cost together.

    Returns:
        A boolean array a mask.
    """
    highest = max((float((v / p).max(initial=0.0)) for v, p in zip(values, prices, strict=True)))
    kept = _kept(values, prices, openings, 0.0)
    if _cost(kept, prices, openings) <= capacity:
        return kept
    low, high = 0.0, highest * (1 + 1e-9)
    best = _kept(values, prices, openings, high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        kept = _kept(values, prices, openings, middle)
        if _cost(kept, prices, openings) <= capacity:
            best, high = kept, middle
        else:
            low = middle
        if middle in (low, high) and high - low <= np.spacing(high):
            break
    return _filled(best, values, prices, openings, capacity - _cost(best, prices, openings))


def _kept(
    values: Sequence[Values],
    prices: Sequence[Prices],
    openings: Sequence[Prices],
    threshold: float,
) -> list[NDArray[np.bool_]]:
    result = []
    for value, price, opening in zip(values, prices, openings, strict=True):
        surplus = np.maximum(value - threshold * price, 0.0)
        worth = surplus.reshape(len(value), -1).sum(axis=1) > threshold * opening
        # Without a price of their own, channels are what their entries are.
        opened = (worth | (opening == 0)).reshape(-1, *[1] * (value.ndim - 1))
        result.append((surplus > 0) & opened)
    return result


def _cost(
    kept: Sequence[NDArray[np.bool_]], prices: Sequence[Prices], openings: Sequence[Prices]
) -> int:
    entries = sum(int(p[k].sum()) for k, p in zip(kept, prices, strict=True))
    opened = (k.reshape(len(k), -1).any(axis=1) for k in kept)
    return entries + sum(int(o[k].sum()) for k, o in zip(opened, openings, strict=True))


def _filled(
    kept: list[NDArray[np.bool_]],
    values: Sequence[Values],
    prices: Sequence[Prices],
    openings: Sequence[Prices],
    left: int,
) -> list[NDArray[np.bool_]]:
    """Take further entries, by value per price, as long as they fit.

    Ties all pass a threshold or none does, so that much may be left.
    """
    flat_values, flat_prices, flat_kept = (
        np.concatenate([part.reshape(-1) for part in parts]) for parts in (values, prices, kept)
    )
    opened = np.concatenate([k.reshape(len(k), -1).any(axis=1) for k in kept])
    opening = np.where(opened, 0, np.concatenate(openings))
    sizes = np.concatenate([np.full(len(k), k[0].size) for k in kept])
    channels = np.repeat(np.arange(len(sizes)), sizes)
    candidates = np.flatnonzero(~flat_kept & (flat_values > 0))
    order = candidates[
        np.argsort(-flat_values[candidates] / flat_prices[candidates], kind="stable")
    ]
    cheapest = int(flat_prices[order].min(initial=left + 1))
    for entry in order:
        if left < cheapest:
            break
        price = int(flat_prices[entry] + opening[channels[entry]])
        if price <= left:
            flat_kept[entry], opening[channels[entry]] = True, 0
            left -= price
    parts = np.split(flat_kept, np.cumsum([k.size for k in kept])[:-1])
    return [part.reshape(k.shape) for part, k in zip(parts, kept, strict=True)]
