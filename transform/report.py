"""A result on one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from energy_model.cost import Cost, CostTable
from energy_model.hardware import Hardware
from energy_model.units import format_count, format_joules
from transform.text import table

if TYPE_CHECKING:
    from transform.result import Compressed

_MAX_LAYERS = 16


def one_screen(result: Compressed) -> str:
    """Certificate, totals, layers and decisions, as text."""
    before, after = result.costs.before, result.costs.after
    parts = [
        f"Compressed {type(result.model).__name__} by method {result.method!r}",
        str(result.certificate),
        _totals(before.total, after.total, result.metrics, _unit(before.hardware)),
        *([] if result.sizes is None else [str(result.sizes)]),
        _layers(before, after),
    ]
    notes = [d for d in result.decisions if d.layer or d.what != f"method {result.method!r}"]
    if notes:
        parts.append("\n".join(f"{d.layer or 'model'}: {d.what} ({d.why})" for d in notes[:6]))
    if len(notes) > 6:
        parts.append(f"... and {len(notes) - 6} more in .decisions")
    return "\n\n".join(parts)


def _score(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.2f} %"


def _unit(hardware: Hardware) -> str:
    """Of energies; the MAC where the profile knows no joules."""
    known = hardware.joules_per_mac
    return "MAC" if known is None else f"x {format_joules(known)}"


def _totals(before: Cost, after: Cost, metrics: dict[str, float | None], unit: str) -> str:
    def share(new: float, old: float) -> str:
        return f"{100 * new / old:.2f} %" if old else ""

    energy = (before.energy, after.energy)
    rows = [
        [
            f"energy, relaxed ({unit})",
            format_count(energy[0].relaxed),
            format_count(energy[1].relaxed),
            share(energy[1].relaxed, before.dense),
        ],
        [
            f"energy, exact ({unit})",
            format_count(energy[0].exact),
            format_count(energy[1].exact),
            share(energy[1].exact, energy[0].exact),
        ],
        [
            "nonzero weights",
            f"{before.nonzeros:,}",
            f"{after.nonzeros:,}",
            share(after.nonzeros, before.weights),
        ],
        ["accuracy", _score(metrics["before"]), _score(metrics["after"]), ""],
    ]
    return table(["", "before", "after", "of the original"], rows)


def _layers(before: CostTable, after: CostTable) -> str:
    known = {row.name: row for row in before.rows}
    total = max(before.total.dense, 1)
    rows = []
    for row in sorted(after.rows, key=lambda r: -r.energy.relaxed)[:_MAX_LAYERS]:
        old = known.get(row.name, row)
        rows.append(
            [
                row.name,
                row.shape,
                f"{100 * row.nonzeros / max(row.weights, 1):.2f} %",
                f"{100 * old.energy.relaxed / total:.2f} %",
                f"{100 * row.energy.relaxed / total:.2f} %",
                row.note,
            ]
        )
    text = table(["layer", "shape", "nonzero", "energy before", "energy after", "note"], rows)
    rest = len(after.rows) - _MAX_LAYERS
    return text + (f"\n... and {rest} cheaper layers in .costs.after" if rest > 0 else "")
