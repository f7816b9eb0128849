"""A program: runs with input masks that are killed by SIGKILL, and the same calls again.

As `killed_runs`: every run is a child. Arguments: an empty folder, and the batches to kill in. It
prints a JSON object.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from killed_runs import child, found, kill
from masked_runs import masked_run
from torch.nn import functional as F

import transform
from transform.fingerprint import state_digest


def compressed(out: Path | None = None, number: int = 0) -> str:
    """The state of the result; killed in the n-th batch, if one is given."""
    calls = []

    def loss(outputs: Any, targets: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            kill()
        return F.cross_entropy(outputs, targets)

    return state_digest(masked_run(start="masks", mask_keep=(0.7,), loss=loss, out=out).model)


def killed(out: Path, number: int) -> dict[str, Any]:
    """A run that is killed, what it left, the same call again, and what that left."""
    return {
        "killed": child(lambda: compressed(out, number)),
        "left": found(out),
        "again": child(lambda: compressed(out)),
    }


def main(name: str, *numbers: str) -> None:
    """Run all of it."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # The files of a finished run take longer than all of the training.
    transform.Compressed.save = lambda *args, **options: None  # type: ignore[method-assign]
    folder = Path(name)
    rows = [killed(folder / number, int(number)) for number in numbers]
    print(json.dumps({"whole": child(compressed), "rows": rows}))


if __name__ == "__main__":
    main(*sys.argv[1:])
