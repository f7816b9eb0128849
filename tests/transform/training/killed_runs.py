"""A program: runs that are killed by SIGKILL, and the same calls again.

Training leaves a process in a state that cannot be forked, so this one never trains itself: every
run is a child. It prints a JSON object. Arguments: `training` (kill in some batches as well),
`flushing`, or `slow`; an empty folder; and the flushes to the disk at which to kill.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401 -- imported once, before the forks
import torch
from torch.nn import functional as F
from training_loaders import Noisy
from training_runs import batches, rich, run

import transform
from transform.fingerprint import state_digest

EPOCHS, STEPS = 3, 3
OPTIONS = {"train": {"epochs": EPOCHS, "lr": 0.1}, "method": transform.Magnitude(interval=2)}


def compressed(out: Path | None = None, loss: Any = None) -> str:
    """The state of the result of a run."""
    options = {"valid": batches(), "out": out, "loss": loss or F.cross_entropy, **OPTIONS}
    return state_digest(run(rich(), Noisy(), **options).model)


def child(action: Callable[[], Any]) -> dict[str, Any]:
    """Run an action in a child; its value or error, or the signal that ended it."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        try:
            answer = {"value": action()}
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(process, 0)
    return {"signal": os.WTERMSIG(status)} if os.WIFSIGNALED(status) else json.loads(text)


def kill() -> None:
    """End this process at once, without cleaning up."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at_flush(number: int, action: Callable[[], Any]) -> dict[str, Any]:
    """Run an action in a child that is killed at its n-th flush to the disk."""

    def armed() -> Any:
        flush, left = os.fsync, iter(range(number - 1))

        def fsync(descriptor: int) -> None:
            if next(left, None) is None:
                kill()
            flush(descriptor)

        os.fsync = fsync
        return action()

    return child(armed)


def killed_at_batch(number: int, out: Path) -> dict[str, Any]:
    """Run in a child that is killed in its n-th batch."""
    calls = []

    def loss(outputs: Any, targets: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            kill()
        return F.cross_entropy(outputs, targets)

    return child(lambda: compressed(out, loss))


def again(out: Path) -> dict[str, Any]:
    """The same call once more, and what is in its folder."""
    answer = child(lambda: compressed(out))
    loaded = child(lambda: state_digest(transform.load(out, rich()).model))
    names = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
    return answer | {"loaded": loaded, "names": names}


def found(out: Path) -> list[str]:
    """What a killed run left."""
    folder = out / "checkpoints"
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def training(folder: Path) -> list[dict[str, Any]]:
    """Killed in the middle of the second epoch and in the last batch."""
    rows = []
    for number in (STEPS + 2, EPOCHS * STEPS):
        out = folder / f"batch-{number}"
        answer = killed_at_batch(number, out)
        rows.append({"killed": answer, "left": found(out), "again": again(out)})
    return rows


def flushing(folder: Path, numbers: list[int]) -> list[dict[str, Any]]:
    """Killed at some of the flushes to the disk, each in a folder of its own."""
    rows = []
    for number in numbers:
        out = folder / f"flush-{number}"
        answer = killed_at_flush(number, lambda out=out: compressed(out))
        rows.append({"killed": answer, "left": found(out), "again": again(out)})
    return rows


def slow(folder: Path) -> str:
    """A run that waits in its second epoch, to be killed from outside."""
    calls = []

    def loss(outputs: Any, targets: Any) -> Any:
        calls.append(1)
        if len(calls) > STEPS + 1:
            time.sleep(120)
        return F.cross_entropy(outputs, targets)

    return compressed(folder / "out", loss)


def main(scenario: str, name: str, *numbers: str) -> None:
    """Run a scenario."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(name)
    if scenario == "slow":
        slow(folder)
        return
    # Imports what a finished run needs, once for all children.
    options = {"example_inputs": batches()[0][0], "progress": "none"}
    transform.compress(rich(), "nonzeros<=50%", out=folder / "warm", **options)
    answer = {
        "whole": child(compressed),
        "training": training(folder) if scenario == "training" else [],
        "flushing": flushing(folder, [int(number) for number in numbers]),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
