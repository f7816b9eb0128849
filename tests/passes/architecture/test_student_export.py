from __future__ import annotations

import onnx
import pytest
import torch
from search_nets import FAMILIES, HARDWARE, SmallResNet, SmallViT, genotypes, teacher

from energy_model.errors import UnsupportedBudget
from export.dense import write_dense
from passes.architecture.genotype import Genotype
from passes.architecture.space import SearchSpace
from transform.finished import traced_anew
from transform.limits import Subject


def single(make):
    return SearchSpace(teacher(make, dtype=torch.float32), HARDWARE, keys=("params", "macs"))


def write(student, folder, genotype):
    with torch.no_grad():
        # Unlike numbers: the exporter computes equal products once.
        for number, (name, parameter) in enumerate(student.runnable.named_parameters()):
            if name.startswith("skips."):
                parameter.fill_(0.25 + number / 100)
    finished = traced_anew(student, student.call)
    path = folder / f"{genotype.digest[:8]}.onnx"
    written = write_dense(finished, HARDWARE, path)
    assert written.parity.max_abs_error < 1e-4
    return onnx.load(path)


def operators(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.slow
@pytest.mark.parametrize("make", [SmallResNet, pytest.param(SmallViT, marks=pytest.mark.slow)])
def test_students_are_exported_and_compute_the_same(make, tmp_path):
    space = single(make)
    skips = [space.structure.names_of(pair) for pair in list(space.structure.skips)[::9]]
    part = next(p.name for p in space.structure.parts.values() if p.kind == "block")
    widths = {g.name: g.units // 2 for g in space.structure.groups.free if g.units > 3}
    genotype = space.repair(Genotype.of([part], widths, skips))
    assert genotype.skips
    found = operators(write(space.build(genotype), tmp_path, genotype))
    bare = Genotype(genotype.removed, genotype.widths)
    without = operators(write(space.build(bare), tmp_path, bare))
    for operator in ("Mul", "Add"):
        assert found.count(operator) - without.count(operator) == len(genotype.skips)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_twenty_students_of_every_family_are_exported(name, tmp_path):
    space = single(FAMILIES[name])
    for genotype in genotypes(space, 20):
        write(space.build(genotype), tmp_path, genotype)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if n else ()) for n, name in enumerate(FAMILIES)],
)
def test_no_file_is_larger_than_the_space_says(name):
    graph = teacher(FAMILIES[name], dtype=torch.float32)
    whole = Subject(graph, HARDWARE).onnx_bytes
    space = SearchSpace(graph, HARDWARE, keys=("size", "nonzeros"), file_bytes=whole)
    assert space.cost(Genotype())["size"] == whole
    drawn = genotypes(space, 6)
    assert any(genotype.skips for genotype in drawn) or name == "shufflenet"
    for genotype in drawn:
        student = space.build(genotype)
        found = Subject(traced_anew(student, student.call), HARDWARE).onnx_bytes
        at_most = space.cost(genotype)["size"]
        # Nodes and norms that are gone stay counted: in nets this small they weigh much.
        assert found <= at_most < whole
    with pytest.raises(UnsupportedBudget, match="size<=100%"):
        SearchSpace(graph, HARDWARE, keys=("size",))
