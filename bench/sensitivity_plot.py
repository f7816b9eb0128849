"""Layers by the loss change for what pruning them saves, as a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.plots import save_figure
from energy_model.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from transform.sensitivity_table import By, Sensitivity, SensitivityRow

_PANELS: tuple[tuple[By, str], ...] = (
    ("bytes", "per byte"),
    ("energy", "per MAC energy (relaxed)"),
    ("macs", "per MAC"),
)
# Colour-blind safe (Okabe, Ito).
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_INK = "#333333"
# Decades below the largest change that are told apart; what is smaller is drawn near zero.
_DECADES = 4
_TICKS = 12


def plot_sensitivity(found: Sensitivity, path: Path | str) -> Path:
    """Change of the loss per byte, per unit of energy and per MAC, one panel each.

    Layers stand in the order of the change per energy, the least harm on top; one colour per
    sparsity. With one sparsity the number beside a dot is the layer's rank in its panel. The axes
    are logarithmic on both sides of zero, and linear near it.

    Args:
        found: What `transform.sensitivity` returned.
        path: File to write; its suffix is the format.

    Returns:
        The path.

    Raises:
        ArgumentError: The suffix names no known format, or there is no layer.
        StorageError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    if not found.rows:
        raise ArgumentError(
            "nothing to plot: the table has no layers", remedy="Measure at least one layer."
        )
    layers = list(dict.fromkeys(row.layer for row in found.ranked("energy")))
    shares = sorted({row.sparsity for row in found.rows})
    # Not pyplot: it keeps global state and may want a display.
    figure = Figure(figsize=(11.5, 1.6 + 0.26 * len(layers)), layout="constrained")
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    for axes, (by, label) in zip(panels, _PANELS, strict=True):
        _panel(axes, found.ranked(by), by, layers, shares)
        axes.set_xlabel(f"change of the loss {label}", fontsize=9)
    panels[0].set_yticks(range(len(layers)), layers)
    panels[0].set_ylim(len(layers) - 0.5, -0.5)
    figure.suptitle(_title(found, shares), x=0.01, ha="left", fontsize=10)
    if len(shares) > 1:
        names = [f"{share:.4g} of the weights zeroed" for share in shares]
        figure.legend(
            handles=_handles(names), loc="outside lower left", ncols=4, frameon=False, fontsize=8
        )
    return save_figure(figure, Path(path))


def _panel(
    axes: Axes,
    rows: Sequence[SensitivityRow],
    by: By,
    layers: Sequence[str],
    shares: Sequence[float],
) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.axvline(0, color=_INK, linewidth=0.8)
    largest = max((abs(row.per(by) or 0.0) for row in rows), default=0.0)
    if largest:
        _scale(axes, _threshold(rows, by, largest))
    for rank, row in enumerate(rows, start=1):
        value, place = row.per(by), layers.index(row.layer)
        if value is None:
            continue
        color = _COLORS[shares.index(row.sparsity) % len(_COLORS)]
        axes.plot([0, value], [place, place], color=color, linewidth=1.2, alpha=0.5)
        axes.plot([value], [place], "o", color=color, markersize=5)
        if len(shares) == 1:
            axes.annotate(
                str(rank),
                (value, place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=_INK,
            )


def _scale(axes: Axes, threshold: float) -> None:
    from matplotlib.ticker import SymmetricalLogLocator

    axes.set_xscale("symlog", linthresh=threshold)
    locator = SymmetricalLogLocator(base=10, linthresh=threshold)
    locator.set_params(numticks=_TICKS)
    axes.xaxis.set_major_locator(locator)


def _threshold(rows: Sequence[SensitivityRow], by: By, largest: float) -> float:
    """Where the axis becomes linear: a power of ten, or its tick would stand too near zero."""
    smallest = min(abs(value) for row in rows if (value := row.per(by)))
    return 10.0 ** math.floor(math.log10(max(smallest, largest * 10.0**-_DECADES)))


def _title(found: Sensitivity, shares: Sequence[float]) -> str:
    zeroed = f"{100 * shares[0]:.4g} % of" if len(shares) == 1 else "the smallest of"
    return (
        f"Each layer alone, {zeroed} its weights zeroed: change of the loss ({found.loss}) for "
        f"what is saved; {found.samples:,} samples, {found.hardware.name} (model)"
    )


def _handles(names: Sequence[str]) -> list[object]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], marker="o", linestyle="", color=_COLORS[n % len(_COLORS)], label=name)
        for n, name in enumerate(names)
    ]
