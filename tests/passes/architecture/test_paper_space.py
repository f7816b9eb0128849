"""The space of the paper: how many parts, skips and groups, and how small its students are.

Cao, Wang, Kitani, ICLR 2019; numbers of the specification's sections 2.1, 3.1 and 3.2.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from search_nets import HARDWARE

from bench.zoo import resnet18, resnet34, vgg19
from passes.architecture.genotype import Genotype
from passes.architecture.policy import Policy
from passes.architecture.skips import equal_shapes
from passes.architecture.space import SearchSpace
from passes.inputs import as_call
from passes.tracing.trace import trace


def graph_of(make, classes=10):
    """Without memory for weights: only shapes matter here."""
    with torch.device("meta"):
        model = make(classes).eval()
    return trace(model, as_call(model, torch.empty(2, 3, 32, 32, device="meta")), train=False)


def coarse(graph):
    return SearchSpace(graph, HARDWARE, Policy.coarse(), keys=("params",))


COUNTS = [
    pytest.param(vgg19, 44, 12, 294, 16, (20_040_522, 20_086_692), id="vgg19"),
    pytest.param(resnet18, 50, 13, 465, 12, (11_173_962, 11_220_132), id="resnet18"),
    pytest.param(
        resnet34, 98, 29, 1605, 20, (21_282_122, 21_328_292), id="resnet34", marks=pytest.mark.slow
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "nodes", "convs", "pairs", "groups", "params"), COUNTS)
def test_counts(make, nodes, convs, pairs, groups, params):
    space = coarse(graph_of(make))
    structure = space.structure
    kinds = [structure.steps[part.exit].kind for part in structure.parts.values()]
    assert (len(kinds), kinds.count("conv")) == (nodes, convs)
    shapes = list(equal_shapes(structure.steps, structure.chains, anywhere=True))
    assert len(shapes) == pairs
    assert set(structure.skips) < set(shapes)
    assert len(structure.groups.free) == groups
    widths = [structure.rules[numbers[0]].units for numbers in structure.classes]
    assert sorted(widths) == [64, 128, 256, 512]
    assert space.cost(Genotype())["params"] == params[0]
    assert coarse(graph_of(make, 100)).cost(Genotype())["params"] == params[1]


def students(space, count, seed=0):
    rng = random.Random(seed)
    return [space.sample(rng) for _ in range(count)]


def quantiles(space, found):
    whole = space.cost(Genotype())["params"]
    sizes = [1 - space.cost(genotype)["params"] / whole for genotype in found]
    return np.quantile(sizes, [0.05, 0.25, 0.5, 0.75, 0.95])


SIZES = {
    vgg19: (0.50, 0.75, 0.88, 0.95, 0.99),
    resnet18: (0.52, 0.75, 0.86, 0.94, 0.98),
    resnet34: (0.57, 0.75, 0.86, 0.93, 0.98),
}


def assert_alike(found, expected):
    np.testing.assert_allclose(found[1:], expected[1:], rtol=0, atol=0.02)
    # What is expected comes from 4,000 students: its lowest quantile has a standard error of 0.01.
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=0.03)


@pytest.mark.slow
def test_random_students_are_as_small_as_those_of_the_paper():
    space = coarse(graph_of(resnet18))
    drawn = students(space, 4000)
    found = quantiles(space, drawn)
    assert_alike(found, SIZES[resnet18])
    assert np.mean([len(g.removed) for g in drawn]) == pytest.approx(25, abs=1)
    # The paper's 4.8 count those that are connected already, which ours leave out.
    share = len(space.structure.skips) / 465
    assert np.mean([len(g.skips) for g in drawn]) == pytest.approx(4.8 * share, abs=0.6)


@pytest.mark.slow
@pytest.mark.parametrize("make", SIZES, ids=lambda make: make.__name__)
def test_many_random_students_are_as_small_as_those_of_the_paper(make):
    space = coarse(graph_of(make))
    found = quantiles(space, students(space, 16000))
    assert_alike(found, SIZES[make])
