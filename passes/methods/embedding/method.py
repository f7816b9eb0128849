"""Architecture search as a method: the search comes first, then the best students are trained.

Cao, Wang, Kitani, "Learnable Embedding Space for Efficient Neural Architecture Compression", ICLR
2019. A limit is kept by every student that is proposed; nothing is left to be brought below it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from energy_model.cost import CostTable
from energy_model.errors import (
    ArgumentError,
    CompressionError,
    PreconditionError,
    TrainingError,
)
from energy_model.hardware import Hardware
from energy_model.resolved import ResolvedLimit, limit_on
from passes.architecture.costs import KEYS
from passes.architecture.genotype import Genotype
from passes.architecture.policy import Policy
from passes.architecture.space import SearchSpace
from passes.embedding.encoder import Encoder
from passes.embedding.tokens import LAYOUT_VERSION
from passes.graph import Decision, LayerRule, ModelGraph
from passes.inputs import Call
from passes.methods.base import Method, MethodSpec, Run
from passes.methods.config import MethodConfig
from passes.methods.embedding.climb import Climb
from passes.methods.embedding.config import EmbeddingSearch
from passes.methods.embedding.ladder import Ladder
from passes.methods.embedding.ledger import Ledger, LedgerIdentity, Row
from passes.methods.embedding.loop import ArchitectureSearch
from passes.methods.embedding.ranking import best_rows
from passes.methods.embedding.record import Finalist, SearchRecord, ranked
from passes.methods.embedding.reward import Reward
from passes.methods.embedding.trainer import Build, CandidateTrainer
from passes.methods.embedding.weights import CandidateWeights
from passes.methods.phases import Phase, PhaseEnd
from passes.methods.plan import Plan
from passes.reconstruct.batch_norm import reestimate_batch_norms
from passes.tracing.trace import trace

RECORD = "search.sqlite"
_WEIGHTS = "candidates"
_ALWAYS = ("params", "macs")
# Costs that are known of a student before it is built.
_SERVED = frozenset(KEYS)


class EmbeddingSearchMethod(Method):
    """Searches a student of the model, and becomes it."""

    name = "embedding"
    config: EmbeddingSearch

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self._seed = 0
        self._file_bytes: int | None = None
        self._known: tuple[ModelGraph, SearchSpace] | None = None
        self._events: list[dict[str, Any]] = []
        self._lost: list[Decision] = []
        self._record: SearchRecord | None = None

    def observe(self, graph: ModelGraph, run: Run) -> None:
        """Draw a seed, and see whether students can be trained.

        Raises:
            PreconditionError: There is nothing to train or to score them on.
        """
        self._seed = int(torch.randint(2**31, (), generator=run.generator))
        size = limit_on(run.limits, "size")
        if size is not None:
            # The base of a limit is the file of the original, also after other methods.
            anew = run.size if run.further else None
            self._file_bytes = int(size.base) if anew is None else anew(graph)
        _trainer(run)

    def plan(
        self,
        graph: ModelGraph,
        costs: CostTable,
        limits: Sequence[ResolvedLimit],
        *,
        one_shot: bool = True,
    ) -> Plan:
        """Say what can be searched; which student it will be, only the search tells.

        `reached` is what the whole model costs when it is narrowed until the limits hold.
        """
        space = self._space(graph, costs.hardware, limits)
        within = space.cost(space.repair(Genotype()))
        return Plan(
            self.name,
            (),
            reached={limit.key: within[limit.key] for limit in limits},
            allowed={limit.key: limit.maximum for limit in limits},
            details={"space": _size(space)},
        )

    def prepare(self, graph: ModelGraph, plan: Plan, run: Run) -> None:
        """Search, train the best, and let the model become the best of them.

        Raises:
            TrainingError: Every student has failed.
        """
        trainer = _trainer(run)
        assert run.costs is not None
        space = self._space(graph, run.costs.hardware, run.limits)
        reward = Reward(self.config.metric, space.cost(Genotype()), trainer.accuracy(graph))
        with ExitStack() as stack:
            folder = trainer.folder
            if folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="search-")))
            identity = LedgerIdentity(trainer.model, trainer.run, LAYOUT_VERSION)
            ledger = stack.enter_context(Ledger.open(folder / RECORD, identity))
            begun = SearchRecord(
                reward.accuracy, reward.base, reward.keys, self.config.fidelity, (), ()
            )
            ledger.describe(begun.about())
            weights = CandidateWeights(folder / _WEIGHTS)
            encoders, proposing = self._search(graph, space, reward, ledger, weights, trainer, run)
            best, graphs = self._finalists(space, reward, ledger.rows(), weights, trainer, run)
            rows = tuple(ledger.rows())
        self._record = replace(
            begun,
            rows=rows,
            finalists=best,
            steps=tuple(self._events),
            encoders=encoders,
            proposing=proposing,
        )
        chosen = graphs[best[0].digest]
        told = _told(best[0], reward, len({row.digest for row in rows}))
        graph.become(chosen, [*space.decisions, *self._lost, told])

    def next_phase(self, ended: Sequence[PhaseEnd]) -> Phase | None:
        """Nothing: the finalists have been trained."""
        return None

    def finalize(self, graph: ModelGraph, run: Run) -> None:
        """Nothing is left to be done."""

    def search_record(self) -> SearchRecord | None:
        """What the search has found, once it is over."""
        return self._record

    def _space(
        self, graph: ModelGraph, hardware: Hardware, limits: Sequence[ResolvedLimit]
    ) -> SearchSpace:
        if self._known is None or self._known[0] is not graph:
            self._known = graph, _space(graph, hardware, limits, self.config, self._file_bytes)
        return self._known[1]

    def _search(
        self,
        graph: ModelGraph,
        space: SearchSpace,
        reward: Reward,
        ledger: Ledger,
        weights: CandidateWeights,
        trainer: CandidateTrainer,
        run: Run,
    ) -> tuple[tuple[Encoder, ...], float]:
        """Search; returns the encoders that were learned, and the seconds spent on proposals."""
        # Gaussian processes take long to import, and only a search needs them.
        from passes.methods.embedding.proposers import encoders_of, proposer_of

        config = self.config
        make: Callable[[], Build] = lambda: space.build  # noqa: E731 -- typed
        if config.workers > 1 or config.address is not None:
            assert run.costs is not None
            hardware, limits = run.costs.hardware, tuple(run.limits)
            make = StudentMaker(
                graph.module,
                graph.call,
                graph.rules,
                hardware,
                limits,
                config,
                self._file_bytes,
            )
        evaluator = trainer.evaluator(config, make, self._seed)
        ladder = Ladder(config.fidelity, config.eta, config.probes)
        climb = Climb(ledger, weights, evaluator, ladder, reward, Genotype.from_dict, config.keep)
        proposer, learned = proposer_of(space, config, reward)
        search = ArchitectureSearch(
            space, proposer, climb, config.steps, config.batch, self._seed, self._note
        )
        try:
            search.run()
        finally:
            evaluator.close()
        return encoders_of(learned), search.proposing

    def _note(self, event: dict[str, Any]) -> None:
        self._events.append(event)

    def _finalists(
        self,
        space: SearchSpace,
        reward: Reward,
        rows: Sequence[Row],
        weights: CandidateWeights,
        trainer: CandidateTrainer,
        run: Run,
    ) -> tuple[tuple[Finalist, ...], dict[str, ModelGraph]]:
        """The best students, fully trained, the best first; and their graphs."""
        chosen = best_rows(rows, self.config.keep)
        if not chosen:
            why = next((row.failure for row in rows if row.failure), "none was proposed")
            raise TrainingError(
                f"none of {len({row.digest for row in rows})} students could be trained; the "
                f"first: {why}",
                where="method 'embedding'",
                remedy="Lower lr, or check the data and the loss.",
            )
        found: list[Finalist] = []
        failure: CompressionError | None = None
        graphs: dict[str, ModelGraph] = {}
        for row in chosen:
            student = space.build(Genotype.from_dict(row.genotype))
            student.runnable.load_state_dict(dict(weights.load(*row.key).model))
            try:
                history = self._trained(student, row, trainer, run)
                accuracy = trainer.accuracy(student)
            except (TrainingError, ArgumentError) as error:  # a metric that is no number
                failure = error
                self._lost.append(_failed(row, error))
                continue
            graphs[row.digest] = student
            found.append(
                Finalist(
                    row.digest,
                    row.genotype,
                    row.costs,
                    row.accuracy or 0.0,
                    accuracy,
                    reward(row.costs, accuracy),
                    tuple(history),
                )
            )
        if failure is not None and not found:
            raise failure
        return ranked(found), graphs

    def _trained(
        self, student: ModelGraph, row: Row, trainer: CandidateTrainer, run: Run
    ) -> list[dict[str, Any]]:
        """Train a finalist fully; returns the history."""
        if trainer.trains:
            return trainer.train(student, row.digest[:16])
        if self.config.bn_batches and run.batches is not None:
            reestimate_batch_norms(student, run.batches, self.config.bn_batches)
        return []


@dataclass(frozen=True, slots=True)
class StudentMaker:
    """Makes students in another process: what it holds can be sent there, as no graph can.

    Attributes:
        model: The teacher.
        call: Its example inputs.
        rules: What must be respected in single layers.
        hardware: The accelerator of the energy model.
        limits: The budget.
        config: The search.
        file_bytes: Of the teacher's ONNX file, if its size is limited.
    """

    model: nn.Module
    call: Call
    rules: Mapping[str, LayerRule]
    hardware: Hardware
    limits: tuple[ResolvedLimit, ...]
    config: EmbeddingSearch
    file_bytes: int | None = None

    def __call__(self) -> Build:
        """A function from a genotype to the student."""
        graph = trace(self.model, self.call)
        graph.rules = dict(self.rules)
        return _space(graph, self.hardware, self.limits, self.config, self.file_bytes).build


def _space(
    graph: ModelGraph,
    hardware: Hardware,
    limits: Sequence[ResolvedLimit],
    config: EmbeddingSearch,
    file_bytes: int | None,
) -> SearchSpace:
    metric = (config.metric,) if isinstance(config.metric, str) else config.metric
    policy = Policy(widths=config.policy, importance=config.importance)
    keys = tuple(dict.fromkeys((*_ALWAYS, *metric)))
    space = SearchSpace(graph, hardware, policy, limits, keys, file_bytes)
    if not any(_size(space).values()):
        raise PreconditionError(
            "no part of the model can be removed or narrowed, so there is nothing to search",
            where="method 'embedding'",
            remedy="Search a model with more layers, or lift rules for single layers.",
        )
    return space


def _size(space: SearchSpace) -> dict[str, int]:
    """What can be changed, as numbers."""
    structure = space.structure
    free = structure.groups.free
    return {
        "parts": len(structure.parts),
        "groups": len(free),
        "units": sum(group.units for group in free),
        "skips": len(structure.skips),
    }


def _trainer(run: Run) -> CandidateTrainer:
    if run.trainer is None:
        raise PreconditionError(
            "students are trained on labelled data and scored on other labelled data, and there "
            "is none",
            where="method 'embedding'",
            remedy="Pass data= with labels, and valid=.",
        )
    return run.trainer


def _failed(row: Row, error: CompressionError) -> Decision:
    name = row.digest[:8]
    return Decision("", f"student {name} failed when it was trained fully", error.what, "", "")


def _told(best: Finalist, reward: Reward, count: int) -> Decision:
    cost = reward.keys[0]
    changes: Mapping[str, Any] = best.genotype
    what = (
        f"{len(changes['removed'])} parts removed, {len(changes['widths'])} groups narrowed, "
        f"{len(changes['skips'])} skips added"
    )
    return Decision(
        "",
        f"the best of {count} students: {what}",
        f"reward {best.reward:.4f}, {reward.relative(best.accuracy):.4f} of the accuracy",
        f"{reward.base[cost]:,} {cost}",
        f"{best.costs[cost]:,} {cost}",
    )


SPEC = MethodSpec(
    "embedding",
    EmbeddingSearch,
    EmbeddingSearchMethod,
    _SERVED,
    "Cao, Wang, Kitani, ICLR 2019",
    needs=frozenset({"labels"}),
    free=True,
)
