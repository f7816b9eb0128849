"""Top-1 accuracy of an ONNX file as the runtime computes it, which torch can only simulate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.archives import loadable
from bench.errors import BenchError
from bench.runtimes import DEFAULT, Runner, open_runner, require_runtime
from energy_model.errors import ArgumentError

_TOLD = 300  # characters of what the runtime says


def top1_accuracy(
    path: Path | str,
    batches: Iterable[tuple[Any, Any]],
    *,
    runtime: str = DEFAULT,
    options: Mapping[str, str] | None = None,
    threads: int = 1,
) -> float:
    """Share of samples whose largest output is their class.

    Args:
        path: An ONNX file or archive with one input and class scores as its first output.
        batches: `(inputs, targets)`, tensors or arrays: `(n, ...)` and `(n,)`. About 100 samples in
            a batch keep the runtime busy.
        runtime: A key of `bench.runtimes.INSTALL`.
        options: Session options or properties by the runtime's own names.
        threads: Threads inside an operator.

    Returns:
        A fraction from 0 to 1.

    Raises:
        ArgumentError: No batches, an unknown runtime or one that is not installed.
        BenchError: The runtime refuses the file or a batch, or outputs are not class scores.
    """
    rows = correct_rows(path, batches, runtime=runtime, options=options, threads=threads)
    return float(rows.mean())


def correct_rows(
    path: Path | str,
    batches: Iterable[tuple[Any, Any]],
    *,
    runtime: str = DEFAULT,
    options: Mapping[str, str] | None = None,
    threads: int = 1,
) -> NDArray[np.bool_]:
    """Whether the largest output of each sample is its class, in the order of the batches.

    Args:
        path: As for `top1_accuracy`, like the rest.
        batches: `(inputs, targets)`.
        runtime: Where it runs.
        options: Session options or properties.
        threads: Threads inside an operator.

    Returns:
        One truth value a sample, so that two files can be compared sample by sample.

    Raises:
        ArgumentError: As `top1_accuracy`.
        BenchError: As `top1_accuracy`.
    """
    require_runtime(runtime)
    try:
        with loadable(Path(path)) as source:
            runner = open_runner(runtime, source.path, threads, options)
    except BenchError:
        raise
    except Exception as error:
        raise _refused(path, "cannot be opened", error, "Check the path and the file.") from error
    if len(runner.inputs) != 1:
        raise BenchError(
            f"it has {len(runner.inputs)} inputs", model=str(path), remedy="Only one is fed."
        )
    found = [_correct(runner, path, inputs, targets) for inputs, targets in batches]
    if not found:
        raise ArgumentError("no batches", where="batches", remedy="Give at least one.")
    return np.concatenate(found)


def _correct(runner: Runner, path: Path | str, inputs: Any, targets: Any) -> NDArray[np.bool_]:
    classes = np.asarray(targets)
    try:
        scores = runner.run({runner.inputs[0].name: np.asarray(inputs)})[0]
    except Exception as error:
        remedy = "Give batches of the shape and type that the file was exported for."
        raise _refused(path, "refuses a batch", error, remedy) from error
    if scores.ndim != 2 or classes.shape != scores.shape[:1]:
        raise BenchError(
            f"outputs {scores.shape} are not class scores for targets {classes.shape}",
            model=str(path),
            remedy="The first output must be (n, classes), the targets (n,).",
        )
    if not np.isfinite(scores).all():
        raise BenchError(
            "outputs are not finite", model=str(path), remedy="Look for overflow in the file."
        )
    right: NDArray[np.bool_] = scores.argmax(axis=1) == classes
    return right


def _refused(path: Path | str, what: str, error: Exception, remedy: str) -> BenchError:
    told = " ".join(str(error).split())[:_TOLD]
    return BenchError(f"{what} ({type(error).__name__}: {told})", model=str(path), remedy=remedy)
