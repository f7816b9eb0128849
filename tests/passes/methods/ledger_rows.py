"""Rows of a search for tests, and a search that is killed while it writes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from passes.methods.embedding.ledger import Ledger, LedgerIdentity, Row

IDENTITY = LedgerIdentity(model="m" * 64, run="r" * 64, tokens=1)
BATCH = 4


def row(step, slot, rung=0, **options):
    """A pending row; candidates are numbered by step and slot."""
    number = step * 100 + slot
    costs = {"params": 1000 - number, "macs": 10 * number, "energy": 0.1 * number}
    genotype = {"removed": [f"layer{number}"], "widths": {}, "skips": []}
    values = {
        "digest": f"{number:064x}",
        "genotype": genotype,
        "costs": costs,
        "seed": 2**62 + number,
    }
    return Row(step, slot, rung, **(values | options))


def done(step, slot, rung=0, accuracy=0.5, reward=0.25, **options):
    return row(
        step, slot, rung, status="done", accuracy=accuracy, reward=reward, seconds=1.0, **options
    )


def failed(step, slot, rung=0):
    return row(
        step, slot, rung, status="failed", accuracy=0.1, reward=0.05, seconds=0.5, failure="NaN"
    )


def finished(ledger, made, accuracy=0.5):
    return ledger.finish(*made.key, accuracy=accuracy, reward=accuracy / 2, seconds=0.5)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def dying(rows):
    """Kills the process while the third row is written."""
    for number, made in enumerate(rows):
        if number == 2:
            kill()
        yield made


def search(path, scenario, report):
    """Write until killed: in the middle of a transaction, or from outside.

    Args:
        path: The file of the record.
        scenario: `adding` or `finishing` kill themselves; `on` writes for ever.
        report: Is told the number of every step that was added.
    """
    ledger = Ledger.open(Path(path), IDENTITY)
    if scenario == "adding":
        ledger.add(dying([row(1, slot) for slot in range(BATCH)]))
    if scenario == "finishing":
        run = ledger._run

        def then_kill(statement, values=()):
            found = run(statement, values)
            if statement.startswith("UPDATE"):
                kill()
            return found

        ledger._run = then_kill
        finished(ledger, row(0, 1))
    step = 0
    while scenario == "on":
        rows = [row(step, slot) for slot in range(BATCH)]
        ledger.add(rows)
        report(step)
        for made in rows:
            finished(ledger, made)
        step += 1
