"""The measuring process: its inputs, its protocol, and how little it imports."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx_builder as build
import pytest

from bench.process import WorkerProcess
from bench.worker import Worker, input_shape, make_inputs, peak_rss_bytes


def described(name, kind, shape):
    return SimpleNamespace(name=name, type=kind, shape=shape)


def test_inputs_are_normal_or_zero_and_reproducible():
    items = [described("x", "tensor(float)", ["n", 3, "t"]), described("i", "tensor(int64)", ["n"])]
    feed = make_inputs(items, batch=4000, seed=1)
    assert (feed["x"].shape, feed["x"].dtype) == ((4000, 3, 1), np.float32)
    assert abs(feed["x"].mean()) < 0.1
    assert feed["x"].std() == pytest.approx(1, abs=0.1)
    assert feed["i"].dtype == np.int64
    assert not feed["i"].any()
    np.testing.assert_array_equal(make_inputs(items, 4000, seed=1)["x"], feed["x"])
    assert (make_inputs(items, 4000, seed=2)["x"] != feed["x"]).any()


def test_input_shapes():
    assert input_shape("x", ["batch", None, 7], 5) == [5, 1, 7]
    assert input_shape("x", [5, 2], 5) == [5, 2]
    assert input_shape("x", [], 5) == []
    with pytest.raises(ValueError, match="fixed batch of 2"):
        input_shape("x", [2, 7], 5)


def test_an_input_that_cannot_be_fed_is_refused():
    with pytest.raises(ValueError, match=r"tensor\(string\)"):
        make_inputs([described("x", "tensor(string)", [1])], batch=1, seed=0)


def test_a_round_answers_in_milliseconds_per_run(tmp_path):
    path = build.save(build.layer("MatMul", build.ones(4, 5), ("n", 4)), tmp_path / "m.onnx")
    worker = Worker()
    loaded = worker.answer(
        {"command": "load", "path": str(path), "threads": 1, "batch": 3, "seed": 0}
    )
    assert loaded["runtime"].split()[2] == "CPUExecutionProvider"
    assert worker.feed["x"].shape == (3, 4)
    found = worker.answer({"command": "round", "runs": 5})
    assert 0 < found["minimum_ms"] <= found["median_ms"]
    assert worker.answer({"command": "memory"})["peak_rss_bytes"] <= peak_rss_bytes()
    with pytest.raises(ValueError, match="unknown command 'dance'"):
        worker.answer({"command": "dance"})


def test_what_the_runtime_prints_does_not_disturb_the_answers():
    code = (
        "import bench.worker as w, sys\n"
        "class Loud(w.Worker):\n"
        "    def answer(self, request):\n"
        "        print('chatter', flush=True)\n"
        "        return super().answer(request)\n"
        "w.Worker = Loud\n"
        "w.main()\n"
    )
    requests = '{"command": "memory"}\n{"command": "dance"}\n'
    done = subprocess.run(
        [sys.executable, "-c", code], input=requests, capture_output=True, text=True, check=True
    )
    memory, refusal = map(json.loads, done.stdout.splitlines())
    assert memory["peak_rss_bytes"] > 0
    assert refusal == {"error": "ValueError: unknown command 'dance'"}
    assert done.stderr.count("chatter") == 2


def test_the_process_holds_nothing_but_the_runtime(tmp_path):
    """The memory that is reported would otherwise be that of torch."""
    code = "import sys, bench, bench.worker; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {"torch", "onnx", "onnxruntime", "matplotlib", "rich", "energy_model", "passes"}
    assert "numpy" in loaded
    assert loaded & heavy == set()


def test_a_users_own_package_does_not_shadow_the_worker(tmp_path, monkeypatch):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").write_text("raise RuntimeError('shadowed')")
    monkeypatch.chdir(tmp_path)
    with WorkerProcess("m", timeout=60) as worker:
        assert worker.ask("memory")["peak_rss_bytes"] > 0
