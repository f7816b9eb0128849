"""`transform unpack`: the ONNX file out of an archive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from energy_model.errors import ArgumentError

EPILOG = """
Examples:
  transform unpack small.packed
  transform unpack small.packed --out model.onnx
"""

Archive = Annotated[
    Path, typer.Argument(metavar="ARCHIVE", help="A file that was exported with --form packed.")
]
Target = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Where to; by default beside it, as .onnx."),
]


def unpack(archive: Archive, out: Target = None) -> None:
    """Write the ONNX file that an archive holds, bit for bit as it was packed.

    A damaged archive, or one cut short, is an error and nothing is written.
    """
    from export import unpack as unpacked

    path = out if out is not None else archive.with_suffix(".onnx")
    if path.resolve() == archive.resolve():
        raise ArgumentError(
            "the file would take the place of what is to be unpacked",
            where=str(archive),
            remedy="Name the archive (`transform export --form packed` writes one), or another "
            "file by --out.",
        )
    unpacked(archive, path)
    packed, whole = archive.stat().st_size, path.stat().st_size
    print(f"file            {path}")
    print(f"size            {whole:,} bytes, {packed:,} in the archive")
