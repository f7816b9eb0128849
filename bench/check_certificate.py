"""Recount a compression certificate from the exported ONNX file alone.

    python bench/check_certificate.py model.certificate.json [model.onnx]

A second implementation of the energy model of Yang, Zhu, Liu (ICLR 2019) that shares no code with
the compiler, so that a mistake there cannot hide here. Exit code: 0 when every limit holds and all
that can be recounted agrees, 1 when anything differs, 2 when an input is unusable.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, shape_inference

ENERGY = ("weights", "compute", "compute_relaxed", "activations", "positions", "exact", "relaxed")
VIEWS = ("Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze")
FLOATS = tuple(getattr(onnx.TensorProto, n) for n in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"))

Counts = dict[str, int]
Weight = NamedTuple("Weight", [("elements", int), ("nonzeros", int), ("bits", int)])  # noqa: UP014 -- one line
Support = NDArray[np.bool_]


class UnusableInputError(Exception):
    """The certificate or the ONNX file cannot be read, or its energy cannot be recounted."""


class Axis(NamedTuple):
    """One spatial axis of a layer, seen as a gather from padded positions.

    `source`, of shape (padded size,), is the input at each padded position, -1 where there is none.
    `stride` is the distance of two outputs and `dilation` that of two taps, in positions.
    """

    source: NDArray[np.int64]
    kernel: int = 1
    stride: int = 1
    dilation: int = 1

    def met(self) -> NDArray[np.int64]:
        """Padded positions that each tap meets at each output, shape (kernel, outputs)."""
        starts = np.arange(0, len(self.source) - (self.kernel - 1) * self.dilation, self.stride)
        return np.arange(self.kernel)[:, None] * self.dilation + starts


class Use(NamedTuple):
    """One use of a weight by one node, repeated `times` (the time steps of a recurrence).

    `nonzero` has shape (groups, C_out / groups, C_in / groups, *kernel), `inputs` (C_in, *sizes),
    or (1, *sizes) when alike in all channels. Input strips are cut along the first of `axes`, for a
    matrix product (`linear`) its positions. `mac_positions`: MACs of a weight, None for outputs.
    """

    nonzero: Support
    inputs: Support
    axes: tuple[Axis, ...]
    linear: bool = False
    mac_positions: int | None = None
    times: int = 1


def refetched(rows: NDArray[np.int64], axis: Axis, capacity: int) -> int:
    """Input words fetched again because strips of `rows` that fit into `capacity` words overlap.

    `rows` are inputs per padded row; where no window fits, every output fetches its rows anew.
    """
    total = begin = previous = 0
    window = (axis.kernel - 1) * axis.dilation + 1
    while begin + window <= len(rows):
        total += int(rows[begin : max(begin, previous)].sum())
        fits = int(np.count_nonzero(np.cumsum(rows[begin:]) <= capacity))
        if fits < window:
            return int(rows[axis.met()].sum() - rows[np.unique(axis.met())].sum())
        previous = begin + fits
        begin += ((fits - window) // axis.stride + 1) * axis.stride
    return total


def energy_of(use: Use, hardware: Mapping[str, Any]) -> Counts:
    """Energy of one use by part and in total, in MAC energies per sample, and its `macs`."""
    dram, cache, register, mac = (hardware[f"{at}_energy"] for at in ("dram", "cache", "rf", "mac"))
    word, index = hardware["word_bits"], hardware["index_bits"]
    fits = {at: hardware[f"{at}_cache_bytes"] * 8 // word for at in ("input", "weight")}
    groups, out_channels, in_channels = use.nonzero.shape[:3]
    channels = groups * in_channels
    positions = math.prod(axis.met().shape[1] for axis in use.axes)
    row_tiles = -(-positions // hardware["array_rows"])
    column_tiles = -(-out_channels // hardware["array_columns"])
    count = int(np.count_nonzero(use.nonzero))
    resident, beyond = min(count, fits["weight"]), max(0, count - fits["weight"])
    alike = channels // len(use.inputs)
    inputs = alike * int(np.count_nonzero(use.inputs))
    # Index -1, where no input is, picks the zero that is appended along every axis.
    hits = np.pad(use.inputs, [(0, 0)] + [(0, 1)] * len(use.axes)).astype(np.int64)
    rows = alike * hits.sum(axis=(0, *range(2, hits.ndim)))[use.axes[0].source]
    again = (column_tiles - 1) * max(0, inputs - fits["input"])
    if not use.linear or positions > 1:
        again = refetched(rows, use.axes[0], fits["input"])
    # What each tap meets over all positions: padding is neither fetched nor multiplied.
    for place, axis in enumerate(use.axes, start=1):
        hits = hits.take(axis.source[axis.met()], axis=place).sum(axis=place + 1)
    unfolded = alike * int(hits.sum())
    weights = use.nonzero.sum(axis=1, dtype=np.int64).reshape(channels, *hits.shape[1:])
    parts = {
        "weights": dram * (resident + row_tiles * beyond)
        + (cache * row_tiles + register * positions) * count,
        "compute": mac * int((weights * hits).sum()),
        "compute_relaxed": mac * positions * count,
        "activations": dram * (inputs + again + positions * groups * out_channels)
        + (cache * column_tiles + register * out_channels) * unfolded,
        "positions": resident * -(-(dram + cache * row_tiles) * index // word)
        + beyond * -(-(dram + cache) * row_tiles * index // word),
        "macs": use.nonzero.size * (use.mac_positions or positions),
    }
    fixed = parts["weights"] + parts["activations"] + parts["positions"]
    parts |= {"exact": fixed + parts["compute"], "relaxed": fixed + parts["compute_relaxed"]}
    return {part: use.times * value for part, value in parts.items()}


class Graph:
    """An ONNX graph: its constants, its shapes at batch 1, and the uses of its weights."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.shapes = _inferred_shapes(model)
        self.weights: dict[str, Weight] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a value at batch 1."""
        if name in self.shapes:
            return self.shapes[name]
        raise UnusableInputError(f"the shape of {name!r} is unknown at batch 1")

    def constant(self, name: str, through: Any = VIEWS) -> tuple[str, NDArray[Any]] | None:
        """The initialiser behind a stored value, and the value as a view of it; or None."""
        if name in self.stored:
            return name, numpy_helper.to_array(self.stored[name])
        if (node := self.producer.get(name)) is None:
            return None
        if node.op_type == "Constant" and "value" in _attributes(node):
            return name, numpy_helper.to_array(_attributes(node)["value"])
        found = self.constant(node.input[0], through) if node.op_type in through else None
        if found is None or node.op_type in ("Identity", "Cast", "Expand"):
            return found
        if node.op_type == "Transpose":
            return found[0], found[1].transpose(_attributes(node).get("perm"))
        return found[0], found[1].reshape(self.shape(name))

    def support(self, name: str) -> Support | None:
        """Support of a stored weight, noted in `weights`; None for a computed value."""
        if (found := self.constant(name)) is None:
            return None
        root, array = found
        support = np.asarray(array != 0)
        self.weights.setdefault(root, Weight(support.size, int(support.sum()), 8 * array.itemsize))
        return support

    def uses(self) -> Iterator[Use]:
        """Every use of a stored weight by a convolution, matrix product or recurrent layer."""
        for node in self.nodes:
            if node.op_type in ("Gemm", "MatMul"):
                yield from self._column_groups(node) or self._product(node)
            elif node.op_type in ("Conv", "ConvTranspose"):
                yield from self._convolution(node)
            elif node.op_type in ("LSTM", "GRU", "RNN"):
                yield from self._recurrent(node)

    def _product(self, node: onnx.NodeProto) -> Iterator[Use]:
        left, right = (self.constant(name) is not None for name in node.input[:2])
        support = self.support(node.input[0 if left else 1]) if left != right else None
        if support is None:
            return
        support = support if support.ndim > 1 else np.expand_dims(support, 0 if left else 1)
        # (out, in) stands left of the activation, (in, out) right of it.
        if bool(_attributes(node).get("transA" if left else "transB")) == left:
            support = support.swapaxes(-1, -2)
        matrix = support.reshape(-1, *support.shape[-2:])
        yield _tokens(matrix, math.prod(self.shape(node.output[0])) // math.prod(matrix.shape[:2]))

    def _column_groups(self, node: onnx.NodeProto) -> list[Use]:
        """Blocks (groups, rows, k) times inputs gathered by (groups, k), as the whole weight."""
        gather = self.producer.get(node.input[1], node)
        gather = self.producer.get(gather.input[0], node) if gather.op_type == "Reshape" else gather
        names, axis = (node.input[0], *gather.input[1:]), _attributes(gather).get("axis", 0)
        ranks = [len(self.stored[name].dims) if name in self.stored else -1 for name in names]
        if gather.op_type != "Gather" or axis not in (0, 1) or ranks != [3, 2]:
            return []
        blocks, columns = (numpy_helper.to_array(self.stored[name]) for name in names)
        dims = self.shape(gather.input[0])  # (c, *positions), or (batch, c, *sizes) on axis 1
        full = np.zeros((*blocks.shape[:2], dims[axis]), bool)
        np.put_along_axis(full, columns[:, None].astype(np.int64), blocks != 0, axis=2)
        if (count := int(full.sum())) != np.count_nonzero(blocks):
            raise UnusableInputError(f"a group of {names[0]!r} has an input twice")
        self.weights[names[0]] = Weight(full.size, count, 8 * blocks.itemsize)
        rest = dims[2:] if axis else (math.prod(dims[1:]),)
        return [_tokens(full.reshape(1, -1, dims[axis], *[1] * len(rest)), *rest, linear=not axis)]

    def _recurrent(self, node: onnx.NodeProto) -> Iterator[Use]:
        kernels, recurrences = (self.support(name) for name in node.input[1:3])
        if kernels is None or recurrences is None:
            return
        steps = math.prod(self.shape(node.input[0])[:2])
        for kernel, recurrence in zip(kernels, recurrences, strict=True):
            yield _tokens(kernel[None], steps)
            yield _tokens(recurrence[None], 1)._replace(times=steps)  # each step needs the last

    def _convolution(self, node: onnx.NodeProto) -> Iterator[Use]:
        name, support, attributes = node.input[0], self.support(node.input[1]), _attributes(node)
        if support is None:
            return
        kernel = support.shape[2:]
        if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in attributes:
            raise UnusableInputError(f"node {node.name!r} leaves its padding to the runtime")
        spacing = ones = [1] * len(kernel)
        strides, dilations = (attributes.get(key, ones) for key in ("strides", "dilations"))
        pads = np.array(attributes.get("pads", [0, 0] * len(kernel))).reshape(2, -1).T
        support = support.reshape(attributes.get("group", 1), -1, *support.shape[1:])
        if node.op_type == "Conv":
            name, extra = self._padding_before(name, len(kernel))
            pads = pads + extra
        else:
            # The equivalent gather: zeros between the inputs, the kernel mirrored, stride 1.
            support = np.flip(support.swapaxes(1, 2), axis=tuple(range(3, support.ndim)))
            pads = np.multiply(dilations, np.subtract(kernel, 1))[:, None] - pads
            pads[:, 1] += attributes.get("output_padding", 0)
            spacing, strides = strides, ones
        batch, _, *sizes = self.shape(name)
        sources = map(_gathered, sizes, spacing, pads.tolist())
        axes = tuple(map(Axis, sources, kernel, strides, dilations))
        macs = None if node.op_type == "Conv" else math.prod(sizes)
        yield Use(support, self._inputs(name), axes, mac_positions=macs, times=batch)

    def _inputs(self, name: str) -> Support:
        """Inputs of a Conv that are ever nonzero: a Mul with a constant of one sample's shape."""
        node, sample = self.producer.get(name), self.shape(name)[1:]
        if node is not None and node.op_type == "Mul":
            stored = (self.constant(factor, (*VIEWS, "Expand")) for factor in node.input)
            factors = [found[1] for found in stored if found]
            if len(factors) == 1 and factors[0].shape in (sample, (1, *sample)):
                return np.asarray(factors[0] != 0).reshape(sample)
        return np.ones((1, *sample[1:]), bool)

    def _padding_before(self, name: str, axes: int) -> tuple[str, NDArray[np.int64]]:
        """What a zero-valued spatial Pad before a Conv pads, and by how much, shape (axes, 2)."""
        node, nothing = self.producer.get(name), np.zeros((axes, 2), dtype=np.int64)
        if node is None or node.op_type != "Pad":
            return name, nothing
        inputs = [self.constant(value) if value else ("", None) for value in node.input[1:]]
        if None in inputs or _attributes(node).get("mode", b"constant") != b"constant":
            return name, nothing
        amounts, value, named = [*(found[1] for found in inputs if found), None, None][:3]
        table = np.zeros((axes + 2, 2), dtype=np.int64)
        table[slice(None) if named is None else named] = np.array(amounts).reshape(2, -1).T
        foreign = (value is not None and np.any(value)) or table[:2].any() or (table < 0).any()
        return (name, nothing) if foreign else (node.input[0], table[2:])


def _tokens(matrix: Support, *sizes: int, linear: bool = True) -> Use:
    # Shared by many positions, a matrix is a 1 x 1 convolution with one row per position.
    axes = tuple(Axis(np.arange(size)) for size in sizes)
    return Use(matrix, np.ones((1, *sizes), bool), axes, linear)


def _gathered(size: int, spacing: int, pads: list[int]) -> NDArray[np.int64]:
    positions = np.arange((size - 1) * spacing + 1 + sum(pads)) - pads[0]
    here = (positions % spacing == 0) & (positions >= 0) & (positions < size * spacing)
    return np.where(here, positions // spacing, -1)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


def _inferred_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    # Shapes stored in the file may be stale or symbolic: only those of the inputs are believed.
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    for value in model.graph.input:
        for place, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") and (place == 0 or dim.dim_param == "batch"):
                dim.dim_value = 1
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    tensors = ((v.name, v.type.tensor_type) for v in values)
    shapes = {name: tensor.shape.dim for name, tensor in tensors if tensor.HasField("shape")}
    known = {n: dims for n, dims in shapes.items() if all(d.HasField("dim_value") for d in dims)}
    return {name: tuple(d.dim_value for d in dims) for name, dims in known.items()}


class Recount(NamedTuple):
    """What the file says: energies, counts, bases (all weights, no masks), weights, sha256."""

    energy: Counts
    counts: Counts
    bases: Counts
    weights: dict[str, Weight]
    digest: str


def recount(model: Path, hardware: Mapping[str, Any]) -> Recount:
    """Count bytes, weights, MACs and modelled energy of an ONNX file, for one sample."""
    try:
        content = model.read_bytes()
        graph = Graph(onnx.load(model))
    except Exception as error:
        # protobuf and onnx raise errors of several unrelated classes on a damaged file.
        raise UnusableInputError(f"{model}: not a readable ONNX file ({error!s:.200})") from error
    uses = list(graph.uses())
    energy, kept = _totals(uses, hardware), graph.weights.values()
    counts = {
        "macs": energy["macs"],
        "weights": sum(weight.elements for weight in kept),
        "nonzeros": sum(weight.nonzeros for weight in kept),
        "energy": energy["relaxed"],
        "weight_bits": sum(weight.nonzeros * weight.bits for weight in kept),
        "size": len(content),
        "params": sum(math.prod(t.dims) for t in graph.stored.values() if t.data_type in FLOATS),
    }
    full = (use._replace(nonzero=use.nonzero | True, inputs=use.inputs | True) for use in uses)
    bases = {"energy": _totals(full, hardware)["relaxed"], "nonzeros": counts["weights"]}
    return Recount(energy, counts, bases, graph.weights, hashlib.sha256(content).hexdigest())


def _totals(uses: Iterable[Use], hardware: Mapping[str, Any]) -> Counts:
    costs = [energy_of(use, hardware) for use in uses]
    return {key: sum(cost[key] for cost in costs) for key in (*ENERGY, "macs")}


class Row(NamedTuple):
    """One claim of the certificate beside the file's answer; `ok` None: not to be recounted."""

    what: str
    claimed: object
    recounted: object
    ok: bool | None
    asked: str = ""


def _compare(what: str, claimed: object, recounted: object, asked: str = "") -> Row:
    return Row(what, claimed, recounted, claimed == recounted, asked)


def _limit_rows(limit: Mapping[str, Any], found: Recount) -> Iterator[Row]:
    name, asked, maximum = limit["limit"], str(limit["asked"]), limit["maximum"]
    # Folding batch normalisation changes `params`: recounted only where taken from the file.
    folded = name == "params" and limit.get("counted_from") != "file"
    if limit["kind"] != "exact" or name not in found.counts or folded:
        yield Row(name, limit["reached"], "", None, asked)
    else:
        yield _compare(name, limit["reached"], found.counts[name], asked)
        if name in found.bases:
            base, own = limit["base"], found.bases[name]
            cut = limit.get("base_counted_from") == "original" and base > own  # smaller layers
            yield Row(f"{name}, base", base, own, None if cut else base == own)
    if share := re.fullmatch(r"\w*<=\s*(\d+(?:\.\d+)?)\s*%", asked):
        most = math.floor(Fraction(share[1]) / 100 * limit["base"])
        yield Row(f"{name}, maximum", maximum, f"<= {most}", maximum <= most, asked)
    holds = bool(limit["holds"]) and limit["reached"] <= maximum
    yield Row(f"{name}, holds", limit["holds"], limit["reached"] <= maximum, holds, asked)


def _layer_rows(layers: Iterable[Mapping[str, Any]], found: Recount) -> Iterator[Row]:
    unclaimed, merged = dict(found.weights), dict[object, dict[str, Any]]()
    for layer in layers:  # both directions of a recurrent layer lie in one initializer
        sums = merged.setdefault(tuple(layer["initializers"]) or layer["name"], {**layer})
        if sums["name"] != layer["name"]:
            sums |= {key: sums[key] + layer[key] for key in ("weights", "nonzeros")}
    for layer in merged.values():
        what, names = f"layer {layer['name']}", layer["initializers"]
        present = [found.weights[name] for name in names if unclaimed.pop(name, None)]
        if present and len(present) == len(names) and not layer["uncounted"]:
            yield _compare(f"{what}, weights", layer["weights"], sum(w.elements for w in present))
            yield _compare(f"{what}, nonzeros", layer["nonzeros"], sum(w.nonzeros for w in present))
        elif not layer["uncounted"]:
            yield Row(what, layer["nonzeros"], "no weighted node uses all of it", False)
    for name, weight in unclaimed.items():
        yield Row(f"weight {name}", "in no layer", weight.nonzeros, False)


def _audit(certificate: Path, model: Path | None) -> Iterator[Row]:
    claims = json.loads(certificate.read_text(encoding="utf-8"))
    if (claims["format"], claims["version"]) != ("transform-certificate", 1):
        raise UnusableInputError(f"{certificate}: not a certificate of version 1")
    file, totals, energy = claims["file"], claims["totals"], claims["totals"]["energy"]
    found = recount(model or certificate.parent / Path(file["name"]).name, claims["hardware"])
    yield _compare("sha256", file["sha256"], found.digest)
    yield _compare("bytes", file["bytes"], found.counts["size"])
    yield from (_compare(k, totals[k], found.counts[k]) for k in ("macs", "weights", "nonzeros"))
    computed = [n for x in claims["layers"] if x["uncounted"] for n in x["initializers"]]
    for weight in (found.weights[name] for name in computed if name in found.weights):
        found.counts["nonzeros"] -= weight.nonzeros  # no limit counts computed weights
        found.counts["weight_bits"] -= weight.nonzeros * weight.bits
        found.bases["nonzeros"] -= weight.elements
    for limit in claims["limits"]:
        yield from _limit_rows(limit, found)
    yield from (_compare(f"energy, {key}", energy[key], found.energy[key]) for key in ENERGY)
    yield from _layer_rows(claims["layers"], found)


def _answers(certificate: Path, model: Path | None) -> list[Row]:
    try:
        return list(_audit(certificate, model))
    except (OSError, LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        why = f"{type(error).__name__}: {error!s:.200}"  # its repr may hold the whole file
        raise UnusableInputError(f"{certificate}: not a usable certificate ({why})") from error


def check(certificate: Path, model: Path | None = None) -> list[str]:
    """One sentence per disagreement of a certificate with its file (default: that it names)."""
    rows = _answers(Path(certificate), Path(model) if model else None)
    claim = "{0.what}: the certificate says {0.claimed}, the file says {0.recounted}"
    return [claim.format(row) for row in rows if row.ok is False]


def main(arguments: list[str] | None = None) -> int:
    """Print claims beside answers; return 0 (all holds), 1 (something differs) or 2 (unusable)."""
    parser = argparse.ArgumentParser(description="Recount a certificate from its ONNX file alone.")
    parser.add_argument("certificate", type=Path)
    parser.add_argument("model", type=Path, nargs="?", help="default: the file that it names")
    options = parser.parse_args(arguments)
    try:
        rows = _answers(options.certificate, options.model)
    except UnusableInputError as error:
        print(f"unusable input: {error}", file=sys.stderr)
        return 2
    marks = {True: "yes", False: "NO", None: "not checked"}
    lines = [(r.what, r.asked, str(r.claimed), str(r.recounted), marks[r.ok]) for r in rows]
    for what, *cells in [("", "asked", "claimed", "recounted", "ok"), *lines]:
        print(f"{what:<36}", *(f"{cell[:19]:<19}" for cell in cells))
    return int(any(row.ok is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
