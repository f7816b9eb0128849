"""ONNX Runtime reports nothing, and leaves nothing that names this machine."""

from __future__ import annotations

import os
import subprocess
import sys

import onnx
import pytest
from onnx import TensorProto, helper

RUN = """
{imported}
onnxruntime.InferenceSession({path!r}, providers=["CPUExecutionProvider"])
"""
OURS = "from export.quiet_runtime import import_onnxruntime; onnxruntime = import_onnxruntime()"


def left_at_home(folder, imported, **environment):
    """What a process has left in the home folder after it has opened a file."""
    home = folder / "home"
    home.mkdir()
    known = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    known |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), **environment}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    opset = [helper.make_opsetid("", 21)]
    path = str(folder / "net.onnx")
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    code = RUN.format(imported=imported, path=path)
    subprocess.run([sys.executable, "-c", code], env=known, check=True, capture_output=True)
    return sorted(path.name for path in home.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "imported",
    [
        OURS,
        "from bench.runtimes import DEFAULT, import_package; onnxruntime = import_package(DEFAULT)",
        pytest.param("from export.parity import onnxruntime", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_left(tmp_path, imported):
    assert left_at_home(tmp_path, imported) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is kept in other places")
def test_who_wants_it_to_report_is_heard(tmp_path):
    """And what is told apart by the tests above is there."""
    if "deviceid" not in left_at_home(tmp_path, "import onnxruntime"):
        pytest.skip("THIS BUILD OF ONNX RUNTIME REPORTS NOTHING: there is nothing to turn off")
    (tmp_path / "other").mkdir()
    found = left_at_home(tmp_path / "other", OURS, ORT_DISABLE_TELEMETRY="0")
    assert "deviceid" in found
