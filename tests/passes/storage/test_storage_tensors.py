from __future__ import annotations

import errno
import hashlib
import os

import pytest
import torch
from safetensors import SafetensorError

from energy_model.errors import StorageError
from passes.storage import tensors as module
from passes.storage.atomic import write_folder
from passes.storage.tensors import check_sha256, load_tensors, save_tensors, sha256_file


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.arange(100, dtype=torch.float32), "b": torch.tensor([True])})
    return path


def test_values_shapes_and_dtypes_survive(tmp_path):
    tensors = {
        "float": torch.tensor([[-0.0, float("nan"), float("inf")]]),
        "bool": torch.tensor([True, False]),
        "half": torch.randn(3).bfloat16(),
        "int": torch.tensor(-(2**62)),
        "empty": torch.zeros(0, 4),
    }
    save_tensors(tmp_path / "t", tensors)
    loaded = load_tensors(tmp_path / "t")
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        # Bit by bit: -0.0 and nan included.
        bits = [t.reshape(-1).view(torch.uint8) for t in (loaded[name], tensor)]
        assert torch.equal(*bits)


def test_views_and_parameters_are_written_as_tensors_of_their_own(tmp_path):
    base = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
    save_tensors(tmp_path / "t", {"row": base[1], "column": base[:, 1], "all": base})
    loaded = load_tensors(tmp_path / "t")
    assert loaded["row"].tolist() == [4, 5, 6, 7]
    assert loaded["column"].tolist() == [1, 5, 9]
    assert (tmp_path / "t").stat().st_size < 400


def test_loaded_tensors_are_aligned_like_fresh_ones(saved):
    assert all(tensor.data_ptr() % 64 == 0 for tensor in load_tensors(saved).values())


def test_loaded_tensors_do_not_follow_the_file(saved):
    loaded = load_tensors(saved)
    saved.write_bytes(b"\xff" * saved.stat().st_size)
    assert loaded["a"].sum() == 4950


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -1])
def test_truncated_files(saved, keep):
    content = saved.read_bytes()
    saved.write_bytes(content[:keep])
    with pytest.raises(StorageError, match=r"t\.safetensors: the tensor file is damaged"):
        load_tensors(saved)


@pytest.mark.parametrize("content", [b"\xff" * 200, b"\0" * 200, b"PK\x03\x04" + b"x" * 100])
def test_files_of_another_kind(saved, content):
    saved.write_bytes(content)
    with pytest.raises(StorageError, match="damaged"):
        load_tensors(saved)


def test_missing_files(tmp_path):
    with pytest.raises(StorageError, match="missing"):
        load_tensors(tmp_path / "none")
    with pytest.raises(StorageError, match="damaged or unreadable"):
        load_tensors(tmp_path)
    with pytest.raises(StorageError, match="cannot be read"):
        sha256_file(tmp_path / "none")


def test_one_flipped_bit_is_found_by_the_hash(saved):
    content = bytearray(saved.read_bytes())
    expected = sha256_file(saved)
    assert expected == hashlib.sha256(content).hexdigest()
    check_sha256(saved, expected)
    content[-1] ^= 1
    saved.write_bytes(content)
    assert set(load_tensors(saved)) == {"a", "b"}  # the format itself does not notice
    with pytest.raises(StorageError, match="SHA-256"):
        check_sha256(saved, expected)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(2, device="meta"), torch.eye(2).to_sparse()], ids=["meta", "sparse"]
)
def test_tensors_without_ordinary_values(tmp_path, tensor):
    with pytest.raises(StorageError, match="'odd' is not an ordinary tensor"):
        save_tensors(tmp_path / "t", {"odd": tensor})


def test_a_full_disk(tmp_path, monkeypatch):
    def full(_tensors, path):
        path.write_bytes(b"half")
        raise SafetensorError(f"I/O error: {os.strerror(errno.ENOSPC)}")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(StorageError, match=r"No space left.*free space"):
        write_folder(tmp_path / "saved", {"t": lambda p: save_tensors(p, {"a": torch.zeros(1)})})
    assert os.listdir(tmp_path) == []
