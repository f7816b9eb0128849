"""What the layers of a file hand to each other, and what it costs to convert it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.errors import BenchError
from bench.layer_choice import Border
from bench.layer_marks import find_layers, read_model
from bench.layer_times import kernel_times
from bench.runtimes import DEFAULT, open_runner
from bench.worker import make_inputs

_VERBS = (
    ("quantize", TensorProto.FLOAT, TensorProto.UINT8),
    ("dequantize", TensorProto.UINT8, TensorProto.FLOAT),
)


def layer_borders(
    path: Path | str,
    *,
    names: Mapping[str, str] | None = None,
    threads: int = 1,
    batch: int = 1,
    rounds: int = 5,
    runs: int = 50,
) -> tuple[Border, ...]:
    """Every float tensor that goes from one layer to others, with the times of its conversion.

    Args:
        path: The float file of a model.
        names: Layer by name of its weight, see `find_layers`.
        threads: Threads inside an operator.
        batch: Samples in one inference.
        rounds: Turns of the measurement.
        runs: Inferences in a turn.

    Raises:
        BenchError: The file cannot be read or run, or no layer has a weight.
    """
    model = read_model(path)
    handed = handed_on(model, names)
    sizes = _sizes(model, [name for name, _, _ in handed], batch)
    cost = conversion_times(set(sizes.values()), threads=threads, rounds=rounds, runs=runs)
    return tuple(
        Border(producer, to, *cost[sizes[name]]) for name, producer, to in handed if name in sizes
    )


def conversion_times(
    sizes: Iterable[int], *, threads: int = 1, rounds: int = 5, runs: int = 50
) -> dict[int, tuple[float, float]]:
    """Times to quantize float32 to 8 bits and back, measured in ONNX Runtime, milliseconds.

    Args:
        sizes: Numbers of elements.
        threads: Threads inside an operator.
        rounds: Turns of the measurement.
        runs: Inferences in a turn.

    Returns:
        By size: the time of QuantizeLinear and that of DequantizeLinear.
    """
    sizes = sorted(set(sizes))
    if not sizes:
        return {}
    with tempfile.TemporaryDirectory(prefix="transform-convert-") as folder:
        path = Path(folder) / "conversions.onnx"
        onnx.save(_conversions(sizes), path)
        times = kernel_times(path, threads=threads, rounds=rounds, runs=runs)
    return {size: (times[f"quantize_{size}"], times[f"dequantize_{size}"]) for size in sizes}


def _conversions(sizes: Iterable[int]) -> onnx.ModelProto:
    constants = {"scale": np.float32(0.1), "zero": np.uint8(128)}
    nodes, inputs, outputs = [], [], []
    for size in sizes:
        for verb, source, target in _VERBS:
            name, shape = f"{verb}_{size}", (1, size)
            operator = f"{verb.capitalize()}Linear"
            values = [f"{name}_in", *constants], [f"{name}_out"]
            nodes.append(helper.make_node(operator, *values, name=name))
            inputs.append(helper.make_tensor_value_info(f"{name}_in", source, shape))
            outputs.append(helper.make_tensor_value_info(f"{name}_out", target, shape))
    stored = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "conversions", inputs, outputs, stored)
    opset = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10)


def handed_on(
    model: onnx.ModelProto, names: Mapping[str, str] | None = None
) -> list[tuple[str, str, tuple[str, ...]]]:
    """Every value that another layer reads than the one that made it.

    Args:
        model: A file; see `find_layers` for what a layer is.
        names: As for `find_layers`.

    Returns:
        The value, its layer, and the layers that read it, in the order of the graph.

    Raises:
        BenchError: No layer has a weight.
    """
    layers = find_layers(model, names)
    readers: dict[str, dict[str, None]] = {}
    made: dict[str, str] = {}
    for node, index in zip(model.graph.node, layers.nodes, strict=True):
        layer = layers.names[index]
        for name in node.input:
            if made.get(name, layer) != layer and name not in layers.constant:
                readers.setdefault(name, {})[layer] = None
        made |= dict.fromkeys(node.output, layer)
    return [(name, made[name], tuple(to)) for name, to in readers.items()]


def _sizes(model: onnx.ModelProto, names: Sequence[str], batch: int) -> dict[str, int]:
    """Elements of those values that are float32, found by running the model."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    if not names:
        return {}
    with tempfile.TemporaryDirectory(prefix="transform-sizes-") as folder:
        path = Path(folder) / "probe.onnx"
        onnx.save(probe, path)
        try:
            runner = open_runner(DEFAULT, path)
            outputs = runner.run(make_inputs(runner.inputs, batch, seed=0))
        except Exception as error:
            first = next(iter(str(error).splitlines()), "")
            raise BenchError(
                f"the runtime refuses the file ({type(error).__name__}: {first})",
                remedy="Load it in ONNX Runtime alone to see why.",
            ) from error
    return {n: o.size for n, o in zip(names, outputs, strict=True) if o.dtype == np.float32}
