"""What was asked, and what was reached, counted from the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from energy_model.cost import Cost, CostTable
from energy_model.hardware import Hardware
from energy_model.resolved import ResolvedLimit
from energy_model.units import format_bytes, format_count, format_joules, format_seconds
from transform.limits import Value

FORMAT = "transform-certificate"
VERSION = 1
_UNITS = {
    "energy": "MAC",
    "size": "bytes",
    "archive": "bytes",
    "ram": "bytes",
    "weight_bits": "bits",
    "latency": "s",
}


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """One limit.

    Attributes:
        limit: Its key.
        asked: As the user wrote it.
        base: Value of the original dense model.
        maximum: The limit in absolute terms.
        reached: Value of the finished model.
        unit: Unit of the three values.
        kind: `"exact"` or `"measured"`.
        counted_from: `"file"`: the exported file; `"model"`: the finished model in memory.
        file: Name of what it was counted from; `"model"` for a model in memory.
        sha256: Digest of that file, or of the model's state.
        base_counted_from: `"file"`, or `"original"` where the finished model has smaller layers, so
            that `base` cannot be counted from it any more.
        measurement: Median, spread, threads, batch, runtime, machine, if measured.
    """

    limit: str
    asked: str
    base: int | float
    maximum: int | float
    reached: int | float
    unit: str
    kind: str
    counted_from: str
    file: str
    sha256: str
    base_counted_from: str = "file"
    measurement: Mapping[str, Any] | None = None

    @property
    def holds(self) -> bool:
        """Whether the limit is met."""
        return self.reached <= self.maximum


@dataclass(frozen=True, slots=True)
class Source:
    """What was counted.

    Attributes:
        name: File name; `"model"` for a model in memory.
        sha256: Digest of the file, or of the model's state.
        bytes: Size of the file; 0 for a model in memory.
        inside: Of an archive `"sha256"` and `"bytes"` of the ONNX file in it, from which everything
            but the archive's size was counted.
    """

    name: str
    sha256: str
    bytes: int = 0
    inside: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Certificate:
    """A row per limit, and what is needed to count it again.

    Attributes:
        rows: One row per limit.
        source: What was counted.
        costs: Costs of every layer.
        initializers: Per layer, where its weight lies in the file; empty for a model in memory.
    """

    rows: tuple[CertificateRow, ...]
    source: Source
    costs: CostTable
    initializers: Mapping[str, str]

    @property
    def holds(self) -> bool:
        """Whether every limit is met."""
        return all(row.holds for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object; `bench/check_certificate.py` reads it."""
        total = self.costs.total
        return {
            "format": FORMAT,
            "version": VERSION,
            "file": asdict(self.source),
            "hardware": self.costs.hardware.to_dict(),
            "holds": self.holds,
            "limits": [asdict(row) | {"holds": row.holds} for row in self.rows],
            "layers": [self._layer(row) for row in self.costs],
            "totals": {
                "macs": total.macs,
                "weights": total.weights,
                "nonzeros": total.nonzeros,
                "energy": total.energy.to_dict(),
            },
        }

    def _layer(self, row: Cost) -> dict[str, Any]:
        name = self.initializers.get(row.name)
        uncounted = "" if name or self.source.name == "model" else "not found in the file"
        if "computed in forward" in row.note:
            uncounted = row.note
        return {
            "name": row.name,
            "initializers": [name] if name else [],
            "weights": row.weights,
            "nonzeros": row.nonzeros,
            "bits": row.bits,
            "cost": row.to_dict(),
            "uncounted": uncounted,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Certificate:
        """Read what `to_dict` wrote."""
        limits = [{k: v for k, v in row.items() if k != "holds"} for row in data["limits"]]
        costs = {"rows": [layer["cost"] for layer in data["layers"]], "hardware": data["hardware"]}
        names = {
            layer["name"]: layer["initializers"][0]
            for layer in data["layers"]
            if layer["initializers"]
        }
        return cls(
            tuple(CertificateRow(**row) for row in limits),
            Source(**data["file"]),
            CostTable.from_dict(costs),
            names,
        )

    def __str__(self) -> str:
        lines = []
        for row in self.rows:
            sign = "holds" if row.holds else "FAILS"
            share = f" ({100 * row.reached / row.base:.2f} % of the original)" if row.base else ""
            reached = format_value(row.limit, row.reached, row.unit)
            lines.append(
                f"{row.asked}: {sign}, reached {reached}{share}, {row.kind}, "
                f"counted from {self.source.name} {self.source.sha256[:12]}"
            )
        return "\n".join(lines)


def format_value(key: str, value: float, unit: str = "") -> str:
    """A value of a limit, with its unit, for people.

    Args:
        key: Key of the limit.
        value: The value.
        unit: Of energies; MAC by default.
    """
    if key == "latency":
        return format_seconds(value)
    if _UNITS.get(key) == "bytes":
        return format_bytes(int(value))
    unit = unit if key == "energy" and unit else _UNITS.get(key, "")
    return f"{format_count(int(value))} {unit}".strip()


def certify(
    limits: Sequence[ResolvedLimit],
    values: Mapping[str, Value],
    source: Source,
    costs: CostTable,
    initializers: Mapping[str, str] | None = None,
    *,
    smaller: bool = False,
) -> Certificate:
    """Put a certificate together.

    Args:
        limits: What was asked.
        values: What was counted, per limit.
        source: What it was counted from.
        costs: Costs of every layer, counted from the same.
        initializers: Where every layer's weight lies in the file.
        smaller: Layers are smaller than those of the original.
    """
    rows = tuple(
        CertificateRow(
            limit=limit.key,
            asked=str(limit.limit),
            base=limit.base,
            maximum=limit.maximum,
            reached=values[limit.key].number,
            unit=_unit(limit.key, costs.hardware),
            kind=values[limit.key].kind,
            counted_from=_counted_from(limit.key, source),
            file=source.name,
            sha256=source.sha256,
            base_counted_from="original" if smaller else "file",
            measurement=values[limit.key].measurement,
        )
        for limit in limits
    )
    return Certificate(rows, source, costs, initializers or {})


def _unit(key: str, hardware: Hardware) -> str:
    """The unit of a limit; of energies that of the hardware profile."""
    if key == "energy" and hardware.joules_per_mac is not None:
        return f"x {format_joules(hardware.joules_per_mac)}"
    return _UNITS.get(key, "count")


def _counted_from(key: str, source: Source) -> str:
    # A file holds no parameters: norms are folded, tied ones may be stored twice.
    return "model" if source.name == "model" or key == "params" else "file"
