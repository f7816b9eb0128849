"""Sparse weights in a model: exact for every reader, smaller, and to the byte as planned."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bench.runtimes import openvino_core
from energy_model.errors import ExportError, PostconditionError
from export.gaps import pack_nibbles
from export.sparse_layout import array_of, empty_tensor, layouts_of
from export.sparse_nodes import Chain, filled, shared_bytes, shared_constants
from export.sparse_weights import plan_sparse, sparse_bytes, sparsify_weights

FLOAT, HALF, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE
INT8, INT4 = TensorProto.INT8, TensorProto.INT4
KINDS = {FLOAT: np.float32, HALF: np.float16, DOUBLE: np.float64, INT8: np.int8, INT4: np.int8}


def model_of(nodes, inputs, outputs, initializers, opset=21):
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def session_of(model, optimized=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    if optimized:
        options.optimized_model_filepath = str(optimized)
    data = model.SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def operators_run(model, tmp_path):
    """What ONNX Runtime is left with after it has optimised the graph."""
    session_of(model, tmp_path / "optimized.onnx")
    return sorted(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)


def tensor_of(name, array, kind=None):
    """An initialiser; codes of four bits are given as int8."""
    if kind != INT4:
        return numpy_helper.from_array(array, name)
    tensor = empty_tensor(name, INT4, array.shape)
    tensor.raw_data = pack_nibbles(array.reshape(-1))
    return tensor


def decoder(layout, array, kind):
    """A model that does nothing but decode; int4 is read as int8."""
    chain = Chain(layout, "w", kind, array.shape, "z", 0)
    nodes, name, shown = list(chain.nodes), "w", kind
    if kind == INT4:
        nodes.append(helper.make_node("Cast", ["w"], ["v"], to=INT8))
        name, shown = "v", INT8
    output = helper.make_tensor_value_info(name, shown, array.shape)
    constants = [*chain.constants, *filled(chain, array), *shared_constants("z", chain.shared)]
    return chain, model_of(nodes, [], [output], constants)


@st.composite
def weights(draw):
    kind = draw(st.sampled_from(list(KINDS)))
    shape = draw(
        st.sampled_from([(1,), (7,), (64,), (3, 5), (1, 1, 1), (4, 3, 3, 3), (1, 600), (2, 8, 40)])
    )
    density = draw(st.sampled_from([0.0, 0.004, 0.05, 0.3, 0.7, 1.0]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind in (INT8, INT4):
        largest = 7 if kind == INT4 else draw(st.sampled_from([7, 127]))
        array = random.integers(-largest, largest + 1, shape)
    else:
        array = random.standard_normal(shape)
    array = np.where(random.random(shape) < density, array, 0).astype(KINDS[kind])
    ends = draw(st.sampled_from([(), (0,), (-1,), (0, -1)]))
    array.reshape(-1)[list(ends)] = 5
    return array, kind


@settings(max_examples=80)
@given(weights())
def test_every_layout_is_decoded_exactly_by_every_reader(case):
    array, kind = case
    assert bool(layouts_of(array, kind)) == (not array.all())
    for layout in layouts_of(array, kind):
        chain, model = decoder(layout, array, kind)
        onnx.checker.check_model(model, full_check=True)
        for run in (ReferenceEvaluator(model).run, session_of(model).run):
            [found] = run(None, {})
            assert found.dtype == array.dtype
            assert found.tobytes() == array.tobytes()
        constants = [*chain.constants, *filled(chain, array)]
        parts = onnx.GraphProto(node=chain.nodes, initializer=constants)
        assert chain.bytes == parts.ByteSize()
        shared = onnx.GraphProto(initializer=shared_constants("z", chain.shared))
        assert shared_bytes("z", chain.shared) == shared.ByteSize() <= 100


@pytest.mark.parametrize("width", [4, 8, 16])
def test_gaps_longer_than_a_code_are_bridged(width):
    array = np.zeros((300, 500), np.float32)
    array.reshape(-1)[[0, 256, 257, 70_000, 149_999]] = [1, -2, 3, np.inf, np.nan]
    [layout] = [item for item in layouts_of(array, FLOAT) if item.positions == width]
    assert layout.entries > 5
    [found] = session_of(decoder(layout, array, FLOAT)[1]).run(None, {})
    assert found.tobytes() == array.tobytes()


def test_negative_zero_is_zero():
    array = np.array([-0.0, 1.0, -0.0, 0.0], np.float32)
    for layout in layouts_of(array, FLOAT):
        [found] = session_of(decoder(layout, array, FLOAT)[1]).run(None, {})
        assert found.tobytes() == (array + 0.0).tobytes()


@pytest.mark.parametrize("changed", ["positions", "values"])
def test_what_is_stored_decides_the_weight(changed):
    array = np.zeros((8, 9), np.float32)
    array[2, 3], array[5, 5] = 1, 2
    for layout in layouts_of(array, FLOAT):
        _, model = decoder(layout, array, FLOAT)
        [tensor] = [t for t in model.graph.initializer if t.name == f"z0.{changed}"]
        raw = bytearray(tensor.raw_data)
        if changed == "values":
            raw[-1] ^= 1
        elif layout.positions == 1:
            raw[0], raw[2] = raw[2], raw[0]
        else:
            raw[0] ^= 1
        tensor.raw_data = bytes(raw)
        [found] = session_of(model).run(None, {})
        assert found.tobytes() != array.tobytes()


def thinned(shape, zeros, kind=FLOAT, seed=0, largest=7):
    """Exactly that share of zeros, at random places."""
    random = np.random.default_rng(seed)
    array = random.standard_normal(shape)
    if kind in (INT8, INT4):
        array = np.sign(array) * random.integers(1, largest + 1, shape)
    array.reshape(-1)[random.permutation(array.size)[: round(zeros * array.size)]] = 0
    return array.astype(KINDS[kind])


def product(array, kind=FLOAT, name="w"):
    """The weight multiplied from the right, after a `DequantizeLinear` if it is one of codes."""
    rows, cols = array.shape
    constants, nodes, weight = [tensor_of(name, array, kind)], [], name
    if kind in (INT8, INT4):
        scales = np.linspace(0.01, 0.02, cols).astype(np.float32)
        constants.append(numpy_helper.from_array(scales, "scales"))
        weight = "decoded"
        nodes.append(helper.make_node("DequantizeLinear", [name, "scales"], [weight], axis=1))
    nodes.append(helper.make_node("MatMul", ["x", weight], ["y"]))
    shown = kind if kind not in (INT8, INT4) else FLOAT
    inputs = [helper.make_tensor_value_info("x", shown, ["n", rows])]
    outputs = [helper.make_tensor_value_info("y", shown, ["n", cols])]
    return model_of(nodes, inputs, outputs, constants)


def output_of(model, seed=0):
    value = model.graph.input[0].type.tensor_type
    shape = [d.dim_value or 3 for d in value.shape.dim]
    kind = helper.tensor_dtype_to_np_dtype(value.elem_type)
    x = np.random.default_rng(seed).standard_normal(shape).astype(kind)
    return session_of(model).run(None, {model.graph.input[0].name: x})[0]


# Bytes at 512 x 512 for a share of zeros: dense, sparse, as sparse initialiser (None: not smaller).
TABLE = {
    (FLOAT, 0.5): (1_048_675, 557_556, None),
    (FLOAT, 0.8): (1_048_675, 242_984, 629_271),
    (FLOAT, 0.9): (1_048_675, 131_465, 314_691),
    (FLOAT, 0.95): (1_048_675, 65_926, 157_405),
    (FLOAT, 0.98): (1_048_675, 26_731, 63_037),
    (INT8, 0.5): (264_347, 166_441, None),
    (INT8, 0.8): (264_347, 84_066, None),
    (INT8, 0.9): (264_347, 51_960, 238_153),
    (INT8, 0.95): (264_347, 28_728, 120_186),
    (INT8, 0.98): (264_347, 13_059, 49_410),
    (INT4, 0.5): (133_275, 100_967, None),
    (INT4, 0.8): (133_275, 56_946, None),
    (INT4, 0.9): (133_275, 35_542, None),
    (INT4, 0.95): (133_275, 22_237, None),
    (INT4, 0.98): (133_275, 10_485, None),
}


@pytest.mark.spread(8)
@pytest.mark.parametrize(("kind", "zeros"), TABLE)
def test_the_table_of_sizes(kind, zeros):
    dense, sparse, initializers = TABLE[kind, zeros]
    model = product(thinned((512, 512), zeros, kind, largest=127 if kind == INT8 else 7), kind)
    assert model.ByteSize() == pytest.approx(dense, rel=0.001)
    assert plan_sparse(model).bytes == pytest.approx(sparse, rel=0.01)
    plan = plan_sparse(model, initializers=True)
    assert bool(plan.weights) == (initializers is not None)
    assert plan.bytes == pytest.approx(initializers or model.ByteSize(), rel=0.001)


@pytest.mark.spread(19)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zeros", [0.0, 0.3, 0.6, 0.85, 0.97, 1.0])
def test_the_file_has_the_planned_bytes_and_computes_the_same(kind, zeros, tmp_path):
    model = product(thinned((61, 48), zeros, kind), kind)
    before, expected = model.ByteSize(), output_of(model)
    operators = operators_run(model, tmp_path)
    plan = plan_sparse(model)
    assert (plan.bytes_before, bool(plan.weights)) == (before, plan.bytes < before)
    assert sparsify_weights(model) == list(plan.weights) == (["w"] if plan.weights else [])
    assert len(model.SerializeToString()) == model.ByteSize() == plan.bytes
    onnx.checker.check_model(model, full_check=True)
    assert output_of(model).tobytes() == expected.tobytes()
    assert operators_run(model, tmp_path) == operators
    assert zeros > 0 or not plan.weights
    assert zeros < 0.6 or plan.weights


def test_codes_that_need_four_bits_are_stored_with_four():
    small, large = (plan_sparse(product(thinned((64, 64), 0.8, INT8, largest=k), INT8))
                    for k in (7, 8))  # fmt: skip
    assert small.weights["w"].layout.values == INT4
    assert large.weights["w"].layout.values == INT8
    assert small.bytes < large.bytes


@pytest.mark.parametrize(
    ("zeros", "positions"), [(0.3, 1), (0.85, 4), (0.97, 8), (0.9999, 16), (1, 0)]
)
def test_the_layout_follows_the_share_of_zeros(zeros, positions):
    model = product(thinned((512, 512), zeros, INT8, largest=127), INT8)
    assert plan_sparse(model).weights["w"].layout.positions == positions


@pytest.mark.parametrize("initializers", [False, True])
def test_the_smallest_layout_is_taken(initializers):
    array = thinned((40, 50), 0.9)
    plan = plan_sparse(product(array), initializers=initializers)
    best = sparse_bytes(array, "w", initializers=initializers)
    assert plan.weights["w"].bytes == best
    if not initializers:
        chains = [Chain(la, "w", FLOAT, array.shape, "z", 0) for la in layouts_of(array, FLOAT)]
        assert len(chains) == 4
        assert best == min(chain.bytes for chain in chains)


def test_bytes_of_a_weight_without_a_sparse_form():
    with pytest.raises(ExportError, match="INT64 has no sparse form") as caught:
        sparse_bytes(np.zeros(5, np.int64), "index")
    assert "index" in str(caught.value)
    for array in (np.zeros((0, 3), np.float32), np.ones((2, 3), np.float32)):
        with pytest.raises(ExportError, match=f"{array.size} FLOAT has no"):
            sparse_bytes(array, "w")


def several(seed, extra_name="x"):
    """A chain of layers of which some are worth it, one weight read twice, biases with zeros."""
    shares = (0.9, 0.2, 0.0, 0.99, 0.6)
    constants, nodes, last = [], [], extra_name
    for i, zeros in enumerate(shares):
        constants.append(tensor_of(f"layer{i}.weight", thinned((40, 40), zeros, seed=seed + i)))
        constants.append(tensor_of(f"layer{i}.bias", thinned((40,), zeros, seed=seed + 9 + i)))
        nodes.append(
            helper.make_node("Gemm", [last, f"layer{i}.weight", f"layer{i}.bias"], [f"h{i}"])
        )
        last = f"h{i}"
    nodes.append(helper.make_node("MatMul", [last, "layer0.weight"], ["y"]))
    inputs = [helper.make_tensor_value_info(extra_name, FLOAT, ["n", 40])]
    return model_of(
        nodes, inputs, [helper.make_tensor_value_info("y", FLOAT, ["n", 40])], constants
    )


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from(["x", "z", "z0.values", "zz"]), st.booleans())
def test_a_file_of_several_weights(seed, name, initializers):
    model = several(seed, name)
    expected, before = output_of(model), model.ByteSize()
    plan = plan_sparse(model, initializers=initializers)
    names = sparsify_weights(model, initializers=initializers)
    assert {"layer0.weight", "layer3.weight"} <= set(names)
    assert "layer2.weight" not in names
    assert model.ByteSize() == plan.bytes < before
    onnx.checker.check_model(model, full_check=not initializers)
    assert output_of(model).tobytes() == expected.tobytes()
    # Nothing is left to gain, and nothing is done twice.
    again = model.SerializeToString(deterministic=True)
    assert sparsify_weights(model, initializers=initializers) == []
    assert model.SerializeToString(deterministic=True) == again


def test_a_file_of_another_size_than_planned_is_an_error():
    model = several(0)
    plan = plan_sparse(model)
    model.graph.initializer.append(tensor_of("more", np.ones(3, np.float32)))
    with pytest.raises(PostconditionError, match="planned were"):
        plan.apply(model)


def test_what_is_no_weight_of_the_file_stays():
    x = helper.make_tensor_value_info("x", FLOAT, [64, 64])
    y = helper.make_tensor_value_info("y", FLOAT, [64, 64])
    zeros = np.zeros((64, 64), np.float32)
    given_default = helper.make_tensor_value_info("w", FLOAT, [64, 64])
    add = helper.make_node("Add", ["x", "w"], ["y"])
    models = {
        "an input with a default": model_of(
            [add], [x, given_default], [y], [tensor_of("w", zeros)]),
        "codes that nothing decodes": model_of(
            [helper.make_node("Cast", ["w"], ["f"], to=FLOAT),
             helper.make_node("Add", ["x", "f"], ["y"])],
            [x], [y], [tensor_of("w", zeros.astype(np.int8))]),
        "indices": model_of(
            [helper.make_node("Gather", ["x", "w"], ["y"])], [x],
            [helper.make_tensor_value_info("y", FLOAT, [512, 64])],
            [tensor_of("w", np.zeros(512, np.int64))]),
        "a scalar": model_of([add], [x], [y], [tensor_of("w", np.float32(0))]),
        "nothing": model_of([helper.make_node("Relu", ["x"], ["y"])], [x], [y], []),
    }  # fmt: skip
    for name, model in models.items():
        onnx.checker.check_model(model, full_check=True)
        before = model.SerializeToString(deterministic=True)
        for initializers in (False, True):
            assert sparsify_weights(model, initializers=initializers) == [], name
            assert model.SerializeToString(deterministic=True) == before, name


@pytest.mark.parametrize("zeros", [0.5, 0.8, 0.97])
def test_before_opset_21_no_type_of_four_bits_is_used(zeros):
    model = product(thinned((96, 96), zeros, INT8), INT8)
    model.opset_import[0].version = 18
    expected = output_of(model)
    assert sparsify_weights(model) == ["w"]
    onnx.checker.check_model(model, full_check=True)
    assert output_of(model).tobytes() == expected.tobytes()
    types = {tensor.data_type for tensor in model.graph.initializer}
    assert not types & {TensorProto.INT4, TensorProto.UINT4}


def test_an_opset_that_is_too_old_is_refused():
    model = product(thinned((96, 96), 0.9))
    model.opset_import[0].version = 17
    with pytest.raises(ExportError, match="opset 17 lacks") as caught:
        sparsify_weights(model)
    assert "opset 18 or later" in str(caught.value)


def test_weights_outside_of_the_file_stay():
    model = product(thinned((64, 64), 0.9))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    assert sparsify_weights(model) == []


def test_a_branch_reads_the_weight_by_its_name():
    def branch(kind):
        shape = helper.make_tensor_value_info(kind, FLOAT, None)
        node = helper.make_node(kind, ["x", "w"], [kind])
        return helper.make_graph([node], kind, [], [shape])

    choose = helper.make_node(
        "If", ["flag"], ["y"], then_branch=branch("MatMul"), else_branch=branch("Add")
    )
    x = helper.make_tensor_value_info("x", FLOAT, [32, 32])
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    y = helper.make_tensor_value_info("y", FLOAT, None)
    model = model_of([choose], [x, flag], [y], [tensor_of("w", thinned((32, 32), 0.9))])
    before = model.SerializeToString()
    assert sparsify_weights(model) == ["w"]
    inputs = {"x": np.eye(32, dtype=np.float32)}
    for flag in (True, False):
        expected, actual = (
            session_of(m).run(None, {**inputs, "flag": np.array(flag)})[0]
            for m in (onnx.load_from_string(before), model)
        )
        assert actual.tobytes() == expected.tobytes()


def integer_convolution(codes):
    """Static quantization as ONNX Runtime fuses it: `QLinearConv`."""
    scalars = {"xs": np.float32(0.02), "xz": np.uint8(128), "ys": np.float32(0.05)}
    channels = len(codes)
    constants = [tensor_of(name, value) for name, value in scalars.items()] + [
        tensor_of("w_codes", codes),
        tensor_of("ws", np.full(channels, 0.01, np.float32)),
        tensor_of("b", np.arange(channels, dtype=np.int32)),
        tensor_of("bs", np.full(channels, 0.0002, np.float32)),
    ]
    make = helper.make_node
    nodes = [
        make("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        make("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        make("DequantizeLinear", ["w_codes", "ws"], ["w"], axis=0),
        make("DequantizeLinear", ["b", "bs"], ["bd"], axis=0),
        make("Conv", ["xd", "w", "bd"], ["c"]),
        make("QuantizeLinear", ["c", "ys", "xz"], ["cq"]),
        make("DequantizeLinear", ["cq", "ys", "xz"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", FLOAT, ["n", codes.shape[1], 6, 6])
    y = helper.make_tensor_value_info("y", FLOAT, ["n", channels, 4, 4])
    return model_of(nodes, [x], [y], constants)


@pytest.mark.parametrize(("zeros", "initializers"), [(0.5, False), (0.9, False), (0.95, True)])
def test_integer_kernels_still_run(zeros, initializers, tmp_path):
    model = integer_convolution(thinned((16, 16, 3, 3), zeros, INT8, largest=127))
    expected, operators = output_of(model), operators_run(model, tmp_path)
    assert "QLinearConv" in operators
    assert sparsify_weights(model, initializers=initializers) == ["w_codes"]
    assert operators_run(model, tmp_path) == operators
    assert output_of(model).tobytes() == expected.tobytes()


@pytest.mark.parametrize(("kind", "border"), [(FLOAT, 0.667), (INT8, 0.889), (HALF, 0.8)])
def test_sparse_initializers_pay_above_a_share_of_zeros(kind, border):
    for zeros, pays in ((border - 0.01, False), (border + 0.01, True)):
        model = product(thinned((256, 256), zeros, kind), kind)
        assert bool(plan_sparse(model, initializers=True).weights) == pays


@pytest.mark.parametrize("kind", [FLOAT, HALF, INT8])
@pytest.mark.parametrize("zeros", [0.95, 1.0])
def test_sparse_initializers_hold_the_weight(kind, zeros):
    array = thinned((64, 64), zeros, kind)
    model = product(array, kind)
    expected = output_of(model)
    assert sparsify_weights(model, initializers=True) == ["w"]
    [tensor] = model.graph.sparse_initializer
    assert tensor.indices.data_type == TensorProto.INT64
    dense = np.zeros(array.size, array.dtype)
    dense[numpy_helper.to_array(tensor.indices)] = numpy_helper.to_array(tensor.values)
    assert dense.reshape(tuple(tensor.dims)).tobytes() == array.tobytes()
    assert output_of(model).tobytes() == expected.tobytes()
    onnx.checker.check_model(model)
    # What the docstring says of other tools; when this fails, they have learned it.
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.checker.check_model(model, full_check=True)
    with pytest.raises(Exception, match="SparseTensorProto"):
        ReferenceEvaluator(model).run(None, {"x": np.zeros((1, 64), np.float32)})


def test_four_bit_codes_have_no_sparse_initializer():
    assert sparsify_weights(product(thinned((64, 64), 1.0, INT4), INT4), initializers=True) == []


@pytest.mark.spread(1)
@pytest.mark.parametrize("kind", [FLOAT, INT8, INT4])
def test_openvino_decodes_every_layout(kind):
    pytest.importorskip("openvino")
    core, _ = openvino_core()
    for zeros in (0.3, 0.8, 0.99, 1.0):
        array = thinned((31, 57), zeros, kind)
        for layout in layouts_of(array, kind):
            _, model = decoder(layout, array, kind)
            compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU")
            np.testing.assert_array_equal(compiled({})[0], array, err_msg=str(layout))


def test_codes_are_read_as_int8():
    array = np.array([[-8, 7, 0], [1, -1, 3]], np.int8)
    assert array_of(tensor_of("w", array, INT4)).tolist() == array.tolist()
