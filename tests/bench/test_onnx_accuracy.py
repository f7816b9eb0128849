"""Accuracy of a file: counted sample by sample, in both runtimes, and what cannot be counted."""

from __future__ import annotations

import numpy as np
import onnx_builder as build
import pytest
import torch
from onnx import helper

from bench.errors import BenchError
from bench.onnx_accuracy import correct_rows, top1_accuracy
from bench.runtimes import DEFAULT, OPENVINO, installed
from energy_model.errors import ArgumentError

# Scores are the inputs: the class of a sample is where its input is largest.
SAME = np.eye(4, dtype=np.float32)


@pytest.fixture
def scores(tmp_path):
    return build.save(build.layer("MatMul", SAME, ("n", 4)), tmp_path / "scores.onnx")


def batches(sizes=(5, 3)):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 4, generator=generator), torch.randint(4, (n,), generator=generator))
        for n in sizes
    ]


@pytest.mark.parametrize("runtime", [DEFAULT, OPENVINO])
def test_accuracy_is_that_of_torch(scores, runtime):
    if not installed(runtime):
        pytest.skip(f"{runtime.upper()} IS NOT INSTALLED: its accuracy is not tested")
    data = batches((7, 40, 1))
    expected = torch.cat([x.argmax(1) == y for x, y in data])
    rows = correct_rows(scores, data, runtime=runtime)
    assert rows.tolist() == expected.tolist()
    assert 0 < rows.mean() < 1
    assert top1_accuracy(scores, iter(data), runtime=runtime) == pytest.approx(rows.mean())


def test_what_cannot_be_counted(scores, tmp_path):
    with pytest.raises(ArgumentError, match="no batches"):
        top1_accuracy(scores, [])
    with pytest.raises(BenchError, match=r"refuses a batch .*Got: 3 Expected: 4"):
        top1_accuracy(scores, [(np.ones((2, 3), np.float32), np.zeros(2))])
    with pytest.raises(BenchError, match=r"\(2, 4\) are not class scores for targets \(3,\)"):
        top1_accuracy(scores, [(np.ones((2, 4), np.float32), np.zeros(3))])
    with pytest.raises(BenchError, match="not finite"):
        top1_accuracy(scores, [(np.full((2, 4), np.nan, np.float32), np.zeros(2))])
    with pytest.raises(BenchError, match="cannot be opened") as caught:
        top1_accuracy(tmp_path / "gone.onnx", batches())
    assert caught.value.model == str(tmp_path / "gone.onnx")
    with pytest.raises(ArgumentError, match="unknown runtime"):
        top1_accuracy(scores, batches(), runtime="tvm")


def test_a_file_of_two_inputs(tmp_path):
    proto = build.model([helper.make_node("Add", ["x", "b"], ["y"])], {})
    proto.graph.input.append(helper.make_tensor_value_info("b", 1, ("batch", 4)))
    with pytest.raises(BenchError, match="2 inputs"):
        top1_accuracy(build.save(proto, tmp_path / "two.onnx"), batches())
