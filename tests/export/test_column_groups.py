"""The form `column_groups`: found in the zeros, smaller, equal to torch, and counted honestly."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from torch import nn

import transform
from bench.check_certificate import UnusableInputError, check
from energy_model.errors import ArgumentError, ExportError
from energy_model.hardware import load_hardware
from export.column_groups import column_groups_of, group_columns, write_column_groups
from export.dense import write_dense
from export.grouped_products import Grouped, grouped_weights
from export.initializers import locate
from export.onnx_file import at_batch
from export.parity import open_session
from passes.analysis.costs import cost_table
from passes.graph import ModelGraph
from passes.inputs import as_call
from passes.methods.magnitude import Magnitude
from passes.projection.pattern_units import GroupedColumns
from passes.tracing.trace import trace

# Files in column groups, run and counted: `make test-slow` runs them.
pytestmark = pytest.mark.slow

EYERISS = load_hardware("eyeriss")


def grouped_weight(rows, cols, height, kept, seed=0):
    """A random weight of which every group keeps its largest columns."""
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    return weight * GroupedColumns(rows, cols, height).mask(weight, kept)


class Mixed(nn.Module):
    """Products of two and of three dimensions, with and without bias, and 1 x 1 convolutions."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(32)
        self.point = nn.Conv2d(16, 32, 1, bias=False)
        self.second = nn.Conv2d(32, 24, 1)
        self.token, self.plain = nn.Linear(24, 32), nn.Linear(32, 32, bias=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.point(torch.relu(self.stem(x)))))
        x = self.second(x).flatten(2).transpose(1, 2)
        return self.head(torch.relu(self.plain(torch.relu(self.token(x)))).mean(1))


class Signal(nn.Module):
    """A pointwise convolution of one dimension, and tied layers."""

    def __init__(self):
        super().__init__()
        self.point, self.first, self.second = nn.Conv1d(8, 16, 1), *(nn.Linear(16, 16),) * 2
        self.second = nn.Linear(16, 16)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.relu(self.first(self.point(x).mean(2))))


NETS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 10)), (3, 24)),
    "mixed": (Mixed, (2, 3, 6, 6)),
    "signal": (Signal, (2, 8, 5)),
    "deep tokens": (lambda: nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 8)), (2, 3, 5, 12)),
}


def graph_of(name, rows=4, keep=0.4) -> ModelGraph:
    torch.manual_seed(0)
    make, shape = NETS[name]
    model = make().eval()
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv1d | nn.Conv2d)
                                            and set(layer.kernel_size) == {1}):  # fmt: skip
            height = rows if len(weight) % rows == 0 else len(weight)
            layout = GroupedColumns(len(weight), weight[0].numel(), height)
            with torch.no_grad():
                mask = layout.mask(weight, max(1, round(keep * layout.cols)))
                weight.masked_fill_(~mask, 0.0)
    return trace(model, as_call(model, torch.randn(*shape)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder, done = tmp_path_factory.mktemp("groups"), {}

    def get(name):
        if name not in done:
            graph = graph_of(name)
            dense = write_dense(graph, EYERISS, folder / f"{name}-dense.onnx")
            done[name] = graph, dense, write_column_groups(graph, EYERISS, folder / f"{name}.onnx")
        return done[name]

    return get


@pytest.mark.parametrize(
    ("rows", "cols", "height", "kept"),
    [(12, 10, 4, 3), (12, 10, 12, 3), (12, 10, 6, 9), (8, 6, 2, 1), (1, 5, 1, 2), (128, 64, 64, 9)],
)
def test_the_groups_that_were_made_are_found(rows, cols, height, kept):
    weight = grouped_weight(rows, cols, height, kept)
    for shaped in (weight, weight.view(rows, cols, 1, 1)):
        found, index = column_groups_of(shaped)
        assert found == height
        assert (index.dtype, index.shape) == (torch.int64, (rows // height, kept))
        expected = [part[0].nonzero()[:, 0].tolist() for part in weight.view(-1, height, cols)]
        assert index.tolist() == expected


@pytest.mark.parametrize(
    "weight",
    [
        torch.ones(4, 6),
        torch.eye(6),
        torch.tensor([[1.0, 0, 2], [0, 1, 0]]),
        grouped_weight(12, 10, 1, 3),
    ],
)
def test_what_has_no_groups(weight):
    assert column_groups_of(weight) is None


def test_groups_with_fewer_columns_are_filled_up_with_zeros():
    weight = torch.tensor([[0.0, 1, 0, 2], [0, 3, 0, 4], [0, 0, 5, 0], [0, 0, 0, 0]])
    height, index = column_groups_of(weight)
    assert (height, index.tolist()) == (2, [[1, 3], [0, 2]])
    assert column_groups_of(torch.zeros(4, 3))[1].tolist() == [[0]]


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 6), st.floats(0, 1))
def test_groups_are_the_largest_and_cover_every_nonzero(seed, rows, cols, density):
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=random)
    weight *= torch.rand(rows, cols, generator=random) < density
    # Rows are repeated, so that groups are not rare.
    weight = weight.repeat_interleave(2, 0)
    found, most = column_groups_of(weight), max(1, int((weight != 0).sum(1).max()))

    def needed(height):
        return int((weight != 0).view(-1, height, cols).any(1).sum(1).max())

    fits = [h for h in range(2, 2 * rows + 1) if 2 * rows % h == 0 and needed(h) <= most]
    if most >= cols:
        assert found is None
        return
    height, index = found
    assert (height, index.shape[1]) == (max(fits), most)
    assert all(len(set(row)) == most and row == sorted(row) for row in index.tolist())
    grouped = Grouped.of(weight.numpy(), index.numpy())
    np.testing.assert_array_equal(grouped.whole(tuple(weight.shape)), weight.numpy())


@pytest.mark.parametrize("columns", [[[0, 0]], [[0, 3]], [[-1, 0]]])
def test_columns_that_cannot_be_are_no_weight(columns):
    grouped = Grouped(np.ones((1, 2, 2), np.float32), np.array(columns))
    assert grouped.whole((2, 3)) is None
    assert Grouped(np.ones((1, 2, 2), np.float32), np.array([[0, 2]])).whole((2, 3)) is not None
    assert Grouped(np.ones((1, 2, 2), np.float32), np.array([[0, 2]])).whole((3, 2)) is None


FAST = ("mlp", "signal")


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NETS]
)
def test_the_file_is_smaller_and_counts_the_same(exported, name):
    graph, dense, written = exported(name)
    assert written.form == "column_groups"
    assert written.bytes == written.path.stat().st_size
    assert written.recount.parameters < dense.recount.parameters
    assert written.parity.max_abs_error <= 1e-4 * written.parity.scale
    assert written.recount.costs.total == dense.recount.costs.total == costs_of(graph)
    for site in graph.compressible:
        stored, expected = (x.recount.stored[site.name].values for x in (written, dense))
        np.testing.assert_array_equal(np.sort(stored, axis=None), np.sort(expected, axis=None))


def costs_of(graph):
    return cost_table(graph, EYERISS).total


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("batch", [1, 7])
def test_the_batch_stays_dynamic(exported, name, batch):
    graph, _, written = exported(name)
    call = at_batch(graph.call, batch)
    session = open_session(written.path)
    [actual] = session.run(None, {session.get_inputs()[0].name: call.tensors()[0].numpy()})
    with torch.no_grad():
        expected = call(graph.module)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_only_kept_columns_are_stored(exported):
    _, _, written = exported("mlp")
    model = onnx.load(written.path)
    assert [node.op_type for node in model.graph.node].count("MatMul") == 2
    assert not any(node.op_type == "Gemm" for node in model.graph.node)
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    assert shapes["0.weight"] == (5, 4, 10)
    assert shapes["0.weight_columns"] == (5, 10)
    assert set(grouped_weights(model)) == {"0.weight", "2.weight"}


def float_file(nodes, weights, inputs):
    values = [helper.make_tensor_value_info(n, 1, s) for n, s in inputs.items()]
    rank = len(inputs["x"])
    outputs = [helper.make_tensor_value_info("y", 1, [f"d{i}" for i in range(rank)])]
    stored = [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()]
    graph = helper.make_graph(nodes, "g", values, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def outputs_of(model, **inputs):
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, inputs)[0]


WEIGHT = grouped_weight(32, 32, 8, 6).numpy()
KERNEL = WEIGHT.reshape(32, 32, 1, 1)
MASK = np.ones((1, 32, 5, 5), np.float32)
UNTOUCHED = {
    "scaled": ([helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.5)], WEIGHT, ["n", 32]),
    "turned input": ([helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)], WEIGHT, [32, 4]),
    "left": ([helper.make_node("MatMul", ["w", "x"], ["y"])], WEIGHT, [32, 4]),
    "vector": ([helper.make_node("MatMul", ["x", "w"], ["y"])], WEIGHT, [32]),
    "strided": ([helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2])], KERNEL,
                ["n", 32, 5, 5]),
    "padded": ([helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)], KERNEL,
               ["n", 32, 5, 5]),
    "grouped": ([helper.make_node("Conv", ["x", "w"], ["y"], group=2)], KERNEL[:, :16],
                ["n", 32, 5, 5]),
    "unknown size": ([helper.make_node("Conv", ["x", "w"], ["y"])], KERNEL, ["n", 32, "h", 5]),
    "two unknown": ([helper.make_node("MatMul", ["x", "w"], ["y"])], WEIGHT.T, ["n", "t", 32]),
    "masked": ([helper.make_node("Mul", ["x", "m"], ["h"]),
                helper.make_node("Conv", ["h", "w"], ["y"])], KERNEL, ["n", 32, 5, 5]),
    "read otherwise": ([helper.make_node("MatMul", ["x", "w"], ["h"]),
                        helper.make_node("Gemm", ["h", "w"], ["y"], transB=1)], WEIGHT.T,
                       ["n", 32]),
    "dense": ([helper.make_node("MatMul", ["x", "w"], ["y"])], np.ones((32, 32), np.float32),
              ["n", 32]),
}  # fmt: skip


@pytest.mark.parametrize("name", UNTOUCHED)
def test_what_the_form_cannot_write_stays_as_it_is(name):
    nodes, weight, shape = UNTOUCHED[name]
    constants = {"w": weight} | ({"m": MASK} if name == "masked" else {})
    model = float_file(nodes, constants, {"x": shape})
    before = model.SerializeToString()
    assert group_columns(model) == []
    assert model.SerializeToString() == before


REWRITTEN = {
    "product": ([helper.make_node("MatMul", ["x", "w"], ["y"])], WEIGHT.T, (3, 32)),
    "tokens": ([helper.make_node("MatMul", ["x", "w"], ["y"])], WEIGHT.T, (3, 4, 5, 32)),
    "gemm": ([helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)], WEIGHT, (3, 32)),
    "gemm, inputs first": ([helper.make_node("Gemm", ["x", "w", "b"], ["y"])], WEIGHT.T, (3, 32)),
    "pointwise": ([helper.make_node("Conv", ["x", "w", "b"], ["y"])], KERNEL, (3, 32, 5, 4)),
    "twice": ([helper.make_node("MatMul", ["x", "w"], ["h"]),
               helper.make_node("MatMul", ["h", "w"], ["y"])], WEIGHT.T, (3, 32)),
}  # fmt: skip


@pytest.mark.parametrize("name", REWRITTEN)
def test_the_rewritten_graph_computes_the_same(name):
    nodes, weight, shape = REWRITTEN[name]
    constants = {"w": weight, "b": np.arange(32, dtype=np.float32)}
    model = float_file(nodes, constants, {"x": ["n", *shape[1:]]})
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    before, size = outputs_of(model, x=x), len(model.SerializeToString())
    assert group_columns(model) == ["w"]
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(outputs_of(model, x=x), before, rtol=1e-5, atol=1e-4)
    assert len(model.SerializeToString()) < size
    assert not any(list(t.dims) == list(weight.shape) for t in model.graph.initializer)


def test_a_layer_that_would_not_get_smaller_stays():
    weight = grouped_weight(4, 8, 2, 7).numpy()  # 112 bytes of weights and 56 of columns
    model = float_file(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], {"w": weight}, {"x": ["n", 8]}
    )
    assert column_groups_of(torch.from_numpy(weight)) is not None
    assert group_columns(model) == []


def test_a_model_without_the_pattern_is_refused_and_nothing_is_written(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8))
    graph = trace(model, as_call(model, torch.randn(2, 8)))
    with pytest.raises(ExportError, match="no layer has column groups") as caught:
        write_column_groups(graph, EYERISS, tmp_path / "x.onnx")
    assert "pattern='column_groups'" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    """A compressed model, its file in both forms, and their certificates."""
    torch.manual_seed(0)
    model, inputs = Mixed().eval(), torch.randn(2, 3, 6, 6)
    result = transform.compress(
        model,
        "nonzeros<=60%, energy<=80%",
        example_inputs=inputs,
        method=Magnitude(scope="layer", pattern="column_groups:4"),
    )
    folder = tmp_path_factory.mktemp("certified")
    forms = ("dense", "column_groups")
    return {form: result.export(folder / f"{form}.onnx", form=form) for form in forms}


@pytest.mark.slow
def test_the_certificate_of_both_forms_says_the_same(certified):
    claims = [json.loads(export.certificate.read_text()) for export in certified.values()]
    assert claims[0]["totals"] == claims[1]["totals"]
    assert certified["column_groups"].form == "column_groups"
    assert certified["column_groups"].bytes < certified["dense"].bytes


def test_the_certificate_is_checked_from_the_file_alone(certified):
    assert check(certified["column_groups"].certificate) == []


def test_an_unknown_form_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="unknown form"):
        transform.forms.require_form("rows")


def changed(export, tmp_path, change):
    """The certificate of a file, and the file after a change of one of its weights."""
    model = onnx.load(export.path)
    name = sorted(grouped_weights(model))[0]
    arrays = {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}
    change(arrays[name], arrays[f"{name}_columns"])
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    path = tmp_path / "changed.onnx"
    onnx.save(model, path)
    return export.certificate, path


def test_a_weight_that_was_taken_away_is_seen(certified, tmp_path):
    def change(blocks, columns):
        blocks[0, 0, 0] = 0

    told = check(*changed(certified["column_groups"], tmp_path, change))
    for what in ("sha256", "nonzeros", "energy, exact", "layer "):
        assert any(row.startswith(what) for row in told)


def test_a_column_that_is_gathered_twice_is_refused(certified, tmp_path):
    def change(blocks, columns):
        columns[0, 1] = columns[0, 0]

    with pytest.raises(UnusableInputError, match="has an input twice"):
        check(*changed(certified["column_groups"], tmp_path, change))


def test_a_column_beyond_the_inputs_is_refused(certified, tmp_path):
    def change(blocks, columns):
        columns[0, -1] = 1000

    with pytest.raises(UnusableInputError, match="out of bounds"):
        check(*changed(certified["column_groups"], tmp_path, change))


def test_weights_under_other_names_are_known_by_all_their_elements():
    nodes, weight, shape = REWRITTEN["product"]
    model = float_file(nodes, {"w": weight}, {"x": ["n", *shape[1:]]})
    group_columns(model)
    layer = nn.Sequential(nn.Linear(32, 32, bias=False))
    graph = trace(layer, as_call(layer, torch.randn(2, 32)))
    found = locate(model, graph.sites, {"0": torch.from_numpy(WEIGHT)})
    np.testing.assert_array_equal(found["0"].values, WEIGHT)
    assert (found["0"].name, found["0"].same_layout) == ("w", True)
    assert locate(model, graph.sites, {"0": torch.from_numpy(WEIGHT * 2)}) == {}
