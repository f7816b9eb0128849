"""Weights as codes: what the file holds multiplies out to exactly the weight."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from quantized_nets import fitted

from energy_model.errors import ExportError
from export.onnx_graph import Rewriter
from export.qdq_layers import Layer
from export.qdq_layers import fitted as fitted_scales
from export.qdq_weights import Held, as_products, held_weights, require_opset, write_weight
from passes.graph import Site
from passes.quantize.encoding import Encoding


def weighted(shape, bits, axis=0, block=None, turned=False, seed=0):
    """A file that multiplies by a weight on a grid, and the weight."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    encoding = fitted(weight, bits, axis, block)
    weight = encoding.nearest(weight)
    array = weight.T.contiguous() if turned else weight
    kind = {4: "ConvTranspose" if axis else "Conv", 2: "MatMul"}[len(shape)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", "w_out")]
    nodes = [helper.make_node(kind, ["x", "w"], ["y"])]
    nodes.append(helper.make_node("Identity", ["w"], ["w_out"]))
    stored = [numpy_helper.from_array(array.numpy(), "w")]
    opsets = [helper.make_opsetid("", 21)]
    made = helper.make_graph(nodes, "g", [x], outputs, stored)
    model = helper.make_model(made, opset_imports=opsets, ir_version=10)
    site = Site("layer", (("layer", "weight"),), 0, weight.numel(), ())
    rewriter = Rewriter(model)
    held = held_weights(rewriter, [site], {"layer": weight}, {"layer": encoding})
    return rewriter, held["w"], array.numpy()


def decoded(rewriter):
    """The weight that a file computes."""
    rewriter.finish()
    model = rewriter.model
    kept = [node for node in model.graph.node if node.output[0] != "y"]
    del model.graph.node[:], model.graph.output[0], model.graph.input[:]
    model.graph.node.extend(kept)
    return ReferenceEvaluator(model).run(None, {})[0]


@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2])
@pytest.mark.parametrize(
    ("shape", "axis", "block", "turned", "integer"),
    [
        ((5, 3, 3, 3), 0, None, False, True),
        ((5, 3, 3, 3), 0, None, False, False),
        ((3, 5, 2, 2), 1, None, False, False),
        ((6, 32), 0, None, False, True),
        ((6, 32), 0, None, True, True),
        ((6, 32), 0, None, True, False),
        ((6, 40), 0, 16, False, False),
        ((6, 40), 0, 16, True, False),
        ((4, 3, 3, 3), 0, 16, False, False),
        ((3, 4, 3, 3), 1, 16, False, False),
    ],
)
def test_codes_decode_to_the_weight_bit_for_bit(shape, axis, block, turned, integer, bits):
    rewriter, held, array = weighted(shape, bits, axis, block, turned)
    names = write_weight(rewriter, held, 21, integer=integer)
    stored = rewriter.stored[names[0]]
    assert stored.data_type == (TensorProto.INT4 if bits <= 4 else TensorProto.INT8)
    assert len(stored.raw_data) == -(-array.size // 2 if bits <= 4 else -array.size)
    assert len(names) == (2 if integer and bits <= 4 else 1)
    np.testing.assert_array_equal(decoded(rewriter), array)


def test_two_bits_are_packed_where_the_opset_knows_them():
    rewriter, held, array = weighted((6, 32), 2)
    [name] = write_weight(rewriter, held, 25, integer=False)
    assert rewriter.stored[name].data_type == TensorProto.INT2
    assert len(rewriter.stored[name].raw_data) == array.size // 4


def test_a_weight_with_other_values_is_not_found():
    rewriter, held, array = weighted((6, 32), 4)
    site = Site("layer", (("layer", "weight"),), 0, array.size, ())
    other = torch.from_numpy(array.copy())
    other[0, 0] += 1
    encoding = fitted(other, 4)
    assert held_weights(rewriter, [site], {"layer": other}, {"layer": encoding}) == {}
    assert held_weights(rewriter, [site], {"layer": other}, {}) == {}
    assert held.sites == ("layer",)


@pytest.mark.parametrize(("bits", "block", "what"), [(4, None, "4 bits"), (8, 16, "blocks of 16")])
def test_an_opset_that_is_too_old_is_refused(bits, block, what):
    encodings = {"layer": Encoding(bits, torch.ones(6, 2 if block else 1), 0, block)}
    require_opset(encodings, 21, "model.onnx")
    with pytest.raises(ExportError, match=rf"layer has .*{what}.*opset 20.*opset=21"):
        require_opset(encodings, 20, "model.onnx")
    require_opset({"layer": Encoding(5, torch.ones(6, 1))}, 18, "model.onnx")


GEMM = """<ir_version: 10, opset_import: ["" : 21]>
g (float[n, 4] x) => (float[n, 2] y)
  <float[2, 4] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[2] b = {10, 20}> { BODY }"""


def products(body):
    rewriter = Rewriter(onnx.parser.parse_model(GEMM.replace("BODY", body)))
    codes, scale = np.arange(1, 9, dtype=np.int8).reshape(2, 4), np.ones((2, 1), np.float32)
    return rewriter, as_products(rewriter, Held("w", ("layer",), codes, scale, 0, None, 8))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Gemm<transB = 1>(x, w)", ["MatMul"]),
        ("y = Gemm<transB = 1>(x, w, b)", ["MatMul", "Add"]),
        ("h = Gemm<transB = 1>(x, w, b) y = Relu(h)", ["MatMul", "Sub", "Relu"]),
        ("y = Gemm<transB = 1, alpha = 2.0>(x, w, b)", ["Gemm"]),
        ("t = Transpose(w) h = Gemm<transB = 1>(x, w) y = Add(h, b)", ["Gemm", "Add"]),
    ],
)
def test_linear_layers_are_products_and_sums(body, expected):
    before = ReferenceEvaluator(onnx.parser.parse_model(GEMM.replace("BODY", body)))
    rewriter, held = products(body)
    write_weight(rewriter, held, 21, integer=False)
    rewriter.finish()
    kinds = [n.op_type for n in rewriter.model.graph.node if n.op_type != "DequantizeLinear"]
    assert kinds == expected
    x = np.arange(12, dtype=np.float32).reshape(3, 4) - 5
    after = ReferenceEvaluator(rewriter.model).run(None, {"x": x})[0]
    np.testing.assert_array_equal(after, before.run(None, {"x": x})[0])


def layer(step, bias, output_step=None):
    return Layer(onnx.NodeProto(), step, output_step, "b", np.asarray(bias, dtype=np.float64))


def test_scales_are_raised_where_a_bias_would_overflow():
    codes = np.array([[100, -50, 0], [7, 0, 0], [0, 0, 0]], dtype=np.int8)
    scale = np.array([[0.5], [1e-12], [1e-20]], dtype=np.float32)
    held = Held("w", ("layer",), codes, scale, 0, None, 8)
    assert fitted_scales(held, [layer(0.1, [3.0, 0.0, 0.0])]) is held
    raised = fitted_scales(held, [layer(0.1, [3.0, -2.0, 1.0])])
    biases = np.array([3.0, 2.0, 1.0]) / (0.1 * raised.rows.astype(np.float64))
    assert np.all(biases <= 2.0**30)
    np.testing.assert_array_equal(raised.codes[0], codes[0])
    assert raised.rows[0] == scale[0, 0]
    before, after = codes * scale.astype(np.float64), raised.codes * raised.scale.astype(np.float64)
    assert np.abs(before - after).max() <= 2.0 / 0.1 * 2.0**-30
