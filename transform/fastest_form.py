"""The form that was measured to be fastest among those that keep the budget."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from energy_model.hardware import Hardware
from energy_model.resolved import ResolvedLimit
from passes.graph import ModelGraph
from passes.storage.atomic import write_file
from transform.limits import Subject, reached_value

if TYPE_CHECKING:
    from bench.layer_plan import LayerPlan
    from export.dense import Written

# Where a difference is within the noise, integers are taken: they are smaller.
_NOISE = 1.05
_ROUNDS = 5


def write_fastest(
    graph: ModelGraph, hardware: Hardware, path: Path, limits: Sequence[ResolvedLimit]
) -> Written:
    """Write a quantized model as integers, as floats, or layer by layer as what is faster.

    The forms are measured side by side in ONNX Runtime on this machine, one thread, batch 1. Forms
    that exceed a limit are left out; if only a slower one keeps the budget, its notes say so.

    Args:
        graph: A finished model with encodings.
        hardware: For the recount of energy.
        path: Where the file goes.
        limits: The budget in absolute terms.
    """
    from bench.measure import measure  # bench stands above this floor: only when it is asked for

    with tempfile.TemporaryDirectory(prefix="transform-forms-") as scratch:
        drafts, plan = _drafts(graph, hardware, Path(scratch))
        kept = {name: x for name, x in drafts.items() if _within(graph, x, limits)}
        kept = kept or {"integers": drafts["integers"]}
        report = measure([x.path for x in drafts.values()], rounds=_ROUNDS)
        times = dict(zip(drafts, (m.median_ms for m in report.measurements), strict=True))
        best = min(kept, key=lambda name: times[name] * (_NOISE if name == "floats" else 1.0))
        told = ", ".join(f"{name} {time:.4g} ms" for name, time in times.items())
        notes = [f"measured here, one thread, batch 1: {told}; written: {best}"]
        if best != "floats" and times[best] > times["floats"] * _NOISE:
            notes.append("slower than floats, which would exceed the budget")
        if best == "mixed":
            notes.append(f"left in float, where that is faster: {', '.join(sorted(plan.floating))}")
        chosen = drafts[best]
        write_file(path, chosen.path.read_bytes())
    return replace(chosen, path=path, notes=(*chosen.notes, *notes))


def _drafts(
    graph: ModelGraph, hardware: Hardware, folder: Path
) -> tuple[dict[str, Written], LayerPlan]:
    from bench.layer_plan import plan_layers
    from export.dense import write_dense
    from export.qdq import write_qdq

    floats = write_dense(graph, hardware, folder / "floats.onnx")
    integers = write_qdq(graph, hardware, folder / "integers.onnx")
    plan = plan_layers(
        floats.path,
        integers.path,
        float_names=_layers(floats),
        integer_names=_layers(integers),
        rounds=_ROUNDS,
    )
    drafts = {"integers": integers, "floats": floats}
    if plan.floating and set(graph.encodings) - plan.floating:
        mixed = write_qdq(graph, hardware, folder / "mixed.onnx", floating=plan.floating)
        drafts["mixed"] = mixed
    return drafts, plan


def _layers(written: Written) -> Mapping[str, str]:
    """Layers by the name of the initialiser of their weight."""
    return {stored.name: site for site, stored in written.recount.stored.items()}


def _within(graph: ModelGraph, written: Written, limits: Sequence[ResolvedLimit]) -> bool:
    """Whether a file keeps every limit that can be counted from it."""
    subject = Subject(graph, written.recount.costs.hardware, file=written)
    subject.count_from(written.recount.costs)
    counted = [limit for limit in limits if limit.key != "latency"]
    return all(reached_value(limit.key, subject).number <= limit.maximum for limit in counted)
