"""What finished runs are worth where they are deployed."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.deployment import MODEL, deployment
from energy_model.errors import StorageError


def matmul(path, width):
    weight = numpy_helper.from_array(np.ones((4, width), np.float32), "weight")
    node = helper.make_node("MatMul", ["x", "weight"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.parent.mkdir(parents=True)
    onnx.save(model, path)


def run(root, label, budget, seed, width, score=0.5):
    folder = root / f"{label}-{budget}-{seed}"
    matmul(folder / MODEL, width)
    result = {
        "cell": {"label": label, "budget": budget, "seed": seed},
        "metrics": {"test": {"after": score}},
        "params": {"before": 80, "after": 4 * width},
        "macs": {"before": 80, "after": 4 * width},
    }
    return folder, result


def test_means_over_seeds_and_falling_macs(tmp_path):
    results = dict(
        [
            run(tmp_path, "b", "macs<=50%", 0, 10, 0.4),
            run(tmp_path, "b", "macs<=50%", 1, 8, 0.6),
            run(tmp_path, "a|x", "macs<=100%", 0, 20),
        ]
    )
    found = deployment(results, latency=False)
    assert [(row.label, row.seeds, row.params) for row in found.rows] == [
        ("a|x", 1, 80),
        ("b", 2, 36),
    ]
    assert found.rows[1].accuracy == pytest.approx(0.5)
    sizes = [(folder / MODEL).stat().st_size for folder in results]
    assert found.rows[1].bytes == sum(sizes[:2]) / 2
    text = found.to_markdown()
    assert "| macs<=50% | b | 2 | 50.00 | 36 | 36 |" in text
    assert "a\\|x" in text and "not measured" in text
    assert json.loads(json.dumps(found.to_dict()))["rows"][0]["ratio"] is None


def test_latency_is_measured_against_the_most_macs(tmp_path):
    results = dict([run(tmp_path, "small", "b", 0, 4), run(tmp_path, "large", "b", 0, 64)])
    found = deployment(results, rounds=2)
    assert [row.label for row in found.rows] == ["large", "small"]
    assert found.rows[0].ratio == 1.0
    small = found.rows[1]
    assert small.median_ms > 0 and small.low <= small.ratio <= small.high
    assert "batch 1, 1 thread" in found.to_markdown()


def test_a_run_without_its_file_is_named(tmp_path):
    folder, result = run(tmp_path, "a", "b", 0, 4)
    (folder / MODEL).unlink()
    with pytest.raises(StorageError, match="no ONNX file"):
        deployment({folder: result})
    old = {key: value for key, value in result.items() if key != "macs"}
    other, _ = run(tmp_path, "a", "b", 1, 4)
    with pytest.raises(StorageError, match="no count of its MACs"):
        deployment({other: old})
