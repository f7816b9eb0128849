"""Finding a weight in a file: by name, by its elements in any order, or as a part."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from torch import nn

from export.initializers import locate
from passes.inputs import Call
from passes.tracing.trace import trace


def sites_of(*sizes):
    """A chain of linear layers, its sites and their weights."""
    layers = [nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)]
    model = nn.Sequential(*layers).eval()
    graph = trace(model, Call((torch.zeros(1, sizes[0]),)))
    return graph.sites, {site.name: graph.weight(site) for site in graph.sites}


def file_of(_reader="MatMul", **arrays):
    """A file of initialisers, each of which one node reads."""
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in arrays.items()]
    nodes = [helper.make_node(_reader, ["x", name], [f"{name}_read"]) for name in arrays]
    return helper.make_model(helper.make_graph(nodes, "g", [], [], tensors))


def test_a_weight_is_found_by_its_name():
    sites, weights = sites_of(3, 4)
    array = weights["0"].numpy()
    found = locate(file_of(**{"0.weight": array, "copy": array}), sites, weights)
    assert found["0"].name == "0.weight"
    assert found["0"].same_layout
    np.testing.assert_array_equal(found["0"].values, array)


def test_the_values_are_those_of_the_file_not_of_the_model():
    sites, weights = sites_of(3, 4)
    changed = weights["0"].numpy().copy()
    changed[0] = 0
    found = locate(file_of(**{"0.weight": changed}), sites, weights)
    assert np.count_nonzero(found["0"].values) == 9


@pytest.mark.slow
@given(seed=st.integers(0, 2**32 - 1))
def test_a_weight_under_another_name_is_recognised_in_any_order(seed):
    sites, weights = sites_of(4, 5, 3)
    order = np.random.default_rng(seed).permutation(20)
    first = weights["0"].numpy().reshape(-1)[order].reshape(2, 10)
    found = locate(file_of(val_7=first, val_9=weights["1"].numpy().T), sites, weights)
    assert {name: stored.name for name, stored in found.items()} == {"0": "val_7", "1": "val_9"}
    assert not found["0"].same_layout
    assert not found["1"].same_layout


def test_what_no_product_reads_is_no_weight():
    sites, weights = sites_of(3, 4)
    array = weights["0"].numpy()
    assert locate(file_of("Gather", **{"0.weight": array, "copy": array}), sites, weights) == {}


@pytest.mark.parametrize("layout", ["Transpose", "Reshape", "Cast"])
def test_a_weight_is_also_read_through_a_change_of_layout(layout):
    sites, weights = sites_of(3, 4)
    model = file_of(val_1=weights["0"].numpy())
    model.graph.node[0].input[1] = "changed"
    model.graph.node.insert(0, helper.make_node(layout, ["val_1"], ["changed"]))
    assert locate(model, sites, weights)["0"].name == "val_1"


def test_other_elements_are_not_taken_for_the_weight():
    sites, weights = sites_of(4, 5)
    other = weights["0"].numpy().T.copy()
    other[0, 0], other[0, 1] = other[0, 0] + 1, other[0, 1] - 1
    assert locate(file_of(val_1=other), sites, weights) == {}
    assert locate(file_of(val_1=-weights["0"].numpy().T), sites, weights) == {}


def test_equal_values_under_the_name_are_not_mistaken_for_another_shape():
    sites, weights = sites_of(4, 5)
    found = locate(file_of(**{"0.weight": weights["0"].numpy().T}), sites, weights)
    assert not found["0"].same_layout


def test_stacked_weights_are_found_as_parts():
    sites, weights = sites_of(4, 4, 4)
    stack = np.stack([weights["1"].numpy(), weights["0"].numpy()])
    found = locate(file_of(stack=stack), sites, weights)
    assert {name: (s.name, s.part) for name, s in found.items()} == {
        "0": ("stack", 1),
        "1": ("stack", 0),
    }
    np.testing.assert_array_equal(found["0"].values, weights["0"].numpy())
