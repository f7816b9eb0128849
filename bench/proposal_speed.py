"""What proposing a batch costs on ResNet-18, in CPU time, which a busy machine does not change."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bench.synthetic_objective import SyntheticObjective
from bench.synthetic_report import ProposalSpeed
from passes.architecture.genotype import Genotype
from passes.embedding.candidates import Catalogue, History, candidate_random
from passes.embedding.ensemble import Ensemble
from passes.embedding.proposals import Pool, RandomProposer, SurrogateProposer
from passes.embedding.surrogates import EmbeddingSurrogate

_MOST_SECONDS, _LEAST_RATE = 270.0, 1000.0


@dataclass(frozen=True, slots=True)
class SpeedSizes:
    """What is measured.

    Attributes:
        points: Evaluated students that the surrogate learns from.
        kernels: Its encoders, and students of a batch.
        pool: Candidates.
        students: Whose costs and tokens are computed.
        rounds: Of each; the median counts.
    """

    points: int = 100
    kernels: int = 8
    pool: int = 1000
    students: int = 300
    rounds: int = 3

    @classmethod
    def quick(cls) -> SpeedSizes:
        """So small that only whether everything runs can be seen."""
        return cls(8, 2, 20, 5, 1)


def measure_speed(objective: SyntheticObjective, sizes: SpeedSizes) -> tuple[ProposalSpeed, ...]:
    """Measure proposals, costs and tokens.

    Args:
        objective: On the space that is measured.
        sizes: How much of it.
    """
    space = objective.space
    catalogue = Catalogue(space, objective.gain)
    drawn = RandomProposer(catalogue).propose(History(), sizes.points, candidate_random(0, 0))
    history = History(tuple(objective.evaluated(genotype) for genotype in drawn))
    proposer = SurrogateProposer(
        catalogue,
        [EmbeddingSurrogate(Ensemble(kernels=sizes.kernels))],
        pool=Pool(size=sizes.pool),
    )
    steps = iter(range(1, sizes.rounds + 1))

    def propose() -> None:
        proposer.propose(history, sizes.kernels, candidate_random(0, next(steps)))

    seconds = _seconds(propose, sizes.rounds)
    rng = random.Random(0)
    students = [space.sample(rng) for _ in range(sizes.students)]
    name = (
        f"a batch of {sizes.kernels}: {sizes.kernels} encoders on {sizes.points} points, "
        f"{sizes.pool} candidates and what local search adds"
    )
    most, least = f"at most {_MOST_SECONDS:.0f} s", f"at least {_LEAST_RATE:,.0f} 1/s"
    rows = [ProposalSpeed(name, seconds, "s", most, seconds <= _MOST_SECONDS)]
    tokenizer = catalogue.tokenizer
    parts: list[tuple[str, Callable[[Genotype], object]]] = [
        ("costs of a student", space.cost),
        ("tokens of a student, from its genotype", lambda one: tokenizer(space.sketch(one))),
    ]
    for part, action in parts:
        rate = sizes.students / _seconds(partial(_each, action, students), sizes.rounds)
        rows.append(ProposalSpeed(part, rate, "1/s", least, rate >= _LEAST_RATE))
    return tuple(rows)


def _each(action: Callable[[Genotype], object], students: Sequence[Genotype]) -> None:
    for student in students:
        action(student)


def _seconds(action: Callable[[], object], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        start = time.process_time()
        action()
        found.append(time.process_time() - start)
    return statistics.median(found)
