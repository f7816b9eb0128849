"""ONNX Runtime's own static quantization, as its documentation recommends it: the thing to beat."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from bench.errors import BenchError
from energy_model.errors import ArgumentError
from export.quiet_runtime import import_onnxruntime

CALIBRATIONS = ("MinMax", "Percentile")
Batch = NDArray[np.float32]


def quantize_static(
    source: Path | str, target: Path | str, batches: Sequence[Batch], calibration: str = "MinMax"
) -> Path:
    """Quantize a float file: QDQ, U8 activations, S8 weights with a scale per output channel.

    The file goes through the recommended pre-processing first (shape inference, optimization).

    Args:
        source: A float file with one input.
        target: Where the quantized file goes.
        batches: Inputs to calibrate with, `(n, ...)` float32.
        calibration: One of `CALIBRATIONS`; percentiles are the tool's own, 99.999.

    Returns:
        The quantized file.

    Raises:
        ArgumentError: Unknown calibration, or no batches.
        BenchError: The tool refuses the file.
    """
    if calibration not in CALIBRATIONS:
        raise ArgumentError(
            f"unknown calibration {calibration!r}",
            where="calibration",
            remedy=f"One of {', '.join(CALIBRATIONS)}.",
        )
    if not len(batches):
        raise ArgumentError("no batches to calibrate with", where="batches", remedy="Give some.")
    import_onnxruntime()
    from onnxruntime import quantization
    from onnxruntime.quantization import shape_inference

    with tempfile.TemporaryDirectory(prefix="transform-ort-") as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        try:
            shape_inference.quant_pre_process(str(source), str(prepared))
            quantization.quantize_static(
                str(prepared),
                str(target),
                _reader(_input_name(prepared), batches),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod[calibration],
            )
        except Exception as error:
            raise BenchError(
                f"ONNX Runtime's quantize_static refuses it ({type(error).__name__}: {error})",
                model=str(source),
                remedy="Give a float file with one input.",
            ) from error
    return Path(target)


def _input_name(path: Path) -> str:
    graph = onnx.load(path, load_external_data=False).graph
    stored = {item.name for item in graph.initializer}
    (name,) = (item.name for item in graph.input if item.name not in stored)
    return str(name)


def _reader(name: str, batches: Sequence[Batch]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """The batches, once."""

        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Batch] | None:
            """The next feed; None at the end."""
            batch = next(self.left, None)
            return None if batch is None else {name: np.asarray(batch, np.float32)}

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tool prints every percentile and warns of what was done for it already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
