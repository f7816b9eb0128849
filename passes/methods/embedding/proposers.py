"""What a configuration asks to choose students with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from passes.architecture.space import SearchSpace
from passes.embedding.candidates import Catalogue
from passes.embedding.encoder import Encoder, load_encoders
from passes.embedding.ensemble import Ensemble
from passes.embedding.proposals import (
    EvolutionProposer,
    Pool,
    Proposer,
    RandomProposer,
    SurrogateProposer,
)
from passes.embedding.surrogates import EmbeddingSurrogate, FeatureSurrogate, Surrogate
from passes.methods.embedding.config import EmbeddingSearch
from passes.methods.embedding.reward import Reward


def proposer_of(
    space: SearchSpace, config: EmbeddingSearch, reward: Reward
) -> tuple[Proposer, EmbeddingSurrogate | None]:
    """The proposer, and the surrogate in it whose encoders can be kept.

    An embedding that does not rank what was evaluated is not asked: features made by hand are, and
    if these do not either, chance decides.

    Args:
        space: Keeps to the budget by itself.
        config: The search.
        reward: Tells what is known of a student's reward before it is trained.

    Raises:
        StorageError: The encoders to start from cannot be read.
    """
    catalogue = Catalogue(space, reward.gain)
    if config.surrogate == "random":
        return RandomProposer(catalogue), None
    if config.surrogate == "evolution":
        return EvolutionProposer(catalogue), None
    last = len(config.fidelity) - 1
    ensemble = Ensemble(kernels=config.kernels, rungs=last + 1)
    learned = None
    surrogates: Sequence[Surrogate] = (FeatureSurrogate(ensemble),)
    if config.surrogate == "embedding":
        first = None if config.encoder is None else load_encoders(Path(config.encoder))
        learned = EmbeddingSurrogate(ensemble, encoders=first)
        surrogates = (learned, *surrogates)
    proposer = SurrogateProposer(
        catalogue,
        surrogates,
        composite=config.composite,
        # Nothing is saved, so the teacher's reward is 0, as in the paper; but its accuracy is that
        # of its own training, and no student of a few epochs comes near it: taken for a point of
        # the same function it would spoil the scale of all the others.
        anchor=None if config.composite else 1.0,
        pool=Pool(size=config.pool),
        last=last,
    )
    return proposer, learned


def encoders_of(learned: EmbeddingSurrogate | None) -> tuple[Encoder, ...]:
    """Those that a search has learned; none if it has not."""
    return () if learned is None else tuple(learned.encoders)
