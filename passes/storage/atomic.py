"""Files and folders that exist whole or not at all.

Everything is written beside its destination, flushed to the disk, and renamed in one step: after a
crash, a kill or a full disk the destination holds the old content, or nothing, or all of the new.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from energy_model.errors import StorageError

Content = bytes | Callable[[Path], None]


def write_folder(path: Path, files: Mapping[str, Content]) -> None:
    """Write a new folder, whole or not at all.

    Args:
        path: The folder; it must not exist or be empty. Missing parents are made.
        files: For each relative name (with `/` for subfolders) its bytes, or a function that
            writes the file at the path it is given.

    Raises:
        StorageError: If the folder holds something, a name leaves the folder, or the disk refuses.
    """
    path = Path(path)
    _check_free(path)
    for name in files:
        _check_name(name, path)
    with storage_errors(path), _temporary_beside(path) as temporary:
        temporary.mkdir()
        for name, content in files.items():
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_content(target, content)
        for folder in [temporary, *(entry for entry in temporary.rglob("*") if entry.is_dir())]:
            _flush(folder)
        _rename_folder(temporary, path)
        _flush(path.parent)


def write_file(path: Path, data: Content) -> None:
    """Write or replace one file, whole or not at all.

    Args:
        path: The file. Missing parents are made.
        data: Its bytes, or a function that writes the file at the path it is given.

    Raises:
        StorageError: If the path is a folder or the disk refuses.
    """
    path = Path(path)
    with storage_errors(path), _temporary_beside(path) as temporary:
        _write_content(temporary, data)
        os.replace(temporary, path)
        _flush(path.parent)


def json_bytes(data: Mapping[str, Any]) -> bytes:
    """JSON as UTF-8, the same bytes for the same data.

    Raises:
        ValueError: For a float that JSON does not know (infinity, not a number).
    """
    return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        StorageError: If the file is missing, unreadable, damaged or no object.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StorageError(
            "the file is missing", where=str(path), remedy="Check the path of the saved folder."
        ) from error
    except OSError as error:
        raise StorageError(
            f"the file cannot be read ({error.strerror})",
            where=str(path),
            remedy="Check the path and its permissions.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise _damaged_json(path, str(error)) from error
    if not isinstance(data, dict):
        raise _damaged_json(path, "not an object")
    return data


def _damaged_json(path: Path, why: str) -> StorageError:
    return StorageError(
        f"the file is damaged: {why}",
        where=str(path),
        remedy="Save the model again, or restore the folder from a copy.",
    )


def _check_free(path: Path) -> None:
    try:
        free = not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir()))
    except OSError as error:
        raise _refused(path, error) from error
    if not free:
        what = "the folder exists and is not empty" if path.is_dir() else "a file has this name"
        raise _occupied(path, what)


def _occupied(path: Path, what: str) -> StorageError:
    return StorageError(what, where=str(path), remedy="Choose another folder, or remove it first.")


def _check_name(name: str, path: Path) -> None:
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name:
        raise StorageError(
            f"the file name {name!r} leaves its folder",
            where=str(path),
            remedy="Use a name relative to the folder.",
        )


def _write_content(path: Path, content: Content) -> None:
    if callable(content):
        content(path)
        _flush(path)
        return
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(path: Path) -> None:
    """Force a file, or the entries of a folder, onto the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle for a folder's entries
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_folder(temporary: Path, path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        path.rmdir()  # POSIX renames onto an empty folder, Windows does not
    try:
        os.rename(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise _occupied(path, "something was written here meanwhile") from error
        raise


@contextlib.contextmanager
def _temporary_beside(path: Path) -> Iterator[Path]:
    """A free hidden name beside `path`, on the same disk; whatever stands there is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}.partial"
    try:
        yield temporary
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` (disk full, permission) into a `StorageError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: OSError) -> StorageError:
    remedy = {
        errno.ENOSPC: "Free some disk space, or choose another disk",
        errno.EDQUOT: "Your disk quota is used up: free some space",
        errno.EACCES: "Choose a folder that you may write to",
        errno.EROFS: "The disk is read-only: choose another",
    }.get(error.errno or 0, "Check the path, its permissions and the disk")
    return StorageError(
        f"cannot write here ({error.strerror or error})",
        where=str(path),
        remedy=f"{remedy}. Nothing was left half written.",
    )
