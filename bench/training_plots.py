"""Training curves: loss and validation metric over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from bench.plots import new_panels, save_figure
from energy_model.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bench.saved_runs import Curve

_NAMES = ((1, "training loss, mean of an epoch"), (2, "metric on valid"))


def plot_training(
    groups: Mapping[str, Mapping[str, Sequence[Curve]]],
    path: Path | str,
    colors: Mapping[str, str],
    title: str = "",
) -> Path:
    """Loss above, validation metric below, a panel a group, a line a run.

    Args:
        groups: For each title of a panel, for each label the curves of its runs.
        path: File to write; its suffix is the format.
        colors: Color of each label.
        title: Of the figure.

    Returns:
        The path.

    Raises:
        ArgumentError: The suffix names no known format, or nothing was trained.
        StorageError: The file cannot be written.
    """
    from matplotlib.ticker import MaxNLocator

    found = [c for group in groups.values() for runs in group.values() for c in runs]
    names = [(n, name) for n, name in _NAMES if any(r[n] is not None for c in found for r in c)]
    if not names:
        raise ArgumentError(
            "nothing to plot: nothing was trained", remedy="Name a run that was trained."
        )
    width, height = 1.5 + 3.2 * len(groups), 0.9 + 2.4 * len(names)
    figure, panels = new_panels(len(names), len(groups), max(7.0, width), height)
    for row, (number, name) in zip(panels, names, strict=True):
        row[0].set_ylabel(name)
        for axes, runs in zip(row, groups.values(), strict=True):
            _draw(axes, runs, number, colors)
    for axes, group in zip(panels[0], groups, strict=True):
        axes.set_title(group, loc="left", fontsize=10)
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    handles, labels = panels[0][0].get_legend_handles_labels()
    if len(colors) > 1:
        figure.legend(
            handles[::-1],
            labels[::-1],
            loc="outside lower left",
            ncols=4,
            frameon=False,
            fontsize=8,
        )
    return save_figure(figure, Path(path))


def _draw(
    axes: Axes, groups: Mapping[str, Sequence[Curve]], number: int, colors: Mapping[str, str]
) -> None:
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    # The first method is drawn last, on top.
    for label, curves in reversed(list(groups.items())):
        # An empty line, so that the legend knows every label even where a panel lacks it.
        axes.plot([], [], color=colors[label], label=label)
        for curve in curves:
            shown = zip(_epochs(curve), (row[number] for row in curve), strict=True)
            points = [(epoch, value) for epoch, value in shown if value is not None]
            x, y = [x for x, _ in points], [y for _, y in points]
            axes.plot(x, y, ".-", color=colors[label], markersize=4, linewidth=1.2)


def _epochs(curve: Curve) -> list[float]:
    """The epochs; counted anew where several phases begin again from 1."""
    epochs = [row[0] or 0 for row in curve]
    rising = all(a < b for a, b in pairwise(epochs))
    return epochs if rising else [float(n) for n in range(1, len(curve) + 1)]
