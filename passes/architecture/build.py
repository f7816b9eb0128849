"""Build a student: remove parts, add skips, then cut channels; the order matters.

Removals and skips make channel groups grow together, so the groups are found anew on the rewritten
graph, and the units that stay are chosen there: those of the largest weights, summed over all
layers that hold the unit.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import GraphModule, Node

from energy_model.errors import PostconditionError
from passes.architecture.genotype import Genotype
from passes.architecture.phenotype import Phenotype
from passes.architecture.steps import SKIP_NODE, SKIP_SCALES, output_shapes, traced_module
from passes.architecture.structure import Structure
from passes.graph import Decision, ModelGraph, Site
from passes.isolation import copied
from passes.rewrite.shrink import shrink
from passes.structure.groups import ChannelGroup, ChannelGroups, channel_groups
from passes.structure.importance import norm_scores
from passes.tracing.trace import observed_sites

_WHY = "chosen by the search"


def build_student(structure: Structure, genotype: Genotype, phenotype: Phenotype) -> ModelGraph:
    """A student of a teacher, with the teacher's weights in what is left.

    Args:
        structure: The teacher; it is not changed.
        genotype: For messages.
        phenotype: What to make of the teacher.

    Returns:
        A graph that shares nothing with the teacher. Its module is the rewritten graph module.

    Raises:
        PostconditionError: The student does not run, or its outputs have other shapes.
    """
    try:
        student = _rewritten(structure, phenotype)
        if not _cut(structure, phenotype, student):
            student.sites = observed_sites(student)
        student.sites = _named(structure.graph, student.sites)
        _check_outputs(structure, student)
    except Exception as error:
        raise PostconditionError(
            f"the student cannot be built: {type(error).__name__}: {error}",
            where=f"genotype {genotype.digest}",
            remedy="Leave this genotype out, and please report it with the model.",
        ) from error
    return student


def _rewritten(structure: Structure, phenotype: Phenotype) -> ModelGraph:
    teacher = structure.graph
    original = traced_module(teacher)
    device = next((p.device for p in original.parameters()), torch.device("cpu"))
    module: Any = copied(original, device)
    nodes = _same_nodes(original, module)
    for index in np.flatnonzero(phenotype.dead).tolist():
        resolved = phenotype.resolved[index]
        if resolved != index:
            nodes[index].replace_all_uses_with(nodes[resolved])
    for index in np.flatnonzero(phenotype.dead)[::-1].tolist():
        module.graph.erase_node(nodes[index])
    for number, (source, target) in enumerate(phenotype.skips):
        dtype = structure.steps[source].dtype
        _insert(structure, module, number, nodes[source], nodes[target], dtype)
    _drop_unused(module)
    module.graph.lint()
    module.recompile()
    paths = {path for path, _ in module.named_modules()}
    return ModelGraph(
        module,
        module,
        teacher.call,
        tuple(s for s in teacher.sites if all(path in paths for path, _ in s.owners)),
        tuple(leaf for leaf in teacher.leaves if leaf.path in paths),
        [*teacher.decisions, *_decisions(structure, phenotype)],
        dict(teacher.rules),
        rewritten=True,
    )


def _same_nodes(original: GraphModule, copy: GraphModule) -> list[Node]:
    """The nodes of a copy, in order, under the names of the original."""
    nodes = list(copy.graph.nodes)
    for old, new in zip(original.graph.nodes, nodes, strict=True):
        if old.name != new.name:
            new._rename(old.name)
    return nodes


def _insert(
    structure: Structure,
    module: GraphModule,
    number: int,
    source: Node,
    target: Node,
    dtype: torch.dtype | None,
) -> None:
    """Add a value to the data input of an operation, and of nothing else that reads it.

    A gated skip is plain arithmetic with a parameter, `x_j + scale * x_i`: channel groups, the
    exporter and stored graphs need to know nothing new.
    """
    graph, name = module.graph, f"{SKIP_NODE}_{number}"
    data = next(n for n in _arguments(target))
    with graph.inserting_before(target):
        added: Node = source
        if structure.policy.skips == "gated":
            path = f"{SKIP_SCALES}.scale_{number}"
            _add_scale(module, path, dtype)
            scale = graph.get_attr(path)
            added = graph.create_node(
                "call_function", operator.mul, (source, scale), name=f"{name}_scaled"
            )
        total = graph.create_node("call_function", operator.add, (data, added), name=name)
    target.replace_input_with(data, total)


def _add_scale(module: GraphModule, path: str, dtype: torch.dtype | None) -> None:
    """A learnable number that starts at 0, so that the student computes what it did before."""
    holder, _, name = path.rpartition(".")
    if not hasattr(module, holder):
        module.add_submodule(holder, nn.Module())
    device = next(module.parameters()).device
    scale = nn.Parameter(torch.zeros((), dtype=dtype, device=device))
    module.get_submodule(holder).register_parameter(name, scale)


def _arguments(target: Node) -> list[Node]:
    """What an operation works on: its first argument that is computed."""
    return [n for n in target.all_input_nodes if n.op != "get_attr"]


def _drop_unused(module: GraphModule) -> None:
    """Delete layers and parameters that no node needs."""
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and not node.users:
            module.graph.erase_node(node)
    targets = {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}
    module.delete_all_unused_submodules()
    called = {str(n.target) for n in module.graph.nodes if n.op == "call_module"}
    for path, part in module.named_modules():
        inside = any(path == target or path.startswith(f"{target}.") for target in called)
        for name in () if inside else (*part._parameters, *part._buffers):
            if (f"{path}.{name}" if path else name) not in targets:
                delattr(part, name)


def _decisions(structure: Structure, phenotype: Phenotype) -> list[Decision]:
    steps = structure.steps
    removed = [Decision(p.name, f"{p.kind} removed", _WHY) for p in phenotype.parts]
    added = [
        Decision(steps[target].label, f"skip from {steps[source].label} added", _WHY)
        for source, target in phenotype.skips
    ]
    return removed + added


def _named(teacher: ModelGraph, found: Iterable[Site]) -> tuple[Site, ...]:
    """Give sites the teacher's names: a graph may hold tied weights in another order."""
    names = {(o, site.start, site.size): site.name for site in teacher.sites for o in site.owners}

    def name(site: Site) -> str:
        known = (names.get((owner, site.start, site.size)) for owner in site.owners)
        return next((found for found in known if found is not None), site.name)

    return tuple(replace(site, name=name(site)) for site in found)


def _cut(structure: Structure, phenotype: Phenotype, student: ModelGraph) -> bool:
    """Remove the units that do not stay; whether there were any."""
    numbers = [n for n, rule in enumerate(structure.rules) if phenotype.kept[n] < rule.units]
    if not numbers:
        return False
    groups = channel_groups(student)
    teacher = _teacher_units(structure, groups)
    scores = norm_scores(student, groups, 1) if structure.policy.importance == "norm" else {}
    keep = _chosen(structure, phenotype, groups, teacher, scores)
    state = {group.name: _kept_units(group, teacher[group.name], keep) for group in groups}
    for group in groups:
        if group.frozen and not state.pop(group.name).all():
            raise PostconditionError(
                f"channels were to go that must stay: {group.why}", where=group.name
            )
    return bool(shrink(student, groups, state, why=_WHY))


# Of a student's group, for every place of a member: the teacher's group and unit there.
Origins = list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]


def _teacher_units(structure: Structure, groups: ChannelGroups) -> dict[str, Origins]:
    """Where the units of a student's groups come from."""
    places: dict[tuple[str, str, int], list[tuple[int, NDArray[np.int64]]]] = {}
    for number, group in enumerate(structure.groups):
        for member in group.members:
            place = (member.path, member.attribute, member.dim)
            places.setdefault(place, []).append((number, member.units))
    found: dict[str, Origins] = {}
    for group in groups:
        found[group.name] = []
        for member in group.members:
            place = (member.path, member.attribute, member.dim)
            for number, units in places.get(place, ()):
                mine = (member.units >= 0) & (units >= 0)
                own, theirs = member.units[mine], units[mine]
                found[group.name].append((own, np.full(len(own), number), theirs))
    return found


def _chosen(
    structure: Structure,
    phenotype: Phenotype,
    groups: ChannelGroups,
    teacher: dict[str, Origins],
    scores: dict[str, NDArray[np.float64]],
) -> dict[int, NDArray[np.bool_]]:
    """Of every narrowed group of the teacher, which of its units stay.

    Groups that share units in the student keep the same ones.
    """
    roots = _joined(structure, groups, teacher)
    summed = {n: np.zeros(structure.rules[n].units) for n in set(roots)}
    for group in groups.free:
        if group.name not in scores:
            continue
        seen: set[tuple[int, int, int]] = set()
        for own, numbers, units in teacher[group.name]:
            for key in zip(own.tolist(), numbers.tolist(), units.tolist(), strict=True):
                place = (key[0], roots[key[1]], key[2])
                if place not in seen:
                    seen.add(place)
                    summed[place[1]][place[2]] += scores[group.name][key[0]]
    keep = {}
    for number, rule in enumerate(structure.rules):
        count = int(phenotype.kept[number])
        if count < rule.units:
            order = np.argsort(-summed[roots[number]], kind="stable")[:count]
            keep[number] = np.zeros(rule.units, dtype=bool)
            keep[number][order] = True
    return keep


def _joined(structure: Structure, groups: ChannelGroups, teacher: dict[str, Origins]) -> list[int]:
    """The smallest group of the teacher that each is one with in the student."""
    roots = list(range(len(structure.groups)))
    for group in groups:
        met = sorted({int(n) for _, numbers, _ in teacher[group.name] for n in numbers[:1]})
        for number in met[1:]:
            low, high = sorted((roots[met[0]], roots[number]))
            roots = [low if root == high else root for root in roots]
    return roots


def _kept_units(
    group: ChannelGroup, origins: Origins, keep: dict[int, NDArray[np.bool_]]
) -> NDArray[np.bool_]:
    stays = np.ones(group.units, dtype=bool)
    for own, numbers, units in origins:
        if len(own) and int(numbers[0]) in keep:
            stays[own[~keep[int(numbers[0])][units]]] = False
    return stays


def _check_outputs(structure: Structure, student: ModelGraph) -> None:
    """Run the student once: its outputs must have the shapes of the teacher's."""
    expected = structure.outputs
    found = output_shapes(student)
    if found != expected:
        raise PostconditionError(f"its outputs are {found}, those of the teacher {expected}")
