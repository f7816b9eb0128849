"""Candidates: genotypes with all that is known of them before anything is trained."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from passes.architecture.genotype import Genotype
from passes.architecture.sketch import Sketch
from passes.derived_seed import derived_seed
from passes.embedding.hand_features import hand_features, sections
from passes.embedding.tokens import Tokenizer

Costs = Mapping[str, int | float]

# Draws for each candidate that is wanted, before a space counts as exhausted.
_PATIENCE = 10


class Space(Protocol):
    """What a search space does here; see `passes.architecture`."""

    def sample(self, rng: random.Random) -> Genotype:
        """A random student."""

    def mutate(self, genotype: Genotype, rng: random.Random) -> Genotype:
        """A student close to another one."""

    def cost(self, genotype: Genotype) -> Costs:
        """Its costs, without building it."""

    def sketch(self, genotype: Genotype) -> Sketch:
        """Its layers and links, without building it."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A genotype and how well it did.

    Attributes:
        genotype: In the canonical form of its space.
        score: A, the accuracy as a share of the teacher's; that of chance if it failed.
        rung: The last rung that it was trained to.
    """

    genotype: Genotype
    score: float
    rung: int = 0


@dataclass(frozen=True, slots=True)
class History:
    """What was evaluated, and what is about to be.

    Attributes:
        evaluated: In the order in which it was proposed: with another order, or after a failure
            that was left out, other candidates follow.
        pending: Digests of those under evaluation, which are not proposed again.
    """

    evaluated: tuple[Evaluated, ...] = ()
    pending: frozenset[str] = frozenset()


class Candidate:
    """A genotype within the budget, and what surrogates read of it.

    Attributes:
        genotype: The architecture.
        digest: Its digest.
        gain: The factor of its reward that is known.
    """

    def __init__(self, genotype: Genotype, digest: str, gain: float, catalogue: Catalogue) -> None:
        self.genotype, self.digest, self.gain = genotype, digest, gain
        self._catalogue = catalogue

    @cached_property
    def _sketch(self) -> Sketch:
        return self._catalogue.space.sketch(self.genotype)

    @cached_property
    def tokens(self) -> NDArray[np.float32]:
        """`(layers, features)`."""
        return self._catalogue.tokenizer(self._sketch)

    @cached_property
    def features(self) -> NDArray[np.float64]:
        """The features made by hand, `(features,)`."""
        return hand_features(self._sketch, self._catalogue.teacher, self._catalogue.sections)


class Catalogue:
    """Makes candidates of genotypes.

    Args:
        space: Where they come from.
        gain: The factor of the reward that is known, from costs.
        within: Whether costs are within the budget.
    """

    def __init__(
        self,
        space: Space,
        gain: Callable[[Costs], float],
        within: Callable[[Costs], bool] = lambda costs: True,
    ) -> None:
        self.space, self._gain, self._within = space, gain, within
        self.teacher = space.sketch(Genotype())
        self.tokenizer = Tokenizer(self.teacher)
        self.sections = sections(self.teacher)

    def candidate(self, genotype: Genotype) -> Candidate:
        """One that was evaluated, whatever it costs."""
        costs = self.space.cost(genotype)
        return Candidate(genotype, genotype.digest, self._gain(costs), self)

    def fresh(
        self, draw: Callable[[], Genotype], wanted: int, seen: set[str]
    ) -> Iterator[Candidate]:
        """Candidates within the budget that were not seen before.

        Args:
            draw: Gives one genotype, random.
            wanted: How many at most; fewer where draws repeat themselves or leave the budget.
            seen: Digests that do not count as fresh; those of all draws are added.
        """
        for _ in range(_PATIENCE * wanted):
            if wanted == 0:
                return
            genotype = draw()
            digest = genotype.digest
            if digest in seen:
                continue
            seen.add(digest)
            costs = self.space.cost(genotype)
            if self._within(costs):
                wanted -= 1
                yield Candidate(genotype, digest, self._gain(costs), self)


def candidate_random(seed: int, step: int, number: int = 0) -> random.Random:
    """The randomness of one decision of a run, the same whatever was decided before.

    Args:
        seed: Of the run.
        step: Of the run.
        number: Of the candidate, or of the decision, within the step.
    """
    return random.Random(derived_seed(seed, "proposal", step, number))
