"""What a search needs from above: a way to train and to score."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from passes.graph import ModelGraph
from passes.methods.embedding.config import EmbeddingSearch
from passes.methods.embedding.jobs import Evaluator

Build = Callable[[Any], ModelGraph]


class CandidateTrainer(Protocol):
    """Trains students of the model that is compressed.

    Attributes:
        folder: Where the search keeps its record; `None` for a search that nobody resumes.
        model: Digest of the model that is compressed.
        run: Digest of everything else that makes two runs the same.
        trains: Whether finalists are trained fully.
    """

    folder: Path | None
    model: str
    run: str
    trains: bool

    def evaluator(
        self, search: EmbeddingSearch, make_build: Callable[[], Build], seed: int
    ) -> Evaluator:
        """What trains candidates.

        Args:
            search: How.
            make_build: Gives a function that makes students. Where the search has workers, it is
                sent to their processes.
            seed: Of the order and augmentation of the data.
        """

    def accuracy(self, graph: ModelGraph) -> float:
        """The metric of a model on the validation data."""

    def train(self, graph: ModelGraph, name: str) -> list[dict[str, Any]]:
        """Train a finalist fully, in place; returns the history.

        Args:
            graph: The finalist.
            name: Of the finalist, different for each: its checkpoints lie under it.
        """
