from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Apply, Attention, Branch, TiedEmbedding, tied_linears, traced, uses

from energy_model.energy import layer_energy
from energy_model.errors import PreconditionError
from energy_model.hardware import load_hardware
from energy_model.shapes import LayerShape
from passes.analysis.costs import cost_table
from passes.tracing.sites import held_parameters

EYERISS = load_hardware("eyeriss")
linear = LayerShape.linear
X = torch.randn(3, 8)


def test_tied_weights_are_one_site_with_all_owners():
    graph = traced(tied_linears(), X)
    [site] = graph.sites
    assert site.owners == (("0", "weight"), ("2", "weight"))
    assert "tied with 2.weight" in site.note
    assert "2 uses" in site.note
    graph = traced(TiedEmbedding(), torch.randint(0, 10, (3, 5)))
    [site] = graph.sites
    assert site.owners == (("embedding", "weight"), ("head", "weight"))


def test_energies_of_several_uses_add():
    once = traced(Apply(lambda m, x: m.fc(x), fc=nn.Linear(8, 8)), X)
    twice = traced(Apply(lambda m, x: m.fc(m.fc(x)), fc=nn.Linear(8, 8)), X)
    single = cost_table(once, EYERISS)["fc"]
    double = cost_table(twice, EYERISS)["fc"]
    assert single.energy == layer_energy(linear(8, 8), EYERISS)
    assert double.energy == 2 * single.energy
    assert (double.macs, double.weights) == (2 * single.macs, single.weights)
    assert twice.sites[0].price(EYERISS) == 2 * once.sites[0].price(EYERISS)


def test_a_module_under_two_names_is_one_site():
    layer = nn.Linear(8, 8)
    graph = traced(nn.Sequential(layer, nn.ReLU(), layer), X)
    assert uses(graph) == {"0": [(linear(8, 8), 2)]}
    assert graph.sites[0].owners == (("0", "weight"),)


def test_rows_of_a_packed_weight():
    keys = torch.randn(3, 7, 8)
    graph = traced(Attention(), (torch.randn(3, 5, 8), keys, keys.clone()))
    parts = [site for site in graph.sites if "in_proj" in site.name]
    assert [(site.start, site.size) for site in parts] == [(0, 64), (64, 64), (128, 64)]
    packed = graph.module.attention.in_proj_weight
    assert torch.equal(graph.weight(parts[1]).view(8, 8), packed[8:16])
    assert graph.parameter(parts[1]) is packed
    [out] = [site for site in graph.sites if "out_proj" in site.name]
    assert graph.weight(out).shape == (8, 8)


def test_disjoint_slices_are_sites_and_overlapping_ones_are_joined():
    disjoint = Apply(lambda m, x: F.linear(x, m.w[:4]) + F.linear(x, m.w[4:]), w=torch.randn(8, 8))
    assert uses(traced(disjoint, X)) == {
        "w[0:4]": [(linear(8, 4), 1)],
        "w[4:8]": [(linear(8, 4), 1)],
    }
    whole = Apply(
        lambda m, x: F.linear(x, m.w).sum() + F.linear(x, m.w[:4]).sum(), w=torch.randn(8, 8)
    )
    [site] = traced(whole, X).sites
    assert [(use.shape, use.count) for use in site.uses] == [(linear(8, 8), 1), (linear(8, 4), 1)]
    assert (site.name, site.start, site.size) == ("w", 0, 64)
    assert "parts are charged as the whole" in site.note


def test_a_strided_slice_is_charged_as_the_whole():
    model = Apply(lambda m, x: F.linear(x[:, :4], m.w[:, :4]), w=torch.randn(8, 8))
    [site] = traced(model, X).sites
    assert (site.name, site.start, site.size) == ("w", 0, 64)
    assert "strided view" in site.note


def test_sites_inside_an_opaque_leaf_say_so():
    graph = traced(nn.Sequential(nn.Linear(8, 8), Branch()), X)
    outside, inside = graph.sites
    assert (outside.opaque, outside.note) == (False, "")
    assert (inside.name, inside.opaque, inside.note) == ("1.up", True, "inside opaque leaf 1")
    assert inside in graph.compressible


def test_order_is_that_of_first_use():
    model = Apply(lambda m, x: m.a(m.b(x)), a=nn.Linear(4, 2), b=nn.Linear(8, 4))
    assert list(uses(traced(model, X))) == ["b", "a"]


def test_layers_that_do_not_run_have_no_site():
    model = Apply(lambda m, x: m.a(x), a=nn.Linear(8, 4), b=nn.Linear(8, 4))
    assert list(uses(traced(model, X))) == ["a"]


def test_no_weighted_layer():
    with pytest.raises(PreconditionError, match="no weighted layer"):
        traced(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(8)), X)


def test_held_parameters_lists_each_once():
    held = held_parameters(tied_linears())
    assert [h.path for h in held] == ["0.weight", "0.bias", "2.bias"]
    assert held[0].owners == [("0", "weight"), ("2", "weight")]
