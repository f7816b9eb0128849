"""Archives on the disk: what stands in a file, and the ONNX model in it."""

from __future__ import annotations

from pathlib import Path

import onnx

from energy_model.errors import StorageError
from export.archive import unpack_bytes
from passes.storage.atomic import write_file


def unpack(path: Path | str, to: Path | str | None = None) -> onnx.ModelProto:
    """The ONNX model in an archive, bit for bit as it was packed.

    Args:
        path: The archive, a file of the form `packed`.
        to: Where the model is also written, as `.onnx`; an existing file is replaced in one step.

    Returns:
        The model.

    Raises:
        StorageError: The archive is missing, none, damaged, cut off, or of a newer version; or `to`
            cannot be written.
    """
    data = read_archive(path)
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf has several classes of them, by its implementation
        raise StorageError(
            "the archive holds a file that is no ONNX model",
            where=str(path),
            remedy="Export the model again with form='packed'.",
        ) from error
    if to is not None:
        write_file(Path(to), data)
    return model


def read_archive(path: Path | str) -> bytes:
    """The bytes of the ONNX file in an archive.

    Raises:
        StorageError: As for `unpack`.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise StorageError(
            "the file is missing", where=str(path), remedy="Check the path of the archive."
        ) from error
    except OSError as error:
        raise StorageError(
            f"the file cannot be read ({error.strerror})",
            where=str(path),
            remedy="Give the path of an archive, and check its permissions.",
        ) from error
    return unpack_bytes(data, str(path))
