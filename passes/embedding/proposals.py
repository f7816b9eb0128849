"""Proposals: which architectures are evaluated next.

All proposers answer the same question, so that baselines run in the same loop: random search,
evolution by tournaments (E. Real et al., "Regularized Evolution for Image Classifier Architecture
Search", AAAI 2019, without ageing), and the maximum of an acquisition function on a surrogate
(Cao, Wang, Kitani, "Learnable Embedding Space for Efficient Neural Architecture Compression", ICLR
2019). There the maximum is sought among random students; here mutations of the best ones are added,
and a local search follows.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from energy_model.errors import ArgumentError
from passes.architecture.genotype import Genotype
from passes.embedding.acquisition import log_expected_improvement
from passes.embedding.candidates import Candidate, Catalogue, Evaluated, History
from passes.embedding.ensemble import Observation
from passes.embedding.fit_report import FitReport
from passes.embedding.surrogates import Surrogate

TRUSTED = 0.1
"""Rank correlation (`FitReport.trust`) below which a surrogate is not asked."""

# Fewer evaluated architectures than this say nothing about the others.
_FEWEST = 4


class Proposer(Protocol):
    """Chooses what is evaluated next."""

    def propose(self, history: History, count: int, rng: random.Random) -> list[Genotype]:
        """Choose architectures.

        Args:
            history: What was evaluated, and what is about to be.
            count: How many.
            rng: Of this decision.

        Returns:
            Different ones, none of the history and all within the budget; fewer than `count` where
            the space has no more to offer.
        """

    @property
    def reports(self) -> tuple[FitReport, ...]:
        """How well surrogates predicted at the last proposal, in the order they were asked."""

    def state_dict(self) -> dict[str, Tensor]:
        """What the next proposal depends on beside its arguments."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state, after which proposals are those of the run that it came from.

        Raises:
            ArgumentError: It is the state of another proposer.
        """


class _Stateless:
    """A proposer that learns nothing."""

    reports: tuple[FitReport, ...] = ()

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state.

        Raises:
            ArgumentError: It is the state of another proposer.
        """
        if state:
            raise ArgumentError("the state is that of another proposer", where="state")


class RandomProposer(_Stateless):
    """Random students.

    Args:
        catalogue: Of the space and the budget.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def propose(self, history: History, count: int, rng: random.Random) -> list[Genotype]:
        """Draw; see `Proposer`."""
        seen = _seen(history)
        draws = self._catalogue.fresh(lambda: self._catalogue.space.sample(rng), count, seen)
        return [candidate.genotype for candidate in draws]


class EvolutionProposer(_Stateless):
    """Mutations of the best of a few evaluated students; random ones before there are any.

    Args:
        catalogue: Of the space and the budget.
        tournament: How many are drawn, of which the best has a child.

    Raises:
        ArgumentError: The tournament is of none.
    """

    def __init__(self, catalogue: Catalogue, *, tournament: int = 8) -> None:
        if tournament < 1:
            raise ArgumentError(f"{tournament!r} is not at least 1", where="tournament")
        self._catalogue, self._tournament = catalogue, tournament

    def propose(self, history: History, count: int, rng: random.Random) -> list[Genotype]:
        """Mutate the winners of tournaments; see `Proposer`."""
        catalogue, space = self._catalogue, self._catalogue.space
        if not history.evaluated:
            return RandomProposer(catalogue).propose(history, count, rng)
        rewards = [
            (_reward(catalogue.candidate(one.genotype), one), one.genotype)
            for one in history.evaluated
        ]
        size = min(self._tournament, len(rewards))

        def child() -> Genotype:
            drawn = rng.sample(rewards, size)
            return space.mutate(max(drawn, key=lambda pair: pair[0])[1], rng)

        seen = _seen(history)
        found = list(catalogue.fresh(child, count, seen))
        # Where all children are known or break the budget, chance goes on.
        missing = count - len(found)
        found += catalogue.fresh(lambda: space.sample(rng), missing, seen)
        return [candidate.genotype for candidate in found]


@dataclass(frozen=True, slots=True)
class Pool:
    """How the maximum of an acquisition function is sought.

    Attributes:
        size: Candidates of the pool that all kernels share.
        random: Share of random students among them; the others are mutations of the best.
        parents: How many of the best evaluated students are mutated.
        rounds: Of local search, for each kernel.
        starts: Best candidates that a round mutates.
        children: Mutations of each of them.

    Raises:
        ArgumentError: A number is out of range.
    """

    size: int = 1000
    random: float = 0.3
    parents: int = 10
    rounds: int = 3
    starts: int = 10
    children: int = 5

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("parents", 1), ("rounds", 0), ("starts", 1)):
            if getattr(self, name) < least:
                raise ArgumentError(f"{getattr(self, name)!r} is not at least {least}", where=name)
        if not 0 <= self.random <= 1:
            raise ArgumentError(f"{self.random!r} is no share from 0 to 1", where="random")


class SurrogateProposer:
    """The candidates that kernels of a surrogate expect most of, one of each kernel.

    Args:
        catalogue: Of the space, the budget and the factor of the reward that is known.
        surrogates: The first is asked, and each of the others where those before it cannot rank
            what was evaluated; after the last one chance decides.
        composite: Model the score alone and multiply with the known factor; otherwise the reward is
            modelled.
        pool: How the maximum is sought.
        anchor: The score of the teacher, from which every kernel learns; `None` for none. A teacher
            that was trained for longer than its students are is no anchor for their scores.
        last: The last rung: that of the anchor.

    Raises:
        ArgumentError: There is no surrogate.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        surrogates: Sequence[Surrogate],
        *,
        composite: bool = True,
        pool: Pool | None = None,
        anchor: float | None = 1.0,
        last: int = 0,
    ) -> None:
        if not surrogates:
            raise ArgumentError("there is no surrogate", where="surrogates")
        self._catalogue, self._surrogates = catalogue, tuple(surrogates)
        self._composite = composite
        self._pool = Pool() if pool is None else pool
        self._anchor = None if anchor is None else Evaluated(Genotype(), anchor, last)
        self.reports: tuple[FitReport, ...] = ()

    def propose(self, history: History, count: int, rng: random.Random) -> list[Genotype]:
        """Ask the kernels in turn; see `Proposer`."""
        catalogue = self._catalogue
        if len(history.evaluated) < _FEWEST:
            # The students that random search begins with, so that both can be compared.
            self.reports = ()
            return RandomProposer(catalogue).propose(history, count, rng)
        known = [(catalogue.candidate(one.genotype), one) for one in history.evaluated]
        surrogate = self._fitted(known, rng)
        if surrogate is None:
            return RandomProposer(catalogue).propose(history, count, rng)
        seen = _seen(history)
        pool = self._drawn(known, seen, rng)
        chosen: dict[str, Candidate] = {}
        evaluated = [candidate for candidate, _ in known]
        for kernel in itertools.islice(itertools.cycle(range(surrogate.kernels)), count):
            scoring = _Scoring(surrogate, kernel, evaluated, composite=self._composite)
            ranked = self._searched(scoring, pool, seen, rng)
            best = next((one for one in ranked if one.digest not in chosen), None)
            if best is None:
                break
            chosen[best.digest] = best
        return [candidate.genotype for candidate in chosen.values()]

    def _fitted(
        self, known: Sequence[tuple[Candidate, Evaluated]], rng: random.Random
    ) -> Surrogate | None:
        """The first surrogate that ranks what is known, if any."""
        self.reports = ()
        # Drawn here, so that what follows does not depend on how many surrogates are asked.
        seed = rng.getrandbits(62)
        entries = [(candidate, one, False) for candidate, one in known]
        if self._anchor is not None:
            teacher = self._catalogue.candidate(self._anchor.genotype)
            entries.append((teacher, self._anchor, True))
        observations = [
            Observation(
                candidate,
                one.score if self._composite else _reward(candidate, one),
                one.rung,
                anchor,
            )
            for candidate, one, anchor in entries
        ]
        for surrogate in self._surrogates:
            report = surrogate.fit(observations, Generator().manual_seed(seed))
            self.reports += (report,)
            if report.trust is not None and report.trust >= TRUSTED:
                return surrogate
        return None

    def _drawn(
        self, known: Sequence[tuple[Candidate, Evaluated]], seen: set[str], rng: random.Random
    ) -> list[Candidate]:
        catalogue, space, settings = self._catalogue, self._catalogue.space, self._pool
        ranked = sorted(known, key=lambda pair: -_reward(*pair))
        parents = [candidate.genotype for candidate, _ in ranked[: settings.parents]]
        at_random = round(settings.random * settings.size)
        found = list(catalogue.fresh(lambda: space.sample(rng), at_random, seen))
        found += catalogue.fresh(
            lambda: space.mutate(rng.choice(parents), rng), settings.size - at_random, seen
        )
        return found

    def _searched(
        self, scoring: _Scoring, pool: list[Candidate], seen: set[str], rng: random.Random
    ) -> list[Candidate]:
        """All candidates by what a kernel expects of them; new ones join the pool."""
        settings, space = self._pool, self._catalogue.space
        scored = scoring.ranked(pool)
        for _ in range(settings.rounds):
            starts = itertools.cycle([one.genotype for _, one in scored[: settings.starts]])
            wanted = min(len(scored), settings.starts) * settings.children

            def child(starts: Iterator[Genotype] = starts) -> Genotype:
                return space.mutate(next(starts), rng)

            new = list(self._catalogue.fresh(child, wanted, seen))
            pool += new
            # Sorting is stable, so older candidates come first among equal ones.
            scored = sorted(scored + scoring.ranked(new), key=lambda pair: -pair[0])
        return [candidate for _, candidate in scored]

    def state_dict(self) -> dict[str, Tensor]:
        """The states of the surrogates."""
        return {
            f"{surrogate.name}/{name}": value
            for surrogate in self._surrogates
            for name, value in surrogate.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state, after which proposals are those of the run that it came from.

        Raises:
            ArgumentError: It is the state of another proposer.
        """
        names = {surrogate.name for surrogate in self._surrogates}
        if not {name.partition("/")[0] for name in state} <= names:
            raise ArgumentError("the state is that of another proposer", where="state")
        for surrogate in self._surrogates:
            prefix = f"{surrogate.name}/"
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            surrogate.load_state_dict(own)


class _Scoring:
    """What one kernel expects a candidate to improve, as a logarithm."""

    def __init__(
        self, surrogate: Surrogate, kernel: int, evaluated: Sequence[Candidate], *, composite: bool
    ) -> None:
        self._surrogate, self._kernel, self._composite = surrogate, kernel, composite
        # Evaluations are noisy: the best is the highest that is believed, not the luckiest.
        self._best = self._moments(evaluated)[0].max()

    def _moments(self, candidates: Sequence[Candidate]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of rewards."""
        mean, std = self._surrogate.predict(self._kernel, candidates)
        if self._composite:
            # The reward is the known factor times a normal variable, and so is normal itself.
            gains = torch.tensor([one.gain for one in candidates], dtype=torch.float64)
            mean, std = gains * mean, gains.abs() * std
        return mean, std

    def ranked(self, candidates: Sequence[Candidate]) -> list[tuple[float, Candidate]]:
        """Candidates with their scores, the best first."""
        if not candidates:
            return []
        scores = log_expected_improvement(*self._moments(candidates), self._best).tolist()
        return sorted(zip(scores, candidates, strict=True), key=lambda pair: -pair[0])


def _reward(candidate: Candidate, one: Evaluated) -> float:
    return candidate.gain * one.score


def _seen(history: History) -> set[str]:
    """What is not proposed: it was evaluated, is about to be, or is the teacher."""
    done = {one.genotype.digest for one in history.evaluated}
    return done | history.pending | {Genotype().digest}
