"""Which layers can be refitted, and which channels of the original theirs are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.utils import parametrize

from passes.graph import Decision, ModelGraph, Site
from passes.quantize.encoding import Encoding
from passes.reconstruct.moments import Layer
from passes.reconstruct.walk import Walk


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A layer that is to be refitted.

    Attributes:
        site: Its weight.
        node: Its call.
        layer: The layer.
        source: The call of the same layer in the original.
        rows: The original's output channels that are left; `None` is all.
        prior: The weight that the new one stays near.
        encoding: Its grid, if it has one.
    """

    site: Site
    node: Node
    layer: Layer
    source: Node
    rows: Tensor | None
    prior: Tensor
    encoding: Encoding | None


def kept_indices(graph: ModelGraph, name: str) -> Mapping[int, Tensor]:
    """Of every cut dimension of a parameter or buffer, the original's indices that are left."""
    return {dim: torch.from_numpy(left) for dim, left in graph.kept.get(name, {}).items()}


def kept_channels(graph: ModelGraph, name: str) -> Tensor | None:
    """Indices along the first dimension that are left of the original's; `None` if all are."""
    return kept_indices(graph, name).get(0)


def find_subjects(
    graph: ModelGraph, walk: Walk, original: Walk
) -> tuple[dict[Node, Subject], list[Decision]]:
    """The layers that can be refitted, by their calls, and why the others are left alone.

    Args:
        graph: The compressed model.
        walk: Along its graph.
        original: Along the graph of the original.
    """
    read = {str(n.target) for w in (walk, original) for n in w.nodes if n.op == "get_attr"}
    subjects: dict[Node, Subject] = {}
    alone = []
    for site in graph.sites:
        found = _subject(graph, site, walk, original, read)
        if isinstance(found, Subject):
            subjects[found.node] = found
        else:
            alone.append(Decision(site.name, "not reconstructed", found))
    return subjects, alone


def _subject(
    graph: ModelGraph, site: Site, walk: Walk, original: Walk, read: set[str]
) -> Subject | str:
    why = _why_alone(graph, site, walk, read)
    if why:
        return why
    path, attribute = site.owners[0]
    (node,) = walk.calls_of(path)
    layer: Any = walk.layer(node)
    sources = original.calls_of(path)
    dense: Any = original.layer(sources[0]) if len(sources) == 1 else None
    if type(dense) is not type(layer):
        return "the original has no such layer"
    kept = kept_indices(graph, f"{path}.{attribute}")
    prior: Tensor = dense.weight.detach()
    for dim, left in kept.items():
        prior = prior.index_select(dim, left.to(prior.device))
    if prior.shape != layer.weight.shape:
        return "its shape is not the original's, and which channels are left is not known"
    encoding = graph.encodings.get(site.name)
    if encoding is not None and (encoding.axis, len(encoding.scale)) != (0, len(prior)):
        return "its grid is not one of its output channels"
    return Subject(site, node, layer, sources[0], kept.get(0), prior, encoding)


def _why_alone(graph: ModelGraph, site: Site, walk: Walk, read: set[str]) -> str:
    """Why a layer cannot be refitted; empty if it can."""
    rule = graph.rules.get(site.name)
    if rule is not None and rule.min_density >= 1:
        return "a rule leaves the layer alone"
    if site.computed:
        return "its weight is computed in every forward pass"
    if site.opaque:
        return "it lies inside a leaf that could not be traced"
    if len(site.owners) > 1:
        return "its weight is tied"
    path, attribute = site.owners[0]
    weight, layer = graph.parameter(site), graph.module.get_submodule(path)
    if parametrize.is_parametrized(layer):
        return "its weight is parametrized"
    if attribute != "weight" or type(layer) not in (nn.Linear, nn.Conv1d, nn.Conv2d):
        return f"there is no rule for {type(layer).__name__}"
    calls = walk.calls_of(path)
    if len(calls) != 1 or len(calls[0].all_input_nodes) != 1 or f"{path}.weight" in read:
        return "its weight is not used by exactly one call of the layer"
    if layer._forward_hooks or layer._forward_pre_hooks or not weight.is_floating_point():
        return "it does more than multiply with its weight"
    return ""
