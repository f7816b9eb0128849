"""Plain training with the loop that compression uses: a base model, or a teacher."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from energy_model.cost import CostTable
from energy_model.resolved import ResolvedLimit
from passes.graph import ModelGraph
from passes.methods.base import Method, Run
from passes.methods.config import MethodConfig
from passes.methods.plan import Plan
from passes.storage.atomic import json_bytes, write_file
from passes.storage.tensors import save_tensors
from passes.tracing.trace import trace
from transform import arguments
from transform.evaluate import Metric, evaluate
from transform.fingerprint import state_digest
from transform.progress import Mode, Progress
from transform.require import require_model
from transform.storage import CHECKPOINTS
from transform.training.config import TrainConfig
from transform.training.fit import Training, fit, run_identity
from transform.training.losses import Loss
from transform.training.randomness import seeded

WEIGHTS, REPORT = "weights.safetensors", "train.json"


class Untouched(Method):
    """A method that does nothing: its model is trained without a budget."""

    def plan(
        self,
        graph: ModelGraph,
        costs: CostTable,
        limits: Sequence[ResolvedLimit],
        *,
        one_shot: bool = True,
    ) -> Plan:
        """An empty plan."""
        return Plan("none", ())

    def prepare(self, graph: ModelGraph, plan: Plan, run: Run) -> None:
        """Leave the model alone."""

    def finalize(self, graph: ModelGraph, run: Run) -> None:
        """Leave the model alone."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model.

    Attributes:
        model: A copy of the caller's model, with the selected weights.
        metrics: `"valid"` and `"test"`; `None` means not measured.
        history: One row an epoch.
    """

    model: nn.Module
    metrics: Mapping[str, float | None]
    history: list[dict[str, Any]]


def train_plain(
    model: nn.Module,
    data: Iterable[Any],
    config: TrainConfig,
    *,
    valid: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    loss: Loss | None = None,
    metric: Metric | None = None,
    teacher: nn.Module | None = None,
    out: Path | None = None,
    about: Mapping[str, Any] | None = None,
    resume: bool = True,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: Mode | bool = "auto",
) -> Trained:
    """Train a copy of a model; the caller's own and the global random state are left alone.

    Args:
        model: Any PyTorch model.
        data: Labelled batches, read once an epoch.
        config: How to train.
        valid: Labelled batches on which the epoch is selected.
        test: Labelled batches; read once, after everything else, and never to choose.
        loss: Function of (outputs, targets); cross entropy by default.
        metric: See `transform.evaluate.evaluate`; top-1 accuracy by default.
        teacher: What is distilled, if `config.distill` asks for it; the untrained model otherwise.
        out: New folder for `weights.safetensors` and `train.json`; checkpoints lie there until the
            run is finished.
        about: JSON values that are written to `train.json` besides.
        resume: Continue a killed run from its checkpoints in `out`.
        device: Where to work; `None` means where the model is.
        seed: Seed of all randomness.
        progress: `"auto"`, `"bar"`, `"log"` or `"none"`.

    Raises:
        ArgumentError: An argument is malformed.
        StorageError: The folder is not free, or cannot be written.
        TrainingError: The loss is not finite, or the data has no labels.
    """
    require_model(model)
    folder = arguments.require_free(out, resume)
    place, number = arguments.find_device(model, device), arguments.require_seed(seed)
    described = config.to_dict() if folder is not None else {}
    show = Progress(progress)
    with seeded(number, place):
        call, batches = arguments.example_call(model, None, data)
        with show.stage("tracing the model"):
            graph = trace(copy.deepcopy(model).to(place), call.to(place))
        how = Training(config, batches or (), loss, metric, teacher or "original", folder, resume)
        run = run_identity(state_digest(model), repr(config), number, dict(about or {}))
        method = Untouched(MethodConfig())
        history = fit(how, model, graph, method, valid, number, run, lambda: True, show.row)
        metrics = {
            name: None if part is None else evaluate(graph.module, part, place, metric)
            for name, part in (("valid", valid), ("test", test))
        }
    if folder is not None:
        report = {
            "format": "transform-trained",
            "version": 1,
            **(about or {}),
            "seed": number,
            "config": described,
            "metrics": metrics,
            "history": history,
        }
        _write(folder, graph.module, report)
    return Trained(graph.module, metrics, history)


def _write(folder: Path, model: nn.Module, report: Mapping[str, Any]) -> None:
    """The report last: a folder with a report is finished."""
    # Tied weights share their memory, which the file format does not allow.
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write_file(folder / WEIGHTS, lambda path: save_tensors(path, state))
    write_file(folder / REPORT, json_bytes(report))
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
