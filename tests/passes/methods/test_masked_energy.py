"""What masked channels still save is what removing them does save, to the last unit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from energy_model.hardware import load_hardware
from energy_model.shapes import LayerShape
from passes.inputs import as_call
from passes.methods.masked_energy import channel_price, silence_producers, still_saved
from passes.rewrite.input_masks import attach_input_masks, mask_of, update_supports
from passes.rewrite.masked_channels import plan_cuts, remove_masked_channels
from passes.tracing.trace import trace

EYERISS = load_hardware("eyeriss")
TINY = load_hardware("eyeriss").to_dict() | {"input_cache_bytes": 200, "weight_cache_bytes": 64}


def chain():
    """Three convolutions, each of which can lose channels: input `(N, 2, 12, 12)`."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 5, 1),
        nn.Flatten(),
        nn.Linear(80, 3),
    )


def masked(model, shape, dropped, seed=0):
    """A graph with masks: whole channels and single entries of each are 0."""
    model = model.eval()
    graph = trace(model, as_call(model, torch.randn(2, *shape)))
    masks = attach_input_masks(graph)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for mask, channels in zip(masks, dropped, strict=True):
            values = mask_of(graph, mask)
            values[channels] = 0
            values[torch.rand(values.shape, generator=generator) < 0.2] = 0
    update_supports(graph)
    return graph


def activations(graph, hardware):
    return sum(site.activation_energy(hardware) for site in graph.sites)


@pytest.mark.spread(2)
@pytest.mark.parametrize("hardware", [EYERISS, load_hardware(TINY)], ids=["eyeriss", "tiny"])
@pytest.mark.parametrize(
    "dropped", [([], [0, 3], []), ([], [1], [2, 5, 7]), ([0], [2, 4, 5], [0]), ([], [], [])]
)
def test_the_prediction_is_what_the_removal_saves(dropped, hardware):
    graph = masked(chain(), (2, 12, 12), dropped)
    before = activations(graph, hardware)
    saved = still_saved(graph, plan_cuts(graph), hardware)
    remove_masked_channels(graph)
    update_supports(graph)
    assert before - activations(graph, hardware) == saved
    assert (saved > 0) == any(dropped[1:])


def test_planning_a_cut_changes_nothing():
    graph = masked(chain(), (2, 12, 12), ([], [1], [2]))
    state = {name: value.clone() for name, value in graph.runnable.state_dict().items()}
    sites = graph.sites
    cuts = plan_cuts(graph)
    still_saved(graph, cuts, EYERISS)
    assert {cut.producer.name: len(cut.keep) for cut in cuts if len(cut.keep) < 8} == {
        "0": 5,
        "4": 7,
    }
    assert graph.sites == sites
    assert all(torch.equal(state[n], v) for n, v in graph.runnable.state_dict().items())


def test_silenced_producers_compute_the_same_elsewhere():
    graph = masked(chain(), (2, 12, 12), ([], [0, 3], [6]))
    inputs = torch.randn(2, 2, 12, 12, generator=torch.Generator().manual_seed(1))
    before = graph.runnable(inputs)
    silence_producers(graph, plan_cuts(graph))
    assert torch.equal(graph.runnable(inputs), before)
    first = graph.weight(graph.by_name["0"])
    assert not first[[0, 3]].any()
    assert first[[1, 2, 4, 5]].all()
    assert not graph.weight(graph.by_name["4"])[6].any()


def test_a_channel_costs_its_outputs_and_one_more_read():
    shape = LayerShape.conv(2, 6, (3, 3), (8, 8))
    wider = LayerShape.conv(2, 7, (3, 3), (8, 8))
    from energy_model.energy import activation_energy

    more = activation_energy(wider, EYERISS)[0] - activation_energy(shape, EYERISS)[0]
    assert channel_price(shape, EYERISS) == more
