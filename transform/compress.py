"""The verb: bring a model within a budget, and prove it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from energy_model.budget import Budget
from energy_model.hardware import Hardware, load_hardware
from passes.methods.base import Run
from passes.methods.config import MethodConfig
from transform import arguments
from transform.choice import choose_method
from transform.pipeline import Request, one_shot
from transform.progress import Mode, Progress
from transform.result import Compressed


def compress(
    model: nn.Module,
    budget: str | Mapping[str, Any] | Budget,
    data: Iterable[Any] | None = None,
    *,
    valid: Iterable[Any] | None = None,
    example_inputs: Any = None,
    method: str | MethodConfig = "auto",
    layers: None = None,
    hardware: str | Path | Mapping[str, Any] | Hardware = "eyeriss",
    target: str = "onnxruntime-cpu",
    teacher: str = "original",
    train: None = None,
    loss: Callable[..., Tensor] | None = None,
    metric: Callable[..., float] | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: Mode | bool = "auto",
) -> Compressed:
    """Compress a model until it fits a budget.

    The caller's model, its modes and the global random state are left as they were. The budget is
    met exactly or an error is raised; it is never silently changed.

    Args:
        model: Any PyTorch model.
        budget: `"energy<=25%"`, `"energy<=25%, nonzeros<=20k"`, `{"energy": 0.25}` or a `Budget`.
            Shares are relative to the original dense model; integers and strings with units are
            absolute.
        data: Batches: a tensor, `(inputs, targets)`, several inputs, or a dict with `inputs`. This
            version takes only the example inputs from it: it compresses in one shot.
        valid: Labelled batches on which the accuracy before and after is measured.
        example_inputs: What the model is called with; the first batch of `data` by default.
        method: A name out of `transform.methods()`, a configuration object, or `"auto"`.
        layers: Reserved.
        hardware: Profile of the energy model: a name, a YAML file or a `Hardware`.
        target: Where latency is measured.
        teacher: Reserved.
        train: Reserved.
        loss: Reserved.
        metric: Reserved.
        out: Folder for the saved result, the ONNX file and its certificate; it must be free.
        resume: Reserved.
        device: Where to work; `None` means where the model is.
        seed: Seed of all randomness.
        progress: `"auto"`, `"bar"`, `"log"` or `"none"`.

    Returns:
        The result: model, certificate, decisions, plan, costs, metrics.

    Raises:
        InfeasibleBudget: The method cannot go as low; the error holds the tightest value.
        UnsupportedBudget: No method serves a limit.
        ArgumentError: An argument is malformed or not supported yet.
        TraceError: The model fails on its example inputs.
        PreconditionError: The model has NaN weights or no weighted layer.
    """
    arguments.require_defaults(
        layers=layers, teacher=teacher, train=train, loss=loss, metric=metric, resume=resume
    )
    arguments.require_model(model)
    arguments.require_target(target)
    folder = arguments.require_free(out)
    profile, asked = load_hardware(hardware), Budget.parse(budget)
    choice = choose_method(method, asked)
    call, _ = arguments.example_call(model, example_inputs, data)
    place = arguments.find_device(model, device)
    run = Run(torch.Generator().manual_seed(arguments.require_seed(seed)), place)
    request = Request(model, asked, call.to(place), choice, profile, run, _batches(valid))
    show = Progress(progress)
    result = one_shot(request, show)
    if folder is not None:
        with show.stage("exporting and saving"):
            result.save(folder, onnx=True)
    return result


def _batches(valid: Iterable[Any] | None) -> list[Any] | None:
    """Every batch, so that a generator can be read before and after."""
    return None if valid is None else list(valid)
