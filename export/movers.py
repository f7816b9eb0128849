"""Operators that move values without changing them: what is quantized before them is so after."""

from __future__ import annotations

import numpy as np
import onnx

from export.onnx_graph import Node, Rewriter, attributes

_PLAIN = frozenset({"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Expand"})
_REORDERING = frozenset({"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "MaxPool"})


def moves_values(node: Node, rewriter: Rewriter) -> bool:
    """Whether every output element is an element of the first input, or zero."""
    if node.op_type in _PLAIN:
        return True
    if node.op_type == "Gather":
        return node.input[0] not in rewriter.stored
    if node.op_type == "MaxPool":
        return len(node.output) == 1
    return node.op_type == "Pad" and _pads_with_values(node, rewriter)


def keeps_elements(node: Node, rewriter: Rewriter) -> bool:
    """Whether a mover may stand behind the rounding of its input instead of before it.

    Rounding is monotone, so that it commutes with the largest of several values. A slice moves
    values as well, but more would be rounded before it than after it.
    """
    movable = node.op_type in _REORDERING or node.op_type == "Pad"
    return movable and moves_values(node, rewriter)


def _pads_with_values(node: Node, rewriter: Rewriter) -> bool:
    """Whether what is padded with lies on every grid: zeros, or elements of the input."""
    if attributes(node).get("mode", b"constant") != b"constant":
        return True
    if len(node.input) < 3 or not node.input[2]:
        return True
    values = rewriter.array(node.input[2])
    return values is not None and not np.any(values)


def merge_slices(rewriter: Rewriter) -> None:
    """Write consecutive slices along different axes as one."""
    changed = True
    while changed:
        changed = False
        producers, readers = rewriter.producers(), rewriter.readers()
        for node in rewriter.nodes:
            first = producers.get(node.input[0]) if node.op_type == "Slice" else None
            if first is None or first.op_type != "Slice":
                continue
            if len(readers[node.input[0]]) > 1 or node.input[0] in rewriter.outputs:
                continue
            merged = _merged(first, node, rewriter)
            if merged is not None:
                del node.input[:]
                node.input.extend(merged)
                rewriter.remove(first)
                changed = True
                break


def _merged(first: Node, second: Node, rewriter: Rewriter) -> list[str] | None:
    """Inputs of the one slice that does what both do; `None` where there is none."""
    one, two = _cut(first, rewriter), _cut(second, rewriter)
    if one is None or two is None or set(one[2]) & set(two[2]):
        return None
    name, names = second.output[0], [first.input[0]]
    for place, role in enumerate(("starts", "ends", "axes", "steps")):
        values = np.array([*one[place], *two[place]], dtype=np.int64)
        names.append(rewriter.store(rewriter.fresh(f"{name}_{role}"), values))
    return names


def _cut(node: Node, rewriter: Rewriter) -> list[list[int]] | None:
    """Starts, ends, axes and steps of a slice, where all are constants and axes are positive."""
    arrays = [rewriter.array(name) for name in node.input[1:]]
    if len(arrays) < 3 or any(array is None for array in arrays):
        return None
    lists = [[int(v) for v in array.reshape(-1)] for array in arrays if array is not None]
    if len(lists) == 3:
        lists.append([1] * len(lists[0]))
    return None if any(axis < 0 for axis in lists[2]) else lists


def on_codes(node: Node, codes: str, zero: str, output: str) -> Node:
    """The same movement of integer codes.

    Args:
        node: A mover.
        codes: Its input in codes.
        zero: The code of zero, as the name of a scalar.
        output: Name of the result.
    """
    moved = onnx.NodeProto()
    moved.CopyFrom(node)
    moved.input[0], moved.output[0] = codes, output
    if node.op_type == "Pad":
        if len(moved.input) < 3:
            moved.input.append(zero)
        moved.input[2] = zero
    return moved
