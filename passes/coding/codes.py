"""Which of its levels each nonzero of a weight has.

The levels are sorted by value. The first bit says on which side of the background (zero) the level
lies, the others descend a balanced tree. Weights of a trained kernel look like their neighbours,
those of a linear layer a little like the others in their column: the codes seen there are contexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from passes.coding.cells import Layout
from passes.coding.mixing import Mixer, weight
from passes.coding.range_coder import Coder

# Codes are told apart as contexts up to so many classes.
_CLASSES = 32
_RATE = 41


class Contexts(IntEnum):
    """What the codes of a weight are predicted from."""

    NONE = 0
    NEIGHBOURS = 1
    COLUMN = 2


_WEIGHTS = {
    Contexts.NONE: (1.0,),
    Contexts.NEIGHBOURS: (0.9, 0.7, 0.5, 0.4),
    Contexts.COLUMN: (0.95, 0.6, 0.1),
}


def code_codes(
    coder: Coder,
    codes: list[int],
    places: Sequence[int],
    layout: Layout,
    levels: tuple[int, int],
    contexts: Contexts,
) -> None:
    """Code the codes at some places of a matrix.

    Args:
        coder: Encoder, meter or decoder.
        codes: The matrix, row after row: 0 is the background, the levels are numbered from 1 by
            their value. A decoder fills in the places, everything else is 0.
        places: Flat indices, ascending.
        layout: Rows and columns.
        levels: How many levels lie below the background, and how many above.
        contexts: What to predict codes from.
    """
    below, count = levels[0], sum(levels)
    if count < 2:
        for place in places:
            codes[place] = count
        return
    coarse = max((count + _CLASSES - 1) // _CLASSES, 1)
    classes = count // coarse + 2
    inputs = len(_WEIGHTS[contexts]) - 1
    mixer = Mixer(
        inputs * classes * count if inputs else 0,
        [weight(value) for value in _WEIGHTS[contexts]],
        [2] * inputs,
        bases=count,
        rate=_RATE,
    )
    columns, taps, width = layout.columns, layout.taps, layout.width
    last = [0] * columns if contexts is Contexts.COLUMN else []
    previous, row_end = 0, 0
    for place in places:
        column = place % columns
        if place >= row_end:
            previous, row_end = 0, place - column + columns
        if contexts is Contexts.NEIGHBOURS:
            tap = column % taps
            left = codes[place - 1] if (tap % width if taps > 1 else column) else 0
            upper = codes[place - width] if taps > 1 and tap >= width else 0
            seen = [left, upper, previous]
        else:
            seen = [last[column], previous] if last else []
        known = [(kind * classes + (-(-code // coarse))) * count for kind, code in enumerate(seen)]
        code = _code_one(coder, mixer, known, codes[place], below, count)
        codes[place] = previous = code
        if last:
            last[column] = code


def _code_one(
    coder: Coder, mixer: Mixer, known: list[int], code: int, below: int, count: int
) -> int:
    """One code; the bit that tells codes up to `middle` from those above has the number middle."""
    low, high = 1, count
    middle = below if 0 < below < count else (low + high) // 2
    while low < high:
        slots = [first + middle for first in known]
        if mixer.code(coder, middle, slots, int(code > middle)):
            low = middle + 1
        else:
            high = middle
        middle = (low + high) // 2
    return low
