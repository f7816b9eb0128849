"""How much the output changes when the weights of one layer alone are rounded, layer by layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from passes.graph import ModelGraph
from passes.inputs import as_call
from passes.quantize.eligible import axis_of, eligible
from passes.quantize.fit import fit_encoding
from passes.tracing.trace import trace

WIDTHS = (8, 4, 3, 2)


def weight_sensitivity(
    model: nn.Module, images: Tensor, widths: Sequence[int] = WIDTHS
) -> dict[str, dict[int, float]]:
    """Signal to error of the model's output, in dB, when one weight alone is rounded.

    Args:
        model: Its first output is compared; not changed.
        images: One batch.
        widths: Bits that each weight is rounded to.

    Returns:
        By layer and width; infinite where nothing changes.
    """
    own = copy.deepcopy(model).eval()
    graph = trace(own, as_call(own, images))
    with torch.no_grad():
        expected = own(images)
        return {
            site.name: {
                bits: _decibels(graph, site.name, bits, images, expected) for bits in widths
            }
            for site in eligible(graph, static=False).sites
        }


def _decibels(graph: ModelGraph, name: str, bits: int, images: Tensor, expected: Tensor) -> float:
    site = graph.by_name[name]
    parameter = graph.parameter(site)
    before = parameter.detach().clone()
    encoding = fit_encoding(before, bits, axis=axis_of(graph, site), name=name)
    parameter.copy_(encoding.nearest(before))
    error = (graph.module(images) - expected).double().square().sum()
    parameter.copy_(before)
    signal = expected.double().square().sum()
    return 10 * math.log10(float(signal / error)) if error > 0 else math.inf


def sensitivity_table(found: dict[str, dict[int, float]]) -> str:
    """One row a layer, the most sensitive at the fewest bits first."""
    widths = list(next(iter(found.values()), {}))
    lines = [
        f"| layer | {' | '.join(f'{bits} bits, dB' for bits in widths)} |",
        "| --- |" + " ---: |" * len(widths),
    ]
    ranked = sorted(found.items(), key=lambda item: item[1][widths[-1]])
    lines += [f"| {n} | {' | '.join(f'{row[b]:.1f}' for b in widths)} |" for n, row in ranked]
    return "\n".join([*lines, ""])
