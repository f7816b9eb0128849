"""What masked channels still save: their cut is made at the end, and counted from now on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from energy_model.hardware import Hardware
from energy_model.input_support import InputSupport
from energy_model.shapes import LayerShape
from energy_model.support import unfolded_nonzeros
from energy_model.unit_prices import in_units, plain, unit_prices
from energy_model.widths import WORDS, Widths
from passes.graph import ModelGraph, Use
from passes.rewrite.masked_channels import Cut


def still_saved(graph: ModelGraph, cuts: Sequence[Cut], hardware: Hardware) -> int | float:
    """Energy of activations that removing masked channels will save.

    Args:
        graph: A graph with input masks, its supports up to date; read only.
        cuts: What will be removed.
        hardware: The accelerator.
    """
    uses = {site.name: site.uses for site in graph.sites}
    before = sum(site.activation_energy(hardware) for site in graph.sites)
    for cut in cuts:
        [use] = uses[cut.reader.name]
        uses[cut.reader.name] = (_with_inputs(use, cut.keep),)
        [use] = uses[cut.producer.name]
        outputs = replace(use.shape, out_channels=cut.keep.numel())
        uses[cut.producer.name] = (replace(use, shape=outputs),)
    after = (replace(site, uses=uses[site.name]) for site in graph.sites)
    return plain(before - sum(site.activation_energy(hardware) for site in after))


def silence_producers(graph: ModelGraph, cuts: Sequence[Cut]) -> None:
    """Zero the weights that compute nothing but masked channels.

    They receive no gradient from now on, so that they stay zero until they are removed.
    """
    for cut in cuts:
        [use] = cut.producer.uses
        weight = graph.parameter(cut.producer)
        dead = torch.ones(use.shape.out_channels, dtype=torch.bool, device=weight.device)
        dead[cut.keep] = False
        shape = [1] * weight.dim()
        shape[1 if use.shape.transposed else 0] = -1
        with torch.no_grad():
            weight.masked_fill_(dead.view(shape), 0.0)


def channel_price(shape: LayerShape, hardware: Hardware, *, widths: Widths = WORDS) -> int | float:
    """Activation energy of one output channel of a layer, but for what depends on tiles.

    Its outputs are written, and the unfolded input is read once more.
    """
    prices = unit_prices(hardware, widths)
    written = prices.output * shape.positions
    return in_units(written + prices.inputs.rf * unfolded_nonzeros(shape) // shape.groups)


def _with_inputs(use: Use, keep: Tensor) -> Use:
    shape = replace(use.shape, in_channels=keep.numel())
    support = use.support
    if support is None:
        return replace(use, shape=shape)
    kept = support[keep.cpu().numpy()]
    return replace(use, shape=shape, inputs=None if kept.all() else InputSupport.of(kept))
