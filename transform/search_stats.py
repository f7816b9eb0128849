"""A search over architectures on one screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from energy_model.units import format_count
from passes.methods.embedding.record import SearchRecord
from transform.text import table


def search_stats(record: SearchRecord, top: int = 8) -> str:
    """The teacher, the finalists and the best of the search, then the front and how it went.

    Ratio is C, the share of the cost that is saved; times is how many times smaller; f(x) the
    reward C (2 - C) A of Cao, Wang, Kitani (ICLR 2019).

    Args:
        record: Of a search; one that is not finished has no finalists.
        top: Rows of the best students of the search.
    """
    key = record.metric[0]
    base = record.costs[key]
    head = ["student", "accuracy", key, "ratio", "times", "f(x)"]
    rows = [["teacher", _percent(record.accuracy), format_count(base), _share(0.0), "1.00x", "0"]]
    rows += [
        _line(f"finalist {one.digest[:8]}", one.accuracy, one.costs[key], base, one.reward)
        for one in record.finalists
    ]
    searched = [
        _line(f"searched {row.digest[:8]}", row.accuracy, row.costs[key], base, row.reward)
        for row in record.top(top)
    ]
    pending = sum(row.status == "pending" for row in record.rows)
    failed = len({row.digest for row in record.rows if row.status == "failed"})
    students = len({row.digest for row in record.rows})
    steps = len({row.step for row in record.rows})
    parts = [
        table(head, rows + searched),
        f"{students} students in {steps} steps, {failed} failed; "
        f"{record.epochs} epochs of training, {record.seconds:.0f} s, and {record.proposing:.0f} s "
        "of choosing" + (f"; {pending} wait to be trained" if pending else ""),
        _front(record, key),
    ]
    told = _fits(record.steps)
    return "\n\n".join(part for part in [*parts, told] if part)


def _line(
    name: str, accuracy: float | None, cost: float, base: float, reward: float | None
) -> list[str]:
    times = f"{base / cost:.2f}x" if cost else "all"
    worth = "" if reward is None else f"{reward:.4f}"
    return [name, _percent(accuracy), format_count(cost), _share(1 - cost / base), times, worth]


def _percent(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{100 * accuracy:.2f} %"


def _share(ratio: float) -> str:
    return f"{ratio:.4f}"


def _front(record: SearchRecord, key: str) -> str:
    front = record.front(key)
    if not front:
        return ""
    told = ", ".join(f"{format_count(r.costs[key])}: {_percent(r.accuracy)}" for r in front)
    return f"not beaten in {key} and accuracy at once: {told}"


def _fits(steps: Sequence[Mapping[str, Any]]) -> str:
    """How well the surrogate ranked what it had not seen, step by step."""
    found = [step["fits"][-1] for step in steps if step.get("fits")]
    told = [_number(fit["rank_correlation"]) for fit in found]
    if not told:
        return ""
    return f"leave-one-out rank correlation of the surrogate, by step: {', '.join(told)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
