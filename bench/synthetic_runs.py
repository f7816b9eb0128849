"""Searches on the synthetic objective: one method, one seed, one run.

A warm search begins with encoders that a search over the students of another network has learned,
those of ResNet-34, with the same made-up accuracy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

from bench.synthetic_objective import SyntheticObjective, resnet34_space
from energy_model.errors import ArgumentError
from passes.architecture.genotype import Genotype
from passes.architecture.policy import Policy
from passes.embedding.candidates import Catalogue, Evaluated, History, candidate_random
from passes.embedding.encoder import Encoder
from passes.embedding.ensemble import Ensemble
from passes.embedding.proposals import (
    EvolutionProposer,
    Pool,
    Proposer,
    RandomProposer,
    SurrogateProposer,
)
from passes.embedding.surrogates import EmbeddingSurrogate, FeatureSurrogate, Surrogate


@dataclass(frozen=True, slots=True)
class SyntheticSizes:
    """How long a search is.

    Attributes:
        evaluations: In all.
        first: Random students that it begins with.
        batch: Students of a step.
        kernels: Of a surrogate.
        pool: Candidates that an acquisition chooses from.
        marks: Evaluations after which the best is told.

    Raises:
        ArgumentError: A number is below 1, or a mark beyond the end.
    """

    evaluations: int = 48
    first: int = 8
    batch: int = 4
    kernels: int = 4
    pool: int = 1000
    marks: tuple[int, ...] = (16, 32, 40, 48)

    def __post_init__(self) -> None:
        for name in ("first", "batch", "kernels", "pool"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{getattr(self, name)} is not at least 1", where=name)
        if not self.marks or not self.first <= min(self.marks) <= max(self.marks):
            raise ArgumentError(f"{self.marks} begin before the search does", where="marks")
        if max(self.marks) > self.evaluations:
            raise ArgumentError(
                f"{self.evaluations} evaluations end before the last of {self.marks}",
                where="evaluations",
            )

    @classmethod
    def quick(cls) -> SyntheticSizes:
        """So small that only whether everything runs can be seen."""
        return cls(12, 6, 3, 2, 30, (9, 12))


@dataclass(frozen=True, slots=True)
class SyntheticRun:
    """What one search found.

    Attributes:
        method: Its name.
        seed: Of the run.
        best: The best reward so far, at every mark.
        cpu_seconds: That the process worked.
        wall_seconds: That passed, also for others on the machine.
        trust: Mean rank correlation of the surrogate on what it had not learned from; `None`
            without one.
    """

    method: str
    seed: int
    best: tuple[float, ...]
    cpu_seconds: float
    wall_seconds: float
    trust: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SyntheticRun:
        """Reads what `to_dict` wrote."""
        return cls(**{**values, "best": tuple(values["best"])})


Maker = Callable[[SyntheticObjective, SyntheticSizes], Proposer]


def _with(surrogate: Callable[[Ensemble], Surrogate], *, composite: bool) -> Maker:
    def make(objective: SyntheticObjective, sizes: SyntheticSizes) -> Proposer:
        return SurrogateProposer(
            Catalogue(objective.space, objective.gain),
            [surrogate(Ensemble(kernels=sizes.kernels))],
            composite=composite,
            pool=Pool(size=sizes.pool),
            anchor=objective.accuracy(Genotype()),
        )

    return make


def _warm(objective: SyntheticObjective, sizes: SyntheticSizes) -> Proposer:
    # A search so short that nothing was learned has none.
    make = partial(EmbeddingSurrogate, encoders=_elsewhere(sizes) or None)
    return _with(make, composite=True)(objective, sizes)


METHODS: dict[str, Maker] = {
    "random": lambda objective, _: RandomProposer(Catalogue(objective.space, objective.gain)),
    "evolution": lambda objective, _: EvolutionProposer(Catalogue(objective.space, objective.gain)),
    "features": _with(FeatureSurrogate, composite=False),
    "embedding": _with(EmbeddingSurrogate, composite=False),
    "features-composite": _with(FeatureSurrogate, composite=True),
    "embedding-composite": _with(EmbeddingSurrogate, composite=True),
    "embedding-warm": _warm,
}
# Of the search that a warm one learns from.
_SOURCE, _SOURCE_SEED = "embedding-composite", 1000


def search(
    objective: SyntheticObjective, method: str, seed: int, sizes: SyntheticSizes
) -> SyntheticRun:
    """Run one search.

    Args:
        objective: What is maximised.
        method: One of `METHODS`.
        seed: Of the run; all methods begin with the same students.
        sizes: How long it is.

    Raises:
        ArgumentError: The method is unknown.
    """
    if method not in METHODS:
        raise ArgumentError(
            f"there is no method {method!r}",
            where="methods",
            remedy=f"There are {', '.join(METHODS)}.",
        )
    return _search(objective, method, METHODS[method](objective, sizes), seed, sizes)


def _search(
    objective: SyntheticObjective, method: str, proposer: Proposer, seed: int, sizes: SyntheticSizes
) -> SyntheticRun:
    chance = RandomProposer(Catalogue(objective.space, objective.gain))
    cpu, wall = time.process_time(), time.perf_counter()
    drawn = chance.propose(History(), sizes.first, candidate_random(seed, 0))
    evaluated: list[Evaluated] = [objective.evaluated(genotype) for genotype in drawn]
    trust: list[float] = []
    for step in range(1, sizes.evaluations):
        wanted = min(sizes.batch, sizes.evaluations - len(evaluated))
        if wanted == 0:
            break
        history = History(tuple(evaluated))
        batch = proposer.propose(history, wanted, candidate_random(seed, step))
        trust += [report.trust for report in proposer.reports if report.trust is not None]
        evaluated += [objective.evaluated(genotype) for genotype in batch]
    rewards = [objective.reward(one.genotype) for one in evaluated]
    return SyntheticRun(
        method,
        seed,
        tuple(max(rewards[:mark]) for mark in sizes.marks),
        time.process_time() - cpu,
        time.perf_counter() - wall,
        sum(trust) / len(trust) if trust else None,
    )


@cache
def _elsewhere(sizes: SyntheticSizes) -> tuple[Encoder, ...]:
    """What a search over the students of ResNet-34 has learned; made once in a process."""
    objective = SyntheticObjective(resnet34_space(Policy.coarse()))
    surrogate = EmbeddingSurrogate(Ensemble(kernels=sizes.kernels))
    proposer = _with(lambda _: surrogate, composite=True)(objective, sizes)
    _search(objective, _SOURCE, proposer, _SOURCE_SEED, sizes)
    return tuple(surrogate.encoders)
