"""The layout of the paper, node by node: a fixture that our own encoder can be compared on.

Cao, Wang, Kitani, "Learnable Embedding Space for Efficient Neural Architecture Compression", ICLR
2019, section 3.1: the type (one-hot of ten), kernel, stride, padding and groups, channels in and
out, and two bitmaps of 128 relative distances, in and out. Nothing is scaled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TYPES = (
    "identity",
    "flatten",
    "concat",
    "shuffle",
    "conv",
    "max_pool",
    "avg_pool",
    "relu",
    "batch_norm",
    "linear",
)
REACH = 128


@dataclass(frozen=True)
class PaperNode:
    """A primitive layer; channels are told of convolutions and linear layers only."""

    type: str
    kernel: int = 0
    stride: int = 0
    padding: int = 0
    groups: int = 0
    channels: tuple[int, int] = (0, 0)


def paper_tokens(nodes, edges):
    """float32 `(nodes, 16 + 2 * 128)` of nodes in execution order."""
    found = np.zeros((len(nodes), 16 + 2 * REACH), dtype=np.float32)
    for row, node in zip(found, nodes, strict=True):
        row[TYPES.index(node.type)] = 1
        row[10:16] = (node.kernel, node.stride, node.padding, node.groups, *node.channels)
    for source, target in edges:
        found[target, 16 + target - source] = 1
        found[source, 16 + REACH + target - source] = 1
    return found
