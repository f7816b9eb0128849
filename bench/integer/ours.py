"""Our side of the tables: compress, export, and note what it took."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import transform
from bench.integer.cases import Case, Say
from transform.evaluate import evaluate
from transform.result import Compressed

ROUNDS = 7
STORAGE_ONLY: Mapping[str, str] = {"session.disable_quant_qdq": "1"}
"""For files whose codes are only storage: decoded once, when the file is loaded."""
EXACT_PRODUCTS: Mapping[str, str] = {"session.x64quantprecision": "1"}
"""Integer products without the saturation of AVX2's 16-bit sums."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How sections are measured.

    Attributes:
        folder: Where files are written.
        data_root: Folder of data sets and weights.
        half: A saved compressed model of half the MACs; `None` without.
        aware: The same after quantization-aware training (`bench.integer.aware`).
        rounds: Turns of each file.
        say: Told of every row.
    """

    folder: Path
    data_root: Path
    half: Path | None = None
    rounds: int = ROUNDS
    say: Say = print
    aware: Path | None = None

    def file(self, name: str) -> Path:
        """The path of a file to write."""
        return self.folder / f"{name}.onnx"


def timed_compress(model: nn.Module, budget: str, **arguments: Any) -> tuple[Compressed, float]:
    """`transform.compress` without progress, and the CPU time of all threads, seconds."""
    begin = time.process_time()
    result = transform.compress(model, budget, progress="none", **arguments)
    return result, time.process_time() - begin


def quantized(
    model: nn.Module,
    bits: int,
    data: Iterable[Tensor],
    *,
    activations: int | None,
    budget: str | None = None,
    **method: Any,
) -> tuple[Compressed, float]:
    """Quantize every weight to a width, with unlabelled data.

    Args:
        model: A float model.
        bits: Width of weights.
        data: Unlabelled batches.
        activations: Width of activations; `None` leaves them in float.
        budget: What is asked for; by default that every weight has the width.
        method: More fields of `Quantize`; `reconstruct` goes to `compress`.

    Returns:
        The result and its CPU seconds.
    """
    from passes.methods.quantize_config import Quantize

    extra = {"reconstruct": method.pop("reconstruct")} if "reconstruct" in method else {}
    asked = Quantize(weights=bits, activations=activations, **method)
    return timed_compress(model, budget or weight_budget(bits), data=data, method=asked, **extra)


def weight_budget(bits: int) -> str:
    """The limit that a model meets when every weight has that width."""
    return f"weight_bits<={100 * bits / 32:g}%"


def case_of(
    label: str,
    result: Compressed,
    setup: Setup,
    name: str,
    *,
    form: str,
    test: Iterable[Any] | None = None,
    seconds: float | None = None,
    note: str = "",
    options: Mapping[str, str] | None = None,
) -> Case:
    """Export a result and take it up into a table.

    Args:
        label: What it is.
        result: The compressed model.
        setup: Where the file goes.
        name: Name of the file.
        form: Form of the export.
        test: Labelled batches for the accuracy in torch.
        seconds: CPU time that the result took.
        note: What a reader must know.
        options: Session options to run the file with.
    """
    exported = result.export(setup.file(name), form=form)
    accuracy = None if test is None else torch_accuracy(result.model, test)
    setup.say(f"made     {label}: {exported.bytes:,} bytes, torch {accuracy}")
    return Case(label, exported.path, accuracy, options or {}, seconds, note)


def float_case(
    label: str, model: nn.Module, example: Tensor, setup: Setup, name: str, **rest: Any
) -> Case:
    """A model as it is, in float; `rest` as for `case_of`."""
    result, _ = timed_compress(model, "macs<=100%", example_inputs=example)
    return case_of(label, result, setup, name, form="dense", **rest)


def torch_accuracy(model: nn.Module, test: Iterable[Any]) -> float | None:
    """Top-1 accuracy in torch on the CPU, a fraction."""
    return evaluate(model, test, torch.device("cpu"))
