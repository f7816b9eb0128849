"""SIGKILL at any moment of training: the same call again gives the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killed_runs import compressed

import transform
from transform.fingerprint import state_digest

# Half a minute; that a killed run goes on is shown by the checkpoints' own tests in the gate.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]
PROGRAM = Path(__file__).with_name("killed_runs.py")
FILES = [
    "compressed.json",
    "model.certificate.json",
    "model.onnx",
    "report.txt",
    "weights.safetensors",
]
# Three epochs write three checkpoints of four flushes each; four more are of the ONNX file and its
# certificate, before they are moved to their place.
CHECKPOINT_FLUSHES = range(1, 13)
EXPORT_FLUSHES = range(13, 17)


def command(*arguments):
    return [sys.executable, str(PROGRAM), *map(str, arguments)]


def answers(*arguments):
    process = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=250, check=False
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def assert_all_resumed(found, key, count):
    whole = found["whole"]["value"]
    assert len(found[key]) == count
    for row in found[key]:
        assert row["killed"] == {"signal": signal.SIGKILL}
        assert row["again"] == {"value": whole, "loaded": {"value": whole}, "names": FILES}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return answers("training", tmp_path_factory.mktemp("killed"), 1, 6, 8)


def test_killed_while_training(found):
    assert_all_resumed(found, "training", 2)
    left = [row["left"] for row in found["training"]]
    assert left == [["epoch-000001"], ["epoch-000002"]]
    # Here, in another process, the bits are the same as well.
    assert compressed() == found["whole"]["value"]


def test_killed_while_a_checkpoint_is_written(found):
    assert_all_resumed(found, "flushing", 3)
    left = [row["left"] for row in found["flushing"]]
    # While the first is written; while the second is written; and both in their place.
    assert not [name for name in left[0] if name.startswith("epoch")]
    assert "epoch-000001" in left[1]
    assert any(name.endswith(".partial") for name in left[1])
    assert left[2] == ["epoch-000001", "epoch-000002"]


def test_killed_at_every_flush_before_the_result_is_written(tmp_path):
    numbers = [*CHECKPOINT_FLUSHES, *EXPORT_FLUSHES]
    assert_all_resumed(answers("flushing", tmp_path, *numbers), "flushing", len(numbers))


def test_killed_from_outside_once_the_first_checkpoint_appears(tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(command("slow", tmp_path), stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not list(out.glob("checkpoints/epoch-*")):
            assert process.poll() is None, "it ended before its first checkpoint"
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "compressed.json").exists()
    expected = compressed()
    assert compressed(out) == expected
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert state_digest(transform.load(out).model) == expected
