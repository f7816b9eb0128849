"""Archives: every file comes back bit for bit, every damaged byte is seen."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
import zlib
from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from archive_files import (
    TYPES,
    model_of,
    random_bytes,
    raw,
    small_model,
    weights,
    with_everything,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import export
import export.archive
from energy_model.errors import ExportError, PostconditionError, StorageError
from export import archive_body
from export.archive import (
    MAGIC,
    VERSION,
    graph_bytes,
    pack,
    packed_bytes,
    predict_bytes,
    unpack_bytes,
)
from export.archive_body import Form, code_groups, prior
from export.archive_file import read_archive
from export.archive_skeleton import split
from export.archive_wire import IrregularError, varint
from passes.coding.range_coder import Bit, Decoder, Encoder, Meter
from passes.storage import atomic

# All that a version wrote must be read for ever, so that these never change.
PRIOR_1 = "6f54d11fa130f3a3da3270d48b681125289ebd9219693384412eb8f5cef4053f"


@cache
def small():
    model = small_model().SerializeToString()
    return model, pack(model)


def resealed(body, form=Form.STREAM, version=VERSION):
    """An archive with a right sum, whatever is in it."""
    begin = MAGIC + bytes([version | form << 6])
    return begin + zlib.crc32(body, zlib.crc32(begin)).to_bytes(4, "big") + body


def test_the_text_of_version_1_never_changes():
    assert hashlib.sha256(prior()).hexdigest() == PRIOR_1


def test_a_small_model_takes_little():
    model, archive = small()
    assert unpack_bytes(archive) == model
    assert archive[:3] == b"\x93T\x01"
    # A bias of 20 arbitrary floats has most of it; deflate needs more for the rest alone.
    skeleton, _ = split(model)
    assert len(archive) < 20 * 4 + 110 < 20 * 4 + len(zlib.compress(skeleton, 9))


def test_everything_that_onnx_knows_comes_back():
    model = with_everything().SerializeToString()
    archive = pack(model)
    assert unpack_bytes(archive) == model
    assert onnx.load_model_from_string(unpack_bytes(archive)) == with_everything()


def test_every_type_comes_back():
    tensors = []
    for number, data_type in enumerate(TYPES):
        bits = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2}.get(data_type, 8)
        item = helper.tensor_dtype_to_np_dtype(data_type).itemsize
        content = bytearray(random_bytes(-(-45 * bits // 8) if bits < 8 else 45 * item, number))
        if bits < 8:
            content[-1] &= (1 << 45 * bits % 8) - 1
        tensors.append(raw(data_type, [9, 5], bytes(content), f"t{data_type}"))
    model = model_of(*tensors).SerializeToString()
    assert len(split(model)[1]) == len(TYPES)
    assert unpack_bytes(pack(model)) == model


def test_special_floats_come_back():
    values = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 3e38], np.float32)
    bits = np.concatenate([values.view(np.uint32), [0x7F800001, 0xFFC12345]]).astype(np.uint32)
    model = model_of(raw(TensorProto.FLOAT, [10], bits.tobytes())).SerializeToString()
    assert unpack_bytes(pack(model)) == model


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no model at all, but kept nevertheless",
        b"\x12\x85\x00abcde" + weights((50, 50)).raw_data,
        MAGIC + bytes(20),
    ],
    ids=["empty", "text", "irregular", "begins as archives do"],
)
def test_any_bytes_come_back(data):
    archive = pack(data)
    assert unpack_bytes(archive) == data
    assert archive[2] >> 6 == (Form.WHOLE if data else Form.STREAM)
    assert abs(predict_bytes(data) - len(archive)) <= 4


def test_files_that_a_library_would_write_otherwise_come_back():
    tensor = weights((40, 40), name="fc.weight").SerializeToString()
    unknown = b"\xf2\x3f\x04abcd"
    graph = b"*" + varint(len(tensor)) + tensor + unknown + b"\x0a\x05\x22\x03Add"
    model = unknown + b":" + varint(len(graph)) + graph + b"\x08\x0a"
    assert onnx.load_model_from_string(model).SerializeToString() != model
    archive = pack(model)
    assert unpack_bytes(archive) == model
    assert archive[2] >> 6 == Form.STREAM
    assert len(archive) < len(model) / 8


def test_weights_in_other_files_are_refused():
    tensor = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    for use in (pack, packed_bytes, predict_bytes):
        with pytest.raises(ExportError, match="in other files"):
            use(model_of(tensor).SerializeToString())


def large_model():
    """Two tensors that become blocks, two that do not."""
    noise = np.random.default_rng(0).standard_normal((256, 100)).astype(np.float32)
    return model_of(
        numpy_helper.from_array(noise, "noise"),
        weights((512, 600), zeros=0.5, name="many"),
        weights((20, 20), name="few"),
        numpy_helper.from_array(noise[0], "bias"),
    ).SerializeToString()


@pytest.mark.slow
def test_large_tensors_become_blocks():
    model = large_model()
    archive = pack(model)
    assert unpack_bytes(archive) == model
    assert archive[2] >> 6 == Form.BLOCKS
    # Noise keeps its size but for the exponents; of the others half are zero, and 3 bits the rest.
    assert len(archive) < 256 * 100 * 4 + 512 * 600 * 2.6 / 8
    assert predict_bytes(model) == pytest.approx(len(archive), rel=0.005, abs=4)


@pytest.mark.slow
def test_large_tensors_are_coded_in_groups(monkeypatch):
    model = large_model()
    whole = pack(model)
    monkeypatch.setattr(archive_body, "_TOGETHER", 256 * 100 - 1)
    apart = pack(model)
    assert apart != whole
    assert unpack_bytes(apart) == unpack_bytes(whole) == model
    assert predict_bytes(model) == pytest.approx(len(apart), rel=0.005, abs=4)


@given(st.integers(0, 9), st.data())
def test_groups_come_back(tensors, data):
    large = [tensor for tensor in range(tensors) if data.draw(st.booleans())]
    groups = []
    for tensor in large:
        if not groups or data.draw(st.booleans()):
            groups.append([])
        groups[-1].append(tensor)
    encoder, meter = Encoder(), Meter()
    for coder in (encoder, meter):
        assert code_groups(coder, tensors, groups) == groups
    stream = encoder.finish()
    assert 8 * len(stream) <= meter.total + 8.01
    assert code_groups(Decoder(stream), tensors) == groups


def test_a_tensor_without_a_block_is_refused():
    encoder = Encoder()
    encoder.bit(Bit(), 1)
    encoder.bit(Bit(), 0)
    with pytest.raises(IrregularError, match="stands in no block"):
        code_groups(Decoder(encoder.finish()), 1)


@pytest.mark.slow
def test_the_size_is_known_without_the_proof(long_skeleton, monkeypatch):
    files = [small()[0], large_model(), long_skeleton, b"no model at all"]
    sizes = [len(pack(file)) for file in files]
    monkeypatch.setattr(export.archive, "_contents", None)
    assert [packed_bytes(file) for file in files] == sizes


@pytest.fixture(scope="module")
def long_skeleton():
    nodes = [
        helper.make_node("Mul", [f"v{i}" if i else "x", f"s{i}"], [f"v{i + 1}"], f"multiply {i}")
        for i in range(1200)
    ]
    scales = [numpy_helper.from_array(np.full(4, 0.5, np.float32), f"s{i}") for i in range(1200)]
    return model_of(*scales, nodes=nodes, output="v1200").SerializeToString()


@pytest.mark.slow
def test_a_long_skeleton_becomes_a_block(long_skeleton):
    archive = pack(long_skeleton)
    assert len(split(long_skeleton)[0]) > 32 << 10
    assert archive[2] >> 6 == Form.LONG
    assert unpack_bytes(archive) == long_skeleton
    assert len(archive) < len(long_skeleton) / 8
    assert predict_bytes(long_skeleton) == pytest.approx(len(archive), rel=0.005, abs=4)


@pytest.mark.parametrize("make", [small_model, with_everything])
def test_the_prediction_is_right(make):
    model = make().SerializeToString()
    assert abs(predict_bytes(model) - len(pack(model))) <= 4


def test_the_graph_is_told_apart(long_skeleton):
    bare = model_of(weights((1, 1))).SerializeToString()
    assert abs(graph_bytes(bare) + 7 - len(pack(bare))) <= 1
    assert 2 * 1200 < graph_bytes(long_skeleton) < len(pack(long_skeleton))
    assert graph_bytes(b"no model at all") is None


def test_every_flipped_byte_is_seen():
    _, archive = small()
    for place in range(len(archive)):
        for change in (1, 0x80, 0xFF):
            damaged = bytearray(archive)
            damaged[place] ^= change
            with pytest.raises(StorageError):
                unpack_bytes(bytes(damaged))


def test_every_shortened_archive_is_seen():
    _, archive = small()
    for length in range(len(archive)):
        with pytest.raises(StorageError):
            unpack_bytes(archive[:length])


@given(st.binary(min_size=1, max_size=40))
def test_whatever_follows_is_seen(more):
    _, archive = small()
    with pytest.raises(StorageError, match="damaged or cut off"):
        unpack_bytes(archive + more)


@settings(max_examples=200)
@given(st.data())
def test_random_damage_is_seen(data):
    model, archive = small()
    damaged = bytearray(archive)
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(archive) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    if bytes(damaged) == archive:
        assert unpack_bytes(bytes(damaged)) == model
        return
    with pytest.raises(StorageError):
        unpack_bytes(bytes(damaged))


@settings(max_examples=25)
@given(st.binary(max_size=80), st.sampled_from(list(Form)))
def test_bytes_that_no_version_wrote_end_in_an_error(body, form):
    """The second line of defence: the sum is right, and the content is not."""
    try:
        unpack_bytes(resealed(body, form))
    except StorageError as error:
        assert "damaged" in str(error)


def test_a_newer_version_says_so():
    with pytest.raises(StorageError, match=r"version 2 .* newer version.*Update the compiler"):
        unpack_bytes(resealed(b"whatever it holds", version=VERSION + 1))


def test_version_0_never_existed():
    with pytest.raises(StorageError, match="damaged"):
        unpack_bytes(resealed(b"", version=0))


@pytest.mark.parametrize("data", [b"", b"\x93", b"PK\3\4 no archive of ours", MAGIC])
def test_what_is_no_archive_is_refused(data):
    with pytest.raises(StorageError, match=r"here: this is no archive\. .*form='packed'"):
        unpack_bytes(data, "here")


def test_an_archive_that_does_not_give_its_file_back_is_not_made(monkeypatch):
    monkeypatch.setattr(export.archive, "_contents", lambda *_: iter([b"something", b"else"]))
    with pytest.raises(PostconditionError, match="does not give the file back"):
        pack(small()[0])


def test_a_file_gives_the_model_back(tmp_path):
    model, archive = small()
    path, to = tmp_path / "small.packed", tmp_path / "below" / "small.onnx"
    path.write_bytes(archive)
    assert export.unpack(path, to) == onnx.load_model_from_string(model)
    assert to.read_bytes() == model
    assert read_archive(str(path)) == model
    session = ort.InferenceSession(to)
    x = np.ones((3, 4), np.float32)
    [y] = session.run(None, {"x": x})
    stored = {t.name: numpy_helper.to_array(t) for t in small_model().graph.initializer}
    np.testing.assert_allclose(y, x @ stored["fc.weight"].T + stored["fc.bias"], rtol=1e-6)


def test_nothing_is_written_where_only_the_model_is_wanted(tmp_path):
    path = tmp_path / "small.packed"
    path.write_bytes(small()[1])
    assert export.unpack(path).graph.node[0].op_type == "Gemm"
    assert [entry.name for entry in tmp_path.iterdir()] == ["small.packed"]


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(StorageError, match=r"gone\.packed: the file is missing"):
        export.unpack(tmp_path / "gone.packed")
    with pytest.raises(StorageError, match=r"the file cannot be read .*directory"):
        export.unpack(tmp_path)


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "bad.packed"
    path.write_bytes(small()[1][:-1])
    with pytest.raises(StorageError, match=r"bad\.packed: the archive is damaged or cut off"):
        export.unpack(path)
    path.write_bytes(pack(b"no model at all"))
    with pytest.raises(StorageError, match=r"bad\.packed: .* is no ONNX model"):
        export.unpack(path)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path, to = tmp_path / "small.packed", tmp_path / "small.onnx"
    path.write_bytes(small()[1])
    to.write_bytes(b"old")
    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises(StorageError, match="No space left"):
        export.unpack(path, to)
    assert to.read_bytes() == b"old"


@pytest.mark.slow
def test_importing_the_package_loads_neither_torch_nor_onnx():
    code = "import sys, export; sys.exit(bool({'onnx', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = code.replace("export;", "export; export.unpack;")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1


def test_the_package_has_no_other_names():
    with pytest.raises(AttributeError, match="no attribute 'repack'"):
        _ = export.repack
