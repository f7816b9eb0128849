"""Every genotype of every family: legal, canonical, runnable, and exactly what was foretold."""

from __future__ import annotations

import random

import pytest
import torch
from search_nets import FAMILIES, HARDWARE, family, family_space, genotypes, outputs

from energy_model.errors import ArgumentError, PostconditionError, PreconditionError
from passes.analysis.costs import cost_table
from passes.architecture.genotype import Genotype
from passes.architecture.sketch import sketch_of
from passes.architecture.space import SearchSpace
from passes.inputs import as_call
from passes.rewrite.masks import attach_masks
from passes.tracing.trace import trace


def counted(graph):
    """The costs of a model as the pipeline counts them; parameters from the module."""
    table = cost_table(graph, HARDWARE)
    rows = [table[site.name] for site in graph.compressible]
    return {
        "energy": table.total.energy.relaxed,
        "params": sum(p.numel() for p in graph.runnable.parameters()),
        "macs": table.total.macs,
        "nonzeros": sum(row.nonzeros for row in rows),
        "weight_bits": sum(int(row.nonzeros * row.bits) for row in rows),
        "sparse_macs": sum(table[s.name].nonzeros * s.macs_per_weight() for s in graph.sites),
    }


def check(space, genotype, *, anew=False):
    """The student is what its genotype says, in every respect that is told without building it."""
    assert space.repair(genotype) == genotype
    assert space.violations(genotype) == []
    teacher = space.sketch(Genotype())
    student = space.build(genotype)
    assert sketch_of(student, like=teacher) == space.sketch(genotype)
    assert counted(student) == space.cost(genotype)
    if anew:
        assert counted(trace(student.runnable, student.call)) == space.cost(genotype)
    result, expected = outputs(student), outputs(space.structure.graph)
    assert result.shape == expected.shape
    assert torch.isfinite(result).all()
    return student


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", FAMILIES)
def test_students_are_what_their_genotypes_say(name):
    space = family_space(name)
    for number, genotype in enumerate(genotypes(space, 6)):
        check(space, genotype, anew=number == 0)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(10))
@pytest.mark.parametrize("name", FAMILIES)
def test_a_thousand_students_are_what_their_genotypes_say(name, chunk):
    space = family_space(name)
    for genotype in genotypes(space, 100, seed=1 + chunk):
        check(space, genotype)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_teacher_is_counted_as_the_pipeline_does(name):
    assert family_space(name).cost(Genotype()) == counted(family(name))
    assert family_space(name).sketch(Genotype()) == sketch_of(family(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_repair_is_idempotent_and_keeps_the_phenotype(name):
    space, rng = family_space(name), random.Random(3)
    for _ in range(20):
        wild = Genotype.of(
            rng.sample(sorted(space.structure.parts), k=len(space.structure.parts) // 2),
            {g.name: rng.randint(1, g.units) for g in space.structure.groups},
            [space.structure.names_of(p) for p in space.structure.skips if rng.random() < 0.3],
        )
        found = space.repair(wild)
        assert space.repair(found) == found
        assert space.violations(found) == []
        if not space.violations(wild):
            assert space.cost(wild) == space.cost(found)
            assert space.sketch(wild) == space.sketch(found)


@pytest.mark.parametrize("name", FAMILIES)
def test_sampling_and_mutation_follow_the_generator_alone(name):
    space = family_space(name)
    torch.manual_seed(1)
    random.seed(1)
    first = genotypes(space, 12, seed=5)
    torch.manual_seed(2)
    random.seed(2)
    assert genotypes(space, 12, seed=5) == first
    assert genotypes(space, 12, seed=6) != first
    assert len(set(first)) > 6


@pytest.mark.parametrize("name", FAMILIES)
def test_a_mutation_is_another_genotype(name):
    space, rng = family_space(name), random.Random(0)
    start = Genotype()
    for _ in range(20):
        after = space.mutate(start, rng)
        assert after != start
        start = after


@pytest.mark.parametrize("name", FAMILIES)
def test_every_single_gene_shows_in_the_sketch(name):
    space = family_space(name)
    teacher = space.sketch(Genotype())
    groups = space.structure.groups.free
    genes = [Genotype.of([part]) for part in space.structure.parts]
    genes += [Genotype.of(widths={group.name: group.units - 1}) for group in groups]
    genes += [Genotype.of(skips=[space.structure.names_of(p)]) for p in space.structure.skips]
    sketches = {}
    for gene in genes:
        assert space.violations(gene) == [] or gene.removed
        found = space.repair(gene)
        if found != Genotype():
            assert space.sketch(found) != teacher
            sketches.setdefault(space.sketch(found), set()).add(found)
    assert all(len(same) == 1 for same in sketches.values())


def test_building_leaves_the_teacher_alone():
    graph = family("cells")
    before = {name: t.clone() for name, t in graph.module.state_dict().items()}
    code, nodes = graph.graph_module.code, [str(n) for n in graph.graph_module.graph.nodes]
    for genotype in genotypes(family_space("cells"), 4):
        family_space("cells").build(genotype)
    assert all(torch.equal(before[n], t) for n, t in graph.module.state_dict().items())
    assert graph.graph_module.code == code
    assert [str(n) for n in graph.graph_module.graph.nodes] == nodes
    assert graph.module.act.inplace


def test_a_student_shares_nothing_with_its_teacher():
    graph = family("resnet")
    student = family_space("resnet").build(Genotype())
    held = {t.data_ptr() for t in graph.module.parameters()}
    assert not held & {t.data_ptr() for t in student.runnable.parameters()}


def test_names_of_other_models_are_refused():
    space = family_space("vgg")
    for other in (
        Genotype(("layer9",)),
        Genotype((), (("layer9", 3),)),
        Genotype((), (), (("layer9", "features.0"),)),
    ):
        assert "no such part" in space.violations(other)[0]
        for use in (space.repair, space.cost, space.sketch, space.build):
            with pytest.raises(ArgumentError, match="no such part"):
                use(other)


def test_illegal_genotypes_are_not_built():
    space = family_space("resnet")
    inside = Genotype.of(["add"], {}, [("conv1", "blocks.0.conv2")])
    assert "removed" in space.violations(inside)[0]
    with pytest.raises(ArgumentError, match=inside.digest):
        space.build(inside)
    wide = Genotype.of(widths={"fc": 3})
    assert space.violations(wide) == ["group 'fc' has 5 units, not 3"]


def test_a_build_that_fails_names_the_genotype(monkeypatch):
    space, genotype = family_space("resnet"), Genotype(("add",))

    def broken(student):
        raise ValueError("boom")

    monkeypatch.setattr("passes.architecture.build.observed_sites", broken)
    with pytest.raises(PostconditionError, match=f"{genotype.digest}.*ValueError: boom"):
        space.build(genotype)


class Branches(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(4, 4)

    def forward(self, x):
        y = self.a(x)
        return y if x.sum() > 0 else -y


def test_what_cannot_be_traced_cannot_be_searched():
    model = Branches()
    graph = trace(model, as_call(model, torch.ones(2, 4)))
    with pytest.raises(PreconditionError, match="cannot be traced as a whole"):
        SearchSpace(graph, HARDWARE)


def test_masked_weights_cannot_be_searched():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    graph = trace(model, as_call(model, torch.ones(2, 4)))
    attach_masks(graph, {"0": torch.ones(4, 4, dtype=torch.bool)})
    with pytest.raises(PreconditionError, match="parametrized"):
        SearchSpace(graph, HARDWARE)
