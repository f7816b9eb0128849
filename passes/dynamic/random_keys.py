"""Random numbers that are a function of what they are for: no generator, no state.

A stream is named by (seed, event, site name) and its i-th number is a hash of the name and of i, as
in SplitMix64 (Steele, Lea, Flood, OOPSLA 2014). So a site gets the same numbers whatever the order
of sites, the device or the number of processes, and nothing has to be stored to resume.

Within a stream of keys all numbers differ: the hash of the counter is a bijection of 64 bits.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)  # constants as signed 64-bit numbers, which torch has
MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
MIX_2 = 0x94D049BB133111EB - (1 << 64)
_WORD = 1 << 32


def key_of(seed: int, event: int, name: str) -> int:
    """The key of one stream of random numbers.

    Args:
        seed: Of the whole run; any whole number.
        event: Number of the rewiring event, or of the step.
        name: Of the site, and of the purpose where a site needs two streams in one event.

    Returns:
        A signed 64-bit number; the same in every process and on every platform.
    """
    text = f"{int(seed)}/{int(event)}/{name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def keys_at(key: int, counters: Tensor) -> Tensor:
    """The numbers of a stream at given places.

    Args:
        key: From `key_of`.
        counters: int64 tensor of any shape, not negative.

    Returns:
        int64 tensor of that shape, uniform over all 2^64 values; equal only where the counters are.
    """
    state = (counters + 1) * GAMMA  # int64 wraps around, as the hash wants it
    state += (key + (1 << 63)) % (1 << 64) - (1 << 63)
    state = (state ^ _shifted(state, 30)) * MIX_1
    state = (state ^ _shifted(state, 27)) * MIX_2
    return state ^ _shifted(state, 31)


def uniform_keys(
    key: int, n: int, device: torch.device | str | None = None, *, start: int = 0
) -> Tensor:
    """Numbers `start` to `start + n - 1` of a stream.

    Args:
        key: From `key_of`.
        n: How many.
        device: Where they are computed; it does not change them.
        start: Number of the first.

    Returns:
        int64 tensor of shape `(n,)`, uniform over all 2^64 values and pairwise different.
    """
    return keys_at(key, torch.arange(start, start + n, dtype=torch.int64, device=device))


def uniform_indices(
    key: int, n: int, below: int, device: torch.device | str | None = None, *, start: int = 0
) -> Tensor:
    """Random indices, independent of each other.

    Args:
        key: From `key_of`.
        n: How many.
        below: The indices are from 0 to `below - 1`, each with probability `1 / below` to within
            2^-63.
        device: Where they are computed.
        start: Number of the first one's key in the stream.

    Returns:
        int64 tensor of shape `(n,)`.
    """
    return _shifted(uniform_keys(key, n, device, start=start), 1) % below


def normals(key: int, n: int, device: torch.device | str | None = None) -> Tensor:
    """Standard normal numbers, two from each key (Box and Muller, 1958).

    Computed in float64 and rounded once, so that the last bits of a device's logarithm or cosine
    do not show. No number is beyond +-6.7.

    Args:
        key: From `key_of`.
        n: How many; fewer are a prefix of more.
        device: Where they are computed.

    Returns:
        float32 tensor of shape `(n,)`.
    """
    keys = uniform_keys(key, (n + 1) // 2, device)
    above_zero = (_shifted(keys, 32) + 1).to(torch.float64) / _WORD  # (0, 1], for the logarithm
    angle = (keys & (_WORD - 1)).to(torch.float64) * (2 * math.pi / _WORD)
    radius = above_zero.log().mul(-2).sqrt()
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return pairs.reshape(-1)[:n].to(torch.float32)


def _shifted(state: Tensor, by: int) -> Tensor:
    """To the right, filled with zeros; torch's own shift repeats the sign."""
    return (state >> by) & ((1 << (64 - by)) - 1)
