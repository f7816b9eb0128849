"""Searches on a synthetic objective: `python -m bench.search_synthetic`.

Random search, evolution and surrogates look for the best student of ResNet-18, whose accuracy is
made up (`bench.synthetic_objective`), in the coarse space of the paper. Nothing is trained, so that
many seeds are cheap. Runs that `--out` has already are not repeated: what was interrupted goes on.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from bench.measure import machine_name
from bench.proposal_speed import SpeedSizes, measure_speed
from bench.synthetic_objective import SyntheticObjective, resnet18_space
from bench.synthetic_report import ProposalSpeed, SyntheticReport
from bench.synthetic_runs import METHODS, SyntheticRun, SyntheticSizes, search
from energy_model.errors import ArgumentError, CompressionError, StorageError
from passes.architecture.policy import Policy
from passes.storage.atomic import json_bytes, read_json, write_file

Say = Callable[[str], None]
_PAGE, _RUNS = ".md", ".json"


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers from 0: one, several with commas, or a range as in `0-7`.

    Raises:
        ArgumentError: There is something else.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise ArgumentError(
                f"{part!r} is no seed", where="--seeds", remedy="Write 0-7, or 0,1,2."
            )
        first, last = match[1], match[2] or match[1]
        found += range(int(first), int(last) + 1)
    return tuple(dict.fromkeys(found))


def run_all(
    methods: Sequence[str],
    seeds: Sequence[int],
    sizes: SyntheticSizes,
    known: Sequence[SyntheticRun] = (),
    say: Say = lambda line: None,
    keep: Callable[[list[SyntheticRun]], None] = lambda runs: None,
) -> tuple[SyntheticRun, ...]:
    """Run every method with every seed, seed after seed.

    Args:
        methods: Out of `METHODS`; all when empty.
        seeds: Of the runs.
        sizes: Of the searches.
        known: Runs that are not repeated.
        say: Called with one line before each run.
        keep: Called after each run with all that there are.

    Returns:
        The known ones and the new ones, by method and seed.

    Raises:
        ArgumentError: A method is unknown.
    """
    for method in methods:
        if method not in METHODS:
            raise ArgumentError(
                f"there is no method {method!r}",
                where="--methods",
                remedy=f"There are {', '.join(METHODS)}.",
            )
    runs = {(run.method, run.seed): run for run in known}
    objective: SyntheticObjective | None = None
    for seed in seeds:
        for method in methods or METHODS:
            if (method, seed) in runs:
                continue
            objective = objective or SyntheticObjective(resnet18_space(Policy.coarse()))
            say(f"{method}, seed {seed} (load {os.getloadavg()[0]:.1f})")
            runs[method, seed] = search(objective, method, seed, sizes)
            keep(list(runs.values()))
    order = list(METHODS)
    return tuple(sorted(runs.values(), key=lambda run: (order.index(run.method), run.seed)))


def _known(path: Path | None, sizes: SyntheticSizes) -> list[SyntheticRun]:
    """The runs beside a page, if there are any of these sizes."""
    if path is None or not path.exists():
        return []
    values = read_json(path)
    try:
        if values["sizes"] != _plain(sizes):
            raise ArgumentError(
                "the runs there have other sizes", where=str(path), remedy="Choose another --out."
            )
        return [SyntheticRun.from_dict(one) for one in values["runs"]]
    except (KeyError, TypeError) as error:
        raise StorageError("the file holds no runs", where=str(path)) from error


def _plain(sizes: SyntheticSizes) -> list[int]:
    return [
        sizes.evaluations,
        sizes.first,
        sizes.batch,
        sizes.kernels,
        sizes.pool,
        *sizes.marks,
    ]


def main(
    methods: Annotated[str, typer.Option(help=f"Out of {', '.join(METHODS)}.")] = "",
    seeds: Annotated[str, typer.Option(help="Such as 0-7 or 0,1,2; none for ''.")] = "0-7",
    speed: Annotated[bool, typer.Option(help="Also measure what proposing costs.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny searches.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="A Markdown page to write; the runs go beside it, as JSON.")
    ] = None,
) -> None:
    """Compare searches on a synthetic objective.

    All methods with eight seeds take about half an hour of CPU time. Exit codes: 0 done; 1 a search
    failed; 2 bad usage.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        report = _measured(methods, seeds, out, speed=speed, quick=quick)
    except CompressionError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ArgumentError) else 1) from error
    finally:
        torch.set_num_threads(threads)
    if out is not None:
        command = shlex.join(["python", "-m", "bench.search_synthetic", *sys.argv[1:]])
        write_file(out, report.markdown(command).encode())
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else str(report))


def _measured(
    methods: str, seeds: str, out: Path | None, *, speed: bool, quick: bool
) -> SyntheticReport:
    def say(line: str) -> None:
        typer.echo(line, err=True)

    if out is not None and out.suffix != _PAGE:
        raise ArgumentError(f"{out} is no page", where="--out", remedy=f"Call it ...{_PAGE}.")
    sizes = SyntheticSizes.quick() if quick else SyntheticSizes()
    beside = None if out is None else out.with_suffix(_RUNS)

    def keep(runs: list[SyntheticRun]) -> None:
        if beside is not None:
            values = {"sizes": _plain(sizes), "runs": [run.to_dict() for run in runs]}
            write_file(beside, json_bytes(values))

    asked = [method.strip() for method in methods.split(",") if method.strip()]
    wanted = numbers(seeds) if seeds else ()
    runs = run_all(asked, wanted, sizes, _known(beside, sizes), say, keep)
    speeds: tuple[ProposalSpeed, ...] = ()
    if speed:
        say("what proposing costs")
        objective = SyntheticObjective(resnet18_space(Policy()))
        speeds = measure_speed(objective, SpeedSizes.quick() if quick else SpeedSizes())
    conditions = (
        f"{machine_name()}, {os.cpu_count()} cores; torch {torch.__version__}, one thread. "
        f"{sizes.first} random students, then batches of {sizes.batch}; surrogates of "
        f"{sizes.kernels} kernels, a pool of {sizes.pool} candidates."
    )
    return SyntheticReport(conditions, sizes, runs, speeds)


if __name__ == "__main__":
    typer.run(main)
