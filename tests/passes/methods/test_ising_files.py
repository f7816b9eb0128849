"""Files of networks whose channels were searched: smaller layers, and no gate (T6)."""

from __future__ import annotations

from collections import Counter
from math import prod

import onnx
import pytest
import torch
from ising_nets import AttentionNet, attention_data, conv_data, conv_net, seeded

import transform
from bench.zoo import resnet8_gray
from energy_model.hardware import load_hardware
from export.dense import write_dense
from passes.inputs import as_call
from passes.methods.ising import Ising
from passes.tracing.trace import trace

RESNET_DATA = [
    (torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(n)), torch.arange(8) % 4)
    for n in range(4)
]


@pytest.fixture(
    params=[
        pytest.param((conv_net, conv_data(), "macs<=50%"), id="plain"),
        pytest.param(
            (lambda: seeded(resnet8_gray).eval(), RESNET_DATA, "macs<=40%"),
            marks=pytest.mark.slow,
            id="residual",
        ),
        pytest.param(
            (lambda: seeded(AttentionNet).eval(), attention_data(), "macs<=60%"),
            marks=pytest.mark.slow,
            id="attention",
        ),
    ],
)
def task(request):
    build, data, budget = request.param
    return build(), data, budget


def whole(model, example, path):
    """The file of a model as it is."""
    return onnx.load(
        write_dense(trace(model, as_call(model, example)), load_hardware("eyeriss"), path).path
    )


def operators(file) -> Counter[str]:
    return Counter(node.op_type for node in file.graph.node)


def gates(file) -> dict[str, int]:
    """How often the file has an operator of those that a gate can become."""
    return {kind: operators(file)[kind] for kind in ("Mul", "Where")}


def multiplied(file) -> int:
    """Multiply-accumulates of one sample in the file, by the shapes that ONNX infers."""
    inferred = onnx.shape_inference.infer_shapes(file)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.graph.value_info, *inferred.graph.output)
    }
    weights = {each.name: list(each.dims) for each in file.graph.initializer}
    found = 0
    for node in file.graph.node:
        if node.op_type == "Conv":
            found += prod(weights[node.input[1]]) * prod(shapes[node.output[0]][2:])
        elif node.op_type == "Gemm":
            found += prod(weights[node.input[1]])
    return found


@pytest.mark.parametrize("train", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_file_has_smaller_layers_and_no_gate(task, train, tmp_path):
    model, data, budget = task
    dense = whole(model, data[0][0], tmp_path / "dense.onnx")
    more = {"train": transform.TrainConfig(epochs=2, lr=0.01)} if train else {"train": False}
    result = transform.compress(model, budget, data=data, method=Ising(generations=4), **more)
    result.export(tmp_path / "small.onnx")
    small = onnx.load(tmp_path / "small.onnx")
    assert gates(small) == gates(dense)
    assert (tmp_path / "small.onnx").stat().st_size < (tmp_path / "dense.onnx").stat().st_size
    if "MatMul" not in operators(small):
        [row] = result.certificate.rows
        assert multiplied(small) == row.reached <= row.maximum
        assert multiplied(dense) == row.base


def test_a_gate_would_be_seen(tmp_path):
    model, data = conv_net(), conv_data()
    found = transform.structure(model, data[0][0])
    gated = found.gated(found.random_state(seed=0)).eval()
    before = gates(whole(model, data[0][0], tmp_path / "dense.onnx"))
    torch.onnx.export(gated, (data[0][0],), tmp_path / "gated.onnx", dynamo=False)
    assert gates(onnx.load(tmp_path / "gated.onnx")) != before
