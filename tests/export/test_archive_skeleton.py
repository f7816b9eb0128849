"""Skeletons say all of a file but its elements, in its own order, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from archive_files import TYPES, model_of, random_bytes, raw, small_model, weights, with_everything
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from energy_model.errors import ExportError
from export.archive_names import Names
from export.archive_skeleton import Payload, join, split
from export.archive_tensors import payload_bytes, to_array, to_bytes
from export.archive_wire import IrregularError, Kind, Source, varint


def rebuilt(model):
    """A file taken apart and put together, elements through their arrays."""
    skeleton, payloads = split(model)
    waiting, parts = iter(payloads), []
    for piece in join(skeleton):
        if isinstance(piece, Payload):
            source = next(waiting)
            assert (piece.data_type, piece.dims, piece.bytes) == (
                source.data_type, source.dims, source.bytes,
            )  # fmt: skip
            data = memoryview(model)[source.begin : source.begin + source.bytes]
            piece = bytes(to_bytes(to_array(data, piece.data_type, piece.dims), piece.data_type))
        parts.append(piece)
    assert next(waiting, None) is None
    return b"".join(parts)


def test_elements_are_taken_out_and_all_else_stays():
    model = small_model().SerializeToString()
    skeleton, payloads = split(model)
    assert [(p.data_type, p.dims) for p in payloads] == [(1, (20, 4)), (1, (20,)), (7, (2,))]
    assert all(model[p.begin : p.begin + 4] != b"" for p in payloads)
    assert len(skeleton) < len(model) - 20 * 4 * 4
    assert rebuilt(model) == model


def test_a_model_with_everything_comes_back():
    model = with_everything()
    data = model.SerializeToString()
    skeleton, payloads = split(data)
    # Constants of attributes, of a branch (twice), of a function, and of sparse tensors among them.
    assert {p.dims for p in payloads} == {
        (5, 5), (3, 5), (6, 6), (2, 9), (3, 3), (2, 8), (7, 7), (3,),
    }  # fmt: skip
    assert rebuilt(data) == data
    assert b"a text with a zero" in skeleton


@pytest.mark.parametrize("data_type", TYPES)
@pytest.mark.parametrize("dims", [(7, 5), (64,), (), (0, 3), (1, 2, 3, 3)])
def test_every_type_survives(data_type, dims):
    bits = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2}.get(data_type, 8)
    count = int(np.prod(dims))
    item = helper.tensor_dtype_to_np_dtype(data_type).itemsize
    content = bytearray(random_bytes(count * item if bits == 8 else -(-count * bits // 8)))
    if count * bits % 8 and bits < 8:
        content[-1] &= (1 << count * bits % 8) - 1
    model = model_of(raw(data_type, dims, bytes(content))).SerializeToString()
    assert payload_bytes(data_type, dims) == len(content)
    assert rebuilt(model) == model
    assert len(split(model)[1]) == (len(content) > 8)


def test_padding_that_is_not_zero_stays_in_the_skeleton():
    content = b"\x11" * 16 + b"\xf1"
    model = model_of(raw(TensorProto.UINT4, [33], content)).SerializeToString()
    skeleton, payloads = split(model)
    assert payloads == []
    assert content in skeleton
    assert rebuilt(model) == model


@pytest.mark.parametrize(
    "tensor",
    [
        raw(TensorProto.FLOAT, [3, 4], b"too short, too short"),
        raw(TensorProto.STRING, [3], b"no such thing in raw data"),
        raw(99, [30], b"a type of the far future, unknown"),
        raw(TensorProto.FLOAT, [-1, 4], b"dimensions that cannot be"),
        raw(TensorProto.FLOAT, [1 << 40, 1 << 40], b"too large for any memory"),
    ],
)
def test_elements_that_do_not_fit_their_shape_stay_in_the_skeleton(tensor):
    model = model_of(tensor).SerializeToString()
    skeleton, payloads = split(model)
    assert payloads == []
    assert tensor.raw_data in skeleton
    assert rebuilt(model) == model


def test_dimensions_in_one_field_are_read():
    """As proto3 packs them; the libraries of ONNX do not, other writers do."""
    content = random_bytes(4 * 300)
    dims = varint(3) + varint(100)
    tensor = b"\x0a" + varint(len(dims)) + dims + b"\x10\x01J" + varint(len(content)) + content
    graph = b"*" + varint(len(tensor)) + tensor
    model = b"\x08\x0a:" + varint(len(graph)) + graph
    assert list(onnx.load_model_from_string(model).graph.initializer[0].dims) == [3, 100]
    assert [p.dims for p in split(model)[1]] == [(3, 100)]
    assert rebuilt(model) == model


def test_unknown_fields_and_odd_order_survive():
    tensor = weights((9, 9)).SerializeToString()
    unknown = b"\xf2\x3f\x04abcd" + b"\xf8\x3f\x07" + b"\xfd\x3f1234" + b"\xf9\x3f12345678"
    graph = b"*" + varint(len(tensor)) + tensor + unknown + b"\x0a\x05\x22\x03Add"
    model = unknown + b":" + varint(len(graph)) + graph + b"\x08\x0a" + b"\x08\x09"
    skeleton, payloads = split(model)
    assert onnx.load_model_from_string(model).SerializeToString() != model
    assert [p.dims for p in payloads] == [(9, 9)]
    assert rebuilt(model) == model
    assert len(skeleton) < 100


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\x08", "a number has no end"),
        (b"\x12\x05ab", "reaches beyond the end"),
        (b"\x12\x85\x00abcde", "longer than it need be"),
        (b"\x88\x00\x01", "longer than it need be"),
        (b"\x02\x01a", "numbered zero"),
        (b"\x0b\x08\x01\x0c", "wire type 3"),
        (b":\x84\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", "a number has no end"),
        (b"an ordinary text is no model", "beyond the end"),
    ],
)
def test_what_is_not_regular_is_refused(data, told):
    with pytest.raises(IrregularError, match=told):
        split(data)


def nested(depth):
    """Branches in branches: three messages each."""
    data = b""
    for tag in b"2*\n" * depth:
        data = bytes([tag]) + varint(len(data)) + data
    return b":" + varint(len(data)) + data


def test_nesting_has_a_limit():
    model = nested(30)
    assert onnx.load_model_from_string(model).graph.node[0].attribute[0].g.node
    assert rebuilt(model) == model
    with pytest.raises(IrregularError, match="nested too deeply"):
        split(nested(40))
    with pytest.raises(IrregularError, match="nested too deeply"):
        join(b":" + b"\n*2" * 40 + b"\0" * 121)


def test_elements_in_other_files_are_refused():
    tensor = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights.bin")
    with pytest.raises(ExportError, match=r"in other files.*onnx\.save"):
        split(model_of(tensor).SerializeToString())


@pytest.mark.parametrize("cut", range(0, 120, 7))
def test_a_cut_skeleton_is_seen(cut):
    skeleton, _ = split(small_model().SerializeToString())
    with pytest.raises(IrregularError):
        join(skeleton[:cut])


def test_something_behind_a_skeleton_is_seen():
    skeleton, _ = split(small_model().SerializeToString())
    with pytest.raises(IrregularError, match="something follows"):
        join(skeleton + b"\0")


@given(st.binary(max_size=60))
def test_random_skeletons_end(data):
    try:
        pieces = join(data)
    except IrregularError:
        return
    assert all(isinstance(piece, bytes | Payload) for piece in pieces)


names = st.lists(
    st.tuples(
        st.sampled_from([Kind.INPUT, Kind.OUTPUT, Kind.NODE, Kind.TENSOR, Kind.VALUE]),
        st.one_of(
            st.sampled_from([b"conv2d", b"conv2d_1", b"conv2d_2", b"relu", b"node_relu", b"x"]),
            st.binary(max_size=6),
            st.binary(min_size=250, max_size=260),
        ),
        st.booleans(),
    ),
    max_size=40,
)


@settings(max_examples=200)
@given(names)
def test_names_come_back(entries):
    out, writer, reader = bytearray(), Names(), Names()
    for kind, name, begins in entries:
        if begins:
            writer.begin_node()
        writer.write(out, kind, name)
    source = Source(bytes(out))
    for kind, name, begins in entries:
        if begins:
            reader.begin_node()
        assert reader.read(source, kind) == name
    assert source.position == source.end


def test_names_that_can_be_expected_cost_a_byte():
    names, out = Names(), bytearray()
    for number in range(5):
        names.begin_node()
        names.write(out, Kind.INPUT, b"conv2d_%d" % number if number else b"x")
        names.write(out, Kind.OUTPUT, b"conv2d_%d" % (number + 1))
        names.write(out, Kind.NODE, b"node_conv2d_%d" % (number + 1))
    # Twice the name of the first, then: expected, `conv2d` and its end, expected.
    assert len(out) == len(b"x\0conv2d\4\2") + 4 * len(b"\2conv2d\4\2")


@given(st.binary(max_size=40), st.lists(st.sampled_from(list(Kind)[1:6]), max_size=20))
def test_random_names_end(data, kinds):
    names, source = Names(), Source(data)
    try:
        for kind in kinds:
            names.begin_node()
            names.read(source, kind)
    except IrregularError:
        return
    assert source.position <= source.end
