"""What was asked, and what was reached, counted from the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from energy_model.cost import Cost, CostTable
from energy_model.hardware import Hardware
from energy_model.resolved import ResolvedLimit
from energy_model.timing import relative_noise
from energy_model.units import format_bytes, format_count, format_joules, format_seconds
from transform.limits import Value

REMEASURE = (
    "The machine was slower, or had more other work, than when the structure was chosen: run again "
    "when it is quiet (with resume=False where a run was resumed), or allow more."
)
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
        measurement: Median, spread, threads, batch, runtime, machine, if measured; and
            `base_spread`, the spread of the base that a share is of.
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
        """Whether the value is within the limit; of a measured one see also `undecidable`."""
        return self.reached <= self.maximum

    @property
    def undecidable(self) -> bool:
        """Whether the noise of a measured value covers its difference from the limit.

        Another measurement may lie on the other side.
        """
        if self.kind != "measured" or self.measurement is None:
            return False
        found = self.measurement
        noise = relative_noise(found["spread"], found.get("base_spread", 0.0))
        return abs(self.reached - self.maximum) <= noise * self.maximum

    @property
    def fails(self) -> bool:
        """Whether the limit is certainly exceeded."""
        return not self.holds and not self.undecidable

    def told(self, value: float) -> str:
        """A value of this limit, for people."""
        return format_value(self.limit, value) if self.kind == "measured" else f"{value:,}"

    def __str__(self) -> str:
        sign = "undecidable within the noise" if self.undecidable else "holds"
        share = f" ({100 * self.reached / self.base:.2f} % of the original)" if self.base else ""
        reached = format_value(self.limit, self.reached, self.unit)
        return (
            f"{self.asked}: {'FAILS' if self.fails else sign}, reached {reached}{share}, "
            f"{self.kind}{self._how()}"
        )

    def _how(self) -> str:
        """Spread and conditions of a measurement."""
        found = self.measurement
        if found is None:
            return ""
        most = f", the limit is {self.told(self.maximum)}" if self.undecidable else ""
        own = f"rounds vary by {found['spread']:.1%}"
        if found.get("base_spread"):
            own += f", the original's by {found['base_spread']:.1%}"
        spread = f" (median, {own}{most})"
        threads = f"{found['threads']} thread{'' if found['threads'] == 1 else 's'}"
        return f"{spread} at batch {found['batch']}, {threads}, {found['machine']}"


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
        """Whether every value is within its limit."""
        return all(row.holds for row in self.rows)

    @property
    def failed(self) -> tuple[CertificateRow, ...]:
        """The limits that are certainly exceeded."""
        return tuple(row for row in self.rows if row.fails)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object; `bench/check_certificate.py` reads it."""
        total = self.costs.total
        return {
            "format": FORMAT,
            "version": VERSION,
            "file": asdict(self.source),
            "hardware": self.costs.hardware.to_dict(),
            "holds": self.holds,
            "limits": [_row(row) for row in self.rows],
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
        known = CertificateRow.__slots__
        limits = [{k: v for k, v in row.items() if k in known} for row in data["limits"]]
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
        source = f"counted from {self.source.name} {self.source.sha256[:12]}"
        return "\n".join(f"{row}, {source}" for row in self.rows)


def _row(row: CertificateRow) -> dict[str, Any]:
    """A row as JSON; of a measured one also whether it decides anything."""
    found = asdict(row) | {"holds": row.holds}
    return found if row.kind == "exact" else found | {"undecidable": row.undecidable}


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
            measurement=_measurement(values[limit.key], limit),
        )
        for limit in limits
    )
    return Certificate(rows, source, costs, initializers or {})


def _measurement(value: Value, limit: ResolvedLimit) -> dict[str, Any] | None:
    """How a value was measured; of a share also what is known of its base."""
    if value.measurement is None or not limit.base_spread:
        return value.measurement
    return {**value.measurement, "base_spread": limit.base_spread}


def _unit(key: str, hardware: Hardware) -> str:
    """The unit of a limit; of energies that of the hardware profile."""
    if key == "energy" and hardware.joules_per_mac is not None:
        return f"x {format_joules(hardware.joules_per_mac)}"
    return _UNITS.get(key, "count")


def _counted_from(key: str, source: Source) -> str:
    # A file holds no parameters: norms are folded, tied ones may be stored twice.
    return "model" if source.name == "model" or key == "params" else "file"
