"""What is written of a tensor, in which order, and which of the ways to write it is the cheapest.

background (mostly zero) + mask of the others + codebook + codes
background               + mask of the others + values one by one
                                                codebook + codes
                                                values one by one
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from passes.coding.cells import Layout
from passes.coding.codes import Contexts, code_codes
from passes.coding.fixed import ONE
from passes.coding.levels import MOST_LEVELS, code_levels
from passes.coding.masks import Choice, choose, code_mask
from passes.coding.patterns import Array, Kind, Level, by_value, join_bits, split_bits
from passes.coding.range_coder import Coder, Meter
from passes.coding.values import code_values

_ZERO: Level = (False, 0)
# A constant may well be other than zero; a background is rarely.
_HALF = ONE // 2
_RARE = ONE // 32
# A background is tried if one element in so many has it: a code is cheap, a value is dear.
_BACKGROUND = 8
_BACKGROUND_OF_VALUES = 256
# Codebooks up to this size need no comparison with values one by one.
_FEW = 16
# Elements on which ways to write values are compared; and with or without a background.
_TRIAL = 1 << 10
_TOP = 1 << 12


class Form(IntEnum):
    """How a tensor is written."""

    CONSTANT = 0
    SPARSE_CODES = 1
    SPARSE_VALUES = 2
    DENSE_CODES = 3
    DENSE_VALUES = 4


_SPARSE = (Form.SPARSE_CODES, Form.SPARSE_VALUES)
_CODED = (Form.SPARSE_CODES, Form.DENSE_CODES)


Price = Callable[["Content", Kind, Layout], int]


@dataclass(frozen=True, slots=True)
class Content:
    """What is written of a tensor; a decoder starts with an empty one.

    Attributes:
        form: How.
        background: The value of everything outside of the mask, or of all elements.
        mask: Shape `(rows, columns)`.
        choice: How the mask is written.
        levels: By value.
        codes: One per element, 0 outside of the mask.
        contexts: How the codes are written.
        values: Of the elements inside of the mask, if there is no codebook.
    """

    form: Form
    background: Level
    mask: NDArray[np.bool_]
    choice: Choice = field(default_factory=Choice)
    levels: list[Level] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    contexts: Contexts = Contexts.NONE
    values: list[Level] = field(default_factory=list)

    @staticmethod
    def blank() -> Content:
        """What a decoder starts with."""
        return Content(Form.CONSTANT, _ZERO, np.zeros((0, 0), np.bool_))


def code_content(coder: Coder, content: Content, kind: Kind, layout: Layout) -> Content:
    """Code a tensor with at least one element.

    Args:
        coder: Encoder, meter or decoder.
        content: From `cheapest_content`; a decoder gets a blank one.
        kind: What an element is.
        layout: How the elements lie.

    Returns:
        The content as it was written or read.

    Raises:
        StorageError: A decoder read what no encoder wrote.
    """
    content = replace(content, form=Form(coder.uniform(content.form, len(Form))))
    if content.form is Form.CONSTANT:
        return replace(content, background=_code_background(coder, content.background, kind, _HALF))
    return _code_inside(coder, _code_mask(coder, content, kind, layout), kind, layout)


def _code_mask(coder: Coder, content: Content, kind: Kind, layout: Layout) -> Content:
    """Code the background, and where it ends."""
    shape = (layout.rows, layout.columns)
    if content.form not in _SPARSE:
        return replace(content, mask=np.ones(shape, np.bool_))
    background = _code_background(coder, content.background, kind, _RARE)
    mask = content.mask.copy() if content.mask.size else np.zeros(shape, np.bool_)
    code_mask(coder, mask, layout, content.choice)
    return replace(content, background=background, mask=mask)


def _code_background(coder: Coder, background: Level, kind: Kind, other: int) -> Level:
    """Code a single value, that is something other than zero with some probability."""
    if coder.code(other, int(background != _ZERO)):
        return code_levels(coder, [background], kind)[0]
    return _ZERO


def _code_inside(coder: Coder, content: Content, kind: Kind, layout: Layout) -> Content:
    """Code what is inside of the mask."""
    places = np.flatnonzero(content.mask.reshape(-1))
    if content.form not in _CODED:
        return replace(content, values=code_values(coder, content.values, len(places), kind))
    levels = code_levels(coder, content.levels, kind)
    below = sum(by_value(level) < by_value(content.background) for level in levels)
    contexts = Contexts(coder.uniform(content.contexts, len(Contexts)))
    codes = list(content.codes) or [0] * content.mask.size
    sides = (below, len(levels) - below)
    code_codes(coder, codes, places.tolist(), layout, sides, contexts)
    return replace(content, levels=levels, codes=codes)


def content_bits(content: Content, kind: Kind, size: int) -> Array:
    """The elements of what was read, as unsigned integers.

    Args:
        content: From `code_content`.
        kind: What an element is.
        size: How many there are.
    """
    background = join_bits([content.background], kind)
    if content.form is Form.CONSTANT:
        return np.repeat(background, size)
    if content.form in _CODED:
        book = np.concatenate([background, join_bits(content.levels, kind)])
        return book[np.array(content.codes, dtype=np.int64)]
    bits = np.repeat(background, size)
    bits[content.mask.reshape(-1)] = join_bits(content.values, kind)
    return bits


def cheapest_content(bits: Array, kind: Kind, layout: Layout) -> Content:
    """The cheapest way to write a tensor, by metering.

    Args:
        bits: Its elements as unsigned integers, shape `(n,)`, n positive.
        kind: What they are.
        layout: How they lie.
    """
    unique, inverse, counts = np.unique(bits, return_inverse=True, return_counts=True)
    negative, size = split_bits(unique, kind)
    levels: list[Level] = list(zip(negative.tolist(), size.tolist(), strict=True))
    common = int(counts.argmax())
    everything = np.ones((layout.rows, layout.columns), np.bool_)
    if len(levels) == 1:
        return Content(Form.CONSTANT, levels[0], everything)
    contents = []
    if 2 * counts[common] <= len(bits) or len(bits) <= MOST_LEVELS:
        dense = Content(Form.DENSE_VALUES, _ZERO, everything)
        contents.append(_filled(dense, levels, inverse, kind, layout))
    worth = _BACKGROUND if len(levels) <= MOST_LEVELS else _BACKGROUND_OF_VALUES
    if not contents or (worth * int(counts[common]) > len(bits) and counts[common] > 1):
        others = (inverse != common).reshape(everything.shape)
        sparse = Content(Form.SPARSE_VALUES, levels[common], others, choose(others, layout))
        contents.append(_filled(sparse, levels, inverse, kind, layout))
    coded = all(content.form in _CODED for content in contents)
    return _cheapest(contents, kind, layout, _cost_of_top if coded else content_cost)


def _filled(
    content: Content,
    levels: list[Level],
    inverse: NDArray[np.int64],
    kind: Kind,
    layout: Layout,
) -> Content:
    """The cheapest way to write the elements inside of a mask."""
    inside = content.mask.reshape(-1)
    used = sorted(np.unique(inverse[inside]).tolist(), key=lambda place: by_value(levels[place]))
    result = []
    if len(used) <= MOST_LEVELS:
        code_of = np.zeros(len(levels), dtype=np.int64)
        code_of[used] = np.arange(1, len(used) + 1)
        codes = np.where(inside, code_of[inverse], 0).tolist()
        form = Form.SPARSE_CODES if content.form in _SPARSE else Form.DENSE_CODES
        coded = replace(content, form=form, levels=[levels[place] for place in used], codes=codes)
        result += [replace(coded, contexts=contexts) for contexts in Contexts]
    if len(used) > _FEW or 4 * len(used) > int(inside.sum()):
        values = [levels[place] for place in inverse[inside].tolist()]
        result.append(replace(content, values=values))
    return _cheapest(result, kind, layout, _cost_inside)


def _cheapest(contents: list[Content], kind: Kind, layout: Layout, price: Price) -> Content:
    """The first of the contents that cost least."""
    if len(contents) == 1:
        return contents[0]
    costs = [price(content, kind, layout) for content in contents]
    return contents[costs.index(min(costs))]


def content_cost(content: Content, kind: Kind, layout: Layout) -> int:
    """What a content costs, in units of 2^-16 bits."""
    meter = Meter()
    code_content(meter, content, kind, layout)
    return meter.units


def _cost_of_top(content: Content, kind: Kind, layout: Layout) -> int:
    """The cost of codes; of many rows, that of the first ones."""
    rows = max(_TOP // layout.columns, 1)
    if layout.rows > rows:
        layout = replace(layout, rows=rows)
        codes = content.codes[: rows * layout.columns]
        content = replace(content, mask=content.mask[:rows], codes=codes)
    return content_cost(content, kind, layout)


def _cost_inside(content: Content, kind: Kind, layout: Layout) -> int:
    """The cost of what is inside of the mask; of many elements, that of the first ones."""
    meter = Meter()
    if content.mask.sum() > _TRIAL:
        mask = content.mask & (np.cumsum(content.mask).reshape(content.mask.shape) <= _TRIAL)
        codes = np.where(mask.reshape(-1), content.codes, 0).tolist() if content.codes else []
        content = replace(content, mask=mask, codes=codes, values=content.values[:_TRIAL])
    _code_inside(meter, content, kind, layout)
    return meter.units
