"""What a record says: who is best, what the front is, whose weights are still needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from energy_model.errors import ArgumentError
from passes.methods.embedding.ledger import Row


def last_rows(rows: Iterable[Row]) -> list[Row]:
    """Of every candidate the row of the last rung that it finished, in the order of the record.

    Those that failed are left out, also where an earlier rung had gone well.
    """
    found: dict[str, Row] = {}
    failed: set[str] = set()
    for row in sorted(rows, key=lambda row: row.place):
        if row.status == "done":
            found[row.digest] = row
        elif row.status == "failed":
            failed.add(row.digest)
    return [row for digest, row in found.items() if digest not in failed]


def best_rows(rows: Iterable[Row], keep: int) -> list[Row]:
    """The best candidates by reward, best first.

    Who climbed higher comes first: scores after one epoch and after ten are not compared. Equal
    ones go by the order of the record.

    Args:
        rows: Of a record.
        keep: How many at most.
    """
    ranked = sorted(last_rows(rows), key=lambda row: (-row.rung, -(row.reward or 0.0), row.place))
    return ranked[:keep]


def pareto_front(rows: Iterable[Row], cost: str) -> list[Row]:
    """Candidates than which none is both cheaper and at least as accurate, or as cheap and better.

    Only those on the highest rung that anyone finished: others were trained less.

    Args:
        rows: Of a record.
        cost: Key of the cost.

    Returns:
        Rows by ascending cost, and so by ascending accuracy. Of equal ones the first of the record.

    Raises:
        ArgumentError: A candidate has no such cost.
    """
    ended = last_rows(rows)
    top = max((row.rung for row in ended), default=0)
    ended = [row for row in ended if row.rung == top]
    for row in ended:
        if cost not in row.costs:
            raise ArgumentError(
                f"there is no cost {cost!r}",
                where="cost",
                remedy=f"The costs are {sorted(row.costs)}.",
            )
    ended.sort(key=lambda row: (row.costs[cost], -(row.accuracy or 0.0), row.place))
    front: list[Row] = []
    for row in ended:
        if not front or (row.accuracy or 0.0) > (front[-1].accuracy or 0.0):
            front.append(row)
    return front


def needed_weights(rows: Sequence[Row], keep: int) -> frozenset[tuple[str, int]]:
    """Digest and rung of all weights that may still be used.

    Those of the `keep` best, each on the last rung that it finished, and those with which the
    training of a pending row begins.

    Args:
        rows: All of a record.
        keep: How many of the best are wanted in the end.
    """
    best = {row.key for row in best_rows(rows, keep)}
    climbing = {(row.digest, row.rung - 1) for row in rows if row.status == "pending" and row.rung}
    return frozenset(best | climbing)
