"""The verb: bring a model within a budget, and prove it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from energy_model.budget import Budget
from energy_model.errors import ArgumentError, ExportError, ParityError
from energy_model.hardware import Hardware, load_hardware
from passes.graph import Decision
from passes.inputs import as_batch
from passes.reconstruct.config import Reconstruction
from passes.selectors import Selector
from transform import arguments
from transform.choice import Choice, Methods, asked_of, choose_method
from transform.evaluate import Metric
from transform.gradients import Gradients
from transform.pipeline import run
from transform.progress import Mode, Progress
from transform.request import Request
from transform.require import require_model
from transform.result import Compressed
from transform.training.config import TrainConfig
from transform.training.fit import Training, require_teacher
from transform.training.losses import Loss
from transform.training.randomness import seeded
from transform.unlabelled import Unlabelled


def compress(
    model: nn.Module | Compressed,
    budget: str | Mapping[str, Any] | Budget | None,
    data: Iterable[Any] | None = None,
    *,
    valid: Iterable[Any] | None = None,
    example_inputs: Any = None,
    method: Methods = "auto",
    layers: Mapping[Selector, Any] | None = None,
    reconstruct: bool | Mapping[str, Any] | Reconstruction | None = None,
    keep_shapes: bool = False,
    hardware: str | Path | Mapping[str, Any] | Hardware = "eyeriss",
    target: str = "onnxruntime-cpu",
    teacher: str | nn.Module = "original",
    train: TrainConfig | Mapping[str, Any] | int | None = None,
    loss: Loss | None = None,
    metric: Metric | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: Mode | bool = "auto",
) -> Compressed:
    """Compress a model until it fits a budget.

    The caller's model, its modes and the global random state are left as they were. The budget is
    met exactly or an error is raised; it is never silently changed. Only of a latency the noise may
    cover the difference from its limit: then the certificate says that nobody can tell, and
    `certificate.holds` whether the median is within.

    Args:
        model: Any PyTorch model, or an earlier result, which is compressed further; shares then
            still mean the model that it was made from.
        budget: `"energy<=25%"`, `"energy<=25%, nonzeros<=20k"`, `{"energy": 0.25}` or a `Budget`.
            Shares are relative to the original dense model; integers and strings with units are
            absolute. `None` only for a method that weighs size against accuracy by itself, such as
            `"embedding"`: then nothing more is asked than that the model does not grow.
        data: Batches: each a tensor, `(inputs, targets)`, several inputs, or a dict with `inputs`;
            a tensor by itself is one batch. With labels the model is trained on them under the
            budget, unless `train=False`. Without, they serve calibration and `reconstruct`.
        valid: Labelled batches on which the metric before and after is measured, and the best epoch
            is selected; never the test set.
        example_inputs: What the model is called with; the first batch of `data` by default.
        method: A name out of `transform.methods()`, a configuration object, or `"auto"`. Several in
            a list work one after another and keep what those before have reached:
            `["l2", Quantize(weights=8, activations=8)]`.
        layers: Rules for single layers: `{"features.0": False, "classifier.*": {"max_sparsity":
            0.9}}`. Keys are globs over layer names, module classes or functions of (name, module);
            `False` leaves a layer alone. A key that matches nothing is an error.
        reconstruct: Fit the outputs of every layer to those of the original on the inputs of some
            batches of `data`, in closed form, before any training, and estimate batch norms anew.
            `None` does so if `data` has no labels; a `Reconstruction` says how.
        keep_shapes: Leave channels in place that are dead when the method is finished. Otherwise
            they are removed; the function stays the same.
        hardware: Profile of the energy model: a name, a YAML file or a `Hardware`.
        target: Where latency is measured.
        teacher: What is distilled (`TrainConfig.distill`): `"original"` or a model.
        train: A `TrainConfig`, a number of epochs, or `False` for one shot. `None` trains with the
            defaults if `data` has class labels or `loss` is given, and compresses in one shot
            otherwise; the decisions say which.
        loss: Function of (outputs, targets); cross entropy by default.
        metric: Function of (outputs, targets), averaged over samples, or an object with `reset`,
            `update` and `compute`; higher is better; top-1 accuracy by default.
        out: Folder for the saved result, the ONNX file and its certificate; it must be free. A
            training run keeps its checkpoints there until it is finished.
        resume: Continue a killed run from its checkpoints in `out`. On the CPU the result is, bit
            for bit, that of a run that was not killed, at the same number of threads
            (`torch.set_num_threads`).
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
    origin = model if isinstance(model, Compressed) else None
    if isinstance(model, Compressed):
        example_inputs = model.graph.call if example_inputs is data is None else example_inputs
        model = model.model
    require_model(model)
    data = [data] if isinstance(data, torch.Tensor) else data
    arguments.require_target(target)
    arguments.require_free(out, training=train is not False)  # before any work
    profile, asked = load_hardware(hardware), asked_of(budget, method)
    choice = choose_method(method, asked)
    place = arguments.find_device(model, device)
    number, config = arguments.require_seed(seed), arguments.training_config(train)
    require_teacher(teacher)
    show = Progress(progress)
    with seeded(number, place):  # data loaders draw from the global generators
        call, data = arguments.example_call(model, example_inputs, data)
        _require_labels(choice, model, data)
        config, note = _settled(model, data, train, config, loss)
        folder = arguments.require_free(out, training=config is not None)
        batches = None if data is None else Unlabelled(data, model, place)
        how, told = arguments.reconstruction(reconstruct, model, data, trained=config is not None)
        training = None
        if config is not None and data is not None:
            training = Training(config, data, loss, metric, teacher, folder, resume)
        if isinstance(valid, Iterator):
            valid = list(valid)
        request = Request(
            model,
            asked,
            call.to(place),
            choice,
            profile,
            place,
            number,
            valid,
            metric,
            training,
            layers,
            Gradients(data, loss, place) if data is not None else None,
            keep_shapes,
            batches,
            how,
            origin,
        )
        result = run(request, show, [note, *told])
        if folder is not None:
            with show.stage("exporting and saving"):
                _save(result, folder)
    return result


def _save(result: Compressed, folder: Path) -> None:
    """Save a result and its ONNX file; where there can be no file, what was reached is not lost.

    Raises:
        ExportError, ParityError: Why there is no ONNX file beside the result that was saved.
    """
    try:
        result.save(folder, onnx=True)
    except (ExportError, ParityError) as error:
        result.save(folder)
        error.add_note(f"The result is saved in {folder}, without ONNX; transform.load() reads it.")
        raise


def _require_labels(choice: Choice, model: nn.Module, data: Any) -> None:
    """Raise early if the method needs labels and the data has none."""
    if "labels" not in choice.spec.needs:
        return
    first = None if data is None or isinstance(data, Iterator) else next(iter(data), None)
    if not isinstance(data, Iterator) and (first is None or as_batch(model, first).targets is None):
        raise ArgumentError(
            f"method {choice.spec.name!r} needs labelled data",
            where="data",
            remedy="Pass data= that yields (inputs, targets), or choose another method.",
        )


def _settled(
    model: nn.Module, data: Any, train: Any, config: TrainConfig | None, loss: Any
) -> tuple[TrainConfig | None, Decision]:
    """Whether to train, and why."""
    if config is not None:
        if data is None:
            raise ArgumentError(
                "training was asked for, and there is no data",
                where="train",
                remedy="Pass data=, or leave train= out.",
            )
        return config, Decision("", "trained", "asked for")
    if train is False:
        return None, Decision("", "one shot", "train=False")
    reason = arguments.why_not_trained(model, data, loss)
    if reason:
        return None, Decision("", "one shot", reason)
    return TrainConfig(), Decision("", "trained", "the data has labels; train=False for one shot")
