"""Proposers: what a batch may hold, resuming, falling back, and who finds the best."""

from __future__ import annotations

import random
import statistics

import pytest
import torch
from toy_space import SPACE, WHOLE, ToySpace, toy_gain, toy_reward, toy_score

from energy_model.errors import ArgumentError
from passes.architecture.genotype import Genotype
from passes.embedding.candidates import Catalogue, Evaluated, History, candidate_random
from passes.embedding.deep_kernel import Fitting
from passes.embedding.ensemble import Ensemble
from passes.embedding.fit_report import FitReport
from passes.embedding.proposals import (
    EvolutionProposer,
    Pool,
    RandomProposer,
    SurrogateProposer,
)
from passes.embedding.surrogates import EmbeddingSurrogate, FeatureSurrogate

SMALL_POOL = Pool(size=60, parents=5, rounds=2, starts=4, children=3)
LIMIT = 0.25 * WHOLE


def within(costs):
    return costs["params"] <= LIMIT


def free():
    return Catalogue(SPACE, toy_gain)


def limited():
    return Catalogue(SPACE, toy_gain, within)


def features_of(catalogue, **options):
    surrogate = FeatureSurrogate(Ensemble(kernels=3), Fitting(steps=15, kernel_rate=0.2))
    return SurrogateProposer(catalogue, [surrogate], pool=SMALL_POOL, **options)


def embedding_of(catalogue, **options):
    surrogate = EmbeddingSurrogate(Ensemble(kernels=3), Fitting(steps=5), hidden=6)
    return SurrogateProposer(catalogue, [surrogate], pool=SMALL_POOL, **options)


MAKERS = [RandomProposer, EvolutionProposer, features_of, embedding_of]


def evaluated(genotypes):
    return tuple(Evaluated(genotype, toy_score(genotype)) for genotype in genotypes)


def first_history(catalogue, count=12, seed=0):
    genotypes = RandomProposer(catalogue).propose(History(), count, random.Random(seed))
    return History(evaluated(genotypes))


@pytest.mark.spread(1)
@pytest.mark.parametrize("make", MAKERS)
def test_a_batch_is_new_distinct_and_within_the_budget(make):
    catalogue = limited()
    history = first_history(catalogue)
    pending = RandomProposer(catalogue).propose(history, 5, random.Random(1))
    history = History(history.evaluated, frozenset(one.digest for one in pending))
    for seed in range(3):
        batch = make(catalogue).propose(history, 4, random.Random(seed))
        digests = {genotype.digest for genotype in batch}
        assert len(batch) == len(digests) == 4
        assert not digests & {one.genotype.digest for one in history.evaluated}
        assert not digests & history.pending
        assert Genotype().digest not in digests
        assert all(SPACE.cost(genotype)["params"] <= LIMIT for genotype in batch)


@pytest.mark.parametrize("make", MAKERS)
def test_all_begin_with_the_same_students(make):
    [first] = {
        tuple(maker(limited()).propose(History(), 6, random.Random(3)))
        for maker in (make, RandomProposer)
    }
    other = make(limited()).propose(History(), 6, random.Random(4))
    assert tuple(other) != first


def test_without_the_limit_it_would_be_broken():
    batch = RandomProposer(free()).propose(History(), 50, random.Random(0))
    assert any(SPACE.cost(genotype)["params"] > LIMIT for genotype in batch)


class TinySpace(ToySpace):
    """Three students."""

    def sample(self, rng):
        return Genotype.of(widths={"first": rng.randint(1, 3)})

    def mutate(self, genotype, rng):
        return self.sample(rng)


@pytest.mark.parametrize("make", MAKERS)
def test_an_exhausted_space_offers_what_it_has(make):
    catalogue = Catalogue(TinySpace(), toy_gain)
    batch = make(catalogue).propose(History(), 8, random.Random(0))
    assert len(batch) == 3
    rest = make(catalogue).propose(History(evaluated(batch)), 8, random.Random(1))
    assert rest == []


@pytest.mark.spread(1)
@pytest.mark.parametrize("make", MAKERS)
def test_nothing_within_the_budget_is_nothing_proposed(make):
    catalogue = Catalogue(SPACE, toy_gain, lambda costs: False)
    assert make(catalogue).propose(first_history(free()), 2, random.Random(0)) == []


@pytest.mark.spread(1)
@pytest.mark.parametrize("make", MAKERS)
def test_a_resumed_run_proposes_the_same(make):
    straight = make(free())
    history, states = first_history(free()), []
    for step in range(3):
        batch = straight.propose(history, 3, candidate_random(7, step))
        states.append((history, batch, straight.state_dict()))
        history = History(history.evaluated + evaluated(batch))
    # Killed after the first step, and started again from what was kept of it.
    resumed = make(free())
    resumed.load_state_dict(states[0][2])
    for step, (then, batch, _) in list(enumerate(states))[1:]:
        assert resumed.propose(then, 3, candidate_random(7, step)) == batch


@pytest.mark.slow
def test_a_search_that_lost_its_state_goes_elsewhere():
    straight, forgetful = embedding_of(free()), embedding_of(free())
    history = first_history(free())
    straight.propose(history, 3, candidate_random(7, 0))
    batches = [one.propose(history, 3, candidate_random(7, 1)) for one in (straight, forgetful)]
    assert batches[0] != batches[1]


def test_every_kernel_proposes_its_best():
    proposer = features_of(free())
    batch = proposer.propose(first_history(free()), 7, random.Random(0))
    assert len({genotype.digest for genotype in batch}) == 7
    assert proposer.reports[0].surrogate == "features"


class Stub:
    """Answers what it is told to."""

    kernels = 2

    def __init__(self, name, rank, expected=lambda candidate: 0.5):
        self.name, self.rank, self.expected = name, rank, expected
        self.seen = None

    def fit(self, observations, generator):
        self.seen = observations
        return FitReport(self.name, len(observations), None, self.rank)

    def predict(self, kernel, candidates):
        means = [self.expected(candidate) for candidate in candidates]
        mean = torch.tensor(means, dtype=torch.float64)
        return mean, torch.full_like(mean, 1e-9)

    def state_dict(self):
        return {"weight": torch.ones(1)}

    def load_state_dict(self, state):
        self.loaded = dict(state)


@pytest.mark.parametrize(
    ("ranks", "asked"),
    [
        ((0.5, 0.5), ["one"]),
        ((0.1, 0.5), ["one"]),
        ((0.09, 0.5), ["one", "two"]),
        ((None, 0.5), ["one", "two"]),
        ((-0.3, 0.0), ["one", "two"]),
    ],
)
def test_a_surrogate_that_cannot_rank_is_not_asked(ranks, asked):
    stubs = [Stub(name, rank) for name, rank in zip(("one", "two"), ranks, strict=True)]
    proposer = SurrogateProposer(free(), stubs, pool=SMALL_POOL)
    batch = proposer.propose(first_history(free()), 3, random.Random(0))
    assert [report.surrogate for report in proposer.reports] == asked
    assert len(batch) == 3
    if ranks == (-0.3, 0.0):  # then chance decides
        assert stubs[1].seen is not None


def test_chance_begins_where_little_is_known():
    stub = Stub("one", 1.0)
    proposer = SurrogateProposer(free(), [stub], pool=SMALL_POOL)
    assert len(proposer.propose(first_history(free(), count=3), 4, random.Random(0))) == 4
    assert stub.seen is None and proposer.reports == ()


def test_the_highest_reward_is_taken_when_all_is_certain():
    def believed(candidate):
        return toy_score(candidate.genotype)

    history = first_history(free())
    for composite in (True, False):
        stub = Stub("one", 1.0, believed if composite else lambda c: toy_reward(c.genotype))
        proposer = SurrogateProposer(
            free(), [stub], composite=composite, pool=Pool(size=200, rounds=3)
        )
        [first, *_] = proposer.propose(history, 2, random.Random(0))
        best = max(toy_reward(one.genotype) for one in history.evaluated)
        assert toy_reward(first) > best


@pytest.mark.parametrize("composite", [True, False])
def test_what_a_surrogate_is_told(composite):
    stub = Stub("one", 1.0)
    history = first_history(free())
    SurrogateProposer(
        free(), [stub], composite=composite, pool=SMALL_POOL, anchor=0.9, last=2
    ).propose(history, 1, random.Random(0))
    *told, anchor = stub.seen
    for seen, one in zip(told, history.evaluated, strict=True):
        gain = 1.0 if composite else toy_gain(SPACE.cost(one.genotype))
        assert seen.target == pytest.approx(gain * one.score)
        assert (seen.rung, seen.anchor) == (0, False)
    assert (anchor.target, anchor.rung, anchor.anchor) == (0.9 if composite else 0.0, 2, True)
    stub = Stub("one", 1.0)
    SurrogateProposer(free(), [stub], pool=SMALL_POOL, anchor=None).propose(
        history, 1, random.Random(0)
    )
    assert not any(seen.anchor for seen in stub.seen)


def test_local_search_finds_what_the_pool_lacks():
    def believed(candidate):
        return toy_score(candidate.genotype)

    found = []
    for rounds in (0, 3):
        pool = Pool(size=60, rounds=rounds, starts=5, children=5)
        proposer = SurrogateProposer(free(), [Stub("one", 1.0, believed)], pool=pool)
        history = first_history(free())
        rewards = [
            toy_reward(proposer.propose(history, 1, random.Random(seed))[0]) for seed in range(8)
        ]
        found.append(statistics.mean(rewards))
    assert found[1] > found[0] + 0.01


def test_evolution_mutates_the_winner():
    class Recording(ToySpace):
        parents = ()

        def mutate(self, genotype, rng):
            self.parents = (*self.parents, genotype)
            return super().mutate(genotype, rng)

    space = Recording()
    catalogue = Catalogue(space, toy_gain)
    history = first_history(catalogue)
    EvolutionProposer(catalogue, tournament=12).propose(history, 5, random.Random(0))
    winner = max(history.evaluated, key=lambda one: toy_reward(one.genotype))
    assert set(space.parents) == {winner.genotype}


def search(make, seed, evaluations=32):
    """The best reward after some evaluations, four at a time."""
    proposer = make(free())
    genotypes = RandomProposer(free()).propose(History(), 8, candidate_random(seed, 0))
    for step in range(1, (evaluations - 8) // 4 + 1):
        history = History(evaluated(genotypes))
        genotypes += proposer.propose(history, 4, candidate_random(seed, step))
    assert len({genotype.digest for genotype in genotypes}) == evaluations
    return max(map(toy_reward, genotypes))


@pytest.mark.slow
@pytest.mark.parametrize("make", [features_of, embedding_of])
def test_models_beat_chance(make):
    seeds = range(3)
    chance = [search(RandomProposer, seed, 32) for seed in seeds]
    found = [search(make, seed, 24) for seed in seeds]
    assert statistics.mean(found) > statistics.mean(chance) + 0.03


def test_the_states_of_surrogates_are_kept_apart():
    stubs = [Stub("one", 1.0), Stub("two", 1.0)]
    proposer = SurrogateProposer(free(), stubs)
    state = proposer.state_dict()
    assert set(state) == {"one/weight", "two/weight"}
    proposer.load_state_dict(state)
    assert [set(stub.loaded) for stub in stubs] == [{"weight"}, {"weight"}]
    with pytest.raises(ArgumentError, match="state"):
        proposer.load_state_dict({"three/weight": torch.ones(1)})
    with pytest.raises(ArgumentError, match="state"):
        RandomProposer(free()).load_state_dict(state)


def test_randomness_depends_on_run_step_and_number():
    numbers = {
        candidate_random(*key).random()
        for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 11, 1), (0, 1, 11))
    }
    assert len(numbers) == 6
    assert candidate_random(3, 4).random() == candidate_random(3, 4, 0).random()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pool(size=0),
        lambda: Pool(random=1.5),
        lambda: Pool(parents=0),
        lambda: Pool(rounds=-1),
        lambda: Pool(starts=0),
        lambda: EvolutionProposer(free(), tournament=0),
        lambda: SurrogateProposer(free(), []),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(ArgumentError):
        make()
