"""Files of one table: counted, run for accuracy, and measured side by side in one run."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from bench.integer.table import Row
from bench.measure import measure
from bench.measurement import Measurement, Report
from bench.onnx_accuracy import top1_accuracy
from bench.runtimes import (
    DEFAULT,
    OPENVINO,
    OnnxRuntime,
    OpenVino,
    Profile,
    installed,
    open_runner,
)
from energy_model.errors import CompressionError
from export.census import float_layers, integer_layers

Say = Callable[[str], None]
# Types and layers by which OpenVINO's executed graph is counted.
_INTEGER_TYPES = frozenset(("u8", "i8", "u4", "i4"))
_OPENVINO_PRODUCTS = frozenset(
    ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "GroupConvolution")
)


@dataclass(frozen=True, slots=True)
class Case:
    """One file of a table.

    Attributes:
        label: What it is.
        file: The ONNX file.
        accuracy: Test accuracy in torch; `None` if not known.
        options: Session options of ONNX Runtime that the file is to be run with.
        seconds: CPU time of compressing.
        note: What a reader must know.
        openvino: Whether it is measured there too.
    """

    label: str
    file: Path
    accuracy: float | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None
    note: str = ""
    openvino: bool = True


def measured_rows(
    cases: Sequence[Case],
    *,
    test: Iterable[tuple[Any, Any]] | None = None,
    compared: NDArray[np.float32] | None = None,
    rounds: int = 7,
    say: Say = print,
) -> tuple[tuple[Row, ...], str]:
    """Measure all files of a table in one run: 1 thread, batch 1.

    Args:
        cases: The files; the first is what the others are compared with.
        test: Labelled batches for the accuracy in ONNX Runtime.
        compared: Inputs on which outputs are compared with those of the first file.
        rounds: Turns of each file.
        say: Told of every row as it is made.

    Returns:
        The rows, and the setting in words.

    Raises:
        BenchError: A file cannot be run.
    """
    counted = []
    for case in cases:
        counted.append(_counted(case, cases[0], test, compared))
        say(f"counted  {counted[-1]}")
    report = _measured(cases, rounds)
    rows = _with_latency(counted, cases, report)
    for row in rows:
        say(f"measured {row}")
    first = report.measurements[0]
    runtimes = " and ".join(dict.fromkeys(item.runtime for item in report.measurements))
    setting = (
        f"{runtimes}, batch {first.batch}, {first.threads} thread, {rounds} rounds, {first.machine}"
    )
    return rows, setting


def _counted(
    case: Case,
    first: Case,
    test: Iterable[tuple[Any, Any]] | None,
    compared: NDArray[np.float32] | None,
) -> Row:
    options = case.options or None
    error = None
    if compared is not None and case is not first:
        error = relative_error(case.file, first.file, compared, options)
    return Row(
        label=case.label,
        accuracy=case.accuracy,
        file_accuracy=None if test is None else top1_accuracy(case.file, test, options=options),
        bytes=case.file.stat().st_size,
        error=error,
        seconds=case.seconds,
        kernels=_products(case),
        openvino_kernels=_openvino_products(case),
        note=case.note,
    )


def _products(case: Case) -> str:
    """What ONNX Runtime multiplies, with the options of the case."""
    with tempfile.TemporaryDirectory(prefix="transform-products-") as folder:
        optimized = f"{folder}/optimized.onnx"
        session = OnnxRuntime(str(case.file), 1, case.options, Profile(f"{folder}/p", optimized))
        session.finish()
        graph = onnx.load(optimized, load_external_data=False).graph
    operators = Counter(str(node.op_type) for node in graph.node)
    return f"{integer_layers(operators)} integer, {float_layers(operators)} float"


def relative_error(
    file: Path | str,
    reference: Path | str,
    inputs: NDArray[np.float32],
    options: Mapping[str, str] | None = None,
) -> float:
    """RMS of the difference of two files' first outputs over the RMS of the reference's.

    Args:
        file: A file with one input.
        reference: The file to compare with.
        inputs: What both are fed.
        options: Session options for the first.

    Raises:
        CompressionError: The reference's outputs are all zero.
    """
    found = []
    for path, chosen in ((file, options), (reference, None)):
        runner = open_runner(DEFAULT, path, options=chosen)
        found.append(runner.run({runner.inputs[0].name: inputs})[0].astype(np.float64))
    size = float(np.sqrt(np.mean(found[1] ** 2)))
    if size == 0:
        raise CompressionError(
            "all outputs are zero", where=str(reference), remedy="Compare on other inputs."
        )
    return float(np.sqrt(np.mean((found[0] - found[1]) ** 2))) / size


def _openvino_products(case: Case) -> str | None:
    if not case.openvino or not installed(OPENVINO):
        return None
    runner = open_runner(OPENVINO, case.file)
    counted = {True: 0, False: 0}
    for name, count in runner.kernels().items() if isinstance(runner, OpenVino) else ():
        kind, _, precision = name.rpartition(" ")
        if kind in _OPENVINO_PRODUCTS:
            counted[precision in _INTEGER_TYPES] += count
    return f"{counted[True]} integer, {counted[False]} float"


def _places(cases: Sequence[Case]) -> list[tuple[int, str]]:
    """Number of the case and runtime, of everything that is measured."""
    places = [(number, DEFAULT) for number in range(len(cases))]
    if installed(OPENVINO):
        places += [(number, OPENVINO) for number, case in enumerate(cases) if case.openvino]
    return places


def _measured(cases: Sequence[Case], rounds: int) -> Report:
    places = _places(cases)
    return measure(
        [cases[number].file for number, _ in places],
        threads=1,
        batch=1,
        rounds=rounds,
        runtimes=[place for _, place in places],
        options=[cases[n].options if place == DEFAULT else None for n, place in places],
    )


def _with_latency(rows: Sequence[Row], cases: Sequence[Case], report: Report) -> tuple[Row, ...]:
    found: dict[tuple[int, str], Measurement] = dict(
        zip(_places(cases), report.measurements, strict=True)
    )
    compared = [None, *report.comparisons[: len(cases) - 1]]
    result = []
    for number, (row, other) in enumerate(zip(rows, compared, strict=True)):
        own, openvino = found[number, DEFAULT], found.get((number, OPENVINO))
        result.append(
            replace(
                row,
                median_ms=own.median_ms,
                bytes_zstd=own.bytes_zstd,
                ratio=1.0 if other is None else other.ratio,
                low=1.0 if other is None else other.low,
                high=1.0 if other is None else other.high,
                openvino_ms=None if openvino is None else openvino.median_ms,
            )
        )
    return tuple(result)
