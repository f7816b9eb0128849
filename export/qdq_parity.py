"""Does a quantized file compute what the fake-quantized model computes?

Rounding makes this a question of its own: a sum that falls on the border between two steps goes one
way in torch and the other way in a runtime that adds in another order, and everything behind it
differs from there on. So every rounding is compared by itself. The file runs without any
optimization, its codes are read out, and torch goes on from the codes of the file: each code must
then be the rounding of torch's own value, up to a quarter of a step. How far the outputs of whole
sessions are off is measured beside it, for each numeric mode by name.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from energy_model.errors import ParityError
from export.onnx_graph import Array
from export.parity import Parity, compare_outputs, open_session, run_session, torch_outputs
from passes.inputs import Call
from passes.quantize.activations import ActivationQuantizer
from passes.rewrite.quantizer_calls import quantizers

MODES: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "x64quantprecision": {"session.x64quantprecision": "1"},
}
"""Modes in which ONNX Runtime optimizes the file, and their session entries."""

# A code may be the rounding of a value that is a quarter of a step from torch's: kernels sum in
# another order, scales of folded norms and biases are rounded once more.
SLACK = 0.25
# Of an output that is not rounded, relative to its largest value.
FLOAT_TOLERANCE = 1e-3
# Relative error (Euclidean) of all outputs beyond which an optimized session is not usable. Where
# few bits make flips large, the plain operators are as far off as that: then as many times theirs.
GROSS = 0.1
GROSS_FACTOR = 2.0


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of a quantized file with torch.

    Attributes:
        parity: Of ONNX Runtime with its default options, whole outputs compared.
        modes: Largest absolute error of any output element, by numeric mode; a mode that the
            runtime cannot run is left out.
        relative: Euclidean error of the outputs relative to their norm, by numeric mode.
        flips: Share of codes that differ from torch's, each by one, when torch starts from the
            same values.
        failures: Why a mode cannot be run, by its name.
    """

    parity: Parity
    modes: Mapping[str, float]
    relative: Mapping[str, float]
    flips: float
    failures: Mapping[str, str]


def check_agreement(
    path: Path, module: nn.Module, call: Call, codes: Mapping[tuple[str, int], str], where: Path
) -> Agreement:
    """Run a quantized file in every mode and compare it with torch.

    Args:
        path: The file.
        module: The model with its quantizers; run in evaluation mode.
        call: Real inputs.
        codes: Names of the tensors of codes in the file, by quantizer and number of its call.
        where: The file to name in an error.

    Raises:
        ExportError: ONNX Runtime refuses the file.
        ParityError: A rounding differs by more than a flip, or the default session is far off.
    """
    expected = torch_outputs(module, call)
    reference, flips = _reference(path, module, call, codes, where)
    whole = {"reference": compare_outputs(expected, reference, call, np.inf, str(where))}
    relative = {"reference": _relative(expected, reference)}
    failures: dict[str, str] = {}
    for name, entries in MODES.items() if codes else [("default", {})]:
        try:
            session = open_session(path, where, entries=entries)
            actual = run_session(session, call, where)
        except Exception as error:
            if name == "default":
                raise
            failures[name] = str(error).splitlines()[0]
            continue
        whole[name] = compare_outputs(expected, actual, call, np.inf, str(where))
        relative[name] = _relative(expected, actual)
    if not relative["default"] <= max(GROSS, GROSS_FACTOR * relative["reference"]):
        raise ParityError(
            f"ONNX Runtime with its default options is {relative['default']:.1%} off (the plain "
            f"operators {relative['reference']:.1%})",
            max_abs_error=whole["default"].max_abs_error,
            where=str(where),
            remedy="On x86 without VNNI products of 8-bit codes saturate: quantize with weights=7, "
            "which is exact, or run with the session option session.x64quantprecision=1.",
        )
    errors = {name: parity.max_abs_error for name, parity in whole.items()}
    return Agreement(whole["default"], errors, relative, flips, failures)


def _relative(expected: list[Any], actual: list[Any]) -> float:
    pairs = zip(expected, actual, strict=True)
    difference = sum(float(np.sum((x.astype(np.float64) - y) ** 2)) for x, y in pairs)
    norm = sum(float(np.sum(x.astype(np.float64) ** 2)) for x in expected)
    return float(np.sqrt(difference / max(norm, 1e-30)))


def _reference(
    path: Path, module: nn.Module, call: Call, codes: Mapping[tuple[str, int], str], where: Path
) -> tuple[list[Array], float]:
    """Outputs of the plain operators, once every rounding of them is proven; the share of flips."""
    signed = {path: quantizer.signed for path, quantizer in quantizers(module).items()}
    types = {name: signed[path] for (path, _), name in codes.items()}
    outputs, found = _with_codes(path, call, types, where)
    follower = _Follower({key: found[name] for key, name in codes.items()}, str(where))
    followed = torch_outputs(follower.attached(module), call)
    compare_outputs(followed, outputs, call, FLOAT_TOLERANCE, str(where))
    return outputs, follower.flips / max(follower.total, 1)


def _with_codes(
    path: Path, call: Call, signed: Mapping[str, bool], where: Path
) -> tuple[list[Array], dict[str, Array]]:
    """Run a file as it is written, and read the named tensors of codes inside it."""
    model = onnx.load_model(str(path))
    count = len(model.graph.output)
    for name, int8 in signed.items():
        kind = onnx.TensorProto.INT8 if int8 else onnx.TensorProto.UINT8
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    with tempfile.TemporaryDirectory(prefix="transform-parity-") as folder:
        extended = Path(folder) / "codes.onnx"
        onnx.save_model(model, str(extended))
        session = open_session(extended, where, optimize=False)
        arrays = run_session(session, call, where)
    by_name = dict(zip([value.name for value in session.get_outputs()], arrays, strict=True))
    return [np.asarray(a) for a in arrays[:count]], {n: np.asarray(by_name[n]) for n in signed}


@dataclass
class _Follower:
    """Lets torch go on from the codes of a file, and compares each of them with torch's value.

    Attributes:
        codes: Codes of the file, by quantizer and number of its call.
        where: The file.
        flips: Codes that differ from torch's.
        total: Codes compared.
    """

    codes: Mapping[tuple[str, int], Array]
    where: str
    flips: int = 0
    total: int = 0
    calls: dict[str, int] = field(default_factory=dict)

    def attached(self, module: nn.Module) -> nn.Module:
        """A copy of the module that follows the file."""
        module = copy.deepcopy(module)
        for path, quantizer in quantizers(module).items():
            quantizer.register_forward_hook(self._hook(path))
        return module

    def _hook(self, path: str) -> Any:
        def follow(
            quantizer: ActivationQuantizer, inputs: tuple[Tensor, ...], output: Tensor
        ) -> Any:
            call = self.calls.get(path, 0)
            self.calls[path] = call + 1
            codes = self.codes.get((path, call))
            return output if codes is None else self._compare(quantizer, inputs[0], codes, path)

        return follow

    def _compare(
        self, quantizer: ActivationQuantizer, values: Tensor, codes: Array, path: str
    ) -> Tensor:
        scale, zero = quantizer.scale.double(), quantizer.zero_point.double()
        exact = (values.double() / scale + zero).clamp(quantizer.low, quantizer.high)
        found = torch.from_numpy(codes.astype(np.float64)).to(exact.device)
        if found.shape != exact.shape:
            raise ParityError(
                f"the quantizer {path} has codes of shape {tuple(found.shape)}, torch has "
                f"{tuple(exact.shape)}",
                max_abs_error=float("inf"),
                where=self.where,
            )
        self.flips += int((found != exact.round()).sum())
        self.total += found.numel()
        worst = float((found - exact).abs().max()) if found.numel() else 0.0
        if not worst <= 0.5 + SLACK:
            raise ParityError(
                f"codes of the quantizer {path} lie up to {worst:.3g} steps from torch's values; "
                f"rounding explains {0.5 + SLACK:g}",
                max_abs_error=worst * float(scale),
                where=self.where,
                remedy="This is an error of the exporter; please report it with the model.",
            )
        return ((found - zero) * scale).to(values.dtype)
