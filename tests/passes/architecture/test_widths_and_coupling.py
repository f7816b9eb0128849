from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from search_nets import FAMILIES, HARDWARE, family, family_space, genotypes, outputs, space_of
from search_nets import teacher as traced_teacher
from torch import nn

from passes.architecture.coupling import Merge, components
from passes.architecture.genotype import Genotype
from passes.architecture.phenotype import phenotype_of
from passes.architecture.policy import Policy
from passes.architecture.space import SearchSpace
from passes.graph import LayerRule, ModelGraph
from passes.rewrite.gates import insert_gates
from passes.structure.groups import channel_groups
from passes.structure.importance import norm_scores


def state_of(graph, student):
    """Which units of a graph's groups a student kept, from what it says of each tensor."""
    state = {}
    for group in channel_groups(graph).free:
        keep = np.ones(group.units, dtype=bool)
        for member in group.members:
            left = student.kept.get(member.name, {}).get(member.dim)
            if left is not None:
                gone = np.setdiff1d(np.arange(len(member.units)), left)
                keep[member.units[gone][member.units[gone] >= 0]] = False
        state[group.name] = keep
    return state


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_narrow_student_is_its_teacher_with_channels_set_to_zero(name):
    """Spec of the removal of channels: masked equals shrunk, with removals and skips there too."""
    space, rng = family_space(name), random.Random(4)
    for _ in range(2):
        genotype = space.sample(rng)
        wide = space.build(Genotype(genotype.removed, (), genotype.skips))
        student = space.build(genotype)
        for graph in (wide, student):
            for key, parameter in graph.runnable.named_parameters():
                if key.startswith("skips."):
                    parameter.data.fill_(0.2)
        masked = insert_gates(wide, channel_groups(wide), state_of(wide, student)).eval()
        expected = outputs(ModelGraph(masked, masked, wide.call, (), rewritten=True))
        torch.testing.assert_close(outputs(student), expected, rtol=0, atol=1e-9)
        assert float((expected - outputs(wide)).abs().max()) > 1e-6


@pytest.mark.parametrize("name", FAMILIES)
def test_full_widths_are_no_change(name):
    space = family_space(name)
    whole = Genotype.of(widths={g.name: g.units for g in space.structure.groups})
    assert space.violations(whole) == []
    assert space.repair(whole) == Genotype()


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", FAMILIES)
def test_groups_of_students_are_the_components_that_were_foretold(name):
    """What is one group in a student is one component of what its genotype ties."""
    space = family_space(name)
    structure = space.structure
    places = {
        (m.path, m.attribute, m.dim, i): (number, unit)
        for number, group in enumerate(structure.groups)
        for m in group.members
        for i, unit in enumerate(m.units.tolist())
        if unit >= 0
    }
    for genotype in genotypes(space, 4, seed=2):
        found = phenotype_of(structure, genotype)
        merges = [p.merge for p in found.parts] + [structure.skips[s].merge for s in found.skips]
        roots = components(len(structure.groups), merges)
        student = space.build(Genotype(genotype.removed, (), genotype.skips))
        for group in channel_groups(student):
            met = [
                places[m.path, m.attribute, m.dim, i]
                for m in group.members
                for i, unit in enumerate(m.units.tolist())
                if unit >= 0 and (m.path, m.attribute, m.dim, i) in places
            ]
            free = {number for number, _ in met if not structure.groups[number].frozen}
            if not group.frozen:
                assert len({roots[number] for number in free}) <= 1
            else:
                assert all(found.fixed[number] for number in free)


def test_a_removed_layer_joins_the_groups_before_and_behind_it():
    space = family_space("vgg")
    names = ("features.7", "features.10", "features.13")
    asked = Genotype.of(["features.10"], {"features.7": 4, "features.10": 7})
    found = space.repair(asked)
    assert dict(found.widths) == {"features.7": 4, "features.10": 4}
    assert "has 4 units, not 7" in space.violations(asked)[0]
    other = Genotype.of(["features.10"], {"features.7": 7, "features.10": 4})
    assert space.repair(other) == found
    student = space.build(found)
    assert student.runnable.get_submodule(names[0]).out_channels == 4
    assert student.runnable.get_submodule(names[2]).in_channels == 4


def test_a_skip_joins_the_groups_of_its_ends():
    space = family_space("vgg")
    pair = next(
        (s, t) for s, t in space.structure.skips if space.structure.steps[t].label == "features.13"
    )
    skip = space.structure.names_of(pair)
    found = space.repair(Genotype.of([], {"features.10": 5}, [skip]))
    assert len(found.widths) == 2
    assert {units for _, units in found.widths} == {5}


def test_what_joins_a_frozen_group_stays_whole():
    graph = traced_teacher(FAMILIES["vgg"])
    graph.rules["features.7"] = LayerRule(1.0)
    space = SearchSpace(graph, HARDWARE)
    asked = Genotype.of(widths={"features.10": 3})
    assert space.repair(asked) == asked
    assert space.repair(Genotype.of(["features.10"], {"features.10": 3})).widths == ()


class Shuffled(nn.Module):
    """A depthwise convolution works on the channels in another order."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.c = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        first = torch.relu(self.a(x))
        mixed = torch.flatten(torch.unflatten(first, 1, (2, -1)).transpose(1, 2), 1, 2)
        second = torch.relu(self.b(mixed))
        return self.head(torch.relu(self.c(second))).mean((2, 3))


def test_channels_in_another_order_are_never_added():
    space = SearchSpace(traced_teacher(Shuffled), HARDWARE)
    why = "the channels of a and c lie in different orders"
    assert set(space.structure.parts) == {"b"}
    assert ("c", why) in {(d.layer, d.why) for d in space.decisions}
    pairs = {space.structure.names_of(pair) for pair in space.structure.skips}
    assert ("relu", "c") not in pairs
    steps = {step.label: step.node for step in space.structure.steps}
    mixed = space.structure.maps.merge(steps["relu"], steps["relu_1"])
    assert mixed == "the channels of a and a lie in different orders"


def test_components_are_those_of_the_ties():
    merges = [Merge(((3, 5), (1, 2))), Merge(((2, 3),)), Merge(((0, 7),))]
    assert components(8, merges) == [0, 1, 1, 1, 4, 1, 6, 0]


def test_the_heaviest_units_stay_or_the_first():
    graph = family("resnet")
    genotype = Genotype.of(widths={"conv1": 3, "blocks.3.conv1": 5})
    groups = channel_groups(graph)
    scores = norm_scores(graph, groups, 1)
    heavy = family_space("resnet").build(genotype)
    first = space_of("resnet", Policy(importance="leading")).build(genotype)
    for name, units in genotype.widths:
        best = np.sort(np.argsort(-scores[name], kind="stable")[:units])
        assert heavy.kept[f"{name}.weight"][0].tolist() == best.tolist()
        assert first.kept[f"{name}.weight"][0].tolist() == list(range(units))
    assert heavy.kept["bn1.running_var"][0].tolist() == heavy.kept["conv1.weight"][0].tolist()
    kept = heavy.kept["bn1.running_var"][0]
    expected = graph.module.bn1.running_var[torch.from_numpy(kept)]
    assert torch.equal(heavy.runnable.get_submodule("bn1").running_var, expected)


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", FAMILIES)
def test_widths_follow_the_hardware(name):
    space = space_of(name, hardware=HARDWARE.replace(channel_multiple=4))
    for genotype in genotypes(space, 8):
        for group, units in genotype.widths:
            found = space.structure.groups.by_name[group]
            assert units * found.unit_size % 4 == 0 or units == found.units
        assert space.violations(genotype) == []


def test_widths_are_tied_as_the_policy_says():
    free = space_of("resnet").structure
    assert [len(numbers) for numbers in free.classes] == [1] * 7
    tied = space_of("resnet", Policy(widths="width"))
    by_width = sorted(len(numbers) for numbers in tied.structure.classes)
    assert by_width == [3, 4]
    for genotype in genotypes(tied, 6):
        widths = dict(genotype.widths)
        for numbers in tied.structure.classes:
            names = [tied.structure.groups[n].name for n in numbers]
            assert len({widths[name] for name in names if name in widths}) <= 1
    graph = traced_teacher(TwoSizes)
    for policy, expected in (("width", [["0", "2", "5"]]), ("stage", [["0", "2"], ["5"]])):
        found = SearchSpace(graph, HARDWARE, Policy(widths=policy)).structure
        assert [[found.groups[n].name for n in each] for each in found.classes] == expected


class TwoSizes(nn.Sequential):
    """One width at two spatial sizes."""

    def __init__(self):
        layers = [nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*layers, nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
