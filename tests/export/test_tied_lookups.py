"""Tied weights in a file: `Gather` on a bank, and an index that is computed or narrow."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import transform
from bench.certificate_constants import Constants as Checked
from bench.check_certificate import check
from bench.check_certificate import recount as recounted
from bench.runtimes import openvino_core
from energy_model.hardware import load_hardware
from export.constants import Constants
from export.dense import write_dense
from export.tied_weights import DOMAIN, OPERATOR, lookup_notes, marked_lookups, write_lookups
from passes.dynamic.random_keys import key_of, normals
from passes.dynamic.tied_bank import TiedBank, attach_bank
from passes.inputs import as_call
from passes.rewrite.tied_weights import TiedWeight, write_banks
from passes.tracing.trace import trace

EYERISS = load_hardware("eyeriss")
X = normals(key_of(0, 0, "x"), 3 * 2 * 8 * 8).reshape(3, 2, 8, 8)
SHAPE = (6, 5, 3, 3)
OPTIONS = [
    {"dealing": "balanced"},
    {"dealing": "hashed"},
    {"dealing": "balanced", "sign_key": -9},
    {"dealing": "hashed", "sign_key": key_of(2, 0, "sign")},
    {"dealing": "hashed", "leading": 2, "sign_key": (1 << 63) - 1},
    {"dealing": "balanced", "leading": 1},
]


def weight_of(*, shape=SHAPE, buckets=6, stored=False, dtype=torch.float32, **options):
    tie = TiedBank(shape, buckets, key_of(5, 0, "w"), **options)
    values = normals(key_of(1, 0, "bank"), buckets * int(np.prod(tie.entry)))
    bank = nn.Parameter(values.reshape(buckets, *tie.entry).to(dtype))
    return TiedWeight(tie, bank, stored_index=stored)


def lookup(weight):
    """A model whose output is the weight."""
    bank = numpy_helper.from_array(weight.bank.detach().numpy(), "fc.weight.bank")
    mark = helper.make_node(OPERATOR, [bank.name], ["w"], domain=DOMAIN, index=0)
    out = helper.make_tensor_value_info("w", bank.data_type, weight.tie.shape)
    graph = helper.make_graph([mark], "g", [], [out], [bank])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    write_lookups(model, {"fc.weight": weight})
    onnx.checker.check_model(model, full_check=True)
    return model


def computed(model, *, optimize=True):
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    [values] = session.run(None, {})
    return values


def integers(model):
    arrays = [numpy_helper.to_array(t) for t in model.graph.initializer]
    return [array for array in arrays if array.dtype.kind in "iu"]


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_reader_of_the_file_finds_the_weight_that_torch_looks_up(options, stored):
    weight = weight_of(stored=stored, **options)
    model, expected = lookup(weight), weight().detach().numpy()
    assert [item.domain for item in model.opset_import] == [""]
    np.testing.assert_array_equal(computed(model), expected)
    np.testing.assert_array_equal(computed(model, optimize=False), expected)
    np.testing.assert_array_equal(Constants(model)["w"].values, expected)
    read = Checked(model.graph).get("w")
    np.testing.assert_array_equal(read.array, expected)
    assert (read.bits, read.coded) == (32, False)
    [gather] = [node for node in model.graph.node if node.op_type == "Gather"]
    [bank] = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
    assert tuple(bank.dims) == (6, *weight.tie.entry)
    if "sign_key" not in options:
        assert gather.input[0] == bank.name == read.names[-1] == "fc.weight.bank"


def test_a_computed_index_takes_no_room_and_a_stored_one_is_told():
    assert max(array.size for array in integers(lookup(weight_of()))) <= 16
    assert sorted(array.size for array in integers(lookup(weight_of(stored=True)))) == [270]
    assert "OpenVINO" in lookup_notes(nn.ModuleList([weight_of()]))[0]
    assert lookup_notes(nn.ModuleList([weight_of(stored=True)])) == ()


@pytest.mark.parametrize(
    ("buckets", "signed", "kind"),
    [
        (256, False, np.uint8),
        (257, False, np.uint16),
        (128, True, np.uint8),
        (129, True, np.uint16),
        (65_536, False, np.uint16),
        (65_537, False, np.uint32),
    ],
)
def test_a_stored_index_is_as_narrow_as_it_can_be(buckets, signed, kind):
    options = {"sign_key": 4} if signed else {}
    weight = weight_of(shape=(300, 300), buckets=buckets, stored=True, **options)
    [index] = integers(lookup(weight))
    assert (index.dtype, index.shape) == (kind, (300, 300))


def test_a_runtime_that_computes_another_index_gives_nan():
    model = lookup(weight_of())
    [shift] = [t for t in model.graph.initializer if t.name == "u27"]
    shift.CopyFrom(numpy_helper.from_array(np.array(26, np.uint64), shift.name))
    assert np.isnan(computed(model)).all()


def test_openvino_gives_nan_rather_than_another_weight(tmp_path):
    pytest.importorskip("openvino")
    core, _ = openvino_core()
    for stored in (False, True):
        weight = weight_of(stored=stored)
        path = tmp_path / f"{stored}.onnx"
        onnx.save_model(lookup(weight), str(path))
        [found] = core.compile_model(str(path), "CPU")({}).values()
        right = np.array_equal(found, weight().detach().numpy())
        assert right or np.isnan(found).all()
        assert right or not stored


def test_half_precision_stays_half():
    weight = weight_of(dtype=torch.float16)
    model = lookup(weight)
    np.testing.assert_array_equal(computed(model), weight().detach().numpy())
    assert model.graph.initializer[0].data_type == TensorProto.FLOAT16


def test_lookups_share_their_numbers_and_nothing_else():
    first, second = weight_of(), weight_of(dealing="hashed")
    banks = [
        numpy_helper.from_array(weight.bank.detach().numpy(), name)
        for name, weight in (("a", first), ("b", second))
    ]
    marks = [
        helper.make_node(OPERATOR, [bank.name], [f"{bank.name}w"], domain=DOMAIN, index=place)
        for place, bank in enumerate(banks)
    ]
    marks.append(helper.make_node("Concat", ["aw", "bw"], ["y"], axis=0))
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, (12, 5, 3, 3))
    graph = helper.make_graph(marks, "g", [], [out], banks)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    write_lookups(model, {"a.weight": first, "b.weight": second})
    expected = torch.cat([first(), second()]).detach().numpy()
    np.testing.assert_array_equal(computed(model), expected)
    names = [t.name for t in model.graph.initializer]
    assert names.count("u30") == 1
    outputs = [name for node in model.graph.node for name in node.output]
    assert {"a.weight", "b.weight"} <= set(outputs)
    assert len(outputs) == len(set(outputs))


def tied_graph():
    """A convolution and a linear layer from banks, with a norm between them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv, linear = nn.Conv2d(2, 12, 3), nn.Linear(432, 5)
        model = nn.Sequential(conv, nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), linear).eval()
    graph = trace(model, as_call(model, X))
    for site in graph.sites:
        shape = tuple(graph.parameter(site).shape)
        attach_bank(graph, site, TiedBank(shape, 20, key_of(5, 0, site.name)))
    write_banks(graph, graph.sites)
    again = trace(graph.runnable, graph.call)
    again.rewritten = True
    return again


@pytest.mark.slow
def test_zeros_of_a_bank_are_counted_from_the_file(tmp_path):
    graph = tied_graph()
    with torch.no_grad():
        graph.runnable.get_parameter("0.weight.bank")[::2] = 0
    left = int(torch.count_nonzero(graph.runnable.get_submodule("0.weight")()))
    written = write_dense(graph, EYERISS, tmp_path / "net.onnx")
    assert written.parity.max_abs_error < 1e-5
    found = recounted(written.path, EYERISS.to_dict())
    rows = {row.name: row for row in written.recount.costs}
    assert {name: row.nonzeros for name, row in rows.items()} == {"0": left, "4": 2160}
    weights = {w.elements: w.nonzeros for w in found.weights.values()}
    assert weights == {216: left, 2160: 2160}
    assert left < 120
    assert found.energy["exact"] == sum(row.energy.exact for row in rows.values())
    assert {s: x.name for s, x in written.recount.stored.items()} == {
        "0": "0.weight",
        "4": "4.weight",
    }


def test_the_model_looks_up_again_after_its_export():
    graph = tied_graph()
    before = graph.runnable(X)
    with pytest.raises(RuntimeError, match="stop"), marked_lookups(graph.runnable) as found:
        assert list(found) == ["0.weight", "4.weight"]
        assert not any(isinstance(part, TiedBank) for part in graph.runnable.modules())
        raise RuntimeError("stop")
    assert torch.equal(graph.runnable(X), before)
    with marked_lookups(nn.Sequential(nn.Linear(4, 3))) as found:
        assert found == {}


class Returned(nn.Module):
    """Also returns its weight: input `(N, 6)`."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 4, bias=False)

    def forward(self, x):
        return nn.functional.linear(x, self.fc.weight), self.fc.weight


@pytest.mark.slow
def test_the_certificate_of_a_file_is_checked_and_a_changed_bank_is_seen(tmp_path):
    result = transform.compress(
        Returned(), "params<=50%", example_inputs=torch.ones(2, 6), method="hashed"
    )
    exported = result.export(tmp_path / "net.onnx")
    assert exported.max_abs_error < 1e-6
    assert check(exported.certificate) == []
    proto = onnx.load(exported.path)
    [bank] = [t for t in proto.graph.initializer if t.name.endswith(".bank")]
    values = numpy_helper.to_array(bank).copy()
    assert values.shape == (12,)
    values[0] = 0
    bank.CopyFrom(numpy_helper.from_array(values, bank.name))
    onnx.save_model(proto, str(exported.path))
    assert any("nonzeros" in line for line in check(exported.certificate))
