"""Arithmetic of sliding windows, one spatial dimension at a time."""

from __future__ import annotations

from collections.abc import Sequence

from energy_model.errors import ArgumentError

Sizes = int | Sequence[int]
"""One value per spatial dimension, or one for all of them."""

Paddings = int | Sequence[int | Sequence[int]]
"""As `Sizes`, where each value may also be a pair (before, after)."""


def dimensions(*sizes: Sizes) -> int:
    """Number of spatial dimensions that `sizes` speak of; 1 when all are single integers."""
    return next((len(size) for size in sizes if isinstance(size, Sequence)), 1)


def spread(name: str, value: Sizes, dims: int) -> tuple[int, ...]:
    """One value per dimension, from one for all or a sequence of `dims`.

    Raises:
        ArgumentError: A sequence of another length.
    """
    values = tuple(value) if isinstance(value, Sequence) else (value,) * dims
    if len(values) != dims:
        raise ArgumentError(
            f"{name}={value!r} has {len(values)} values for {dims} spatial dimensions",
            remedy="Give one value, or one per dimension.",
        )
    return values


def spread_pairs(padding: Paddings, dims: int) -> tuple[tuple[int, int], ...]:
    """Padding as one pair (before, after) per dimension.

    Raises:
        ArgumentError: A wrong number of dimensions, or an entry that is neither a value nor a pair.
    """
    sides = tuple(padding) if isinstance(padding, Sequence) else (padding,) * dims
    pairs = tuple(tuple(side) if isinstance(side, Sequence) else (side, side) for side in sides)
    if len(pairs) != dims or any(len(pair) != 2 for pair in pairs):
        raise ArgumentError(
            f"padding={padding!r} does not fit {dims} spatial dimensions",
            remedy="Give one value, one per dimension, or one (before, after) per dimension.",
        )
    return tuple((before, after) for before, after in pairs)


def conv_output(
    size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int
) -> int:
    """Output positions of a convolution: floor((size + padding - span) / stride) + 1."""
    return (size + sum(padding) - (dilation * (kernel - 1) + 1)) // stride + 1


def conv_transpose_output(
    size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int
) -> int:
    """Output positions of a transposed convolution without output padding."""
    return (size - 1) * stride - sum(padding) + dilation * (kernel - 1) + 1


def steps_inside(
    offset: int, steps: int, stride: int, padding: tuple[int, int], dilation: int, size: int
) -> range:
    """The steps of a window at which one of its kernel offsets meets a position that exists.

    A convolution steps over its outputs and meets inputs; a transposed one the other way round.

    Args:
        offset: Index into the kernel.
        steps: Number of steps of the window.
        stride: Distance of steps.
        padding: Positions (before, after) that the window covers outside.
        dilation: Distance of kernel taps.
        size: Number of positions that exist; step `i` meets `i * stride + offset * dilation -
            padding[0]`.
    """
    shift = offset * dilation - padding[0]
    first = max(0, -(shift // stride))
    last = min((size - 1 - shift) // stride, steps - 1)
    return range(first, max(first, last + 1))
