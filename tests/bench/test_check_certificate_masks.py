"""Input masks in the checker: oracles, brute force, and what is no mask."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnx_builder as build
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import transform
from bench.certificate_energy import ENERGY, PARTS, energy_of
from bench.certificate_energy import totals as summed
from bench.certificate_files import Graph
from bench.check_certificate import _limit_rows, check, main, recount
from bench.zoo.lenet5 import lenet5
from energy_model import LayerShape, layer_energy, load_hardware
from export.dense import write_dense
from passes.inputs import Call
from passes.methods.energy_projection import EnergyProjection
from passes.rewrite.input_masks import attach_input_masks, mask_of
from passes.tracing.trace import trace
from transform.training.config import TrainConfig

# Trained masked models, checked from the file: `make test-slow` runs them.
pytestmark = pytest.mark.slow

ORACLE = json.loads((Path(__file__).parents[1] / "data" / "energy-oracle.json").read_text())
EYERISS = load_hardware("eyeriss")
HARDWARE = EYERISS.to_dict()
KINDS = {"weights": "W", "compute": "C", "compute_relaxed": "rC", "activations": "X"}


def totals(proto, hardware=HARDWARE):
    graph = Graph(proto)
    found = summed(energy_of(use, hardware) for use in graph.uses())
    assert not graph.unread
    return found


def masked(op, weight, mask, shape, *, order=("x", "m"), **attributes):
    """A model of `op(x * m, w)`."""
    nodes = [
        helper.make_node("Mul", list(order), ["h"]),
        helper.make_node(op, ["h", "w"], ["y"], **attributes),
    ]
    return build.model(nodes, {"m": mask, "w": weight}, ("x", shape))


@pytest.fixture(scope="module")
def masked_lenet5():
    """LeNet-5, every odd flat index of both convolutions' inputs masked."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        graph = trace(lenet5().eval(), Call((torch.randn(2, 1, 32, 32),)))
    with torch.no_grad():
        for mask in attach_input_masks(graph):
            mask_of(graph, mask).view(-1)[1::2] = 0
    return trace(graph.runnable, graph.call)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["x50", "w50x50"])
def test_the_exported_lenet5_counts_what_the_oracle_says(masked_lenet5, variant, tmp_path):
    with torch.no_grad():
        for site in masked_lenet5.sites:
            weight = masked_lenet5.weight(site).view(-1)
            weight.fill_(0.5)
            weight[1::2] *= variant == "x50"
    written = write_dense(masked_lenet5, EYERISS, tmp_path / "model.onnx")
    rows = ORACLE["lenet5"][variant]
    uses = list(Graph(onnx.load(written.path)).uses())
    for use, row in zip(uses, rows, strict=True):
        counted = energy_of(use, HARDWARE)
        assert {p: counted[p] / PARTS for p in KINDS} == {p: row[k] for p, k in KINDS.items()}
    found = recount(written.path, HARDWARE)
    assert (found.energy["exact"], found.energy["relaxed"]) == {
        "x50": (16023544, 16559944),
        "w50x50": (9040444, 9308644),
    }[variant]
    assert found.bases["energy"] == 17107544
    table = written.recount.costs
    assert [row.energy.activations for row in table] == [row["X"] for row in rows]
    assert (table.total.energy.exact, table.total.dense) == (found.energy["exact"], 17107544)


@pytest.mark.parametrize("variant", ["x50", "w50x50"])
@pytest.mark.parametrize("place", range(5))
def test_alexnet_oracle(place, variant):
    row = ORACLE["alexnet"][variant][place]
    geometry = re.fullmatch(r"(\d+)x(\d+)x(\d+)>(\d+) k(\d+)s(\d+)p(\d+)", row["shape"])
    c, h, w, d, k, s, p = map(int, geometry.groups())
    weight = (build.ones if variant == "x50" else build.every_other)(d, c, k, k)
    mask = build.every_other(c, h, w)
    attributes = {"strides": [s, s], "pads": [p] * 4}
    found = totals(masked("Conv", weight, mask, ("n", c, h, w), **attributes))
    assert {p: found[p] for p in KINDS} == {p: row[key] for p, key in KINDS.items()}


sizes = st.integers(1, 3)


@st.composite
def convolutions(draw):
    dims = draw(st.integers(1, 2))
    each = st.lists(sizes, min_size=dims, max_size=dims)
    return {
        "channels": (draw(sizes), draw(sizes)),
        "groups": draw(st.integers(1, 3)),
        "kernel": draw(each),
        "size": [draw(st.integers(7, 10)) for _ in range(dims)],
        "stride": draw(each),
        "dilation": [draw(st.integers(1, 2)) for _ in range(dims)],
        "padding": [(draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(dims)],
        "keep": draw(st.sampled_from([0.0, 0.1, 0.6, 0.9])),
        "seed": draw(st.integers(0, 99)),
        "cache": draw(st.sampled_from([20, 60, 200, 102400])),
    }


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@settings(max_examples=60)
@given(case=convolutions())
def test_agrees_with_the_compilers_model(op, case):
    """Any geometry, any mask, and caches so small that rows are fetched again."""
    transposed, groups = op == "ConvTranspose", case["groups"]
    per_group, out = case["channels"]
    c_in, c_out = groups * per_group, groups * out
    generator = np.random.default_rng(case["seed"])
    outer = (c_in, out) if transposed else (c_out, per_group)
    weight = generator.integers(0, 2, (*outer, *case["kernel"])).astype(np.float32)
    mask = (generator.random((c_in, *case["size"])) < case["keep"]).astype(np.float32)
    make = LayerShape.conv_transpose if transposed else LayerShape.conv
    parts = {name: case[name] for name in ("stride", "padding", "dilation", "groups")}
    shape = make(c_in, c_out, case["kernel"], case["size"], **parts)
    rows = (per_group, out) if transposed else (out, per_group)
    blocks = (weight != 0).reshape(groups, *rows, *case["kernel"])
    counts = blocks.sum(axis=2 if transposed else 1, dtype=np.int64)
    hardware = load_hardware(
        HARDWARE | {"input_cache_bytes": case["cache"], "weight_cache_bytes": 40}
    )
    attributes = {
        "group": groups,
        "strides": case["stride"],
        "dilations": case["dilation"],
        "pads": [side[0] for side in case["padding"]] + [side[1] for side in case["padding"]],
    }
    proto = masked(op, weight, mask, ("n", c_in, *case["size"]), **attributes)
    energy = layer_energy(shape, hardware, counts.reshape(c_in, *case["kernel"]), mask != 0)
    assert totals(proto, hardware.to_dict()) == {k: getattr(energy, k) for k in ENERGY} | {
        "macs": shape.macs,
        "sparse_macs": shape.macs * np.count_nonzero(weight) // weight.size,
    }


@settings(max_examples=30)
@given(
    seed=st.integers(0, 99),
    stride=st.integers(1, 3),
    pad=st.integers(0, 2),
    groups=st.sampled_from([1, 2]),
)
def test_exact_multiplications_by_brute_force(seed, stride, pad, groups):
    generator = np.random.default_rng(seed)
    weight = generator.integers(0, 2, (4, 4 // groups, 3, 2)).astype(np.float32)
    mask = generator.integers(0, 2, (4, 6, 5)).astype(np.float32)
    attributes = {"strides": [stride] * 2, "pads": [pad] * 4, "group": groups}
    found = totals(masked("Conv", weight, mask, ("n", 4, 6, 5), **attributes))
    padded = np.pad(mask, [(0, 0), (pad, pad), (pad, pad)])
    macs = unfolded = 0
    rows, columns = ((6 + 2 * pad - 3) // stride + 1, (5 + 2 * pad - 2) // stride + 1)
    for y, x in product(range(rows), range(columns)):
        window = padded[:, y * stride : y * stride + 3, x * stride : x * stride + 2]
        unfolded += np.count_nonzero(window)
        for out in range(4):
            first = out // (4 // groups) * (4 // groups)
            macs += np.count_nonzero(weight[out] * window[first : first + 4 // groups])
    assert found["compute"] == 3 * macs
    # Few channels, one tile of them; six rows fit into the cache.
    outputs = 4 * rows * columns
    moved = 200 * (np.count_nonzero(mask) + outputs) + (6 + 4 // groups) * unfolded
    assert found["activations"] == moved
    unmasked = totals(build.layer("Conv", weight, ("n", 4, 6, 5), **attributes))
    for part in ("weights", "compute_relaxed", "macs", "sparse_macs", "positions"):
        assert found[part] == unmasked[part]


WEIGHT = build.ones(3, 2, 3, 3)
MASK = build.every_other(2, 6, 6)
SHAPE = ("n", 2, 6, 6)
HALF = totals(masked("Conv", WEIGHT, MASK, SHAPE))
DENSE = totals(build.layer("Conv", WEIGHT, SHAPE))


@pytest.mark.parametrize(
    "mask",
    [
        np.float32(0.0),
        np.zeros(1, np.float32),
        build.every_other(2, 1, 1),
        build.every_other(6, 6),
        build.every_other(1, 6, 6),
        build.every_other(1, 2, 1, 1),
        build.every_other(1, 1, 6, 6),
        build.every_other(1, 1, 2, 6, 6)[0, 0, :, :1],
        build.ones(2, 6, 6),
        np.full((2, 6, 6), -2, np.float32),
    ],
)
def test_another_constant_is_no_mask(mask):
    assert HALF != DENSE
    assert totals(masked("Conv", WEIGHT, mask, SHAPE)) == DENSE


def test_a_mask_may_come_first_and_have_a_batch_axis():
    assert totals(masked("Conv", WEIGHT, MASK, SHAPE, order=("m", "x"))) == HALF
    assert totals(masked("Conv", WEIGHT, MASK[None], SHAPE)) == HALF


def test_only_which_entries_are_zero_counts():
    scaled = MASK * np.linspace(-2, -1, MASK.size, dtype=np.float32).reshape(MASK.shape)
    assert totals(masked("Conv", WEIGHT, scaled, SHAPE)) == HALF
    assert totals(masked("Conv", WEIGHT, build.every_other(2, 6, 6)[::-1], SHAPE)) == HALF


SEEN = {
    "cast": ([("Cast", ["m"], {"to": TensorProto.FLOAT})], MASK.astype(bool)),
    "identity": ([("Identity", ["m"], {})], MASK),
    "reshape": ([("Reshape", ["m", "sample"], {})], MASK.reshape(-1)),
    "transpose": ([("Transpose", ["m"], {"perm": [2, 0, 1]})], MASK.transpose(1, 2, 0)),
    "repeated": ([("Shape", ["x"], {}), ("Expand", ["m", "s0"], {})], MASK),
}


@pytest.mark.parametrize("name", SEEN)
def test_masks_are_found_through_views(name):
    steps, mask = SEEN[name]
    nodes = [
        helper.make_node(op, inputs, [f"s{place}"], **attributes)
        for place, (op, inputs, attributes) in enumerate(steps)
    ]
    nodes += [
        helper.make_node("Mul", ["x", f"s{len(steps) - 1}"], ["h"]),
        helper.make_node("Conv", ["h", "w"], ["y"]),
    ]
    constants = {"m": mask, "w": WEIGHT, "sample": np.array([2, 6, 6], dtype=np.int64)}
    assert totals(build.model(nodes, constants, ("x", SHAPE))) == HALF


def test_a_repeated_channel_is_a_mask_of_all_of_them():
    nodes = [
        helper.make_node("Expand", ["m", "sample"], ["s"]),
        helper.make_node("Mul", ["x", "s"], ["h"]),
        helper.make_node("Conv", ["h", "w"], ["y"]),
    ]
    constants = {"m": MASK[:1], "w": WEIGHT, "sample": np.array([2, 6, 6], dtype=np.int64)}
    repeated = masked("Conv", WEIGHT, np.repeat(MASK[:1], 2, axis=0), SHAPE)
    assert totals(build.model(nodes, constants, ("x", SHAPE))) == totals(repeated)


@pytest.mark.parametrize(
    ("nodes", "answer"),
    [
        # Another node in between: what reaches the convolution may be anything.
        ([("Mul", ["x", "m"], "a"), ("Sigmoid", ["a"], "h")], DENSE),
        # Two activations; the mask of an activation that is only one of the factors.
        ([("Mul", ["x", "x"], "h")], DENSE),
        ([("Mul", ["x", "m"], "a"), ("Mul", ["x", "a"], "h")], DENSE),
        ([("Add", ["x", "m"], "h")], DENSE),
        ([("Mul", ["x", "m"], "a"), ("Mul", ["a", "o"], "h")], DENSE),
        ([("Mul", ["x", "o"], "a"), ("Mul", ["a", "m"], "h")], HALF),
    ],
)
def test_only_a_product_right_before_the_convolution_counts(nodes, answer):
    made = [helper.make_node(op, inputs, [output]) for op, inputs, output in nodes]
    made.append(helper.make_node("Conv", ["h", "w"], ["y"]))
    constants = {"m": MASK, "w": WEIGHT, "o": build.ones(2, 6, 6)}
    assert totals(build.model(made, constants, ("x", SHAPE))) == answer


def test_a_product_that_feeds_two_convolutions_counts_for_each():
    nodes = [
        helper.make_node("Mul", ["x", "m"], ["a"]),
        helper.make_node("Mul", ["x", "n"], ["b"]),
        *(helper.make_node("Conv", [h, "w"], [f"y{k}"]) for k, h in enumerate("aabx")),
        helper.make_node("Sum", ["y0", "y1", "y2", "y3"], ["y"]),
    ]
    few = np.zeros((2, 6, 6), np.float32)
    constants = {"m": MASK, "n": few, "w": WEIGHT}
    found = totals(build.model(nodes, constants, ("x", SHAPE)))
    none = totals(masked("Conv", WEIGHT, few, SHAPE))
    assert found == {key: 2 * HALF[key] + none[key] + DENSE[key] for key in found}
    assert none["compute"] == 0
    assert none["activations"] == 200 * 3 * 16


def test_padding_beside_a_mask():
    """A mask before the zero padding masks inputs; one after it is of the padded size."""
    amounts = np.array([0, 0, 1, 2, 0, 0, 3, 0], dtype=np.int64)
    before = [
        helper.make_node("Mul", ["x", "m"], ["a"]),
        helper.make_node("Pad", ["a", "p"], ["h"]),
        helper.make_node("Conv", ["h", "w"], ["y"]),
    ]
    merged = masked("Conv", WEIGHT, MASK, SHAPE, pads=[1, 2, 3, 0])
    proto = build.model(before, {"m": MASK, "w": WEIGHT, "p": amounts}, ("x", SHAPE))
    assert totals(proto) == totals(merged)
    after = [
        helper.make_node("Pad", ["x", "p"], ["a"]),
        helper.make_node("Mul", ["a", "m"], ["h"]),
        helper.make_node("Conv", ["h", "w"], ["y"]),
    ]
    large = build.every_other(2, 10, 8)
    proto = build.model(after, {"m": large, "w": WEIGHT, "p": amounts}, ("x", SHAPE))
    assert totals(proto) == totals(masked("Conv", WEIGHT, large, ("n", 2, 10, 8)))


def test_a_mask_before_a_matrix_product_is_not_charged():
    mask = build.every_other(4)
    nodes = [
        helper.make_node("Mul", ["x", "m"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    proto = build.model(nodes, {"m": mask, "w": build.ones(4, 5)}, ("x", ("n", 4)))
    assert totals(proto) == totals(build.layer("MatMul", build.ones(4, 5), ("n", 4)))


def test_bases_ignore_masks_and_params_hold_them(tmp_path):
    path = build.save(masked("Conv", WEIGHT, MASK, SHAPE), tmp_path / "masked.onnx")
    found = recount(path, HARDWARE)
    assert found.bases["energy"] == DENSE["relaxed"] > found.counts["energy"]
    assert found.counts["params"] == WEIGHT.size + MASK.size
    assert found.counts["weights"] == WEIGHT.size


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """A network trained with input masks, exported with its certificate."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 4, padding="same"), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4),
            nn.Flatten(), nn.Linear(64, 3),
        )  # fmt: skip
        data = TensorDataset(torch.randn(32, 1, 12, 12), torch.randint(0, 3, (32,)))
    method = EnergyProjection(input_mask=True, mask_keep=(0.6,), mask_lr=0.01, stop_early=False)
    train = TrainConfig(epochs=1, schedule="constant", warmup_epochs=0.0)
    result = transform.compress(
        net, "energy<=65%", DataLoader(data, batch_size=8), method=method, train=train
    )
    masks = [use.inputs for site in result.graph.sites for use in site.uses if use.inputs]
    assert len(masks) == 3  # all three convolutions, also the one that is padded on its own
    return result.export(tmp_path_factory.mktemp("export") / "model.onnx")


def test_a_trained_masked_model_passes(export, capsys):
    assert check(export.certificate) == []
    assert main([str(export.certificate)]) == 0
    assert "NO" not in capsys.readouterr().out.split()


@pytest.mark.parametrize("kept", [True, False])
def test_one_changed_mask_entry_is_seen(export, tmp_path, kept):
    """Also when the digest and size are made to fit."""
    proto = onnx.load(export.path)
    name = next(node for node in proto.graph.node if node.op_type == "Mul").input[1]
    tensor = next(item for item in proto.graph.initializer if item.name == name)
    mask = numpy_helper.to_array(tensor).copy()
    mask[tuple(np.argwhere(mask == kept)[0])] = 0.0 if kept else 1e-30
    tensor.CopyFrom(numpy_helper.from_array(mask, name))
    changed = build.save(proto, tmp_path / export.path.name)
    claims = json.loads(export.certificate.read_text())
    claims["file"]["sha256"] = hashlib.sha256(changed.read_bytes()).hexdigest()
    claims["file"]["bytes"] = changed.stat().st_size
    certificate = tmp_path / "model.certificate.json"
    certificate.write_text(json.dumps(claims))
    told = {problem.partition(":")[0] for problem in check(certificate)}
    assert {"energy", "energy, activations", "energy, exact", "energy, relaxed"} <= told
    assert told.isdisjoint({"sha256", "bytes", "energy, weights", "energy, base", "nonzeros"})


@pytest.mark.parametrize(
    ("asked", "added", "verdict"),
    [("original", 1, None), ("original", 0, True), ("original", -1, False), ("file", 1, False)],
)
def test_the_base_of_layers_that_were_cut_is_not_checked(export, asked, added, verdict):
    """A base of the original may be more than the file tells, never less."""
    claims = json.loads(export.certificate.read_text())
    limit = claims["limits"][0] | {"base_counted_from": asked}
    found = recount(export.path, HARDWARE)
    limit["base"] = found.bases["energy"] + added
    rows = {row.what: row.ok for row in _limit_rows(limit, found)}
    assert rows["energy, base"] is verdict


def test_swapped_arguments_give_a_short_error(export, capsys):
    assert main([str(export.path), str(export.certificate)]) == 2
    error = capsys.readouterr().err
    assert "not a usable certificate (UnicodeDecodeError" in error
    assert len(error) < 200 + len(str(export.path)) + 100
