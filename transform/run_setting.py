"""What a method is handed from above: the data, and callables that count and measure files."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from energy_model.cost import CostTable
from energy_model.latency import LatencyModel
from energy_model.resolved import ResolvedLimit
from energy_model.timing import Timing
from passes.graph import ModelGraph
from passes.methods.base import Run
from passes.methods.embedding.trainer import CandidateTrainer
from passes.structure.groups import channel_groups
from passes.structure.latency_terms import Widths
from passes.structure.state import full_state
from transform.fingerprint import state_digest
from transform.finished import traced_anew, without_dead_structure
from transform.labelled import Labelled
from transform.limits import Subject, reached_value
from transform.request import Request
from transform.result import Compressed
from transform.stopwatch import Stopwatch
from transform.storage import CHECKPOINTS


def stopwatch(request: Request) -> Stopwatch:
    """Measures for a run; what was measured is kept where its checkpoints are."""
    training = request.training
    if training is None or training.folder is None:
        return Stopwatch(None, "")
    folder = training.folder / CHECKPOINTS
    return Stopwatch(folder, request.identity, resume=training.resume)


def run_setting(
    request: Request,
    limits: tuple[ResolvedLimit, ...],
    costs: CostTable,
    watch: Stopwatch,
    trainer: CandidateTrainer | None = None,
) -> Run:
    """What a method may use.

    Args:
        request: The request.
        limits: Its budget in absolute terms.
        costs: Costs of the original.
        watch: Measures.
        trainer: Trains other models, if there is data for that.
    """
    training = request.training
    return Run(
        torch.Generator().manual_seed(request.seed),
        request.device,
        one_shot=training is None,
        further=request.origin is not None,
        limits=limits,
        costs=costs,
        total_steps=training.steps if training else 0,
        epoch_steps=training.steps // max(1, training.config.epochs) if training else 0,
        gradients=request.gradients,
        labelled=_labelled(request),
        batches=request.batches,
        bits=_earlier_bits(request.origin),
        archive=lambda finished: _file_bytes(finished, request, "archive"),
        size=lambda finished: _file_bytes(finished, request, "size", limits),
        dense_size=lambda graph: _dense_bytes(graph, request),
        latency=lambda finished: _timing(finished, request, watch, limits),
        latency_model=lambda graph, multiple: _latency_model(
            graph, multiple, request, watch, limits
        ),
        trainer=trainer,
    )


def _labelled(request: Request) -> Labelled | None:
    if request.gradients is None:
        return None
    return Labelled(request.gradients.data, request.model, request.device)


def _earlier_bits(origin: Compressed | None) -> dict[str, int]:
    """Bits of the weights of an earlier result, by site."""
    if origin is None:
        return {}
    uniform = {name: encoding.bits for name, encoding in origin.graph.encodings.items()}
    return uniform | {name: book.bits for name, book in origin.graph.codebooks.items()}


def _file_bytes(
    graph: ModelGraph, request: Request, key: str, limits: Sequence[ResolvedLimit] = ()
) -> int:
    """Bytes of the file of a model that a method has finished; the model is only copied."""
    subject = Subject(_as_finished(graph, request), request.hardware, limits=limits)
    return int(reached_value(key, subject).number)


def _dense_bytes(graph: ModelGraph, request: Request) -> int:
    """Bytes of the dense file of a model as it is."""
    from export.dense import write_dense

    with tempfile.TemporaryDirectory(prefix="transform-") as folder:
        return write_dense(graph, request.hardware, Path(folder) / "model.onnx").bytes


def _timing(
    graph: ModelGraph, request: Request, watch: Stopwatch, limits: Sequence[ResolvedLimit]
) -> Timing:
    """What that file takes."""
    finished = _as_finished(graph, request)
    subject = Subject(finished, request.hardware, limits=limits)
    return watch.timing(f"file of {state_digest(finished.module)}", subject.timing)


def _as_finished(graph: ModelGraph, request: Request) -> ModelGraph:
    """What will be counted of a model that a method has finished, from a copy of it."""
    graph = copy.deepcopy(graph)
    if not request.keep_shapes:
        without_dead_structure(graph)
    return traced_anew(graph, request.call)


def _latency_model(
    graph: ModelGraph,
    multiple: int,
    request: Request,
    watch: Stopwatch,
    limits: Sequence[ResolvedLimit],
) -> LatencyModel:
    """Fitted to networks that are measured now, unless an interrupted run did so.

    What it predicts of the network as it is is what that network's file takes by itself, as the
    files of candidates will be measured.
    """
    from bench.latency_model import measure_latency_model  # bench stands above this floor

    def anchored() -> LatencyModel:
        model = measure_latency_model(graph, multiple=multiple, seed=request.seed)
        groups = channel_groups(graph)
        widths = Widths(graph, groups).of(full_state(groups))
        whole = Subject(graph, request.hardware, limits=limits).timing()
        return model.anchored(widths, whole.seconds)

    return watch.model(f"model of {state_digest(graph.module)}, multiples of {multiple}", anchored)
