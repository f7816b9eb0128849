"""Runtimes behind one face: the same numbers, options that arrive, and what is not installed."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys

import numpy as np
import onnx_builder as build
import pytest

import bench.runtimes
from bench.errors import BenchError
from bench.measure import measure
from bench.runtimes import DEFAULT, OPENVINO, installed, open_runner, require_runtime
from energy_model.errors import ArgumentError

QUICK = {"rounds": 2, "warmup": 1, "seconds_per_round": 0.01}
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None,
    reason="OPENVINO IS NOT INSTALLED: the second target is not tested (extra `openvino`)",
)


@pytest.fixture(scope="module")
def convolution(tmp_path_factory):
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    proto = build.layer("Conv", weight, ("batch", 3, 8, 8))
    return build.save(proto, tmp_path_factory.mktemp("runtimes") / "conv.onnx")


@needs_openvino
def test_both_runtimes_describe_and_compute_the_same(convolution):
    own, other = (open_runner(name, convolution) for name in (DEFAULT, OPENVINO))
    assert own.inputs[0][:2] == other.inputs[0][:2] == ("x", "tensor(float)")
    assert list(own.inputs[0].shape)[1:] == list(other.inputs[0].shape)[1:] == [3, 8, 8]
    assert not isinstance(other.inputs[0].shape[0], int)
    for batch in (1, 3):
        x = np.random.default_rng(batch).standard_normal((batch, 3, 8, 8)).astype(np.float32)
        (mine,), (theirs,) = own.run({"x": x}), other.run({"x": x})
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert other.name.startswith("openvino 2")
    assert other.kernels()["Convolution f32"] == 1


@pytest.mark.slow
@needs_openvino
def test_one_table_interleaves_both_runtimes(convolution):
    found = measure([convolution, convolution], runtimes=[DEFAULT, OPENVINO], **QUICK)
    names = [item.runtime.split()[0] for item in found.measurements]
    assert names == ["onnxruntime", "openvino"]
    (comparison,) = found.comparisons
    assert comparison.path != comparison.first
    assert " in openvino " in comparison.path
    text = str(found)
    assert "onnxruntime" in text.splitlines()[-2]
    assert " and openvino" in text.splitlines()[-2]
    assert json.loads(json.dumps(found.to_dict()))["measurements"][1]["options"] == {}


@needs_openvino
def test_a_property_that_does_not_exist_is_refused(convolution):
    with pytest.raises(BenchError, match="NOT_A_KEY"):
        measure([convolution], runtime=OPENVINO, options=[{"NOT_A_KEY": "1"}], **QUICK)


@needs_openvino
def test_openvino_cannot_report_its_use():
    """Also when the reporting module is installed, its import fails and the stub is taken."""
    code = (
        "import sys\n"
        "from bench.runtimes import OPENVINO, import_package\n"
        "import_package(OPENVINO)\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "print(telemetry_utils.tm.__name__, sys.modules['openvino_telemetry'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "None"]


def weight_only(path):
    """A convolution whose weight is stored as int8: without the option it is decoded each time."""
    from onnx import helper

    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    constants = {
        "q": np.ones((4, 3, 3, 3), np.int8),
        "s": np.full(4, 0.5, np.float32),
        "z": np.zeros(4, np.int8),
    }
    return build.save(build.model(nodes, constants, ("x", ("batch", 3, 8, 8))), path)


def test_session_options_arrive(tmp_path):
    import onnx

    path = weight_only(tmp_path / "w.onnx")
    kinds = []
    for options in ({}, {"session.disable_quant_qdq": "1"}):
        optimized = tmp_path / f"{len(kinds)}.onnx"
        profile = bench.runtimes.Profile(str(tmp_path / "p"), str(optimized))
        runner = bench.runtimes.OnnxRuntime(str(path), 1, options, profile)
        assert runner.finish().startswith(str(tmp_path / "p"))
        kinds.append({node.op_type for node in onnx.load(optimized).graph.node})
    assert "DequantizeLinear" in kinds[0]
    assert "DequantizeLinear" not in kinds[1]


def test_options_tell_two_measurements_of_one_file_apart(tmp_path):
    path = weight_only(tmp_path / "w.onnx")
    chosen = {"session.disable_quant_qdq": "1"}
    found = measure([path, path], options=[None, chosen], **QUICK)
    assert [dict(item.options) for item in found.measurements] == [{}, chosen]
    assert found.comparisons[0].path == f"{path} with session.disable_quant_qdq=1"
    assert found.comparisons[0].first == str(path)


def test_a_runtime_that_is_not_installed(monkeypatch, convolution):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "openvino" else real(name)
    )
    assert installed(DEFAULT)
    assert not installed(OPENVINO)
    with pytest.raises(ArgumentError, match="openvino is not installed") as caught:
        measure([convolution, convolution], runtimes=[DEFAULT, OPENVINO], **QUICK)
    assert "pip install 'transform-compiler[openvino]'" in caught.value.remedy
    assert DEFAULT in caught.value.remedy


def test_an_unknown_runtime():
    with pytest.raises(ArgumentError, match="unknown runtime 'tvm'") as caught:
        require_runtime("tvm")
    assert "One of onnxruntime-cpu, openvino-cpu" in caught.value.remedy


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"runtimes": [DEFAULT]}, "1 runtimes for 2 models"),
        ({"runtimes": DEFAULT}, "1 runtimes for 2 models"),
        ({"options": [{}, {}, {}]}, "3 options for 2 models"),
    ],
)
def test_one_value_for_each_model(convolution, changes, told):
    with pytest.raises(ArgumentError, match=told):
        measure([convolution, convolution], **changes)


SIGNALS = """
import os, signal, sys
from bench.runtimes import OPENVINO, import_package, open_runner

def opened():
    if sys.argv[2] == "own":
        return import_package(OPENVINO).Core().compile_model(sys.argv[1], "CPU")
    return open_runner(OPENVINO, sys.argv[1])

first, second = opened(), opened()
del first
del second
signal.signal(signal.SIGUSR1, lambda *_: print("heard"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


@needs_openvino
@pytest.mark.skipif(sys.platform != "linux", reason="only there a plugin changes the stack")
@pytest.mark.parametrize("core", ["shared", pytest.param("own", marks=pytest.mark.slow)])
def test_signals_are_heard_after_models_whose_lives_overlap(convolution, core):
    """With a core for each of them they are not: should that change, one core is needless."""
    command = [sys.executable, "-c", SIGNALS, convolution, core]
    done = subprocess.run(command, capture_output=True, text=True)
    heard = (done.returncode, done.stdout.strip())
    assert heard == (0, "heard") if core == "shared" else heard == (-signal.SIGSEGV, "")
