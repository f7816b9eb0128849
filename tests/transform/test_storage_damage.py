"""A damaged folder is a `StorageError`, wherever the damage is; and nothing is half written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transform_nets import SmallConv, made

import transform
from passes.storage import atomic
from transform import storage
from transform.fingerprint import state_digest

LOADED = ("compressed.json", "weights.safetensors")


@pytest.fixture(scope="module")
def result():
    model, example = made(SmallConv)
    return transform.compress(model, "energy<=60%", example_inputs=example)


@pytest.fixture(scope="module")
def intact(result, tmp_path_factory):
    return result.save(tmp_path_factory.mktemp("intact") / "saved")


@pytest.fixture
def folder(intact, tmp_path):
    """A copy, to be damaged."""
    return shutil.copytree(intact, tmp_path / "saved")


def refused(folder, match=None):
    for model in (None, SmallConv()):
        with pytest.raises(transform.StorageError, match=match) as caught:
            transform.load(folder, model)
        assert caught.value.remedy


def test_the_intact_copy_loads(folder, result):
    assert state_digest(transform.load(folder, SmallConv()).model) == state_digest(result.model)


def same_json(a, b):
    """Whether both say the same: two decimal fractions may stand for one float."""
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(LOADED), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 4))
def test_a_flipped_bit_anywhere_is_noticed(intact, tmp_path, name, place, bit):
    folder = tmp_path / "flipped"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(intact, folder)
    data = bytearray((folder / name).read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    assume(not same_json(data, (folder / name).read_bytes()))
    (folder / name).write_bytes(data)
    with pytest.raises(transform.StorageError):
        transform.load(folder)


@pytest.mark.parametrize("name", LOADED)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_noticed(folder, name, share):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(share * len(data))])
    refused(folder)


@pytest.mark.parametrize("name", LOADED)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    refused(folder, match=name)


def test_a_missing_folder_and_a_file_in_its_place(tmp_path):
    refused(tmp_path / "nowhere", match="missing")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", match="cannot be read")


def rewrite(folder, **changes):
    path = folder / "compressed.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("changes", [{"version": 2}, {"version": "1"}, {"format": "other"}])
def test_another_version_is_refused_as_such(folder, changes):
    rewrite(folder, **changes)
    refused(folder, match="not a saved result of version 1")


@pytest.mark.parametrize(
    "changes", [{"metrics": {"before": 1.0, "after": 1.0}}, {"history": []}, {"sha256": "0" * 64}]
)
def test_an_edited_record_does_not_match_its_digest(folder, changes):
    rewrite(folder, **changes)
    refused(folder, match="does not match its digest")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weights_sha256", None),
        ("weights_sha256", 5),
        ("graph", []),
        ("graph", "x"),
        ("method", None),
        ("history", 5),
        ("metrics", None),
        ("aliases", 5),
        ("training", None),
    ],
)
def test_a_record_that_fits_its_own_digest_is_read_with_suspicion(folder, key, value):
    path = folder / "compressed.json"
    record = json.loads(path.read_text())
    del record["sha256"]
    path.write_text(json.dumps(storage._sealed(record | {key: value})))
    with pytest.raises(transform.StorageError):
        transform.load(folder)


def test_weights_of_another_result_are_noticed(folder, tmp_path):
    model, example = made(SmallConv, seed=5)
    other = transform.compress(model, "energy<=60%", example_inputs=example)
    shutil.copy(other.save(tmp_path / "other") / "weights.safetensors", folder)
    refused(folder, match=r"weights\.safetensors: the file is damaged")


def test_an_existing_folder_is_not_overwritten(folder, result):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(transform.StorageError, match="not empty"):
        result.save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_an_empty_folder_may_be_filled(result, tmp_path):
    (tmp_path / "empty").mkdir()
    result.save(tmp_path / "empty")
    assert transform.load(tmp_path / "empty").certificate == result.certificate


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_full_disk_leaves_nothing_behind(result, tmp_path, monkeypatch, call):
    write, calls = atomic._write_content, []

    def full(path, content):
        calls.append(path)
        if len(calls) == call:
            path.write_bytes(b"the first half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(atomic, "_write_content", full)
    with pytest.raises(transform.StorageError, match=r"No space left.*Free some disk space"):
        result.save(tmp_path / "saved")
    assert len(calls) == call
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_full_temporary_disk_is_a_storage_error(result, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("onnx.save_model", full)
        with pytest.raises(transform.StorageError, match="No space left"):
            result.export(tmp_path / "net.onnx")
    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(transform.StorageError, match="No space left"):
        result.save(tmp_path / "saved")
    assert os.listdir(tmp_path) == []


def killed_at(number, action):
    """Run an action in a child that is killed at its n-th flush to the disk.

    Returns whether the child was killed.
    """
    child = os.fork()
    if child == 0:
        flush, left = os.fsync, iter(range(number - 1))

        def fsync(descriptor):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            flush(descriptor)

        os.fsync = fsync
        try:
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_moment_leaves_a_whole_folder_or_none(result, tmp_path):
    found = []
    for number in range(1, 20):
        target = tmp_path / f"killed-{number}"
        killed = killed_at(number, lambda target=target: result.save(target))
        found.append(target.exists())
        if target.exists():
            loaded = transform.load(target, SmallConv())
            assert state_digest(loaded.model) == state_digest(result.model)
        else:
            result.save(target)  # what was left beside it is in nobody's way
            assert transform.load(target).certificate == result.certificate
        if not killed:
            break
    # Killed before the rename, killed after it, and at last not at all.
    assert not killed
    assert found == sorted(found)
    assert found.count(False) >= 3
    assert found.count(True) >= 2
