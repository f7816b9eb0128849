"""Fit a bilinear cost model to this machine: build random widths, measure each, fit.

    python -m bench.fit_measured --net lenet --count 200 --out lenet.json

writes the fitted model and its error to lenet.json and every measured network to lenet.csv.

Source: Yang, Zhu, Liu, "ECC: Platform-Independent Energy-Constrained Deep Neural Network
Compression via a Bilinear Regression Model", CVPR 2019 (there 10,000 networks).
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import torch
import typer
from torch import Tensor, nn

from bench.errors import BenchError
from bench.measure import machine_name
from bench.measure import measure as measure_files
from energy_model.bilinear import Term, chain, is_finite
from energy_model.bilinear_fit import Fit, fit_bilinear, random_widths
from energy_model.errors import ArgumentError, CompressionError
from export.onnx_file import float_model
from passes.inputs import as_call
from passes.isolation import evaluating
from passes.storage.atomic import json_bytes, storage_errors, write_file

UNITS = {"seconds": "s", "joules": "J"}


@dataclass(frozen=True, slots=True)
class Reading:
    """What one inference of one network cost.

    Attributes:
        seconds: Its time; None where it was not measured.
        joules: Its energy; None where no counter exists, never 0.

    Raises:
        BenchError: A quantity is not a positive number, or both are absent.
    """

    seconds: float | None = None
    joules: float | None = None

    def __post_init__(self) -> None:
        known = {name: getattr(self, name) for name in UNITS if getattr(self, name) is not None}
        if not known:
            raise BenchError("a reading holds neither seconds nor joules", remedy="Measure one.")
        for name, value in known.items():
            if not is_finite(value) or value <= 0:
                raise BenchError(
                    f"the {name} of one inference are {value!r}",
                    remedy="Give a number above 0, or None for what was not measured.",
                )


@dataclass(frozen=True, slots=True)
class Row:
    """One measured network.

    Attributes:
        widths: Its width of each variable, channels.
        reading: What one inference cost.
    """

    widths: Mapping[str, int]
    reading: Reading


@dataclass(frozen=True, slots=True)
class MeasuredFit:
    """A fit and the measurements behind it.

    Attributes:
        fit: The model and its error on held-out rows, which `fit.held_out` indexes.
        rows: Every measured network, in the order of measuring.
    """

    fit: Fit
    rows: tuple[Row, ...]


Build = Callable[[Mapping[str, int]], tuple[nn.Module, Any]]
"""Widths to a network and its example inputs, of one sample."""

Measure = Callable[[nn.Module, Any], Reading]
"""A network and its example inputs to the cost of one inference."""


def onnx_reading(
    module: nn.Module,
    example: Any,
    *,
    threads: int = 1,
    rounds: int = 3,
    seconds_per_round: float = 0.1,
) -> Reading:
    """Median latency of the exported network in ONNX Runtime at batch 1; joules where counted.

    Args:
        module: The network.
        example: Its example inputs.
        threads: Threads inside an operator.
        rounds: Rounds of measuring.
        seconds_per_round: Length of one, seconds.

    Raises:
        ExportError: The network has no ONNX form.
        BenchError: The runtime refuses it or fails.
    """
    with evaluating(module), tempfile.TemporaryDirectory(prefix="transform-fit-") as folder:
        path = Path(folder) / "network.onnx"
        onnx.save_model(float_model(module, as_call(module, example)), str(path))
        report = measure_files(
            [path], threads=threads, rounds=rounds, seconds_per_round=seconds_per_round
        )
    found = report.measurements[0]
    return Reading(found.median_ms / 1e3, found.joules)


def measure_bilinear(
    build: Build,
    terms: Sequence[Term],
    full_widths: Mapping[str, int],
    *,
    count: int,
    seed: int = 0,
    measure: Measure = onnx_reading,
    quantity: str | None = None,
    nonnegative: bool = True,
    relative: bool = True,
    ridge: float = 0.0,
    rows_path: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MeasuredFit:
    """Measure networks of random widths and fit a bilinear model to them.

    Args:
        build: Makes the network of given widths.
        terms: One per layer.
        full_widths: Each variable's full width, channels.
        count: How many networks.
        seed: Of the widths and of the split into fitted and held-out rows.
        measure: What one inference costs.
        quantity: `"seconds"` or `"joules"`; None means joules where every row has them.
        nonnegative: As in `fit_bilinear`.
        relative: As in `fit_bilinear`.
        ridge: As in `fit_bilinear`.
        rows_path: CSV file of the rows, each written as soon as it is measured, so that a long
            measurement that dies leaves what it found; an existing file is replaced.
        progress: Called with networks done and in all, before each.

    Raises:
        ArgumentError: An argument is wrong, or that many networks do not determine the model; both
            are found before anything is measured.
        BenchError: A measurement fails, or rows lack the quantity asked for.
        StorageError: The CSV file cannot be written.
    """
    _check(count, seed, quantity)
    widths_seed, split_seed = np.random.SeedSequence(seed).spawn(2)
    samples = random_widths(full_widths, count, np.random.default_rng(widths_seed))

    def fit(values: Sequence[float], unit: str) -> Fit:
        return fit_bilinear(
            terms,
            full_widths,
            samples,
            values,
            unit=unit,
            nonnegative=nonnegative,
            relative=relative,
            ridge=ridge,
            seed=np.random.default_rng(split_seed),
        )

    # Whether the coefficients can be determined does not depend on the values: find out at once.
    fit([1.0] * count, "any")
    rows: list[Row] = []
    with _rows_file(rows_path, list(full_widths)) as write:
        for number, widths in enumerate(samples):
            if progress is not None:
                progress(number, count)
            rows.append(Row(widths, measure(*build(widths))))
            write(rows[-1])
    quantity = quantity or _common_quantity(rows)
    return MeasuredFit(fit(_values(rows, quantity), UNITS[quantity]), tuple(rows))


@contextmanager
def _rows_file(path: Path | str | None, names: Sequence[str]) -> Iterator[Callable[[Row], None]]:
    """A function that appends a row to the CSV file; it does nothing without a path."""
    if path is None:
        yield lambda _: None
        return
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8", newline="")
    with file:
        writer = csv.writer(file, lineterminator="\n")

        def put(cells: Sequence[Any]) -> None:
            with storage_errors(path):
                writer.writerow(cells)
                file.flush()

        put([*names, *UNITS])
        yield lambda row: put(
            [*(row.widths[name] for name in names), row.reading.seconds, row.reading.joules]
        )


def _common_quantity(rows: Sequence[Row]) -> str:
    return "joules" if all(row.reading.joules is not None for row in rows) else "seconds"


def _values(rows: Sequence[Row], quantity: str) -> list[float]:
    found = [getattr(row.reading, quantity) for row in rows]
    values: list[float] = [value for value in found if value is not None]
    if len(values) < len(rows):
        raise BenchError(
            f"{len(rows) - len(values)} of {len(rows)} rows have no {quantity}",
            remedy="Joules need energy counters and the extra zeus; fit seconds without them.",
        )
    return values


def _check(count: int, seed: int, quantity: str | None) -> None:
    if count < 2:
        raise ArgumentError(f"{count} networks", where="count", remedy="Measure at least 2.")
    if seed < 0:
        raise ArgumentError(f"the seed is {seed}", where="seed", remedy="Seeds start at 0.")
    if quantity is not None and quantity not in UNITS:
        raise ArgumentError(
            f"{quantity!r} is not measured", where="quantity", remedy=f"Known: {', '.join(UNITS)}."
        )


MLP = (("pixels", 784), ("fc1", 300), ("fc2", 100), ("fc3", 10))
LENET = (("image", 1), ("conv1", 6), ("conv2", 16), ("fc1", 120), ("fc2", 84), ("fc3", 10))


def mlp(widths: Mapping[str, int]) -> tuple[nn.Module, Tensor]:
    """LeNet-300-100 at other widths, for 784 pixels: module and an example input `(1, 784)`.

    Args:
        widths: Of fc1 and fc2.
    """
    first, second = widths["fc1"], widths["fc2"]
    layers = (nn.Linear(784, first), nn.Linear(first, second), nn.Linear(second, 10))
    relu = nn.ReLU
    return nn.Sequential(layers[0], relu(), layers[1], relu(), layers[2]), torch.zeros(1, 784)


def lenet(widths: Mapping[str, int]) -> tuple[nn.Module, Tensor]:
    """LeNet-5 at other widths: module and an example input `(1, 1, 32, 32)`.

    Args:
        widths: Of conv1, conv2, fc1 and fc2.
    """
    conv1, conv2, fc1, fc2 = (widths[name] for name in ("conv1", "conv2", "fc1", "fc2"))
    features = [nn.Conv2d(1, conv1, 5), nn.ReLU(), nn.MaxPool2d(2)]
    features += [nn.Conv2d(conv1, conv2, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    classifier = [nn.Linear(25 * conv2, fc1), nn.ReLU(), nn.Linear(fc1, fc2), nn.ReLU()]
    return nn.Sequential(*features, *classifier, nn.Linear(fc2, 10)), torch.zeros(1, 1, 32, 32)


class Net(StrEnum):
    """A network that the command can measure."""

    MLP = "mlp"
    LENET = "lenet"


NETS: Mapping[str, tuple[Build, Sequence[tuple[str, int]]]] = {
    Net.MLP: (mlp, MLP),
    Net.LENET: (lenet, LENET),
}


def main(
    net: Annotated[Net, typer.Option(help="LeNet-300-100 or LeNet-5.")],
    out: Annotated[Path, typer.Option(help="JSON file; the rows go into a .csv beside it.")],
    count: Annotated[int, typer.Option(help="Networks to measure.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the widths and of the split.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads inside an operator.")] = 1,
) -> None:
    """Fit the latency of a small network on this machine, in seconds per inference.

    Takes a second or more for every network, mostly to export it. Exit codes: 0 done; 1 a
    measurement or a file failed; 2 bad usage.
    """
    build, layers = NETS[net]
    terms, full_widths = chain(layers)
    try:
        if out.suffix != ".json":
            raise ArgumentError("the name does not end in .json", where=str(out), remedy="Do so.")
        found = measure_bilinear(
            build,
            terms,
            full_widths,
            count=count,
            seed=seed,
            measure=partial(onnx_reading, threads=threads),
            quantity="seconds",
            rows_path=out.with_suffix(".csv"),
            progress=_say,
        )
        about = {"net": net.value, "count": count, "seed": seed, "threads": threads}
        about |= {"machine": machine_name(), "rows": out.with_suffix(".csv").name}
        write_file(out, json_bytes({**about, "fit": found.fit.to_dict()}))
    except CompressionError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ArgumentError) else 1) from error
    mean, worst, apart = found.fit.mean_error, found.fit.worst_error, len(found.fit.held_out)
    typer.echo(f"{out}: mean error {mean:.1%}, worst {worst:.1%} on {apart} held-out networks")


def _say(done: int, total: int) -> None:
    typer.echo(f"network {done + 1} of {total}", err=True)


if __name__ == "__main__":
    typer.run(main)
