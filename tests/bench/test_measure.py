"""Measuring for real: two models, and every way in which a measuring process can fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx_builder as build
import pytest

import bench.measure
import bench.process
from bench.errors import BenchError
from bench.measure import measure
from bench.measurement import Report
from energy_model.errors import ArgumentError, CompressionError

QUICK = {"rounds": 4, "warmup": 2, "seconds_per_round": 0.02}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A convolution, and one with 64 times its MACs."""
    folder = tmp_path_factory.mktemp("models")
    small = build.layer("Conv", build.ones(8, 8, 3, 3), ("batch", 8, 32, 32))
    large = build.layer("Conv", build.ones(64, 64, 3, 3), ("batch", 64, 32, 32))
    return build.save(large, folder / "large.onnx"), build.save(small, folder / "small.onnx")


@pytest.fixture(scope="module")
def measured(models):
    seen = []
    found = measure(models, **QUICK, energies=[640, None], progress=lambda *step: seen.append(step))
    return found, seen


def test_measures_two_models(measured, models):
    found, _ = measured
    large, small = found.measurements
    assert [item.path for item in found.measurements] == [str(path) for path in models]
    assert large.bytes == models[0].stat().st_size
    assert small.bytes_zstd < small.bytes
    assert large.runtime.startswith("onnxruntime ")
    assert large.runtime.endswith(" CPUExecutionProvider")
    assert large.machine
    assert (large.energy, small.energy) == (640, None)
    for item in found.measurements:
        assert len(item.round_ms) == 4
        assert 0 < item.minimum_ms <= item.median_ms
        assert item.load_ms > 0
        assert item.cpu_ms > 0
        assert item.runs_per_round >= 1
        assert item.joules is None or item.joules > 0
        # A Python process with numpy and the runtime takes tens of megabytes, not gigabytes.
        assert 2e7 < item.peak_rss_bytes < 2e9
    # 64 times the arithmetic cannot hide in noise.
    assert found.comparisons[0].ratio < 1
    assert large.runs_per_round < small.runs_per_round


def test_progress_counts_every_step(measured):
    _, seen = measured
    assert [done for done, _, _ in seen] == list(range(14))
    assert {total for _, total, _ in seen} == {14}
    assert seen[0][2] == "packing large.onnx"
    assert seen[-1][2] == "round 4 of 4"


def test_the_report_of_a_measurement_prints(measured):
    text = str(measured[0])
    assert "large.onnx" in text
    assert "one inference, median, ms" in text


def test_a_fixed_batch_that_contradicts_is_refused(tmp_path):
    path = build.save(build.layer("MatMul", build.ones(4, 5), (2, 4)), tmp_path / "two.onnx")
    with pytest.raises(BenchError, match="fixed batch of 2, but a batch of 1") as caught:
        measure([path], **QUICK)
    assert caught.value.model == str(path)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(BenchError, match=r"broken\.onnx: 'load' failed"):
        measure([path], **QUICK)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BenchError, match=r"gone\.onnx: cannot be read") as caught:
        measure([tmp_path / "gone.onnx"])
    assert isinstance(caught.value, CompressionError)


@pytest.mark.parametrize(
    ("paths", "changes", "told"),
    [
        ([], {}, "no model"),
        (["a"], {"threads": 0}, "threads is 0"),
        (["a"], {"batch": 0}, "batch is 0"),
        (["a"], {"rounds": 0}, "rounds is 0"),
        (["a"], {"warmup": 0}, "warmup is 0"),
        (["a"], {"seconds_per_round": 0.0}, "seconds_per_round is 0"),
        (["a"], {"timeout": float("nan")}, "timeout is nan"),
        (["a"], {"energies": [1, 2]}, "2 energies for 1 models"),
    ],
)
def test_bad_arguments_are_refused(paths, changes, told):
    with pytest.raises(ArgumentError, match=told):
        measure(paths, **changes)


ANSWERS = """
import json, os, signal, sys, time
log = open({log!r}, "a")
for line in sys.stdin:
    request = json.loads(line)
    command = request["command"]
    if command == "load":
        name = os.path.basename(request["path"])
        answer = {{"load_ms": 1.0, "runtime": "stub"}}
    elif command == "round":
        answer = {{"median_ms": 4.0, "minimum_ms": 3.0, "cpu_ms": 2.0}}
    else:
        answer = {{"peak_rss_bytes": 5}}
    log.write(f"{{name}} {{command}} {{request.get('runs', '')}}\\n")
    log.flush()
    {trouble}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Puts a scripted process in the worker's place; returns two files and the log of commands."""

    def install(trouble="pass"):
        script, log = tmp_path / "stub.py", tmp_path / "log.txt"
        script.write_text(ANSWERS.format(log=str(log), trouble=trouble))
        command = [sys.executable, str(script)]
        monkeypatch.setattr(bench.process, "worker_command", lambda: command)
        files = [tmp_path / "a", tmp_path / "b"]
        for file in files:
            file.write_bytes(b"model")
        return files, log

    return install


def test_rounds_are_interleaved_and_reversed_every_other_time(stub):
    files, log = stub()
    found = measure(files, rounds=3, warmup=9, seconds_per_round=0.1)
    # 0.1 s of 4 ms each are 25 runs.
    turns = [f"{name} round 25" for name in "abbaab"]
    opening = ["a load", "b load", "a round 9", "b round 9"]
    closing = ["a memory", "b memory"]
    lines = [line.strip() for line in log.read_text().splitlines()]
    assert lines == [*opening, *turns, *closing]
    assert isinstance(found, Report)
    assert [(m.runs_per_round, m.peak_rss_bytes) for m in found.measurements] == [(25, 5)] * 2


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal SIGSEGV"),
        ("sys.exit(3)", "exit code 3"),
    ],
)
def test_a_crash_is_a_typed_error_with_the_last_words(stub, trouble, told):
    last_words = "print('about to fall', file=sys.stderr, flush=True)"
    files, _ = stub(f"if command == 'round' and name == 'b': {last_words}; {trouble}")
    with pytest.raises(BenchError, match=told) as caught:
        measure(files, rounds=2)
    assert caught.value.model == str(files[1])
    assert caught.value.stderr == "about to fall"
    assert "about to fall" in str(caught.value)


def test_a_hanging_process_is_a_typed_error(stub):
    files, _ = stub("if command == 'round': time.sleep(60)")
    with pytest.raises(BenchError, match=r"no answer to 'round' within 0\.5 s"):
        measure(files, timeout=0.5)


class _Meter:
    def __init__(self, joules):
        self.joules = iter(joules)

    def begin(self):
        pass

    def end(self):
        return next(self.joules)


@pytest.mark.parametrize(
    ("counted", "answer"), [([50.0, 75.0, 100.0], 3.0), ([50.0, None, 75.0], None)]
)
def test_joules_are_per_inference_and_absent_when_a_round_has_none(
    stub, monkeypatch, counted, answer
):
    files, _ = stub()
    monkeypatch.setattr(bench.measure, "open_meter", lambda: _Meter(counted))
    found = measure(files[:1], rounds=3, seconds_per_round=0.1)
    assert found.measurements[0].joules == answer


def test_the_machine_has_a_name():
    assert (
        bench.measure.machine_name() in Path("/proc/cpuinfo").read_text()
        or not Path("/proc/cpuinfo").exists()
    )
    assert json.dumps(bench.measure.machine_name()) != '""'
