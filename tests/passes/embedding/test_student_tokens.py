"""Tokens of real students: those of the genotype are those of the network that is built."""

from __future__ import annotations

import random

import numpy as np
import pytest
from search_nets import FAMILIES, family_space

from passes.architecture.genotype import Genotype
from passes.architecture.sketch import sketch_of
from passes.embedding.candidates import Catalogue
from passes.embedding.hand_features import FEATURES as HAND_FEATURES
from passes.embedding.tokens import FEATURES, Tokenizer


def agree(name, count, seed):
    space = family_space(name)
    teacher = space.sketch(Genotype())
    tokenizer, rng = Tokenizer(teacher), random.Random(seed)
    for _ in range(count):
        genotype = space.sample(rng)
        built = sketch_of(space.build(genotype), teacher)
        told = tokenizer(space.sketch(genotype))
        assert np.array_equal(told, tokenizer(built)), genotype


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_tokens_are_those_of_the_network_that_is_built(name):
    agree(name, 4, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_tokens_of_two_hundred_students_are_those_of_the_networks(name):
    agree(name, 200, seed=1)


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_neighbours_are_told_apart(name):
    space = family_space(name)
    tokenizer, rng = Tokenizer(space.sketch(Genotype())), random.Random(0)
    for _ in range(60):
        genotype = space.sample(rng)
        other = space.mutate(genotype, rng)
        found = [tokenizer(space.sketch(one)) for one in (genotype, other)]
        assert genotype == other or not np.array_equal(*found), (genotype, other)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_candidates_of_real_spaces(name):
    space = family_space(name)
    catalogue = Catalogue(space, lambda costs: 1.0)
    one = catalogue.candidate(space.sample(random.Random(0)))
    assert one.tokens.shape == (len(catalogue.teacher.layers), FEATURES)
    assert one.features.shape == (HAND_FEATURES,) and np.isfinite(one.features).all()
    assert one.digest == one.genotype.digest and one.gain == 1.0
