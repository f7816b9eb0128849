"""What pruning each layer alone does to the loss: rows, their ranks, and a table that prints."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from energy_model.errors import ArgumentError
from energy_model.hardware import Hardware
from transform.text import table

By = Literal["energy", "bytes", "macs"]
TOP1 = "top-1"


@dataclass(frozen=True, slots=True)
class SensitivityRow:
    """One layer, pruned alone to one sparsity.

    Attributes:
        layer: Name of the layer.
        sparsity: Share of its weights, those of smallest magnitude, that are zero.
        weights: Number of its weights.
        removed: How many of those zeroed were not zero before.
        loss_before: Loss of the model as it was given.
        loss_after: Loss with this layer pruned.
        metric_before: Metric of the model as it was given; `None` if none applies.
        metric_after: Metric with this layer pruned.
        bytes: Bytes of the removed weights at their own width; nominal, not a file's.
        energy: Relaxed energy saved, in multiples of one MAC's energy, per sample.
        macs: Multiply-accumulates of the removed weights, over all uses, per sample.
        note: What a reader of the layer should know: ties, opaque leaves, several uses.
    """

    layer: str
    sparsity: float
    weights: int
    removed: int
    loss_before: float
    loss_after: float
    metric_before: float | None
    metric_after: float | None
    bytes: int
    energy: int | float
    macs: int
    note: str = ""

    @property
    def change(self) -> float:
        """By how much the loss rises; below zero where pruning helps."""
        return self.loss_after - self.loss_before

    @property
    def per_byte(self) -> float | None:
        """Change per byte saved; `None` where nothing was removed."""
        return self.per("bytes")

    @property
    def per_energy(self) -> float | None:
        """Change per unit of energy saved; `None` where nothing was removed."""
        return self.per("energy")

    @property
    def per_mac(self) -> float | None:
        """Change per multiply-accumulate saved; `None` where nothing was removed."""
        return self.per("macs")

    def per(self, by: By) -> float | None:
        """Change of the loss per unit of what was saved; `None` where nothing was."""
        saved: int = getattr(self, by)
        return self.change / saved if saved else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name, and `change`, `per_byte`, `per_energy`, `per_mac`."""
        ratios = ("change", "per_byte", "per_energy", "per_mac")
        return asdict(self) | {name: getattr(self, name) for name in ratios}


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How much the loss rises when single layers are pruned; prints as a table.

    Attributes:
        rows: One per layer and sparsity, in the model's order.
        hardware: The profile that the energies belong to.
        loss: What the loss is; `"relative output change"` for data without targets.
        metric: What the metric is; `None` if none applies.
        samples: Samples that were measured.
    """

    rows: tuple[SensitivityRow, ...]
    hardware: Hardware
    loss: str
    metric: str | None
    samples: int

    def ranked(self, by: By = "energy") -> tuple[SensitivityRow, ...]:
        """The rows by the change of the loss per unit saved, the least harm first.

        Rows that save nothing come last; ties keep the model's order.

        Args:
            by: `"energy"`, `"bytes"` or `"macs"`.

        Raises:
            ArgumentError: Another word.
        """
        if by not in get_args(By):
            raise ArgumentError(f"{by!r} is no rank", where="by", remedy=f"One of {get_args(By)}.")

        def harm(row: SensitivityRow) -> float:
            ratio = row.per(by)
            return math.inf if ratio is None else ratio

        return tuple(sorted(self.rows, key=harm))

    def __str__(self) -> str:
        return render(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: `hardware`, `unit`, `loss`, `metric`, `samples` and `rows`."""
        return {
            "hardware": self.hardware.to_dict(),
            "unit": self.hardware.unit,
            "loss": self.loss,
            "metric": self.metric,
            "samples": self.samples,
            "rows": [row.to_dict() for row in self.rows],
        }

    def plot(self, path: str | Path) -> Path:
        """Draw the layers by loss change per byte, per energy and per MAC.

        Args:
            path: File to write: .png, .svg or .pdf.

        Returns:
            The path.

        Raises:
            ArgumentError: The suffix names no known format.
            StorageError: The file cannot be written.
        """
        from bench.sensitivity_plot import plot_sensitivity

        return plot_sensitivity(self, path)


def render(found: Sensitivity) -> str:
    """The rows by energy, their rank by bytes, energy and MACs, and what the numbers mean."""
    ranks = {by: {row: n for n, row in enumerate(found.ranked(by), 1)} for by in get_args(By)}
    header = ["layer", "zeroed", "removed", "loss change", "per byte", "per energy", "per MAC"]
    rows = []
    for row in found.ranked("energy"):
        cells = [row.layer, f"{100 * row.sparsity:.4g} %", f"{row.removed:,}", f"{row.change:+.4g}"]
        cells += [_ratio(row.per(by), ranks[by][row]) for by in ("bytes", "energy", "macs")]
        rows.append([*cells, _score(row.metric_after, found.metric)])
    text = table([*header, found.metric or "metric"], rows)
    return "\n".join([text.lstrip("\n"), *_legend(found)])


def _ratio(value: float | None, rank: int) -> str:
    return "-" if value is None else f"{value:.2e} ({rank})"


def _score(value: float | None, name: str | None) -> str:
    if value is None:
        return "-"
    # Only of our own metric is it known that it is a share.
    return f"{100 * value:.2f} %" if name == TOP1 else f"{value:.4g}"


def _legend(found: Sensitivity) -> list[str]:
    lines = []
    if found.rows:
        first = found.rows[0]
        before = f"before: loss {first.loss_before:.4g} ({found.loss})"
        if first.metric_before is not None:
            before += f", {found.metric} {_score(first.metric_before, found.metric)}"
        lines.append(f"{before}, on {found.samples:,} samples")
    return [
        *lines,
        "each layer alone, its smallest weights zeroed; (n) is the rank, 1 the least harm for what "
        "is saved",
        "bytes of the removed weights at their own width (nominal, not a file's); energy relaxed, ",
        f"in {found.hardware.unit}, and MACs: per sample; hardware {found.hardware.name}",
    ]
