"""Tokens: columns by hand, what changes them, and the layout of the paper."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from paper_tokens import PaperNode, paper_tokens
from toy_space import GROUPS, PAIRS, REMOVABLE, SPACE, toy_layer

from energy_model.errors import ArgumentError
from passes.architecture.genotype import Genotype
from passes.architecture.sketch import Sketch, without
from passes.embedding.encoder import Encoder, TokenBatch
from passes.embedding.tokens import FEATURES, KINDS, tokens

SCALARS = len(KINDS)
LINKS = FEATURES - 26
TEACHER = SPACE.sketch(Genotype())


def own(sketch):
    return tokens(sketch, sketch)


def row_of(**fields):
    """Scalars of a layer of width 16 whose teacher is 64 wide everywhere."""
    layer = toy_layer(**fields)
    teacher = Sketch((toy_layer(),), ())
    return tokens(Sketch((layer,), ()), teacher)[0, SCALARS:LINKS]


def test_the_shape_and_the_type():
    found = own(TEACHER)
    assert found.shape == (6, FEATURES) and found.dtype == np.float32
    assert FEATURES == 11 + 21 + 26


def test_scalars_by_hand():
    row = row_of(kernel=4, stride=2, dilation=2, groups=4, in_width=16, out_width=64)
    assert row[:4].tolist() == [0.5, 0.25, 0.25, 0.25]
    assert row[4:6] == pytest.approx([4 / 6, 1.0])
    assert row[6:8].tolist() == [0.25, 1.0]
    weights, whole = 16 * 64 * 16, 64 * 64 * 9
    assert row[8] == pytest.approx(np.log1p(weights) / np.log1p(whole))
    assert row[9] == pytest.approx(np.log1p(weights * 64) / np.log1p(whole * 64))
    assert row[10] == 1.0
    assert row[11:13].tolist() == [1.0, 1.0]
    assert row[13:18].tolist() == [0.0] * 5
    assert row[18:].tolist() == [1.0, 1.0, 1.0]


def test_links_by_hand():
    layers = tuple(toy_layer(str(number)) for number in range(71))
    edges = ((0, 1), (0, 6), (1, 6), (0, 7), (6, 70))
    found = own(Sketch(layers, edges, ((1, 6),)))
    into, out = found[:, LINKS : LINKS + 13], found[:, LINKS + 13 :]
    # Distances 1; 5-6; 7-8 and 49-64 have the buckets 0, 4, 5 and 11.
    assert np.flatnonzero(into[1]).tolist() == [0]
    assert np.flatnonzero(into[6]).tolist() == [4]
    assert np.flatnonzero(into[7]).tolist() == [5]
    assert np.flatnonzero(into[70]).tolist() == np.flatnonzero(out[6]).tolist() == [11]
    assert np.flatnonzero(out[0]).tolist() == [0, 4, 5]
    degrees = found[:, SCALARS + 13 : SCALARS + 17] * 4
    assert degrees[0].tolist() == [0, 3, 0, 0]
    assert degrees[1].tolist() == [1, 1, 0, 1]
    assert degrees[6].tolist() == [2, 1, 1, 0]
    # The longest way is 0, 1, 6, 70.
    assert found[[0, 1, 6, 7, 70], SCALARS + 17] == pytest.approx([0, 1 / 3, 2 / 3, 1 / 3, 1])


def test_a_link_without_end_has_a_bucket():
    layers = tuple(toy_layer(str(number)) for number in range(200))
    found = own(Sketch(layers, ((0, 199),)))
    assert np.flatnonzero(found[199, LINKS:]).tolist() == [12]


@pytest.mark.parametrize("kind", [*KINDS[:-1], "something new"])
def test_kinds(kind):
    found = own(Sketch((toy_layer(kind=kind),), ()))[0]
    column = KINDS.index(kind if kind in KINDS else "other")
    assert np.flatnonzero(found[: len(KINDS)]).tolist() == [column]


def test_a_removed_layer_keeps_its_row():
    removed = without(toy_layer())
    found = tokens(Sketch((removed,), ()), Sketch((toy_layer(),), ()))[0]
    assert np.flatnonzero(found[: len(KINDS)]).tolist() == [KINDS.index("removed")]
    assert not found[SCALARS + 4 : SCALARS + 18].any()


def test_everything_is_about_one():
    rng = random.Random(0)
    for _ in range(100):
        found = tokens(SPACE.sketch(SPACE.sample(rng)), TEACHER)
        assert np.isfinite(found).all() and np.abs(found).max() <= 1.5


def test_equal_genotypes_have_equal_bits():
    for seed in range(20):
        genotype = SPACE.sample(random.Random(seed))
        again = Genotype.from_dict(genotype.to_dict())
        first, second = (tokens(SPACE.sketch(g), TEACHER) for g in (genotype, again))
        assert first.tobytes() == second.tobytes()


def single_changes(genotype):
    """All genotypes that differ in one gene."""
    removed, widths, skips = set(genotype.removed), dict(genotype.widths), set(genotype.skips)
    yield from (Genotype.of(removed ^ {name}, widths, skips) for name in REMOVABLE)
    yield from (Genotype.of(removed, widths, skips ^ {pair}) for pair in PAIRS)
    for group in GROUPS:
        units = widths.get(group, 64)
        for other in (units - 1, units + 1):
            if 1 <= other < 64:
                yield Genotype.of(removed, {**widths, group: other}, skips)


def test_every_single_gene_shows():
    for seed in range(20):
        genotype = SPACE.sample(random.Random(seed))
        before = tokens(SPACE.sketch(genotype), TEACHER).tobytes()
        for other in single_changes(genotype):
            group = {name for name, _ in set(genotype.widths) ^ set(other.widths)}
            if group and group_is_gone(genotype, group.pop()):
                continue  # the width of layers that are not there
            assert tokens(SPACE.sketch(other), TEACHER).tobytes() != before, (genotype, other)


def group_is_gone(genotype, group):
    """Whether nothing in the toy network has the width of a group any more."""
    layers = SPACE.sketch(genotype).layers
    number = GROUPS.index(group)
    users = layers[2 * number : 2 * number + 3]
    return all(layer.removed for layer in users)


def test_names_do_not_matter_and_order_does():
    renamed = tuple(replace(layer, name=f"x{layer.name}") for layer in TEACHER.layers)
    assert np.array_equal(own(replace(TEACHER, layers=renamed)), own(TEACHER))
    swapped = replace(TEACHER, layers=TEACHER.layers[::-1])
    assert not np.array_equal(own(swapped), own(TEACHER))


def test_another_network_is_refused():
    with pytest.raises(ArgumentError, match="5 layers are not those of a teacher with 6"):
        tokens(replace(TEACHER, layers=TEACHER.layers[1:], edges=()), TEACHER)


def test_the_layout_of_the_paper_by_hand():
    nodes = [
        PaperNode("conv", 3, 1, 1, 1, (3, 64)),
        PaperNode("batch_norm"),
        PaperNode("linear", channels=(64, 10)),
    ]
    found = paper_tokens(nodes, [(0, 1), (1, 2), (0, 2)])
    assert found.shape == (3, 272)
    expected = np.zeros((3, 272))
    expected[0, [4, 10, 11, 12, 13, 14, 15]] = [1, 3, 1, 1, 1, 3, 64]
    expected[0, [145, 146]] = 1  # out-links to 1 and 2
    expected[1, [8, 17, 145]] = 1  # in-link from 0, out-link to 2
    expected[2, [9, 14, 15]] = [1, 64, 10]
    expected[2, [17, 18]] = 1  # in-links from 1 and 0
    assert np.array_equal(found, expected)


def test_the_encoder_of_the_paper_reads_the_layout_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    encoder = Encoder(272, hidden=64, layers=4, generator=generator)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 471_040
    nodes = [PaperNode("conv", 3, 1, 1, 1, (3, 64)), PaperNode("relu")]
    embedding = encoder(TokenBatch.of([paper_tokens(nodes, [(0, 1)])]))
    assert embedding.shape == (1, 128)
    assert float(embedding.detach().norm()) == pytest.approx(1, abs=1e-6)
