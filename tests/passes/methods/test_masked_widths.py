"""Input masks where operands are narrow: prices stay integers, and predictions exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from energy_model.energy import activation_energy
from energy_model.hardware import load_hardware
from energy_model.input_price import input_prices
from energy_model.shapes import LayerShape
from energy_model.widths import Widths
from passes.inputs import as_call
from passes.methods.input_masking import InputMasking, least_saved
from passes.methods.masked_energy import channel_price, still_saved
from passes.quantize.widths import with_widths
from passes.rewrite.input_masks import attach_input_masks, mask_of, update_supports
from passes.rewrite.masked_channels import plan_cuts, remove_masked_channels
from passes.tracing.trace import trace

EYERISS = load_hardware("eyeriss")
ODD = EYERISS.replace(dram_energy=201)
WIDTHS = {"0": Widths(8, 8, 6), "2": Widths(4, 6, 5), "4": Widths(3, 5, 7)}


def chain():
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 7, 3), nn.ReLU(), nn.Conv2d(7, 3, 1)
    ).eval()
    graph = trace(model, as_call(model, torch.randn(2, 2, 9, 9)))
    graph.sites = with_widths(graph.sites, WIDTHS)
    return graph


def test_widths_outlive_masks_and_the_removal_of_channels():
    graph = chain()
    masks = attach_input_masks(graph)
    with torch.no_grad():
        mask_of(graph, masks[1])[[0, 3]] = 0
        mask_of(graph, masks[2])[1, 2:] = 0
    update_supports(graph)
    assert {site.name: site.widths for site in graph.sites} == WIDTHS
    before = sum(site.activation_energy(ODD) for site in graph.sites)
    saved = still_saved(graph, plan_cuts(graph), ODD)
    remove_masked_channels(graph)
    update_supports(graph)
    assert {site.name: site.widths for site in graph.sites} == WIDTHS
    assert before - sum(site.activation_energy(ODD) for site in graph.sites) == saved > 0
    assert saved % 1 != 0


def test_a_channel_costs_its_outputs_and_one_more_read():
    widths = Widths(8, 5, 7)
    shapes = [LayerShape.conv(2, d, (3, 3), (8, 8)) for d in (6, 7)]
    six, seven = (activation_energy(shape, EYERISS, widths=widths)[0] for shape in shapes)
    assert channel_price(shapes[0], EYERISS, widths=widths) == seven - six


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [True, False])
def test_what_is_saved_is_at_least_what_was_foretold(weighted):
    graph = chain()
    least = {q: least_saved(graph, EYERISS, q, weighted=weighted) for q in (1.0, 0.6, 0.0)}
    prices = [input_prices(s.uses[0].shape, EYERISS, widths=s.widths) for s in graph.sites]
    total = sum(float(price.sum()) for price in prices)
    assert least[1.0] == 0 < least[0.6] < least[0.0] == total
    masking = InputMasking.attach(graph, EYERISS, weighted=weighted, scored=False)
    dense, before = masking.energy(), [tensor.clone() for tensor in masking.tensors]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in masking.tensors:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.5)
    masking.settle(0.6, before)
    assert dense - masking.energy() >= least[0.6]
    kept = sum(
        float(price[tensor.numpy() != 0].sum())
        for price, tensor in zip(prices, masking.tensors, strict=True)
    )
    assert dense - masking.energy() == total - kept, "nothing is fetched again in so small a net"
    state = masking.state_dict() | {"still_saved": 2.75}
    masking.load_state_dict(state)
    assert masking.still_saved == 2.75


def test_prices_of_masks_are_integers():
    masking = InputMasking.attach(chain(), EYERISS, weighted=True, scored=False)
    for price in (*masking._prices, *masking._openings):
        assert price.dtype == np.int64
    # In 1/256: 5 input channels of 6 bits, which 1 tile of 7 output channels reads.
    site = masking.graph.by_name["2"]
    exact = input_prices(site.uses[0].shape, EYERISS, widths=Widths(4, 6, 5)) * 256
    assert (masking._prices[1] == exact).all()
    assert masking._openings[1][0] == 256 * channel_price(
        masking.graph.by_name["0"].uses[0].shape, EYERISS, widths=WIDTHS["0"]
    )
