"""Named tensors in a safetensors file, and the hash that tells whether it is intact."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from energy_model.errors import StorageError


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write named tensors; values, shapes and dtypes are kept, on the CPU.

    Args:
        path: The file. Not atomic by itself: hand this function to `write_folder`.
        tensors: Tensors of any shape; views are written as tensors of their own.

    Raises:
        StorageError: For a meta, sparse or quantized tensor, or if the disk refuses.
    """
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided:
            raise StorageError(
                f"the tensor {name!r} is not an ordinary tensor with values",
                where=str(path),
                remedy="Only dense tensors on a real device can be saved.",
            )
    try:
        save_file({name: _owned(tensor) for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise StorageError(
            f"the tensors cannot be written ({error})",
            where=str(path),
            remedy="Check the disk's free space and the dtypes of the model.",
        ) from error


def _owned(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous CPU tensor that shares its storage with no other: safetensors asks for it."""
    tensor = tensor.detach().cpu().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file, on the CPU, into memory of their own.

    Raises:
        StorageError: If the file is missing, unreadable or damaged.
    """
    try:
        # Copied out of the file's mapping: kernels choose their path, and so their rounding, by the
        # alignment of the memory, and a file that is replaced must not change a live model.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except FileNotFoundError as error:
        raise StorageError(
            "the file is missing", where=str(path), remedy="Check the path of the saved folder."
        ) from error
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise StorageError(
            f"the tensor file is damaged or unreadable ({error})",
            where=str(path),
            remedy="Save the model again, or restore the folder from a copy.",
        ) from error


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        StorageError: If the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(
            f"the file cannot be read ({error.strerror})",
            where=str(path),
            remedy="Check the path of the saved folder.",
        ) from error


def check_sha256(path: Path, expected: str) -> None:
    """Compare a file with the hash that was recorded when it was written.

    Raises:
        StorageError: If they differ or the file cannot be read.
    """
    found = sha256_file(path)
    if found != expected:
        raise StorageError(
            f"the file is damaged: its SHA-256 is {found[:12]}..., recorded was {expected[:12]}...",
            where=str(path),
            remedy="Save the model again, or restore the folder from a copy.",
        )
