"""Does the file compute what the model computes?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from energy_model.errors import CompressionError, ExportError, ParityError
from export.quiet_runtime import import_onnxruntime
from passes.inputs import Call
from passes.isolation import evaluating

if TYPE_CHECKING:
    import onnxruntime
else:
    onnxruntime = import_onnxruntime()

# Float kernels sum in another order; relative to the largest output.
TOLERANCE = 1e-4
_ANY_BATCH = "Write forward for any batch: x.flatten(1) instead of x.view(4, -1)."
_TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True, slots=True)
class Parity:
    """Agreement of ONNX Runtime with torch.

    Attributes:
        max_abs_error: Largest absolute difference of any output element.
        scale: Largest absolute output of torch.
        top1_agreement: Share of rows whose largest entry is the same, of the first output with two
            dimensions; `None` if there is none.
        batch: Batch size of the check.
    """

    max_abs_error: float
    scale: float
    top1_agreement: float | None
    batch: int | None


def open_session(
    path: Path | str,
    where: Path | str | None = None,
    *,
    entries: Mapping[str, str] | None = None,
    optimized: Path | None = None,
    optimize: bool = True,
) -> onnxruntime.InferenceSession:
    """A session on the CPU whose idle threads do not spin.

    Args:
        path: The ONNX file.
        where: The file to name in an error, if it is not `path`.
        entries: Configuration entries of the session.
        optimized: Where the runtime puts the graph that it really runs.
        optimize: Whether it may rewrite the graph at all.

    Raises:
        ExportError: ONNX Runtime refuses the file.
    """
    options = onnxruntime.SessionOptions()
    for key, value in {"session.intra_op.allow_spinning": "0", **(entries or {})}.items():
        options.add_session_config_entry(key, value)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if not optimize:
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_DISABLE_ALL
    options.log_severity_level = 4  # an error is raised, and needs no line on the stream as well
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime refuses the file: {error}".splitlines()[0],
            where=str(where or path),
            remedy="Update onnxruntime, or export the part of the model that it supports.",
        ) from error


def feed(session: onnxruntime.InferenceSession, call: Call) -> Mapping[str, Any]:
    """The tensors of a call by the names that a session has for its inputs.

    Raises:
        ExportError: There are more or fewer of them.
    """
    names = [item.name for item in session.get_inputs()]
    if call.kwargs and set(names) <= set(call.kwargs):
        values = [call.kwargs[name] for name in names]
    else:
        values = call.tensors()
    if len(names) != len(values):
        raise ExportError(f"the file has the inputs {names}, the example has {len(values)}")
    return {n: v.detach().cpu().numpy() for n, v in zip(names, values, strict=True)}


def run_session(
    session: onnxruntime.InferenceSession, call: Call, where: Path | str
) -> list[np.ndarray[Any, Any]]:
    """What a file computes of a call: its outputs in their order.

    Args:
        session: Of the file.
        call: Real inputs, of any batch size.
        where: The file to name in an error.

    Raises:
        ExportError: ONNX Runtime cannot run it on them.
    """
    try:
        return [np.asarray(array) for array in session.run(None, dict(feed(session, call)))]
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime cannot run the file at batch {call.batch_size}: "
            f"{str(error).splitlines()[0]}",
            where=str(where),
            remedy="A forward that reads the batch size into Python (int(x.shape[0]), a loop over "
            f"samples) fixes it in the file. {_ANY_BATCH}",
        ) from error


def check_parity(
    path: Path | str,
    module: nn.Module,
    call: Call,
    tolerance: float | None = None,
    where: Path | str | None = None,
) -> Parity:
    """Run the file and the module on the same inputs and compare every output.

    Args:
        path: The ONNX file.
        module: The module that it must agree with; run in evaluation mode.
        call: Real inputs.
        tolerance: Allowed error, relative to the largest output of torch; by default 1e-4, more for
            models in half precision.
        where: The file to name in an error, if it is not `path`.

    Raises:
        ParityError: An output is further off than that, or has another shape.
    """
    session = open_session(path, where)
    expected = torch_outputs(module, call)
    if tolerance is None:
        kinds = {p.dtype for p in module.parameters()}
        tolerance = max([TOLERANCE, *(_TOLERANCES.get(kind, 0.0) for kind in kinds)])
    actual = run_session(session, call, where or path)
    return compare_outputs(expected, actual, call, tolerance, str(where or path))


def torch_outputs(module: nn.Module, call: Call) -> list[Any]:
    """All output tensors of a module in evaluation mode, as arrays.

    Raises:
        ExportError: The module cannot be called with so many samples.
    """
    try:
        with evaluating(module):
            outputs = [t for t in pytree.tree_leaves(call.fresh()(module)) if isinstance(t, Tensor)]
    except CompressionError:
        raise
    except Exception as error:
        raise ExportError(
            f"the model fails at batch {call.batch_size}: {str(error).splitlines()[0]}",
            where=type(module).__name__,
            remedy=f"A file serves any number of samples. {_ANY_BATCH}",
        ) from error
    return [(t.float() if t.dtype == torch.bfloat16 else t).cpu().numpy() for t in outputs]


def compare_outputs(
    expected: list[Any], actual: list[Any], call: Call, tolerance: float, where: str
) -> Parity:
    """Compare arrays output by output; see `check_parity`."""
    shapes = [a.shape for a in expected], [a.shape for a in actual]
    if shapes[0] != shapes[1]:
        raise ParityError(
            f"outputs have the shapes {shapes[1]}, torch has {shapes[0]}",
            max_abs_error=float("inf"),
            where=where,
        )
    error, scale = 0.0, 0.0
    for x, y in zip(expected, actual, strict=True):
        if x.size:
            with np.errstate(invalid="ignore"):  # infinity minus infinity
                difference = np.abs(x.astype(np.float64) - y.astype(np.float64))
            # Equal infinities and NaN at the same place agree.
            difference[(x == y) | (np.isnan(x) & np.isnan(y))] = 0.0
            error = max(error, float(np.nan_to_num(difference, nan=np.inf).max()))
            scale = max(scale, float(np.nan_to_num(np.abs(x)).max()))
    if error > tolerance * max(scale, 1e-6):
        raise ParityError(
            f"ONNX Runtime differs from torch by {error:.3g}, outputs reach {scale:.3g}; allowed "
            f"is {tolerance:g} of that",
            max_abs_error=error,
            where=where,
            remedy="Export in float32 without control flow on values; report this model.",
        )
    return Parity(error, scale, _top1(expected, actual), call.batch_size)


def _top1(expected: list[Any], actual: list[Any]) -> float | None:
    for x, y in zip(expected, actual, strict=True):
        if x.ndim == 2 and len(x) and x.shape[1] > 1 and np.issubdtype(x.dtype, np.floating):
            return float((x.argmax(1) == y.argmax(1)).mean())
    return None
