"""Widths of weights and activations are those that the file bears out; see each check fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from energy_model.energy import layer_energy
from energy_model.errors import PostconditionError
from energy_model.hardware import load_hardware
from energy_model.widths import Widths
from export.initializers import locate
from export.recount import recount_costs
from passes.analysis.costs import cost_table
from passes.inputs import Call
from passes.quantize.encoding import Encoding
from passes.quantize.widths import with_widths
from passes.tracing.trace import trace

EYERISS = load_hardware("eyeriss")
node = helper.make_node
QUANTIZED = Widths(4, 8, 8)


def graph_of(bits=4, block=None, widths=QUANTIZED):
    """One linear layer `l`, 6 to 5, on a grid of 4 bits with all of its codes in use."""
    model = nn.Sequential()
    model.add_module("l", nn.Linear(6, 5, bias=False))
    graph = trace(model.eval(), Call((torch.zeros(2, 6),)))
    columns = 1 if block is None else -(-6 // block)
    scale = torch.arange(1, 5 * columns + 1).reshape(5, columns).float() / 4
    encoding = Encoding(bits, scale, block=block)
    codes = (torch.arange(30) % (2 * encoding.largest + 1) - encoding.largest).reshape(5, 6)
    with torch.no_grad():
        graph.weight(graph.by_name["l"]).copy_(encoding.weight(codes.to(torch.int8)))
    graph.encodings["l"] = encoding
    graph.sites = with_widths(graph.sites, {"l": widths})
    return graph, codes.numpy().astype(np.int8)


def file_of(codes, encoding, *, kind="INT4", turned=True, inputs=True, outputs=True):
    """`MatMul(x, N)` as the exporter writes it: codes, scales, and roundings around it."""
    stored = codes.T if turned else codes
    axis, scale = (1 if turned else 0), encoding.scale.numpy()
    attributes = {"axis": axis}
    scale = scale[:, 0] if encoding.block is None else (scale.T if turned else scale)
    if encoding.block is not None:
        attributes = {"axis": 1 - axis, "block_size": encoding.block}
    dtype = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind))
    constants = {
        "l.weight_codes": np.ascontiguousarray(stored).astype(dtype),
        "l.weight_scale": np.ascontiguousarray(scale),
        "s": np.float32(0.1),
        "z": np.uint8(128),
    }
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xc"]),
        node("DequantizeLinear", ["xc", "s", "z"], ["h"]),
        node("DequantizeLinear", ["l.weight_codes", "l.weight_scale"], ["l.weight"], **attributes),
        node("MatMul", ["h" if inputs else "x", "l.weight"], ["p"])
        if turned
        else node("Gemm", ["h" if inputs else "x", "l.weight"], ["p"], transB=1),
        node("QuantizeLinear", ["p", "s", "z"], ["pc"]),
        node("DequantizeLinear", ["pc", "s", "z"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    value = helper.make_tensor_value_info("y" if outputs else "p", TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(nodes, "g", [], [value], tensors))


def recounted(graph, model):
    weights = {site.name: graph.weight(site) for site in graph.sites}
    stored = locate(model, graph.sites, weights)
    return recount_costs(graph, cost_table(graph, EYERISS), stored, EYERISS)["l"], stored.get("l")


@pytest.mark.parametrize("kind", ["INT4", "INT8"])
@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("block", [None, 4])
def test_codes_and_scales_cost_what_the_model_costs(kind, turned, block):
    graph, codes = graph_of(block=block)
    row, stored = recounted(graph, file_of(codes, graph.encodings["l"], kind=kind, turned=turned))
    assert row == cost_table(graph, EYERISS)["l"]
    assert (row.bits, row.charged, row.widths) == (4, 4, QUANTIZED)
    [use] = graph.sites[0].uses
    counts = np.array([np.count_nonzero(codes)])
    expected = layer_energy(use.shape, EYERISS, counts, widths=QUANTIZED)
    assert row.energy == expected
    assert (stored.name, stored.form, stored.needed) == ("l.weight", "codes", 4)
    assert stored.bits == {"INT4": 4, "INT8": 8}[kind]
    assert stored.same_layout is not turned


def test_a_code_more_that_is_not_zero_counts():
    graph, codes = graph_of()
    before = cost_table(graph, EYERISS)["l"]
    codes[tuple(np.argwhere(codes == 0)[0])] = 1
    row, _ = recounted(graph, file_of(codes, graph.encodings["l"]))
    assert row.nonzeros == before.nonzeros + 1
    assert row.energy.exact > before.energy.exact


@pytest.mark.parametrize(("claimed", "code"), [(4, 8), (3, 7), (4, -8)])
def test_a_code_that_the_grid_does_not_have_is_an_error(claimed, code):
    graph, codes = graph_of(bits=claimed)
    codes[0, 0] = code
    file = file_of(codes, graph.encodings["l"], kind="INT8")
    needed = abs(code).bit_length() + 1
    with pytest.raises(PostconditionError, match=rf"^l, .* {claimed} bits .* need {needed}"):
        recounted(graph, file)


def test_the_grid_counts_not_the_type_that_its_codes_lie_in():
    graph, codes = graph_of(bits=3, widths=Widths(3, 8, 8))
    for kind, bits in (("INT4", 4), ("INT8", 8)):
        row, stored = recounted(graph, file_of(codes, graph.encodings["l"], kind=kind))
        assert (row.bits, stored.bits, stored.needed) == (3, bits, 3)
        assert row == cost_table(graph, EYERISS)["l"]


def test_codes_of_which_the_model_knows_nothing_count_in_full():
    graph, codes = graph_of(widths=Widths(None, 8, 8))
    encoding = graph.encodings.pop("l")
    row, _ = recounted(graph, file_of(codes, encoding))
    assert (row.bits, row.charged) == (4, 16)


def test_a_weight_that_is_float_in_the_file_is_charged_as_a_word():
    graph, _ = graph_of()
    weight = graph.weight(graph.sites[0]).numpy()
    model = file_of(np.zeros((5, 6), np.int8), graph.encodings["l"])
    del model.graph.node[2]
    model.graph.initializer.append(numpy_helper.from_array(weight.T.copy(), "l.weight"))
    row, stored = recounted(graph, model)
    assert (row.bits, row.charged, row.widths) == (32, 16, Widths(None, 8, 8))
    assert (stored.form, stored.coded) == ("dense", False)
    plain = with_widths(graph.sites, {"l": Widths(None, 8, 8)})
    graph.sites = plain
    assert row.energy == cost_table(graph, EYERISS)["l"].energy


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_rounding_that_is_not_in_the_file_is_not_charged_for(side):
    graph, codes = graph_of()
    row, _ = recounted(graph, file_of(codes, graph.encodings["l"], **{side: False}))
    assert row.widths == replace(QUANTIZED, **{side: None})
    assert row.energy.exact > cost_table(graph, EYERISS)["l"].energy.exact


def test_wider_codes_than_the_models_are_charged_as_they_are():
    graph, codes = graph_of(widths=Widths(4, 6, 8))
    row, _ = recounted(graph, file_of(codes, graph.encodings["l"]))
    assert row.widths == Widths(4, 8, 8)


def test_a_float_model_is_charged_in_words_whatever_the_file_rounds():
    graph, codes = graph_of(widths=Widths())
    row, _ = recounted(graph, file_of(codes, graph.encodings["l"]))
    assert row.widths == Widths()


def sparse_file(weight, *, initializer):
    """`MatMul(x, N)` with N as gaps and values, or as a sparse initialiser."""
    stored = np.ascontiguousarray(weight.T)
    places = np.flatnonzero(stored)
    if initializer:
        tensor = helper.make_sparse_tensor(
            numpy_helper.from_array(stored.reshape(-1)[places], "l.weight"),
            numpy_helper.from_array(places, "l.weight_places"),
            stored.shape,
        )
        graph = helper.make_graph(
            [node("MatMul", ["x", "l.weight"], ["y"])], "g", [], [], sparse_initializer=[tensor]
        )
        return helper.make_model(graph)
    constants = {
        "gaps": np.diff(places, prepend=0).astype(np.uint8),
        "values": stored.reshape(-1)[places],
        "axis": np.array(0),
        "size": np.array([stored.size]),
        "shape": np.array(stored.shape),
    }
    nodes = [
        node("Cast", ["gaps"], ["steps"], to=TensorProto.INT64),
        node("CumSum", ["steps", "axis"], ["places"]),
        node("ConstantOfShape", ["size"], ["zeros"]),
        node("ScatterElements", ["zeros", "places", "values"], ["flat"]),
        node("Reshape", ["flat", "shape"], ["l.weight"]),
        node("MatMul", ["x", "l.weight"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    return helper.make_model(helper.make_graph(nodes, "g", [], [], tensors))


@pytest.mark.parametrize("initializer", [True, False])
@pytest.mark.parametrize("name", ["l.weight", "val_3"])
def test_a_sparse_weight_costs_what_the_model_costs(initializer, name):
    """By its name, and by its elements under another."""
    graph, _ = graph_of(widths=Widths())
    del graph.encodings["l"]
    weight = graph.weight(graph.sites[0])
    with torch.no_grad():
        weight[:, ::2] = 0
    model = sparse_file(weight.numpy(), initializer=initializer)
    for holder in (*model.graph.node, *model.graph.sparse_initializer):
        if isinstance(holder, type(model.graph.node[0])):
            for names in (holder.input, holder.output):
                for place, value in enumerate(names):
                    names[place] = name if value == "l.weight" else value
        else:
            holder.values.name = name
    row, stored = recounted(graph, model)
    assert row == cost_table(graph, EYERISS)["l"]
    assert (stored.name, stored.form, stored.bits) == (name, "sparse", 32)
    assert row.nonzeros == np.count_nonzero(weight.numpy())
