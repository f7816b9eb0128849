"""Training of other models in the place of the one that is compressed, for methods that search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from energy_model.errors import PreconditionError
from passes.graph import ModelGraph
from passes.isolation import copied
from passes.methods.config import MethodConfig
from passes.methods.embedding.config import EmbeddingSearch
from passes.methods.embedding.jobs import Evaluator
from passes.methods.embedding.trainer import Build
from transform.evaluate import evaluate
from transform.fingerprint import state_digest
from transform.progress import Progress
from transform.request import Request
from transform.storage import CHECKPOINTS
from transform.training.fit import fit, run_identity
from transform.training.plain import Untouched
from transform.training.students import Lesson, chance_level, search_training
from transform.training.workers import make_evaluator

SEARCH = "search"


class RequestTrainer:
    """Trains and scores students as a request asks.

    Args:
        request: It has labelled data and validation data.
        show: Tells what happens.

    Attributes:
        folder: Where a search keeps its record; `None` without an output folder.
        model: Digest of the model that is compressed.
        run: Digest of everything else that makes two runs the same.
        trains: Whether finalists are trained fully.
    """

    def __init__(self, request: Request, show: Progress) -> None:
        self._request, self._show = request, show
        training = request.training
        out = None if training is None else training.folder
        self.folder: Path | None = None if out is None else out / CHECKPOINTS / SEARCH
        self.model = state_digest(request.model)
        self.run = request.identity
        self.trains = training is not None

    def evaluator(
        self, search: EmbeddingSearch, make_build: Callable[[], Build], seed: int
    ) -> Evaluator:
        """What trains candidates; see `CandidateTrainer.evaluator`."""
        request = self._request
        assert request.gradients is not None and request.valid is not None
        teacher = copied(request.model, request.device)
        lesson = Lesson(
            teacher,
            request.gradients.data,
            request.valid,
            search_training(search),
            seed,
            request.gradients.loss,
            request.metric,
            search.bn_batches,
            chance_level(teacher, request.valid, request.device, request.metric),
        )
        return make_evaluator(search, lesson, make_build, request.device)

    def accuracy(self, graph: ModelGraph) -> float:
        """The metric of a model on the validation data.

        Raises:
            PreconditionError: The validation data has no targets.
        """
        request = self._request
        assert request.valid is not None
        found = evaluate(graph.runnable, request.valid, request.device, request.metric)
        if found is None:
            raise PreconditionError(
                "students cannot be scored: the batches have no targets, or the outputs are no "
                "classes",
                where="valid",
                remedy="Yield (inputs, targets), or pass metric=.",
            )
        return found

    def train(self, graph: ModelGraph, name: str) -> list[dict[str, Any]]:
        """Train a finalist fully, in place; see `CandidateTrainer.train`."""
        request, training = self._request, self._request.training
        assert training is not None
        own = None if self.folder is None else self.folder / name
        return fit(
            replace(training, folder=own),
            request.model,
            graph,
            Untouched(MethodConfig()),
            request.valid,
            request.seed,
            run_identity(self.run, name),
            lambda: True,
            self._show.row,
        )


def trainer_of(request: Request, show: Progress) -> RequestTrainer | None:
    """The trainer of a request; `None` without labelled data or without validation data."""
    if request.gradients is None or request.valid is None:
        return None
    return RequestTrainer(request, show)
