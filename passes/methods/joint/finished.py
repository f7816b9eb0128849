"""Write a solution into a model: exact values, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from passes.graph import ModelGraph, Site
from passes.joint.codebook import Codebook
from passes.joint.lloyd import rounded
from passes.methods.joint.solve import FULL, Solution
from passes.methods.joint.targets import Targets
from passes.quantize.eligible import axis_of, rows_of
from passes.quantize.encoding import Encoding, snap
from passes.quantize.widths import apply_widths
from passes.rewrite.plain_norms import norms_of, round_norm


def write_solution(graph: ModelGraph, targets: Targets, solution: Solution) -> None:
    """Put the values of a solution into a plain model, in place, with their codebooks."""
    values = solution.values(targets.weights(graph))
    with torch.no_grad():
        for target, value in zip(targets.rows, values, strict=True):
            graph.weight(target.site).copy_(value)
    found = {
        target.name: codebook
        for target, codebook in zip(targets.rows, solution.codebooks, strict=True)
        if codebook is not None
    }
    record(graph, found)


def record(graph: ModelGraph, codebooks: Mapping[str, Codebook]) -> None:
    """Note how weights are written: free levels as codebooks, uniform ones as integer codes."""
    for name, codebook in codebooks.items():
        site = graph.by_name[name]
        if codebook.kind == "free":
            graph.codebooks[name] = codebook
            continue
        graph.codebooks.pop(name, None)
        encoding = _encoding(graph, site, codebook)
        weight = graph.weight(site)
        weight.copy_(_snapped(weight, encoding))
        encoding.check(_matrix(weight, encoding), name)
        graph.encodings[name] = encoding
    if graph.encodings:
        apply_widths(graph)


def _encoding(graph: ModelGraph, site: Site, codebook: Codebook) -> Encoding:
    rows = rows_of(graph, site)
    scale = snap(torch.full((rows.stop - rows.start, 1), codebook.scale or 1.0))
    return Encoding(max(2, codebook.bits), scale, axis_of(graph, site))


def _matrix(weight: Tensor, encoding: Encoding) -> Tensor:
    return weight.reshape(len(encoding.scale), -1) if weight.dim() == 1 else weight


def _snapped(weight: Tensor, encoding: Encoding) -> Tensor:
    return encoding.nearest(_matrix(weight, encoding)).reshape(weight.shape)


def round_rest(graph: ModelGraph, targets: Targets, significand: int) -> None:
    """Round what is no weight to so many significant bits, in place.

    Biases themselves; of batch norms the factors and shifts that they come to.
    """
    if significand >= FULL:
        return
    norms = norms_of(graph.module)
    done = {id(graph.parameter(target.site)) for target in targets.rows}
    done |= {id(part) for norm in norms for part in norm.parameters()}
    for norm in norms:
        round_norm(norm, significand)
    for parameter in graph.module.parameters():
        if id(parameter) not in done and parameter.dim() == 1 and parameter.is_floating_point():
            parameter.detach().copy_(rounded(parameter, significand))
