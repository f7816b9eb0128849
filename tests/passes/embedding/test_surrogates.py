"""Ensembles on parts of the record: what they draw, learn, report, keep and refuse."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from toy_space import SPACE, toy_gain, toy_score

from energy_model.errors import ArgumentError
from passes.embedding.candidates import Catalogue
from passes.embedding.deep_kernel import Fitting
from passes.embedding.encoder import Encoder
from passes.embedding.ensemble import Ensemble, Observation
from passes.embedding.fit_report import explained
from passes.embedding.gaussian_process import FixedKernel
from passes.embedding.surrogates import EmbeddingSurrogate, FeatureSurrogate
from passes.rank_correlation import rank_correlation

CATALOGUE = Catalogue(SPACE, toy_gain)
QUICK = Fitting(steps=8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def observed(count, seed=0, target=toy_score):
    rng = random.Random(seed)
    genotypes = [SPACE.sample(rng) for _ in range(count)]
    return [Observation(CATALOGUE.candidate(g), target(g)) for g in genotypes]


def surrogates(kernels=2, **ensemble):
    shared = Ensemble(kernels=kernels, **ensemble)
    return [EmbeddingSurrogate(shared, QUICK, hidden=6), FeatureSurrogate(shared)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_it_predicts_what_it_has_not_seen(number):
    surrogate = surrogates()[number]
    report = surrogate.fit(observed(40), seeded())
    assert report.surrogate == surrogate.name and report.points == 40
    assert report.r2 > 0.3 and report.rank_correlation > 0.6 and report.held_out > 0.5
    fresh = observed(60, seed=1)
    truth = [seen.target for seen in fresh]
    for kernel in range(surrogate.kernels):
        mean, std = surrogate.predict(kernel, [seen.candidate for seen in fresh])
        assert rank_correlation(truth, mean.tolist()) > 0.6
        assert (std > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_kernels_disagree(number):
    surrogate = surrogates()[number]
    surrogate.fit(observed(12), seeded())
    fresh = [seen.candidate for seen in observed(20, seed=1)]
    first, second = (surrogate.predict(kernel, fresh)[0] for kernel in (0, 1))
    assert float((first - second).abs().max()) > 1e-3


@pytest.mark.slow
def test_what_cannot_be_predicted_is_found_out_by_what_was_held_out():
    noise = random.Random(3)
    seen = observed(16, target=lambda genotype: noise.random())
    surrogate = EmbeddingSurrogate(Ensemble(kernels=5), Fitting(steps=20), hidden=8)
    for _ in range(3):  # what a kernel held out, it never learns
        report = surrogate.fit(seen, seeded())
    assert report.rank_correlation > 0.6 and report.held_out < 0.3
    assert report.trust == report.held_out


def test_parts_are_the_same_for_good_and_differ_between_kernels():
    seen = observed(60)
    ensemble = Ensemble(kernels=3, share=0.75)
    parts = [ensemble.part(kernel, seen, seeded(kernel)).tolist() for kernel in range(3)]
    assert all(35 < len(part) < 55 and part == sorted(set(part)) for part in parts)
    assert len({tuple(part) for part in parts}) == 3
    assert ensemble.part(1, seen, seeded(9)).tolist() == parts[1]
    # More observations, in another order, change nothing for those that were there.
    more = [*observed(20, seed=1), *reversed(seen)]
    kept = {more[at].candidate.digest for at in ensemble.part(1, more, seeded()).tolist()}
    before = {seen[at].candidate.digest for at in parts[1]}
    assert kept & {one.candidate.digest for one in seen} == before


def test_redrawn_parts_are_the_paper_s():
    seen = [replace(one, anchor=at == 3) for at, one in enumerate(observed(31))]
    ensemble = Ensemble(share=0.5, redrawn=True)
    parts = [ensemble.part(0, seen, seeded(n)).tolist() for n in range(200)]
    assert all(3 in part for part in parts)
    sizes = [len(part) - 1 for part in parts]
    assert abs(sum(sizes) / len(sizes) - 15) < 1
    assert min(sizes) < 12 and max(sizes) > 18


@pytest.mark.parametrize("redrawn", [True, False])
def test_a_part_is_never_empty(redrawn):
    ensemble = Ensemble(share=1e-9, redrawn=redrawn)
    assert len(ensemble.part(0, observed(5), seeded())) == 1


def test_the_embedding_goes_on_from_what_it_has_learned():
    seen = observed(20)
    surrogate = surrogates()[0]
    surrogate.fit(seen, seeded())
    first = surrogate.state_dict()
    surrogate.fit(seen, seeded())
    assert not torch.equal(first["0.encoder.lstm.weight_ih_l0"], weight_of(surrogate))
    moved = float((weight_of(surrogate) - first["0.encoder.lstm.weight_ih_l0"]).abs().max())
    cold = EmbeddingSurrogate(Ensemble(kernels=2), QUICK, hidden=6, warm=False)
    cold.fit(seen, seeded(1))
    cold.fit(seen, seeded())
    # A random start is further away than a few steps of training.
    fresh = float((weight_of(cold) - first["0.encoder.lstm.weight_ih_l0"]).abs().max())
    assert moved < 0.1
    assert fresh == 0.0


def weight_of(surrogate):
    return surrogate.state_dict()["0.encoder.lstm.weight_ih_l0"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_resumed_surrogate_predicts_the_same_bits(number):
    straight, resumed = surrogates()[number], surrogates()[number]
    straight.fit(observed(10), seeded(0))
    resumed.load_state_dict(straight.state_dict())
    fresh = [seen.candidate for seen in observed(10, seed=1)]
    found = []
    for surrogate in (straight, resumed):
        surrogate.fit(observed(20), seeded(1))
        found.append(torch.stack(surrogate.predict(1, fresh)))
    assert torch.equal(*found)


def test_saved_encoders_are_where_a_search_starts():
    teacher = surrogates()[0]
    teacher.fit(observed(20), seeded())
    student = EmbeddingSurrogate(Ensemble(kernels=3), Fitting(steps=0), encoders=teacher.encoders)
    student.fit(observed(20, seed=1), seeded(5))
    for number, encoder in enumerate(student.encoders):
        expected = teacher.encoders[number % 2].state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in encoder.state_dict().items())
    with pytest.raises(ArgumentError, match="features"):
        foreign = Encoder(5, generator=seeded())
        EmbeddingSurrogate(encoders=[foreign]).fit(observed(5), seeded())


def test_the_process_of_the_paper():
    ensemble = Ensemble(kernels=2, share=0.5, redrawn=True)
    fitting = Fitting(steps=20, learning_rate=1e-3, tolerance=1e-3)
    surrogate = EmbeddingSurrogate(
        ensemble, fitting, hidden=6, layers=2, warm=False, fixed=FixedKernel()
    )
    seen = observed(12)
    seen.append(Observation(seen[0].candidate, 0.0, anchor=True))
    surrogate.fit(seen, seeded())
    _, std = surrogate.predict(0, [one.candidate for one in observed(5, seed=1)])
    assert (std >= 0.05**0.5).all()


def test_rungs_are_told_apart():
    seen = observed(30)
    early = [
        Observation(one.candidate, one.target - 0.3 * (at % 2 == 0), rung=int(at % 2))
        for at, one in enumerate(seen)
    ]
    surrogate = FeatureSurrogate(Ensemble(kernels=1, rungs=2))
    surrogate.fit(early, seeded())
    mean, _ = surrogate.predict(0, [one.candidate for one in seen])
    truth = torch.tensor([one.target for one in seen], dtype=torch.float64)
    assert abs(float((mean - truth).mean())) < 0.05


@pytest.mark.parametrize("number", [0, 1])
def test_too_few_observations_and_foreign_states_are_refused(number):
    surrogate = surrogates()[number]
    with pytest.raises(ArgumentError):
        surrogate.fit(observed(1), seeded())
    with pytest.raises(ArgumentError, match="state"):
        surrogate.load_state_dict({"x": torch.zeros(1)})
    other = EmbeddingSurrogate(Ensemble(kernels=3), QUICK, hidden=6)
    other.fit(observed(5), seeded())
    with pytest.raises(ArgumentError, match="state"):
        surrogate.load_state_dict(other.state_dict())


@pytest.mark.parametrize("change", [{"kernels": 0}, {"rungs": 0}, {"share": 0.0}, {"share": 1.1}])
def test_bad_ensembles_are_refused(change):
    with pytest.raises(ArgumentError, match=next(iter(change))):
        Ensemble(**change)
    with pytest.raises(ArgumentError, match="encoders"):
        EmbeddingSurrogate(encoders=[])


def test_explained_variance_and_ranks_by_hand():
    assert explained([1, 2, 3], [1, 2, 3]) == 1
    assert explained([1, 2, 3], [2, 2, 2]) == 0
    assert explained([1, 2, 3], [3, 2, 1]) == -3
    assert explained([2, 2], [1, 2]) is None and explained([], []) is None
    assert rank_correlation([1, 2, 3], [10, 20, 100]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # 1 - 6 * (0 + 1 + 1) / (3 * 8)
    assert rank_correlation([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None and rank_correlation([], []) is None
