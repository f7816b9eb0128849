"""Plots of measurements and of modelled energy, as PNG, SVG or PDF files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from energy_model.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bench.measurement import Report
    from energy_model.cost import Cost, CostTable

# Colour-blind safe (Okabe, Ito), in the order weights, compute, activations.
_PARTS = (("weights", "#0072B2"), ("compute", "#E69F00"), ("activations", "#009E73"))
_INK = "#333333"
_FORMATS = (".png", ".svg", ".pdf")
_UNITS = ((1e9, "billion"), (1e6, "million"), (1e3, "thousand"))


def plot_latency(report: Report, path: Path | str) -> Path:
    """Latency of each model: median and quartiles over the rounds, and every round as a dot.

    Args:
        report: What `bench.measure` returned.
        path: File to write; its suffix is the format.

    Returns:
        The path.

    Raises:
        ArgumentError: The suffix names no known format.
        StorageError: The file cannot be written.
    """
    import numpy as np

    items = report.measurements
    figure, axes = new_figure(width=7.5, height=1.7 + 0.75 * len(items))
    for row, item in enumerate(items):
        low, middle, high = np.quantile(item.round_ms, [0.25, 0.5, 0.75])
        axes.barh(row, middle, height=0.5, color="#9ECAE1" if row == 0 else "#0072B2")
        axes.hlines(row + 0.36, low, high, color=_INK, linewidth=2)
        axes.plot(item.round_ms, [row + 0.36] * len(item.round_ms), "o", color=_INK, markersize=3.5)
        label = f"{item.median_ms:.3g} ms, {_bytes(item.bytes)}"
        inside = max(item.round_ms) / max(max(other.round_ms) for other in items)
        axes.annotate(
            label,
            (0 if inside > 0.6 else max(item.round_ms), row),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color="white" if inside > 0.6 and row else _INK,
        )
    axes.set_yticks(range(len(items)), [PurePath(item.path).name for item in items])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("time of one inference, ms (bar: median; line: quartiles; dots: rounds)")
    first = items[0]
    axes.set_title(
        f"{first.runtime}, {first.threads} thread{'s' * (first.threads > 1)}, batch {first.batch}"
        + ("" if report.conclusive else "; not conclusive"),
        loc="left",
        fontsize=10,
    )
    return save_figure(figure, Path(path))


def plot_energy(before: CostTable, after: CostTable, path: Path | str) -> Path:
    """Modelled energy per layer before and after, stacked by weights, compute and activations.

    The energy of moving the stored positions of weights, 0 in the papers' model, counts as weights.

    Args:
        before: Costs of the original model.
        after: Costs of the compressed model; layers are matched by name.
        path: File to write; its suffix is the format.

    Returns:
        The path.

    Raises:
        ArgumentError: The suffix names no known format, or there is no layer.
        StorageError: The file cannot be written.
    """
    _require_rows(before.rows)
    unit = energy_unit([before, after])
    figure, axes = new_figure(width=8.5, height=1.9 + 0.5 * len(before.rows))
    draw_energy(axes, before, after, unit)
    axes.set_xlabel(f"modelled energy of one sample, {unit[1]}")
    axes.set_title(
        f"{before.hardware.name}: {energy_share(before, after):.1%} of the energy remains (model, "
        "relaxed; not measured)",
        loc="left",
        fontsize=10,
    )
    energy_legend(figure)
    return save_figure(figure, Path(path))


def energy_share(before: CostTable, after: CostTable) -> float:
    """Share of the relaxed energy that remains."""
    return after.total.energy.relaxed / max(1, before.total.energy.relaxed)


def energy_unit(tables: Iterable[CostTable]) -> tuple[float, str]:
    """What the energies of layers are divided by to be read easily, and its name.

    Raises:
        ArgumentError: No table has a layer.
    """
    rows = [row for table in tables for row in table.rows]
    _require_rows(rows)
    most = max(row.energy.relaxed for row in rows)
    divisor, name = next(((d, f"{u} ") for d, u in _UNITS if most >= d), (1.0, ""))
    return divisor, f"{name}MAC energies"


def draw_energy(axes: Axes, before: CostTable, after: CostTable, unit: tuple[float, str]) -> None:
    """A pair of stacked bars a layer: pale before, full after with its share of before.

    Args:
        axes: Where to draw.
        before: Costs of the original model.
        after: Costs of the compressed model; layers are matched by name.
        unit: Of `energy_unit`.
    """
    later = {row.name: row for row in after.rows}
    for place, row in enumerate(before.rows):
        _stack(axes, place - 0.2, row, unit[0], faded=True)
        if row.name in later:
            end = _stack(axes, place + 0.2, later[row.name], unit[0], faded=False)
            share = later[row.name].energy.relaxed / max(1, row.energy.relaxed)
            axes.annotate(
                f"{share:.0%}",
                (end, place + 0.2),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=_INK,
            )
    axes.set_yticks(range(len(before.rows)), [row.name for row in before.rows])
    axes.set_ylim(len(before.rows) - 0.5, -0.5)


def plot_sparsity(table: CostTable, path: Path | str) -> Path:
    """Share of nonzero weights per layer, with the counts.

    Args:
        table: Costs of the compressed model.
        path: File to write; its suffix is the format.

    Returns:
        The path.

    Raises:
        ArgumentError: The suffix names no known format, or there is no layer.
        StorageError: The file cannot be written.
    """
    _require_rows(table.rows)
    figure, axes = new_figure(width=7.5, height=1.5 + 0.36 * len(table.rows))
    for place, row in enumerate(table.rows):
        share = 100 * row.nonzeros / max(1, row.weights)
        axes.barh(place, 100, height=0.6, color="#E8E8E8")
        axes.barh(place, share, height=0.6, color="#0072B2")
        axes.annotate(
            f"{row.nonzeros:,} of {row.weights:,}",
            (101.5, place),
            va="center",
            fontsize=8,
            color=_INK,
            annotation_clip=False,
        )
    axes.set_yticks(range(len(table.rows)), [row.name for row in table.rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    total = table.total.nonzeros / max(1, table.total.weights)
    axes.set_xlabel("nonzero weights, % of the layer")
    axes.set_title(f"{total:.1%} of the weights are nonzero", loc="left", fontsize=10)
    return save_figure(figure, Path(path))


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure, inches; drawn without a display and without global state."""
    figure, [[axes]] = new_panels(1, 1, width, height)
    return figure, axes


def new_panels(
    rows: int, columns: int, width: float, height: float
) -> tuple[Figure, list[list[Axes]]]:
    """An empty figure of several panels, by row and column.

    All share their x axis, those of a row their y axis.

    Args:
        rows: From 1.
        columns: From 1.
        width: Of the whole figure, inches.
        height: Of the whole figure, inches.
    """
    # Not pyplot: it keeps global state and may want a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey="row")
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
    found: list[list[Axes]] = panels.tolist()
    return figure, found


def _stack(axes: Axes, place: float, row: Cost, divisor: float, *, faded: bool) -> float:
    energy, left = row.energy, 0.0
    parts = (energy.weights + energy.positions, energy.compute_relaxed, energy.activations)
    for (_, color), part in zip(_PARTS, parts, strict=True):
        width = part / divisor
        axes.barh(place, width, 0.36, left, color=_pale(color) if faded else color)
        left += width
    return left


def _pale(color: str) -> tuple[float, float, float]:
    # Mixed with white rather than transparent, or the grid would show through.
    from matplotlib.colors import to_rgb

    red, green, blue = (1 - 0.4 * (1 - part) for part in to_rgb(color))
    return red, green, blue


def energy_legend(figure: Figure) -> None:
    """The legend of `draw_energy`, below the figure."""
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=color, label=name) for name, color in _PARTS]
    handles += [
        Patch(color=_pale("#555555"), label="before (upper bar)"),
        Patch(color="#555555", label="after (lower bar, % of before)"),
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=5, frameon=False, fontsize=8)


def _bytes(count: int) -> str:
    for divisor, unit in ((1e6, "MB"), (1e3, "kB")):
        if count >= divisor:
            return f"{count / divisor:.3g} {unit}"
    return f"{count} B"


def _require_rows(rows: Sequence[Cost]) -> None:
    if not rows:
        raise ArgumentError(
            "nothing to plot: the table has no layers", remedy="Give a model with weighted layers."
        )


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as png, svg or pdf, by the ending of its name."""
    if path.suffix not in _FORMATS:
        raise ArgumentError(
            f"{path.suffix or 'a name without suffix'} is no format of a plot",
            where=str(path),
            remedy="Use .png, .svg or .pdf.",
        )
    from passes.storage.atomic import write_file

    write_file(path, lambda target: figure.savefig(target, format=path.suffix[1:], dpi=150))
    return path
