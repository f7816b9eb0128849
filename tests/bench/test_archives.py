"""Archives among the models that are measured: unpacked, run, and reported as themselves."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_builder as build
import pytest

import bench.certificate_archive
from bench.archives import loadable
from bench.certificate_archive import is_archive
from bench.errors import BenchError
from bench.measure import measure
from bench.onnx_accuracy import top1_accuracy
from export.archive import MAGIC, pack

QUICK = {"rounds": 2, "warmup": 1, "seconds_per_round": 0.01}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A layer as an ONNX file, and its archive."""
    folder = tmp_path_factory.mktemp("archives")
    plain = build.save(
        build.layer("MatMul", build.every_other(4, 3), ("batch", 4)), folder / "plain.onnx"
    )
    archive = folder / "small.packed"
    archive.write_bytes(pack(plain.read_bytes()))
    return plain, archive


@pytest.fixture(scope="module")
def report(files):
    seen = []
    found = measure(files, **QUICK, progress=lambda *step: seen.append(step))
    return found, seen


def test_an_archive_is_measured_under_its_own_name_and_size(files, report):
    plain, archive = report[0].measurements
    assert [plain.path, archive.path] == [str(path) for path in files]
    assert archive.bytes == files[1].stat().st_size < plain.bytes
    assert plain.unpack_ms is None
    assert archive.unpack_ms > 0
    assert archive.median_ms > 0
    assert report[0].to_dict()["measurements"][1]["unpack_ms"] == archive.unpack_ms


def test_unpacking_is_a_step_of_its_own(report):
    steps = [what for _, _, what in report[1]]
    assert "unpacking small.packed" in steps
    assert {total for _, total, _ in report[1]} == {len(steps)} == {11}


def test_the_report_tells_the_time_of_unpacking(files, report):
    [line] = [line.split() for line in str(report[0]).splitlines() if "unpack" in line]
    assert line[:3] == ["unpack,", "ms", "-"]
    assert line[3] == f"{report[0].measurements[1].unpack_ms:.2f}"
    assert "unpack" not in str(measure(files[:1], **QUICK))


def test_nothing_is_left_behind(files):
    with loadable(files[1]) as found:
        assert found.path.read_bytes() == files[0].read_bytes()
        assert found.path.name == "small.onnx"
        assert found.path.parent.parent == Path(tempfile.gettempdir())
    assert not found.path.parent.exists()


def test_an_onnx_file_is_taken_as_it_is(files):
    with loadable(files[0]) as found:
        assert (found.path, found.unpack_ms) == (files[0], None)


def test_a_damaged_archive_is_refused(files, tmp_path):
    path = tmp_path / "bad.packed"
    path.write_bytes(files[1].read_bytes()[:-1])
    with pytest.raises(BenchError, match=r"bad\.packed: the archive is damaged") as caught:
        measure([path], **QUICK)
    assert caught.value.model == str(path)
    with pytest.raises(BenchError, match="the archive is damaged"):
        top1_accuracy(path, [(np.ones((1, 4), np.float32), np.zeros(1, int))])


def test_the_accuracy_of_an_archive_is_that_of_its_file(files):
    generator = np.random.default_rng(0)
    batches = [(generator.standard_normal((50, 4), np.float32), generator.integers(3, size=50))]
    accuracy = top1_accuracy(files[1], batches)
    assert accuracy == top1_accuracy(files[0], batches)
    assert 0 < accuracy < 1


def test_what_is_an_archive_is_told_by_its_beginning(files, tmp_path):
    assert bench.certificate_archive.MAGIC == MAGIC
    assert is_archive(files[1])
    assert not is_archive(files[0])
    assert not is_archive(tmp_path / "gone")
    assert not is_archive(tmp_path)
