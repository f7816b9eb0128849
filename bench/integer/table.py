"""The committed page of integer inference: rows by section, kept as JSON and written as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from energy_model.errors import StorageError
from passes.storage.atomic import json_bytes, read_json, write_file

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One file, or one compressed model. What was not measured is `None`.

    Attributes:
        label: What it is.
        accuracy: Test accuracy in torch, a fraction.
        file_accuracy: Test accuracy of the file in ONNX Runtime.
        median_ms: Latency in ONNX Runtime, milliseconds.
        ratio: Latency over that of the section's first row, median over rounds.
        low: First quartile of that ratio.
        high: Third quartile.
        openvino_ms: Latency in OpenVINO, milliseconds.
        bytes: Size of the file.
        bytes_zstd: The same after zstandard.
        error: RMS of the difference to the float file's outputs, over the RMS of those outputs.
        seconds: CPU time of compressing, seconds.
        kernels: What ONNX Runtime runs: products in integers and in float.
        openvino_kernels: What OpenVINO runs, the same.
        note: What a reader must know.
    """

    label: str
    accuracy: float | None = None
    file_accuracy: float | None = None
    median_ms: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    openvino_ms: float | None = None
    bytes: int | None = None
    bytes_zstd: int | None = None
    error: float | None = None
    seconds: float | None = None
    kernels: str | None = None
    openvino_kernels: str | None = None
    note: str = ""

    def __str__(self) -> str:
        cells = [(name, show(self)) for name, show in COLUMNS.items()]
        return "; ".join(f"{name}: {cell}" for name, cell in cells if cell)


@dataclass(frozen=True, slots=True)
class Section:
    """One table.

    Attributes:
        name: Its key for `--only`.
        title: Its heading.
        rows: The first is what latencies are compared with.
        text: What is said below the table: setting, data, what is not claimed.
        extra: A second table, ready.
        command: What made it.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    text: str
    extra: str = ""
    command: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self) | {"rows": [asdict(row) for row in self.rows]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Section:
        """From `to_dict`.

        Raises:
            TypeError: A field is missing or unknown.
        """
        rows = tuple(Row(**row) for row in data["rows"])
        return cls(**{**data, "rows": rows})

    def to_markdown(self) -> str:
        """Heading, table with the columns that any row fills, and text."""
        used = {name: show for name, show in COLUMNS.items() if any(map(show, self.rows))}
        lines = [
            f"## {self.title}",
            "",
            f"| {' | '.join(used)} |",
            "|" + "".join(" --- |" if name in _LEFT else " ---: |" for name in used),
            *(f"| {' | '.join(show(r) or '-' for show in used.values())} |" for r in self.rows),
            "",
            self.text,
            "",
            *([self.extra, ""] if self.extra else []),
            f"Made with `{self.command}`.",
            "",
        ]
        return "\n".join(lines)


def _number(name: str, form: str, factor: float = 1.0) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        value = getattr(row, name)
        return "" if value is None else format(factor * value if factor != 1 else value, form)

    return show


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return ""
    return f"{row.ratio:.3f} ({row.low:.3f} to {row.high:.3f})"


def _cell(name: str) -> Callable[[Row], str]:
    return lambda row: (getattr(row, name) or "").replace("|", "\\|")


COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "": _cell("label"),
    "torch, %": _number("accuracy", ".2f", 100),
    "ONNX Runtime, %": _number("file_accuracy", ".2f", 100),
    "latency, ms": _number("median_ms", ".3f"),
    "of the first (quartiles)": _ratio,
    "OpenVINO, ms": _number("openvino_ms", ".3f"),
    "bytes": _number("bytes", ",d"),
    "zstd": _number("bytes_zstd", ",d"),
    "error, %": _number("error", ".2f", 100),
    "CPU s": _number("seconds", ".1f"),
    "products": _cell("kernels"),
    "in OpenVINO": _cell("openvino_kernels"),
    "note": _cell("note"),
}
_LEFT = frozenset(("", "products", "in OpenVINO", "note"))


def merge(path: Path, sections: Sequence[Section], order: Sequence[str]) -> dict[str, Section]:
    """Put new sections into the JSON file, in place of those of the same names.

    Args:
        path: The file; it may not exist.
        sections: What was measured now.
        order: Names of all sections, as they stand on the page.

    Returns:
        All sections, in that order.

    Raises:
        StorageError: The file is damaged, or of another version.
    """
    known: dict[str, Section] = {}
    if path.exists():
        data = read_json(path)
        if data.get("format") != FORMAT:
            raise _damaged(path, f"its version is {data.get('format')!r}")
        try:
            known = {name: Section.from_dict(item) for name, item in data["sections"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(path, str(error)) from error
    known |= {section.name: section for section in sections}
    ordered = {name: known[name] for name in order if name in known}
    stored = {name: section.to_dict() for name, section in ordered.items()}
    write_file(path, json_bytes({"format": FORMAT, "sections": stored}))
    return ordered


def page(sections: Mapping[str, Section]) -> str:
    """The whole page, sections in their order."""
    head = [
        "# Integer inference",
        "",
        "Latencies of a table were measured in one run, one process a file, all files taking turns "
        "in rounds; `of the first` compares round by round with the first row. Products: "
        "convolutions and matrix products of the graph that the runtime has optimized, and whether "
        "they multiply integers; in OpenVINO by the precision that it reports, which is that of "
        "the weights where only these are quantized. Error: of the outputs, RMS of the difference "
        "to the first row over the RMS of the first row.",
        "",
    ]
    return "\n".join([*head, *(section.to_markdown() for section in sections.values())])


def _damaged(path: Path, why: str) -> StorageError:
    return StorageError(
        f"no table of integer inference of version {FORMAT} ({why})",
        where=str(path),
        remedy="Move it away, or name another folder by --out.",
    )
