"""Weights that a file looks up in a bank: `Gather` on the bank's initialiser.

    index ---.                              computed   Range, arithmetic of 64 bits, [TopK]
    bank ----+--> Gather --> the weight     stored     UINT8, UINT16 or UINT32 --> Cast

`torch.onnx.export` would store the index with 32 bits, as many as the weight itself takes. So the
lookup is one node of a domain of our own until the float graph is there. The hash of the position
is SplitMix64, as in `passes.dynamic.random_keys`; a runtime folds it when it loads the file. One
that has no integers of 64 bits would compute another index without saying so: a few entries stand
in the file, and where they differ the weight is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from export.markers import DOMAIN
from export.onnx_graph import Array, Rewriter, attributes
from passes.dynamic.random_keys import GAMMA, MIX_1, MIX_2
from passes.dynamic.tied_bank import TiedBank
from passes.rewrite.tied_weights import TiedWeight

OPERATOR = "TiedWeight"
_PROBES = 16


_NOTE = (
    "which entry of its bank a weight takes is computed when the file is loaded, with integers of "
    "64 bits: ONNX Runtime has them, OpenVINO has not and gives NaN; TiedWeights(index='stored') "
    "suits both, in a larger file"
)


def lookup_notes(module: nn.Module) -> tuple[str, ...]:
    """What a user of the file of a model must know about its lookups."""
    computed = [
        part for part in module.modules() if isinstance(part, TiedWeight) and not part.stored_index
    ]
    return (_NOTE,) if computed else ()


class Marker(nn.Module):
    """Stands for one lookup.

    Args:
        index: Position of the weight among those of the model.
        shape: Of the weight.
    """

    def __init__(self, index: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.index, self.shape = index, shape

    def forward(self, bank: Tensor) -> Tensor:
        """A tensor of the weight's shape and the bank's type; its values have no meaning."""
        marked: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{OPERATOR}",
            (bank,),
            attrs={"index": self.index},
            dtype=bank.dtype,
            shape=self.shape,
            version=1,
        )
        return marked


@contextmanager
def marked_lookups(module: nn.Module) -> Iterator[dict[str, TiedWeight]]:
    """While a model is exported, its lookups are markers.

    Yields:
        The weights that they stand for, by path, in the order of the markers' indices. Afterwards
        they look up again.
    """
    found = {p: part for p, part in module.named_modules() if isinstance(part, TiedWeight)}
    ties = [part.tie for part in found.values()]
    try:
        for index, part in enumerate(found.values()):
            part._modules["tie"] = Marker(index, part.tie.shape)
        yield found
    finally:
        for part, tie in zip(found.values(), ties, strict=True):
            part.tie = tie


def write_lookups(model: onnx.ModelProto, weights: dict[str, TiedWeight]) -> None:
    """Replace the markers of a float model, in place.

    Args:
        model: As exported under `marked_lookups`.
        weights: What that yielded.
    """
    rewriter, named = Rewriter(model), list(weights.items())
    marks = [n for n in rewriter.nodes if (n.domain, n.op_type) == (DOMAIN, OPERATOR)]
    for mark in marks:
        path, weight = named[attributes(mark)["index"]]
        output = mark.output[0]
        rewriter.remove(mark)
        name = output if output in rewriter.outputs else rewriter.fresh(path)
        rewriter.redirect(output, name)
        _Lookup(rewriter, weight.tie, name).write(mark.input[0], stored=weight.stored_index)
    if marks:
        rewriter.finish()
        if not any(node.domain == DOMAIN for node in model.graph.node):
            others = [item for item in model.opset_import if item.domain != DOMAIN]
            del model.opset_import[:]
            model.opset_import.extend(others)


class _Lookup:
    """The nodes of one lookup.

    Args:
        rewriter: The graph.
        tie: Which entry every cell takes.
        name: Of the weight.
    """

    def __init__(self, rewriter: Rewriter, tie: TiedBank, name: str) -> None:
        self._rewriter, self._tie, self._name = rewriter, tie, name
        self._cells = len(tie.index)

    def write(self, bank: str, *, stored: bool) -> None:
        """Add them; a cell with a negative sign takes an entry behind those of the bank."""
        data_type = self._rewriter.stored[bank].data_type
        if self._tie.sign is not None:
            bank = self._node("Concat", bank, self._node("Neg", bank), axis=0)
        rows = self._tie.shape[: self._tie.leading]
        if stored:
            narrow = self._entries().reshape(rows)
            narrow = narrow.astype(np.min_scalar_type(int(narrow.max(initial=0))))
            index = self._node("Cast", self._own(narrow), to=TensorProto.INT64)
            self._add("Gather", (bank, index), self._name, axis=0)
            return
        flat = self._computed()
        index = self._node("Reshape", flat, self._own(np.array(rows, np.int64)))
        looked_up = self._node("Gather", bank, index, axis=0)
        self._add("Where", (self._is_right(flat), looked_up, self._nan(data_type)), self._name)

    def _entries(self) -> Array:
        """The index as torch has it, int64 `(cells,)`."""
        index = self._tie.index.cpu().numpy().astype(np.int64)
        if self._tie.sign is not None:
            index = index + self._tie.buckets * (self._tie.sign.cpu().numpy() < 0)
        return index

    def _computed(self) -> str:
        """Nodes that compute the index."""
        tie, keys = self._tie, self._keys(self._tie.key)
        buckets = self._scalar(tie.buckets)
        if tie.dealing == "hashed":
            positive = self._node("BitShift", keys, self._scalar(1, np.uint64), direction="RIGHT")
            index = self._node("Mod", self._node("Cast", positive, to=TensorProto.INT64), buckets)
        else:
            signed = self._node("Cast", keys, to=TensorProto.INT64)
            count = self._own(np.array([self._cells], np.int64))
            shuffled = self._fresh()
            outputs = (self._fresh(), shuffled)
            made = helper.make_node("TopK", [signed, count], outputs, axis=0, largest=0, sorted=1)
            self._rewriter.nodes.append(made)
            places = self._range(0)
            dealt = self._node("Mod", places, buckets)
            index = self._node("ScatterElements", places, shuffled, dealt, axis=0)
        if tie.sign_key is None:
            return index
        one = self._scalar(1)
        bits = self._node("Cast", self._keys(tie.sign_key), to=TensorProto.INT64)
        positive = self._node("BitwiseAnd", bits, one)
        negative = self._node("Mul", self._node("Sub", one, positive), buckets)
        return self._node("Add", index, negative)

    def _keys(self, key: int) -> str:
        """The hash of every position, uint64; see `random_keys.keys_at`."""
        signed = (key + (1 << 63)) % (1 << 64) - (1 << 63)
        state = self._node("Mul", self._range(1), self._scalar(GAMMA))
        state = self._node("Add", state, self._scalar(signed))
        state = self._node("Mul", self._mixed(state, 30), self._scalar(MIX_1))
        state = self._node("Mul", self._mixed(state, 27), self._scalar(MIX_2))
        return self._mixed(state, 31, last=True)

    def _mixed(self, state: str, by: int, *, last: bool = False) -> str:
        word = self._node("Cast", state, to=TensorProto.UINT64)
        high = self._node("BitShift", word, self._scalar(by, np.uint64), direction="RIGHT")
        mixed = self._node("BitwiseXor", word, high)
        return mixed if last else self._node("Cast", mixed, to=TensorProto.INT64)

    def _range(self, first: int) -> str:
        """Counters of all cells."""
        bounds = self._scalar(first), self._scalar(first + self._cells), self._scalar(1)
        return self._node("Range", *bounds)

    def _is_right(self, index: str) -> str:
        """Whether the runtime computes the index as torch does."""
        known = self._entries()[:_PROBES]
        ends = (np.array([n], np.int64) for n in (0, len(known)))
        first = self._node("Slice", index, *(self._own(end) for end in ends))
        same = self._node("Equal", first, self._own(known))
        least = self._node("ReduceMin", self._node("Cast", same, to=TensorProto.INT32), keepdims=0)
        return self._node("Cast", least, to=TensorProto.BOOL)

    def _nan(self, data_type: int) -> str:
        value = np.array(np.nan, helper.tensor_dtype_to_np_dtype(data_type))
        return self._node("Constant", value=numpy_helper.from_array(value))

    def _own(self, values: Array) -> str:
        return self._rewriter.store(self._fresh(), values)

    def _fresh(self) -> str:
        # Short: the nodes of a small bank take more than its entries.
        return self._rewriter.fresh(f"t{len(self._rewriter.nodes)}")

    def _scalar(self, value: int, kind: type[np.generic] = np.int64) -> str:
        """A number, which all lookups of a file share."""
        name = f"{np.dtype(kind).kind}{value}"
        if name not in self._rewriter.stored:
            self._rewriter.store(name, np.array(value, kind))
        return name

    def _node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = self._fresh()
        self._add(kind, inputs, output, **attributes)
        return output

    def _add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        self._rewriter.add(kind, inputs, output, **attributes)
