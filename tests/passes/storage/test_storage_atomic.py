from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_model.errors import StorageError
from passes.storage import atomic
from passes.storage.atomic import json_bytes, read_json, write_file, write_folder

ROOT = Path(__file__).parents[3]


def refuse(number):
    def fail(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_folder_holds_what_was_given(tmp_path):
    target = tmp_path / "new" / "saved"
    write_folder(target, {"a.bin": b"\0a", "sub/b.txt": lambda path: path.write_text("b")})
    assert (target / "a.bin").read_bytes() == b"\0a"
    assert (target / "sub" / "b.txt").read_text() == "b"
    assert os.listdir(tmp_path / "new") == ["saved"]


def test_a_folder_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").mkdir()
    write_folder(tmp_path / "saved", {"a": b""})
    assert (tmp_path / "saved").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_an_empty_folder_is_filled_and_a_full_one_refused(tmp_path):
    target = tmp_path / "saved"
    target.mkdir()
    write_folder(target, {"a": b"1"})
    with pytest.raises(StorageError, match=r"saved: the folder exists.*Choose another"):
        write_folder(target, {"a": b"2"})
    assert (target / "a").read_bytes() == b"1"


def test_a_folder_filled_meanwhile_is_not_overwritten(tmp_path):
    target = tmp_path / "saved"

    def race(path):
        path.write_bytes(b"late")
        target.mkdir()
        (target / "theirs").write_bytes(b"1")

    with pytest.raises(StorageError, match="meanwhile"):
        write_folder(target, {"a": race})
    assert os.listdir(tmp_path) == ["saved"]
    assert os.listdir(target) == ["theirs"]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "saved").write_text("mine")
    with pytest.raises(StorageError, match="a file has this name"):
        write_folder(tmp_path / "saved", {"a": b"1"})
    assert (tmp_path / "saved").read_text() == "mine"


@pytest.mark.parametrize("name", ["../a", "/a", "", "a/../../b", "a\\b", "."])
def test_names_stay_inside_the_folder(tmp_path, name):
    with pytest.raises(StorageError, match="leaves its folder"):
        write_folder(tmp_path / "saved", {name: b"1"})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "Free some disk space"), (errno.EACCES, "may write"), (errno.EIO, "Check")],
)
@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_refusing_disk_leaves_nothing(tmp_path, monkeypatch, number, advice, failing):
    monkeypatch.setattr(atomic.os, failing, refuse(number))
    with pytest.raises(StorageError, match=rf"saved: cannot write.*{advice}.*Nothing was left"):
        write_folder(tmp_path / "saved", {"a": b"1", "b": b"2"})
    assert os.listdir(tmp_path) == []


def test_a_writer_that_fails_half_way_leaves_nothing(tmp_path):
    def half(path):
        path.write_bytes(b"half")
        refuse(errno.ENOSPC)()

    with pytest.raises(StorageError, match="No space left"):
        write_folder(tmp_path / "saved", {"a": b"whole", "b": half})
    assert os.listdir(tmp_path) == []


def test_other_errors_pass_and_leave_nothing(tmp_path):
    def interrupt(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "saved", {"a": interrupt})
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "file", interrupt)
    assert os.listdir(tmp_path) == []


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write here"):
        write_folder(tmp_path / "file" / "saved", {"a": b"1"})


def test_a_file_is_replaced_whole_or_kept(tmp_path, monkeypatch):
    target = tmp_path / "file"
    write_file(target, b"old")
    write_file(target, lambda path: path.write_bytes(b"new"))
    assert target.read_bytes() == b"new"
    monkeypatch.setattr(atomic.os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(StorageError, match="Free some disk space"):
        write_file(target, b"newer")
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


CHILD = """
import sys, time
from pathlib import Path
from passes.storage.atomic import write_file, write_folder

def stall(path):
    path.write_bytes(b"half")
    print("half", flush=True)
    time.sleep(60)

target = Path(sys.argv[2])
if sys.argv[1] == "folder":
    write_folder(target, {"first": b"1" * 10000, "second": stall})
else:
    write_file(target, stall)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_killed_process_leaves_the_old_state(tmp_path, kind):
    target = tmp_path / "saved"
    if kind == "file":
        write_file(target, b"old")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHILD, kind, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"half\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    if kind == "file":
        assert target.read_bytes() == b"old"
    else:
        assert not target.exists()
    # What is left is hidden, recognisable, and in nobody's way.
    assert all(n.endswith(".partial") and n[0] == "." for n in os.listdir(tmp_path) if n != "saved")
    write_folder(tmp_path / "again", {"a": b"1"})
    assert (tmp_path / "again" / "a").read_bytes() == b"1"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.slow
@given(data=st.dictionaries(st.text(), JSON, max_size=4))
def test_json_round_trip(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "round_trip.json"
    write_file(path, json_bytes(data))
    assert read_json(path) == data
    assert json_bytes(read_json(path)) == json_bytes(data)


def test_json_knows_no_nan():
    with pytest.raises(ValueError, match="JSON"):
        json_bytes({"a": float("nan")})


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"a": 1', b"\xff\xfe\x00", b"[1]", b"null", b"[" * 100_000, b'{"a" 1}']
)
def test_damaged_json(tmp_path, content):
    path = tmp_path / "graph.json"
    path.write_bytes(content)
    with pytest.raises(
        StorageError, match=r"graph\.json: the file is damaged.*Save the model again"
    ):
        read_json(path)


def test_json_that_is_not_there(tmp_path):
    with pytest.raises(StorageError, match="missing"):
        read_json(tmp_path / "none.json")
    with pytest.raises(StorageError, match="cannot be read"):
        read_json(tmp_path)
