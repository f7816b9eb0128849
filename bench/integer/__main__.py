"""The command `python -m bench.integer`."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench.integer.cnn import resnet18_section, resnet20_section
from bench.integer.ours import ROUNDS, Setup
from bench.integer.post_training import post_training_section
from bench.integer.table import Section, merge, page
from bench.integer.weight_only import (
    alexnet_section,
    encoder_section,
    linear_section,
    vit_section,
)
from bench.zoo.data_root import data_root
from energy_model.errors import ArgumentError, CompressionError
from passes.storage.atomic import write_file

GROUPS: Mapping[str, Mapping[str, Callable[[Setup], Section]]] = {
    "resnet20": {"resnet20": resnet20_section},
    "resnet18": {"resnet18": resnet18_section},
    "linear": {"linear": linear_section, "alexnet": alexnet_section},
    "transformers": {"encoder": encoder_section, "vit": vit_section},
    "post-training": {"post-training": post_training_section},
}
"""What `--only` names, and the tables of each in the order of the page."""
COMMAND = "python -m bench.integer"


def run(setup: Setup, names: Sequence[str], out: Path) -> None:
    """Measure some groups of tables and put them into the page.

    Args:
        setup: How to measure.
        names: Keys of `GROUPS`.
        out: Folder of `integer.json` and `integer.md`.

    Raises:
        ArgumentError: An unknown name.
        CompressionError: A table cannot be made; those before it are kept.
    """
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        raise ArgumentError(
            f"unknown tables {', '.join(unknown)}",
            where="--only",
            remedy=f"Out of {', '.join(GROUPS)}.",
        )
    order = [table for group in GROUPS.values() for table in group]
    for name in names:
        for make in GROUPS[name].values():
            # Table by table: hours of measuring must not hang on the last one.
            section = replace(make(setup), command=_command(setup, name, out))
            sections = merge(out / "integer.json", [section], order)
            write_file(out / "integer.md", page(sections).encode())


def _command(setup: Setup, name: str, out: Path) -> str:
    """What made a table; where data and files lay does not matter."""
    given = {"--half": setup.half, "--aware": setup.aware} if name == "resnet20" else {}
    half = [part for key, path in given.items() if path is not None for part in (key, str(path))]
    rounds = ["--rounds", str(setup.rounds)] if setup.rounds != ROUNDS else []
    return shlex.join([*COMMAND.split(), "--out", str(out), "--only", name, *half, *rounds])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; 1 where that fails, 2 for bad usage."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Measure integer inference.")
    parser.add_argument("--out", type=Path, required=True, help="folder of integer.md and .json")
    parser.add_argument("--only", default=",".join(GROUPS), help=f"out of {','.join(GROUPS)}")
    parser.add_argument("--data-root", type=Path, default=None, help="folder of data and weights")
    parser.add_argument("--half", type=Path, default=None, help="saved model of half the MACs")
    parser.add_argument("--aware", type=Path, default=None, help="the same, trained in integers")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each file")
    parser.add_argument("--files", type=Path, default=None, help="keep the ONNX files there")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="transform-integer-") as temporary:
        folder = Path(temporary) if options.files is None else options.files
        folder.mkdir(parents=True, exist_ok=True)
        root = options.data_root or data_root()
        setup = Setup(folder, root, options.half, options.rounds, _say, options.aware)
        try:
            run(setup, options.only.split(","), options.out)
        except CompressionError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2 if isinstance(error, ArgumentError) else 1
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
