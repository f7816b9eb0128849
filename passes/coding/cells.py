"""The cells of a mask, one after the other: as gaps, by rows and columns, or by kernels.

Each function writes or reads: an encoder leaves the cells as they are, a decoder fills them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from passes.coding.fixed import HAZARD, LIMIT, PRECISION, UNIT
from passes.coding.mixing import EVENT, Mixer, weight
from passes.coding.models import ExpGolomb, code_number
from passes.coding.range_coder import Coder, damaged

# First counts of nonzeros and zeros: 0.4 and 1.6 events.
_START = (EVENT * 2 // 5, EVENT * 8 // 5)
# Of the base, row and column.
_LINE_WEIGHTS = (weight(1.0), weight(0.1), weight(0.1))
_LINE_STRENGTHS = (2, 1)
_LINE_RATE = 20
# Of the base, row, column, channel, tap, kernel and neighbours.
_KERNEL_WEIGHTS = tuple(weight(w) for w in (1.0, 0.25, 0.35, 0.5, 0.25, 0.2, 0.6))
_KERNEL_STRENGTHS = (2, 1, 4, 4, 2, 4)
_KERNEL_RATE = 41
# What a neighbour is: empty, a nonzero, or beyond the edge.
_EDGE = 2


@dataclass(frozen=True, slots=True)
class Layout:
    """How the columns of a matrix hang together.

    Attributes:
        rows: Output channels.
        channels: Input channels; each has `taps` columns beside each other.
        taps: Elements of a kernel.
        width: Elements of a kernel's row.
    """

    rows: int
    channels: int
    taps: int = 1
    width: int = 1

    @property
    def columns(self) -> int:
        """Columns of the matrix."""
        return self.channels * self.taps

    @staticmethod
    def of(shape: tuple[int, ...]) -> Layout:
        """The layout of a weight of that shape; a vector is one row."""
        if len(shape) < 2:
            return Layout(1, int(np.prod(shape, dtype=np.int64)))
        taps = int(np.prod(shape[2:], dtype=np.int64))
        return Layout(shape[0], shape[1], taps, shape[-1] if len(shape) > 2 else 1)


def code_gaps(coder: Coder, cells: bytearray, most: int | None = None) -> None:
    """Distances between nonzeros, and how many of them there are.

    Args:
        coder: Encoder, meter or decoder.
        cells: All of them.
        most: How many nonzeros there may be; `None`: any number.

    Raises:
        StorageError: A decoder read a position beyond the last cell.
    """
    places = np.flatnonzero(np.frombuffer(cells, np.uint8)).tolist()
    count = code_number(coder, len(places))
    if count > (len(cells) if most is None else most):
        raise damaged()
    # The shortest prefix holds the gaps up to about the mean one.
    order = max((len(cells) // (count + 1)).bit_length() - 2, 0)
    gaps = ExpGolomb(order, fine=3)
    place = -1
    for index in range(count):
        gap = places[index] - place - 1 if index < len(places) else 0
        place += 1 + gaps.code(coder, gap)
        if place >= len(cells):
            raise damaged()
        cells[place] = 1


def code_by_lines(
    coder: Coder, cells: bytearray, shape: tuple[int, int], full: tuple[bool, bool]
) -> None:
    """A bit per cell, from how full its row and column are so far.

    Args:
        coder: Encoder, meter or decoder.
        cells: Row after row.
        shape: Rows and columns.
        full: Whether no row is empty, and whether no column is. A line without a nonzero so far
            then becomes the likelier to get one the fewer cells it has left.
    """
    rows, columns = shape
    mixer = Mixer(1 + columns, _LINE_WEIGHTS, _LINE_STRENGTHS, start=_START, rate=_LINE_RATE)
    filled = bytearray(columns)
    for row in range(rows):
        mixer.clear(0)
        empty = True
        for column in range(columns):
            offset, certain = 0, False
            if full[0] and empty:
                certain = column == columns - 1
                offset = _hazard(mixer, columns - 1 - column)
            if full[1] and not filled[column]:
                certain |= row == rows - 1
                offset += _hazard(mixer, rows - 1 - row)
            place = row * columns + column
            bit = 1 if certain else mixer.code(coder, 0, (0, 1 + column), cells[place], offset)
            cells[place] = bit
            if bit:
                empty = False
                filled[column] = 1


def _hazard(mixer: Mixer, left: int) -> int:
    """How much likelier a nonzero is because one of this and `left` more cells must be one."""
    share = mixer.density()
    # -ln(1 - p), to second order.
    expected = left * (share + (share * share >> (PRECISION + 1)))
    return HAZARD[min(expected * UNIT >> PRECISION, LIMIT)]


def code_by_kernels(
    coder: Coder, cells: bytearray, layout: Layout, *, full_rows: bool = False
) -> None:
    """A bit per cell, mixed from row, column, channel, tap, kernel and neighbours in the kernel.

    Args:
        coder: Encoder, meter or decoder.
        cells: Row after row, of the layout's size.
        layout: Rows and columns.
        full_rows: Whether no row is empty.
    """
    columns, taps, channels = layout.columns, layout.taps, layout.channels
    first_tap = 2 + columns + channels
    around = first_tap + taps
    mixer = Mixer(around + 81, _KERNEL_WEIGHTS, _KERNEL_STRENGTHS, start=_START, rate=_KERNEL_RATE)
    neighbours = [_neighbours(tap, layout.width) for tap in range(taps)]
    place = 0
    for row in range(layout.rows):
        mixer.clear(0)
        last = (row + 1) * columns - 1
        empty = full_rows
        for channel in range(channels):
            mixer.clear(1)
            column = 2 + channel * taps
            channel_slot = 2 + columns + channel
            for tap in range(taps):
                left, upper, upper_left, upper_right = neighbours[tap]
                context = (
                    27 * (cells[place - left] if left else _EDGE)
                    + 9 * (cells[place - upper] if upper else _EDGE)
                    + 3 * (cells[place - upper_left] if upper_left else _EDGE)
                    + (cells[place - upper_right] if upper_right else _EDGE)
                )
                slots = (0, column + tap, channel_slot, first_tap + tap, 1, around + context)
                offset = _hazard(mixer, last - place) if empty else 0
                certain = empty and place == last
                bit = 1 if certain else mixer.code(coder, 0, slots, cells[place], offset)
                empty = empty and not bit
                cells[place] = bit
                place += 1


def _neighbours(tap: int, width: int) -> tuple[int, int, int, int]:
    """How far back left, upper, upper left and upper right neighbours are; 0 beyond the edge."""
    row, column = divmod(tap, width)
    left = 1 if column else 0
    upper = width if row else 0
    upper_left = width + 1 if row and column else 0
    upper_right = width - 1 if row and column < width - 1 else 0
    return left, upper, upper_left, upper_right
