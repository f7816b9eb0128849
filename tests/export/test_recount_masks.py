"""Input masks count as the file has them, and one that is not the model's is an error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import export.dense as dense
from bench.check_certificate import recount as check
from energy_model.errors import ParityError, PostconditionError
from energy_model.hardware import load_hardware
from export.dense import write_dense
from export.fold_slices import fold_slices
from export.initializers import locate
from export.recount import recount_costs
from passes.analysis.costs import cost_table
from passes.inputs import Call
from passes.tracing.trace import trace

# Files of masked inputs, counted again: `make test-slow` runs them.
pytestmark = pytest.mark.slow

EYERISS = load_hardware("eyeriss")
SHAPE = (2, 6, 6)


def every_other(*shape, dtype=torch.float32):
    mask = torch.ones(shape)
    mask.view(-1)[1::2] = 0
    return mask.to(dtype)


class Net(nn.Module):
    """A function of a buffer `mask` and convolutions `c` and `d`, then a linear layer."""

    def __init__(self, function, mask):
        super().__init__()
        self.function = function
        self.c, self.d = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3, stride=2)
        self.up = nn.ConvTranspose2d(2, 2, 3, stride=2)
        self.head = nn.LazyLinear(4)
        self.register_buffer("mask", mask)

    def forward(self, x):
        return self.head(self.function(self, x).flatten(1))


def traced(function, mask=None):
    """A traced network with a seed of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net(function, every_other(*SHAPE) if mask is None else mask).eval()
        x = torch.randn(2, *SHAPE)
        net(x)
        return trace(net, Call((x,)))


def simple(net, x):
    return net.c(x * net.mask)


def two_resolutions(net, x):
    return net.c(x * net.mask)[..., :2, :2] + net.c(x[..., :5, :5])[..., :2, :2]


CASES = {
    "a buffer": (simple, None),
    "of booleans": (simple, every_other(*SHAPE, dtype=torch.bool)),
    "with a batch axis": (simple, every_other(1, *SHAPE)),
    "first": (lambda n, x: n.c(n.mask * x), None),
    "a view": (lambda n, x: n.c(x * n.mask.view(SHAPE)), every_other(72)),
    "repeated": (lambda n, x: n.c(x * n.mask.expand(x.shape[0], -1, -1, -1)), None),
    "of half precision": (lambda n, x: n.c(x * n.mask.float()), every_other(*SHAPE).half()),
    "a product of buffers": (lambda n, x: n.c(x * (n.mask * n.mask)), None),
    "in place": (lambda n, x: n.c(torch.relu(x).mul_(n.mask)), None),
    "transposed": (lambda n, x: n.up(x * n.mask), None),
    "used twice": (lambda n, x: n.d(x * n.mask) - n.d(2 * x * n.mask), None),
    "once with, once without": (lambda n, x: n.d(x * n.mask) - n.d(x), None),
    "of two convolutions": (lambda n, x: n.c(y := x * n.mask)[..., :2, :2] + n.d(y), None),
    "per channel": (simple, every_other(2, 1, 1)),
    "at one of two resolutions": (two_resolutions, None),
    "padded": (lambda n, x: n.c(nn.functional.pad(x * n.mask, (1, 1))), None),
    "nothing left": (simple, torch.zeros(SHAPE)),
    "ones": (simple, torch.ones(SHAPE)),
}
# What the run cannot tell, the exporter can: these are constants in the file.
ONLY_IN_THE_FILE = {"of half precision", "a product of buffers", "in place"}


@pytest.mark.parametrize("name", CASES)
def test_the_file_counts_what_a_script_counts_that_knows_only_the_file(name, tmp_path):
    graph = traced(*CASES[name])
    written = write_dense(graph, EYERISS, tmp_path / "model.onnx")
    total = written.recount.costs.total
    found = check(written.path, EYERISS.to_dict())
    parts = ("weights", "compute", "compute_relaxed", "activations", "exact", "relaxed")
    assert {p: getattr(total.energy, p) for p in parts} == {p: found.energy[p] for p in parts}
    assert (total.dense, total.floor) == (found.bases["energy"], found.energy["activations"])
    assert (written.recount.costs == cost_table(graph, EYERISS)) is (name not in ONLY_IN_THE_FILE)
    masked = found.energy["compute"] < _unmasked(graph)
    assert masked is (name not in ("per channel", "ones"))


def _unmasked(graph):
    sites = [replace(s, uses=tuple(replace(u, inputs=None) for u in s.uses)) for s in graph.sites]
    plain = replace(graph, sites=tuple(sites))
    return cost_table(plain, EYERISS).total.energy.compute


def file_of(mask, *, weight=None, before=()):
    """`Conv(x * mask, w)`; `before` are nodes that make the value `m` of the initialiser."""
    name = "raw" if before else "m"
    nodes = [
        *before,
        helper.make_node("Mul", ["x", "m"], ["h"]),
        helper.make_node("Conv", ["h", "c.weight"], ["y"]),
    ]
    weight = np.ones((3, 2, 3, 3), np.float32) if weight is None else weight
    constants = {name: mask, "c.weight": weight, "shape": np.array([2, 6, 6], np.int64)}
    tensors = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    return helper.make_model(helper.make_graph(nodes, "g", [], [], tensors))


def recounted(graph, file):
    """The row of the convolution `c`."""
    weights = {site.name: graph.weight(site) for site in graph.sites}
    stored = locate(file, graph.sites, weights)
    return recount_costs(graph, cost_table(graph, EYERISS), stored, EYERISS)["c"]


MASK = every_other(*SHAPE).numpy()


@pytest.mark.parametrize(
    ("mask", "before"),
    [
        (MASK, ()),
        (MASK[None], ()),
        (MASK.astype(bool), [helper.make_node("Cast", ["raw"], ["m"], to=TensorProto.FLOAT)]),
        (MASK.reshape(-1), [helper.make_node("Reshape", ["raw", "shape"], ["m"])]),
        (MASK, [helper.make_node("Identity", ["raw"], ["m"])]),
        (MASK, [helper.make_node("Expand", ["raw", "batched"], ["m"])]),
        (-3 * MASK, ()),
    ],
)
def test_a_mask_of_the_file_is_found(mask, before):
    graph = traced(simple)
    weight = graph.weight(graph.by_name["c"]).numpy()
    row = recounted(graph, file_of(mask, weight=weight, before=before))
    assert row == cost_table(graph, EYERISS)["c"]


@pytest.mark.parametrize("kept", [True, False])
def test_another_mask_in_the_file_is_an_error(kept):
    graph, mask = traced(simple), MASK.copy()
    mask[tuple(np.argwhere(mask == kept)[0])] = not kept
    with pytest.raises(PostconditionError, match=r"^c, .*than the model \(.*keeps 36 of"):
        recounted(graph, file_of(mask))


def test_one_of_two_masks_that_is_missing_is_an_error():
    graph = traced(CASES["used twice"][0])
    file = file_of(MASK)
    file.graph.node.append(helper.make_node("Conv", ["x", "d.weight"], ["y2"]))
    file.graph.node[1].input[1] = "d.weight"
    file.graph.initializer[1].name = "d.weight"
    weights = {site.name: graph.weight(site) for site in graph.sites}
    stored = locate(file, graph.sites, weights)
    with pytest.raises(PostconditionError, match="no mask"):
        recount_costs(graph, cost_table(graph, EYERISS), stored, EYERISS)


@pytest.mark.parametrize("mask", [np.float32(0), MASK[:, :1, :1], MASK[0], np.ones_like(MASK)])
def test_without_a_mask_in_the_file_every_input_counts(mask):
    """Never less than the file takes; the certificate of a model that has one then fails."""
    graph, plain = traced(simple), traced(lambda n, x: n.c(x))
    row, model = recounted(graph, file_of(mask)), cost_table(graph, EYERISS)["c"]
    assert row.energy.activations == cost_table(plain, EYERISS)["c"].energy.activations
    assert row.energy.exact > model.energy.exact
    assert (row.floor, row.dense) == (row.energy.activations, model.dense)


def test_a_mask_that_only_the_file_shows_counts():
    graph, plain = traced(simple), traced(lambda n, x: n.c(x))
    weight = plain.weight(plain.by_name["c"]).numpy()
    assert recounted(plain, file_of(MASK, weight=weight)).energy == (
        cost_table(graph, EYERISS)["c"].energy
    )


def _changed(model, change):
    """A file in which the exporter is made to write another mask."""
    tensor = next(item for item in model.graph.initializer if item.name == "mask")
    mask = numpy_helper.to_array(tensor).copy()
    change(mask)
    tensor.CopyFrom(numpy_helper.from_array(mask, "mask"))
    return model


def _revive(mask):
    mask[0, 0, 1] = 1


def _drop(mask):
    mask[0, 0, 0] = 0


def _open(mask):
    mask[:] = 1


@pytest.mark.parametrize("change", [_revive, _drop, _open])
def test_an_exporter_that_writes_another_mask_is_caught(change, monkeypatch, tmp_path):
    """By the outputs, and by the mask itself where the weights that meet it are zero."""
    monkeypatch.setattr(dense, "fold_slices", lambda m: _changed(fold_slices(m), change))
    graph, path = traced(simple), tmp_path / "model.onnx"
    with pytest.raises(ParityError):
        write_dense(graph, EYERISS, path)
    with torch.no_grad():
        graph.weight(graph.by_name["c"]).zero_()
    if change is _open:
        written = write_dense(graph, EYERISS, path)
        model = cost_table(graph, EYERISS).total
        assert written.recount.costs.total.energy.exact > model.energy.exact
    else:
        with pytest.raises(PostconditionError, match="another input mask"):
            write_dense(graph, EYERISS, path)
        assert not path.exists()
