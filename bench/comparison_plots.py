"""The plots of a comparison: accuracy, weights kept, energy per layer, training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.comparison_text import title_of
from bench.plots import (
    draw_energy,
    energy_legend,
    energy_share,
    energy_unit,
    new_figure,
    new_panels,
    save_figure,
)
from bench.saved_runs import Curve, checked_curve, find_run, saved_costs
from bench.training_plots import plot_training
from energy_model.errors import ArgumentError, StorageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bench.comparison import Entry, Table
    from energy_model.cost import CostTable

# Colour-blind safe (Okabe, Ito); the baseline, the last, is grey.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_BASELINE, _INK = "#777777", "#333333"
_MARKERS = "osD^vP"

Results = Mapping[Path, Mapping[str, Any]]


def write_plots(table: Table, results: Results, folder: Path) -> list[Path]:
    """Write the plots of a comparison as PNG.

    `comparison.png` and `comparison-weights.png` always; `comparison-energy.png` where a cell at
    the tightest budget holds its compressed model; `comparison-training.png` where a result holds
    its curve. One that cannot be made is removed, or an old one would stand beside a new table.

    Args:
        table: The comparison.
        results: What `bench.comparison.read_results` returned: each cell's folder and result.
        folder: Where to write.

    Returns:
        The files.

    Raises:
        StorageError: A file cannot be written, or what a cell saved is damaged.
    """
    written = [
        plot_comparison(table, folder / "comparison.png"),
        plot_weights(table, folder / "comparison-weights.png"),
    ]
    costs, curves = layer_costs(table, results), training_curves(table, results)
    energy, training = (folder / f"comparison-{name}.png" for name in ("energy", "training"))
    if costs:
        written.append(plot_layers(table, costs, energy))
    else:
        energy.unlink(missing_ok=True)
    if curves:
        written.append(plot_training(curves, training, colors(table), title_of(table)))
    else:
        training.unlink(missing_ok=True)
    return written


def colors(table: Table) -> dict[str, str]:
    """Color of each method; the baseline is grey."""
    return {
        label: _BASELINE if label == table.baseline else _COLORS[number % len(_COLORS)]
        for number, label in enumerate(table.labels)
    }


def plot_comparison(table: Table, path: Path | str) -> Path:
    """Test accuracy against the energy that is left, with the deviation over seeds.

    Methods stand side by side, moved by less than a hundredth of the axis.

    Args:
        table: The comparison.
        path: File to write; its suffix is the format.

    Returns:
        The path.

    Raises:
        ArgumentError: The suffix names no known format.
        StorageError: The file cannot be written.
    """
    figure, axes = new_figure(width=7.5, height=4.5)
    _lines(axes, table, lambda entry: entry.mean, lambda entry: entry.std or 0)
    if table.base is not None:
        axes.axhline(100 * table.base, color=_INK, linestyle=":", linewidth=1)
        axes.annotate(
            f"original {table.base:.2%}",
            (0.99, 100 * table.base),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=_INK,
        )
    _name_axes(axes, table, "test accuracy, %")
    axes.legend(frameon=False, fontsize=8, title="mean ± deviation over seeds", title_fontsize=8)
    return save_figure(figure, Path(path))


def plot_weights(table: Table, path: Path | str) -> Path:
    """Share of the weights that are kept against the energy that is left.

    Weights cost unlike energies: at equal energy a method that knows the costs keeps others, and
    another number of them, than one that looks at magnitudes.

    Args:
        table: The comparison.
        path: File to write; its suffix is the format.

    Returns:
        The path.

    Raises:
        ArgumentError: The suffix names no known format.
        StorageError: The file cannot be written.
    """
    figure, axes = new_figure(width=7.5, height=4.5)
    _lines(axes, table, lambda entry: entry.nonzeros)
    axes.set_ylim(bottom=0)
    _name_axes(axes, table, "weights kept, % of the original")
    return save_figure(figure, Path(path))


def _lines(
    axes: Axes,
    table: Table,
    value: Callable[[Entry], float],
    error: Callable[[Entry], float] | None = None,
) -> None:
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    energies = [100 * entry.energy for entry in table.entries]
    step = max(1.0, max(energies) - min(energies)) / 150 if error else 0.0
    for number, (label, color) in enumerate(colors(table).items()):
        own = sorted((e for e in table.entries if e.label == label), key=lambda e: e.energy)
        # Side by side, or at equal energies one bar would hide the others.
        aside = step * (number - (len(table.labels) - 1) / 2)
        axes.errorbar(
            [100 * entry.energy + aside for entry in own],
            [100 * value(entry) for entry in own],
            yerr=[100 * error(entry) for entry in own] if error else None,
            label=label,
            color=color,
            marker=_MARKERS[number % len(_MARKERS)],
            capsize=3,
        )


def _name_axes(axes: Axes, table: Table, name: str) -> None:
    axes.set_xlabel("modelled energy, % of the original (relaxed; not measured)")
    axes.set_ylabel(name)
    axes.set_title(title_of(table), loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def layer_costs(table: Table, results: Results) -> dict[str, tuple[CostTable, CostTable]]:
    """Costs before and after of one cell a method at the tightest budget, its lowest seed.

    A method that has no such cell, or whose cell saved no model, is left out.

    Raises:
        StorageError: What a cell saved is damaged.
    """
    found: dict[str, tuple[CostTable, CostTable]] = {}
    tightest = table.budgets[-1]
    cells = sorted(results.items(), key=lambda item: item[1]["cell"]["seed"])
    for label in table.labels:
        for folder, result in cells:
            cell = result["cell"]
            if label in found or (cell["label"], cell["budget"]) != (label, tightest):
                continue
            costs = _costs(folder)
            if costs is not None:
                found[label] = costs
    return found


def _costs(folder: Path) -> tuple[CostTable, CostTable] | None:
    try:
        path = find_run(folder)
    except StorageError:
        return None  # a dry run saves no model, and results may be kept without their models
    return saved_costs(path)


def plot_layers(
    table: Table, costs: Mapping[str, tuple[CostTable, CostTable]], path: Path | str
) -> Path:
    """Modelled energy per layer before and after at the tightest budget, a panel a method.

    Args:
        table: The comparison.
        costs: Of `layer_costs`.
        path: File to write; its suffix is the format.

    Returns:
        The path.

    Raises:
        ArgumentError: The suffix names no known format, or there is no layer.
        StorageError: The file cannot be written.
    """
    if not costs:
        raise ArgumentError("nothing to plot: no costs", remedy="Name runs that saved a model.")
    unit = energy_unit(each for pair in costs.values() for each in pair)
    layers = max(len(before.rows) for before, _ in costs.values())
    width = max(7.5, 2 + 3.5 * len(costs))
    figure, [row] = new_panels(1, len(costs), width, 2.2 + 0.45 * layers)
    for axes, (label, (before, after)) in zip(row, costs.items(), strict=True):
        draw_energy(axes, before, after, unit)
        axes.set_title(
            f"{label}\n{energy_share(before, after):.1%} remains", loc="left", fontsize=9
        )
        axes.set_xlabel(unit[1])
    figure.suptitle(
        f"{title_of(table)}, {table.budgets[-1]}: modelled energy of one sample (relaxed; not "
        "measured)",
        x=0.01,
        ha="left",
        fontsize=10,
    )
    energy_legend(figure)
    return save_figure(figure, Path(path))


def training_curves(table: Table, results: Results) -> dict[str, dict[str, list[Curve]]]:
    """The curves of the runs, by budget and method; empty where no result holds one.

    Raises:
        ArgumentError: A curve is damaged.
    """
    found: dict[str, dict[str, list[Curve]]] = {
        budget: {label: [] for label in table.labels} for budget in table.budgets
    }
    for folder, result in results.items():
        curve = checked_curve(result.get("curve", []), str(folder))
        if curve:
            found[result["cell"]["budget"]][result["cell"]["label"]].append(curve)
    return {budget: runs for budget, runs in found.items() if any(runs.values())}
