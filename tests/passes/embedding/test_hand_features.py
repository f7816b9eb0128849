"""Sections of a network, and seventeen numbers by hand."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_space import SPACE, toy_layer

from energy_model.errors import ArgumentError
from passes.architecture.genotype import Genotype
from passes.architecture.sketch import Sketch, without
from passes.embedding.hand_features import FEATURES, hand_features, sections


def network(*areas):
    return Sketch(tuple(toy_layer(str(n), area=area) for n, area in enumerate(areas)), ())


@pytest.mark.parametrize(
    ("areas", "expected"),
    [
        ((9, 9, 4, 4, 1, 0), [(0, 2), (2, 4), (4, 5), (5, 6)]),
        # Five runs: the last two are the smallest neighbours.
        ((9, 9, 8, 8, 4, 4, 4, 1, 0), [(0, 2), (2, 4), (4, 7), (7, 9)]),
        # The shortest of five is not one of the two that are smallest together.
        ((9, *[8] * 4, 7, 7, 6, 6, 5, 5, 5), [(0, 1), (1, 5), (5, 9), (9, 12)]),
        # Two runs: the longest is halved, twice.
        ((9, 9, 9, 9, 9, 1), [(0, 2), (2, 3), (3, 5), (5, 6)]),
        # The same size again after another one is a run of its own.
        ((9, 1, 9, 9), [(0, 1), (1, 2), (2, 3), (3, 4)]),
    ],
)
def test_sections_by_hand(areas, expected):
    assert list(sections(network(*areas))) == expected


@given(areas=st.lists(st.integers(1, 4), min_size=1, max_size=30))
def test_sections_cover_everything_in_order(areas):
    found = sections(network(*areas))
    assert len(found) == 4
    assert found[0][0] == 0 and found[-1][1] == len(areas)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
    assert len(areas) < 4 or all(start < stop for start, stop in found)


def test_numbers_by_hand():
    layers = [toy_layer(str(n), area=64 >> n) for n in range(4)]
    layers.insert(1, toy_layer("1b", area=64, has_norm=False))
    teacher = Sketch(tuple(layers), ())
    parts = sections(teacher)
    assert parts == ((0, 2), (2, 3), (3, 4), (4, 5))
    student = list(layers)
    student[0] = replace(layers[0], out_width=15, has_act=False)
    student[1] = without(layers[1])
    # Its weights are gone, its norm and activation are there, and so it has a width.
    student[2] = replace(layers[2], kind="norm", macs=0, out_width=31)
    found = hand_features(Sketch(tuple(student), (), ((0, 4),)), teacher, parts)
    whole = math.log(65)
    assert found.shape == (FEATURES,) == (17,)
    assert found.tolist() == pytest.approx(
        [
            *(math.log(16) / whole, 0.5, 1.0, 0.0),
            *(math.log(32) / whole, 0.0, 1.0, 1.0),
            *(1.0, 1.0, 1.0, 1.0),
            *(1.0, 1.0, 1.0, 1.0),
            math.log(2),
        ]
    )


def test_the_teacher_has_ones_and_no_skips():
    teacher = SPACE.sketch(Genotype())
    assert hand_features(teacher, teacher, sections(teacher)).tolist() == [1.0] * 16 + [0.0]


def test_students_are_told_apart():
    teacher = SPACE.sketch(Genotype())
    rng = random.Random(0)
    found = np.stack(
        [
            hand_features(SPACE.sketch(SPACE.sample(rng)), teacher, sections(teacher))
            for _ in range(50)
        ]
    )
    assert len(np.unique(found, axis=0)) > 45
    assert ((found >= 0) & (found <= 3)).all()


def test_small_and_foreign_networks():
    tiny = network(4)
    assert hand_features(tiny, tiny, sections(tiny)).shape == (FEATURES,)
    with pytest.raises(ArgumentError, match="1 layers are not those of a teacher with 2"):
        hand_features(tiny, network(4, 4), sections(tiny))
