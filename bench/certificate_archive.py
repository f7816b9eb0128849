"""Which files a certificate of an archive is checked against, for `check_certificate.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

MAGIC = b"\x93T"
"""How an archive begins; an ONNX file never does."""


def is_archive(path: Path) -> bool:
    """Whether a file begins as archives do; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


class Archive(NamedTuple):
    """An archive as it lies on the disk: its digest in hexadecimal, and its size in bytes."""

    digest: str
    size: int


class Files(NamedTuple):
    """What there is to check: an archive, an ONNX file, or both."""

    archive: Archive | None
    model: Path | None


def files_of(claimed: Mapping[str, Any], certificate: Path, given: Path | None) -> Files:
    """The files that a certificate speaks of.

    Args:
        claimed: Its entry `file`. With `inside` it is of an archive, and `inside` is what it claims
            of the ONNX file in it.
        certificate: Its path; the file that it names stands beside it, an unpacked one with the
            ending `.onnx` too.
        given: A file that is to be checked instead: an ONNX file, or the archive.
    """
    named = certificate.parent / Path(claimed["name"]).name
    if not claimed.get("inside"):
        return Files(None, given or named)
    whole = given if given is not None and is_archive(given) else named
    beside = whole.with_suffix(".onnx")
    model = beside if beside != whole and beside.is_file() else None
    model = given if given is not None and given != whole else model
    # Without either of them, that the archive is missing is what there is to say.
    known = model is None or (whole != model and whole.is_file())
    return Files(_read(whole) if known else None, model)


def _read(path: Path) -> Archive:
    content = path.read_bytes()
    return Archive(hashlib.sha256(content).hexdigest(), len(content))
