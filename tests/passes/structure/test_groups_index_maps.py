"""The strongest check of index maps: gated and sliced models agree on random states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from slicing import randomize, traced, worst_error
from structure_nets import (
    Attention,
    Chunk,
    Concat,
    Constant,
    Depthwise,
    Flat,
    FrozenNorm,
    Functional,
    Gated,
    Grouped,
    Halves,
    Mixer,
    Multihead,
    Pad,
    PixelShuffle,
    Residual,
    Scaled,
    Shuffle,
    SplitBySize,
    SqueezeExcite,
    Tied,
    Transposed,
    Upsampled,
    Words,
    image,
)


def check(model, x, expected):
    graph, groups = traced(randomize(model), x)
    assert [(g.name, g.units, g.unit_size) for g in groups.free] == expected, str(groups)
    assert worst_error(graph, groups, (x,), seeds=range(4)) < 1e-12


NETS = [
    (Residual, [("stem", 8, 1), ("a", 6, 1)]),
    (Concat, [("stem", 8, 1), ("a", 7, 1), ("b", 5, 1)]),
    (Chunk, [("stem", 4, 2)]),
    (SplitBySize, [("stem", 4, 2), ("a", 8, 1)]),
    (Halves, [("stem", 4, 2)]),
    (Depthwise, [("stem", 8, 1), ("b", 6, 1)]),
    (Shuffle, [("stem", 4, 2), ("a", 3, 4), ("b", 4, 2)]),
    (SqueezeExcite, [("stem", 8, 1), ("a", 4, 1)]),
    (Transposed, [("stem", 8, 1), ("up", 3, 2), ("grouped", 4, 2)]),
    (Pad, [("stem", 8, 1)]),
    (Flat, [("conv", 6, 1), ("hidden", 10, 1)]),
    (Tied, [("stem", 8, 1)]),
    (Functional, [("first", 6, 1), ("second", 7, 1)]),
    (Scaled, [("stem", 8, 1), ("weight", 6, 1)]),
    (Constant, [("stem", 8, 1)]),
    (FrozenNorm, [("stem", 8, 1)]),
    (Grouped, [("stem", 4, 2), ("conv", 6, 1)]),
    (PixelShuffle, [("stem", 8, 1), ("a", 3, 4)]),
    (Upsampled, [("stem", 8, 1)]),
    (Gated, [("stem", 8, 1), ("a", 4, 2)]),
    (Attention, [("embed", 12, 1), ("qkv", 3, 12)]),
    (Multihead, [("attention", 3, 12), ("up", 10, 1)]),
    (Mixer, [("embed", 8, 1)]),
]


@pytest.mark.spread(1)
@pytest.mark.parametrize(("build", "expected"), NETS, ids=lambda x: getattr(x, "__name__", ""))
def test_net(build, expected):
    torch.manual_seed(0)
    check(build(), image(), expected)


def test_attention_in_parts_and_by_hand():
    torch.manual_seed(0)
    for fused in (False, True):
        model = Attention(fused=fused, by_hand=True)
        first = "qkv" if fused else "q"
        check(model, image(), [("embed", 12, 1), (first, 3, 12 if fused else 4)])


def test_attention_with_time_first():
    torch.manual_seed(0)
    check(Multihead(batch_first=False), image(), [("attention", 3, 12), ("up", 10, 1)])


def test_words():
    torch.manual_seed(0)
    words = torch.randint(0, 11, (2, 7))
    check(Words(), words, [("table", 8, 1), ("up", 6, 1)])


def test_a_wrong_map_is_seen():
    graph, groups = traced(randomize(Concat()), image())
    reader = groups.by_name["a"].readers[-1]
    reader.units[:] = np.roll(reader.units, 1)
    assert worst_error(graph, groups, (image(),)) > 1e-3


@pytest.mark.parametrize("batch", [1, 3])
def test_groups_hold_for_every_batch_size(batch):
    graph, groups = traced(randomize(Shuffle()), image(2))
    assert worst_error(graph, groups, (image(batch),)) < 1e-12
