"""Archives among the models that are measured: unpacked into a file that a runtime reads."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.certificate_archive import is_archive
from bench.errors import BenchError
from energy_model.errors import StorageError


@dataclass(frozen=True, slots=True)
class Loadable:
    """A file that a runtime can load.

    Attributes:
        path: The ONNX file.
        unpack_ms: Time to unpack the archive that it lies in, milliseconds; None for an ONNX file.
    """

    path: Path
    unpack_ms: float | None = None


@contextmanager
def loadable(path: Path) -> Iterator[Loadable]:
    """The ONNX file itself, or that in an archive, unpacked for as long as the context lasts.

    Raises:
        BenchError: An archive is damaged, or cannot be unpacked.
    """
    if not is_archive(path):
        yield Loadable(path)
        return
    from export.archive_file import read_archive  # a process that only measures needs none of it

    with tempfile.TemporaryDirectory(prefix="transform-bench-") as folder:
        file = Path(folder) / f"{path.stem}.onnx"
        try:
            begin = time.perf_counter()
            content = read_archive(path)
            unpack_ms = 1000 * (time.perf_counter() - begin)
            file.write_bytes(content)
        except StorageError as error:
            raise BenchError(error.what, model=str(path), remedy=error.remedy) from error
        except OSError as error:
            raise BenchError(
                f"cannot be unpacked ({error.strerror or error})",
                model=str(path),
                remedy="Free some space for temporary files.",
            ) from error
        yield Loadable(file, unpack_ms)
