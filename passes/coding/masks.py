"""Where the nonzeros of a weight are: its mask, cell by cell, in as few bits as possible.

A weight is a matrix: a row per output channel, a column per input channel and kernel tap. Trained
sparse weights leave whole rows and columns empty, and what is left clusters: in the same columns,
the same input channels, and next to each other in a kernel. Several ways to write a mask are
metered, and the cheapest is taken:

    GAPS     distances between nonzeros
    LINES    one bit per cell, given that no listed row and column is empty
    KERNELS  one bit per cell; its row, column, channel, tap, kernel and neighbours are mixed

each after lists of the rows and of the columns (channels) that are not empty, where these pay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from passes.coding.cells import Layout, code_by_kernels, code_by_lines, code_gaps
from passes.coding.range_coder import Coder, Meter

Mask = NDArray[np.bool_]

Indices = NDArray[np.int64]

# Sides of the squares that the columns of a linear layer behind a flattened image may hold.
_SIDES = (2, 3, 4, 5, 6, 7)
# Cells that are coded one by one at most; also as kernels that are guessed; and in many ways.
_WORK = 1 << 18
_TILED = 1 << 16
_SHORT = 1 << 15
# Masks with no more cells than this, or nonzeros, are tried in all ways.
_FEW_CELLS = 1 << 12
_FEW, _FEW_IN_MATRIX = 1 << 10, 1 << 12
# One cell in so many is a nonzero, or more: the others do not stand alone.
_DENSE = 8


class Way(IntEnum):
    """How cells are written."""

    GAPS = 0
    LINES = 1
    KERNELS = 2


class Lines(IntEnum):
    """What is known of rows or columns before the cells."""

    UNKNOWN = 0
    NONE_EMPTY = 1
    LISTED = 2


@dataclass(frozen=True, slots=True)
class Choice:
    """A way to write a mask.

    Attributes:
        way: How cells are written.
        rows: What is known of rows.
        columns: What is known of columns; of channels, if the way is `KERNELS`.
        tile: Which of the squares that fit the columns is a kernel; 0 is none.
    """

    way: Way = Way.GAPS
    rows: Lines = Lines.UNKNOWN
    columns: Lines = Lines.UNKNOWN
    tile: int = 0


def code_mask(coder: Coder, mask: Mask, layout: Layout, choice: Choice) -> None:
    """Code a mask.

    Args:
        coder: Encoder, meter or decoder.
        mask: Shape `(rows, columns)`; a decoder fills it, and must be given zeros.
        layout: Known to both sides.
        choice: From `choose`; a decoder reads it and ignores this one.
    """
    choice = _code_choice(coder, choice, layout)
    layout = _tiled(layout, choice.tile)
    rows = _code_lines(coder, _any(mask, 1), choice.rows, Layout(1, layout.rows))
    alive, unit = _any(mask, 0), 1
    if choice.way is Way.KERNELS:
        unit = layout.taps
        alive = _any(alive.reshape(layout.channels, unit), 1)
    flat = replace(layout, rows=1) if unit == 1 else Layout(1, layout.channels)
    lines = _code_lines(coder, alive, choice.columns, flat)
    columns = (lines[:, None] * unit + np.arange(unit)).ravel()
    part = np.ix_(rows, columns)
    cells = bytearray(mask[part].tobytes())
    if choice.way is Way.GAPS:
        code_gaps(coder, cells)
    elif choice.way is Way.LINES:
        full = (choice.rows is not Lines.UNKNOWN, choice.columns is not Lines.UNKNOWN)
        code_by_lines(coder, cells, (len(rows), len(columns)), full)
    else:
        inner = replace(layout, rows=len(rows), channels=len(lines))
        code_by_kernels(coder, cells, inner, full_rows=choice.rows is not Lines.UNKNOWN)
    mask[part] = np.frombuffer(cells, np.bool_).reshape(len(rows), len(columns))


def choose(mask: Mask, layout: Layout) -> Choice:
    """The cheapest way to write a mask, by metering; large masks only in the likely ways."""
    given = [Lines.LISTED if not _any(mask, axis).all() else Lines.NONE_EMPTY for axis in (1, 0)]
    nonzeros = int(mask.sum())
    few = _FEW if layout.taps > 1 else _FEW_IN_MATRIX
    small = mask.size <= _FEW_CELLS or nonzeros <= few
    # Dense kernels are written as kernels: there is nothing to meter but which lines to list.
    kernels = not small and layout.taps > 1 and nonzeros * _DENSE > mask.size
    if kernels and mask.size <= _WORK and Lines.LISTED not in given:
        return Choice(Way.KERNELS)
    known = [
        Choice(Way.GAPS, rows, columns)
        for rows in (Lines.UNKNOWN, given[0])[: layout.rows]
        for columns in (Lines.UNKNOWN, given[1])
    ]
    costs: dict[tuple[int, ...], int] = {}
    ranked = sorted(
        (_cost(mask, layout, choice, costs), place) for place, choice in enumerate(known)
    )
    best, least = known[ranked[0][1]], ranked[0][0]
    for rank, (_, place) in enumerate(ranked if small else ranked[:1]):
        for choice in _cell_by_cell(known[place], mask, layout, likely=rank == 0):
            if kernels and choice.way is Way.KERNELS:
                return choice
            if not small and layout.taps > 1 and choice.way is Way.LINES:
                continue
            cost = _cost(mask, layout, choice, costs)
            if cost < least:
                best, least = choice, cost
    return best


def _cost(mask: Mask, layout: Layout, choice: Choice, costs: dict[tuple[int, ...], int]) -> int:
    """What a way to write a mask costs, and what those cost that write the same bits."""
    rows, columns = choice.rows, choice.columns
    if choice.way is Way.GAPS:
        rows = Lines.UNKNOWN if rows is Lines.NONE_EMPTY else rows
    if choice.way is not Way.LINES:
        columns = Lines.UNKNOWN if columns is Lines.NONE_EMPTY else columns
    key = (choice.way, rows, columns, choice.tile)
    if key not in costs:
        meter = Meter()
        code_mask(meter, mask.copy(), layout, choice)
        costs[key] = meter.units
    return costs[key]


def _cell_by_cell(choice: Choice, mask: Mask, layout: Layout, *, likely: bool) -> Iterator[Choice]:
    """Ways to write every cell, knowing the rows and columns that a choice knows."""
    most = _WORK if likely else _SHORT
    rows = layout.rows if choice.rows is Lines.UNKNOWN else int(_any(mask, 1).sum())
    alive = _any(mask, 0)
    columns = len(alive) if choice.columns is Lines.UNKNOWN else int(alive.sum())
    if rows * columns <= (most if layout.taps == 1 else _SHORT):
        yield replace(choice, way=Way.LINES)
    tiles = range(1, 1 + len(_tiles(layout))) if layout.taps == 1 else range(1)
    for tile in tiles:
        taps = _tiled(layout, tile).taps
        channels = _any(alive.reshape(-1, taps), 1)
        known = choice.columns
        if known is not Lines.UNKNOWN:
            known = Lines.NONE_EMPTY if channels.all() else Lines.LISTED
        count = len(channels) if known is Lines.UNKNOWN else int(channels.sum())
        if rows * count * taps <= (min(most, _TILED) if tile else most):
            yield replace(choice, way=Way.KERNELS, columns=known, tile=tile)


def _code_choice(coder: Coder, choice: Choice, layout: Layout) -> Choice:
    way = Way(coder.uniform(choice.way, len(Way)))
    rows = Lines(coder.uniform(choice.rows, len(Lines))) if layout.rows > 1 else Lines.UNKNOWN
    columns = Lines(coder.uniform(choice.columns, len(Lines)))
    tiles = len(_tiles(layout))
    tile = coder.uniform(choice.tile, tiles + 1) if way is Way.KERNELS and tiles else 0
    return Choice(way, rows, columns, tile)


def _tiles(layout: Layout) -> list[int]:
    """Sides of the squares that fit the columns of a matrix; none if it has kernels already."""
    if layout.taps > 1:
        return []
    return [side for side in _SIDES if layout.channels % (side * side) == 0]


def _tiled(layout: Layout, tile: int) -> Layout:
    if tile == 0:
        return layout
    side = _tiles(layout)[tile - 1]
    return Layout(layout.rows, layout.channels // (side * side), side * side, side)


def _code_lines(coder: Coder, alive: Mask, known: Lines, layout: Layout) -> Indices:
    """Which rows or columns are not empty, as far as it is written."""
    if known is not Lines.LISTED:
        return np.arange(len(alive))
    flags = bytearray(alive.tobytes())
    code_by_kernels(coder, flags, layout)
    return np.flatnonzero(np.frombuffer(flags, np.bool_))


def _any(mask: Mask, axis: int) -> Mask:
    found: Mask = np.asarray(mask.any(axis), np.bool_)
    return found
