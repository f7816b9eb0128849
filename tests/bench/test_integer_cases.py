"""Files of a table: counted, compared and measured; ONNX Runtime's own tool beside a float file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_builder as build
import pytest
import torch
from onnx import helper

from bench.errors import BenchError
from bench.integer.cases import Case, measured_rows, relative_error
from bench.integer.models import (
    encoder,
    half_channels,
    random_batches,
    seeded,
    torchvision_model,
    trained_resnet20,
)
from bench.integer.ort_static import CALIBRATIONS, quantize_static
from bench.integer.ours import STORAGE_ONLY
from bench.runtimes import OPENVINO, installed
from energy_model.errors import ArgumentError, CompressionError, StorageError


def batches(count=3, size=4):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((size, 3, 8, 8)).astype(np.float32) for _ in range(count)]


def small_network():
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Conv", ["x", "a.weight"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "b.weight"], ["d"], pads=[1] * 4),
        helper.make_node("Relu", ["d"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], transB=1),
    ]
    shapes = {"a.weight": (16, 3, 3, 3), "b.weight": (16, 16, 3, 3), "fc.weight": (5, 16)}
    constants = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    constants["fc.bias"] = np.ones(5, np.float32)
    return build.model(nodes, constants, ("x", ("batch", 3, 8, 8)))


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return build.save(small_network(), tmp_path_factory.mktemp("cases") / "dense.onnx")


@pytest.fixture(scope="module")
def quantized(dense):
    return {
        name: quantize_static(dense, dense.with_name(f"{name}.onnx"), batches(), name)
        for name in CALIBRATIONS
    }


def test_the_own_tool_makes_integers(dense, quantized):
    for file in quantized.values():
        assert 0 < relative_error(file, dense, batches()[0]) < 0.2
    assert quantized["MinMax"].read_bytes() != quantized["Percentile"].read_bytes()
    assert relative_error(dense, dense, batches()[0]) == 0


def test_what_the_own_tool_refuses(dense, tmp_path):
    with pytest.raises(ArgumentError, match="unknown calibration 'MSE'"):
        quantize_static(dense, tmp_path / "q.onnx", batches(), "MSE")
    with pytest.raises(ArgumentError, match="no batches"):
        quantize_static(dense, tmp_path / "q.onnx", [])
    with pytest.raises(BenchError, match="quantize_static refuses it") as caught:
        quantize_static(tmp_path / "gone.onnx", tmp_path / "q.onnx", batches())
    assert caught.value.model == str(tmp_path / "gone.onnx")


def test_outputs_of_zero_have_no_relative_error(tmp_path):
    zero = build.layer("MatMul", np.zeros((4, 5), np.float32), ("n", 4))
    path = build.save(zero, tmp_path / "zero.onnx")
    with pytest.raises(CompressionError, match="all outputs are zero"):
        relative_error(path, path, np.ones((2, 4), np.float32))


@pytest.mark.slow
def test_a_table_of_two_files(dense, quantized):
    test = [(torch.from_numpy(batch), torch.zeros(len(batch))) for batch in batches()]
    cases = [
        Case("fp32", dense, accuracy=0.5),
        Case("int8", quantized["MinMax"], seconds=1.5, note="tool"),
        Case("decoded", quantized["MinMax"], options=STORAGE_ONLY, openvino=False),
    ]
    said = []
    rows, setting = measured_rows(
        cases, test=test, compared=batches()[0], rounds=2, say=said.append
    )
    assert [row.label for row in rows] == ["fp32", "int8", "decoded"]
    first, second, third = rows
    assert (first.kernels, second.kernels) == ("0 integer, 3 float", "3 integer, 0 float")
    assert third.kernels == "0 integer, 3 float"
    assert (first.accuracy, first.ratio, first.error) == (0.5, 1.0, None)
    assert (second.seconds, second.note) == (1.5, "tool")
    assert second.bytes == quantized["MinMax"].stat().st_size
    assert 0 <= first.file_accuracy <= 1
    assert 0 < second.error < 0.2
    assert all(row.median_ms > 0 and row.low <= row.ratio <= row.high for row in rows)
    assert "2 rounds" in setting
    assert len(said) == 6
    if installed(OPENVINO):
        assert second.openvino_ms > 0
        assert first.openvino_kernels == "0 integer, 3 float"
        assert int(second.openvino_kernels.split()[0]) >= 2
        assert "openvino" in setting
    assert third.openvino_ms is None
    assert third.openvino_kernels is None


def test_models_are_always_the_same_and_leave_the_generator_alone():
    state = torch.get_rng_state()
    one, two = (encoder(width=128, layers=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    x = random_batches(2, 5, 128, count=1)[0]
    assert not one.training
    assert torch.equal(one(x), two(x))
    assert one(x).shape == x.shape
    # Tokens see each other.
    y = x.clone()
    y[:, 0] += 1
    assert (one(y) - one(x))[:, 1:].abs().max() > 0
    assert not torch.equal(*random_batches(2, count=2))


@pytest.mark.slow
def test_half_the_channels():
    model = seeded(lambda: torchvision_model("resnet18", num_classes=4))
    half = half_channels(model, torch.zeros(1, 3, 32, 32))
    counts = [sum(p.numel() for p in each.parameters()) for each in (model, half)]
    assert 0.2 < counts[1] / counts[0] < 0.3
    assert half(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


def test_without_weights_there_is_no_trained_model(tmp_path):
    with pytest.raises(StorageError, match="weights are not there") as caught:
        trained_resnet20(Path(tmp_path))
    assert "--data-root" in caught.value.remedy
