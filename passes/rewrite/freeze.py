"""The frozen form of a finished model: a copy in evaluation mode, batch norms folded."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import Tensor, nn

from energy_model.errors import CompressionError
from passes.graph import ModelGraph, Site
from passes.isolation import evaluating
from passes.quantize.encoding import Encoding
from passes.rewrite.fold_batch_norm import fold_batch_norms
from passes.rewrite.plain_norms import make_plain
from passes.tracing.symbolic import graph_module, trace_mode


@dataclass(frozen=True, slots=True)
class Frozen:
    """A model ready to be exported.

    Attributes:
        module: A copy that nothing else shares, in evaluation mode.
        weights: Its weight per site, in the layout of the original parameter.
        folded: Paths of the batch norms that are part of their layer now.
        encodings: How its weights are written, by site; each weight is exactly what its encoding
            writes, also where a norm was folded into it.
    """

    module: nn.Module
    weights: dict[str, Tensor]
    folded: tuple[str, ...]
    encodings: dict[str, Encoding]


def freeze(graph: ModelGraph) -> Frozen:
    """Copy a finished model and fold what is constant.

    Args:
        graph: A graph whose methods are finalized; it is not changed.

    Raises:
        PostconditionError: A weight is not what its encoding writes.
    """
    model = copy.deepcopy(graph.runnable).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    module: nn.Module = model
    folded: list[str] = []
    by_path = _encodings_by_path(graph)
    if graph.graph_module is not None:
        with evaluating(model):
            traced = trace_mode(model, graph.call, graph.leaves)
        if traced.graph is not None:
            traced_module = graph_module(model, traced)
            folded = fold_batch_norms(traced_module, _flat(graph), by_path, _with_codebooks(graph))
            module = traced_module
    if graph.codebooks:
        make_plain(module)
    copied = ModelGraph(model, None, graph.call, graph.sites)
    weights = {site.name: _weight(copied, site) for site in graph.compressible}
    encodings = dict(graph.encodings)
    for site in _layers_weights(graph):
        encodings[site.name] = by_path[site.owners[0][0]]
    for name, encoding in encodings.items():
        encoding.check(in_rows(weights[name], encoding), name)
    return Frozen(module.eval(), weights, tuple(folded), encodings)


def in_rows(weight: Tensor, encoding: Encoding) -> Tensor:
    """The weight, one that is a part of a parameter (shape `(size,)`) as the matrix that it is."""
    return weight.reshape(len(encoding.scale), -1) if weight.dim() == 1 else weight


def _encodings_by_path(graph: ModelGraph) -> dict[str, Encoding]:
    sites = _layers_weights(graph)
    return {path: graph.encodings[site.name] for site in sites for path, _ in site.owners}


def _layers_weights(graph: ModelGraph) -> list[Site]:
    """Sites with an encoding that are the parameter `weight` of a layer, and all of it."""
    return [
        site
        for site in graph.compressible
        if site.name in graph.encodings
        and all(attribute == "weight" for _, attribute in site.owners)
        and site.size == graph.parameter(site).numel()
    ]


def _with_codebooks(graph: ModelGraph) -> frozenset[str]:
    """Layers whose weights have a codebook: scaled rows would no longer share its values."""
    named = [site for site in graph.compressible if site.name in graph.codebooks]
    return frozenset(path for site in named for path, _ in site.owners)


def _flat(graph: ModelGraph) -> frozenset[str]:
    """Layers that are only ever applied to one position a sample."""
    flat = (s for s in graph.sites if all(use.shape.positions == 1 for use in s.uses))
    return frozenset(path for site in flat for path, _ in site.owners)


def _weight(graph: ModelGraph, site: Site) -> Tensor:
    try:
        return graph.weight(site)
    except AttributeError as error:
        raise CompressionError("the weight is gone from the model", where=site.name) from error
