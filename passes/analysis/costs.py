"""What every site costs: the table behind `transform.analyze`."""

from __future__ import annotations

import torch
from torch import Tensor

from energy_model.cost import Cost, CostTable
from energy_model.energy import layer_energy
from energy_model.hardware import Hardware
from energy_model.unit_prices import charged_bits
from passes.graph import ModelGraph, Site

FALLBACK = "a strip exceeds the input cache; refetch bounded"


def cost_table(graph: ModelGraph, hardware: Hardware) -> CostTable:
    """Cost every site of a graph, per sample.

    Energy charges the widths that the uses of the sites have: `passes.quantize.widths` puts them
    there. `bits` are those that are stored.

    Args:
        graph: The traced model; only its supports, encodings and codebooks are read.
        hardware: The accelerator.
    """
    return CostTable(tuple(_cost(graph, site, hardware) for site in graph.sites), hardware)


def _cost(graph: ModelGraph, site: Site, hardware: Hardware) -> Cost:
    if site.computed:
        weight, bits = torch.empty(site.size, device="meta"), 32
    else:
        weight = graph.weight(site)
        written = graph.encodings.get(site.name) or graph.codebooks.get(site.name)
        bits = weight.element_size() * 8 if written is None else written.bits
    energy = site.energy(hardware, weight)
    # In whole words, whatever the uses have now: the base of relative limits is the original.
    dense = sum(layer_energy(u.shape, hardware).relaxed * u.count for u in site.uses)
    notes = [note for note in (site.note, FALLBACK if energy.fallback else "") if note]
    return Cost(
        name=site.name,
        macs=site.macs(),
        weights=site.size,
        nonzeros=_nonzeros(weight),
        bits=bits,
        energy=energy,
        floor=energy.activations,
        dense=dense,
        shape=str(site.uses[0].shape),
        note="; ".join(notes),
        charged=charged_bits(site.widths.weights, hardware),
        widths=site.widths,
    )


def _nonzeros(weight: Tensor) -> int:
    if weight.device.type == "meta":
        return weight.numel()
    return int(torch.count_nonzero(weight))
