"""The frozen form of a finished model: a copy in evaluation mode, batch norms folded."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import Tensor, nn

from energy_model.errors import CompressionError
from passes.graph import ModelGraph, Site
from passes.isolation import evaluating
from passes.rewrite.fold_batch_norm import fold_batch_norms
from passes.tracing.symbolic import graph_module, trace_mode


@dataclass(frozen=True, slots=True)
class Frozen:
    """A model ready to be exported.

    Attributes:
        module: A copy that nothing else shares, in evaluation mode.
        weights: Its weight per site, in the layout of the original parameter.
        folded: Paths of the batch norms that are part of their layer now.
    """

    module: nn.Module
    weights: dict[str, Tensor]
    folded: tuple[str, ...]


def freeze(graph: ModelGraph) -> Frozen:
    """Copy a finished model and fold what is constant.

    Args:
        graph: A graph whose methods are finalized; it is not changed.
    """
    model = copy.deepcopy(graph.runnable).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    module: nn.Module = model
    folded: list[str] = []
    if graph.graph_module is not None:
        with evaluating(model):
            traced = trace_mode(model, graph.call, graph.leaves)
        if traced.graph is not None:
            traced_module = graph_module(model, traced)
            folded = fold_batch_norms(traced_module, _flat(graph))
            module = traced_module
    copied = ModelGraph(model, None, graph.call, graph.sites)
    weights = {site.name: _weight(copied, site) for site in graph.compressible}
    return Frozen(module.eval(), weights, tuple(folded))


def _flat(graph: ModelGraph) -> frozenset[str]:
    """Layers that are only ever applied to one position a sample."""
    flat = (s for s in graph.sites if all(use.shape.positions == 1 for use in s.uses))
    return frozenset(path for site in flat for path, _ in site.owners)


def _weight(graph: ModelGraph, site: Site) -> Tensor:
    try:
        return graph.weight(site)
    except AttributeError as error:
        raise CompressionError("the weight is gone from the model", where=site.name) from error
