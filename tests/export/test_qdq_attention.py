"""Quantized files of attention, and of layers whose weights are equal or tied."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from quantized_nets import encode, quantize
from torch import nn

from energy_model.hardware import load_hardware
from export.census import float_layers
from export.onnx_graph import Rewriter
from export.qdq import write_qdq
from export.qdq_notes import notes_of
from export.qdq_weights import held_weights, separated
from passes.graph import Site
from passes.inputs import as_call
from passes.quantize.encoding import Encoding
from passes.rewrite.head_attention import HeadAttention
from passes.tracing.trace import trace

EYERISS = load_hardware("eyeriss")
X, MEMORY = (torch.randn(2, n, 32, generator=torch.Generator().manual_seed(n)) for n in (6, 7))


class Cloned(nn.Module):
    """Two layers that begin with the same weights."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


class Crossed(nn.Module):
    def __init__(self, *, heads=4, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True, **options)
        if heads != 4:
            self.attention = HeadAttention(32, heads, 8, batch_first=True, **options)
        self.head = nn.Linear(32, 5)

    def forward(self, x, keys, values):
        return self.head(self.attention(x, keys, values, need_weights=False)[0].mean(1))


class Same(Crossed):
    """Keys are the values: one product makes both."""

    def forward(self, x, memory):
        return super().forward(x, memory, memory)


def built(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


def written(model, inputs, path, *, bits=4, block=None):
    graph = trace(model, as_call(model, inputs), train=False)
    encode(graph, bits, block)
    return graph, write_qdq(graph, EYERISS, path)


@pytest.mark.slow
def test_cloned_layers_all_multiply_codes(tmp_path):
    graph, file = written(built(Cloned), X, tmp_path / "m.onnx")
    assert file.census["MatMulNBits"] == len(graph.sites) == 9
    # What is left multiplies activations with each other.
    assert float_layers(file.census) == 4
    assert not any("float weights" in n or "storage only" in n for n in file.notes)
    assert set(file.recount.stored) == {site.name for site in graph.sites}
    assert {stored.bits for stored in file.recount.stored.values()} == {4}
    codes = [t for t in onnx.load(file.path).graph.initializer if t.name.endswith("_codes")]
    assert sum(int(np.prod(t.dims)) for t in codes) == sum(site.size for site in graph.sites)


CROSSED = {
    "three parts": (Crossed, (X, MEMORY, 2 * MEMORY), 5),
    "two parts": (Same, (X, MEMORY), 4),
    "own widths": (
        lambda: Crossed(kdim=16, vdim=48),
        (X, MEMORY[..., :16].contiguous(), MEMORY.repeat(1, 1, 2)[..., :48].contiguous()),
        5,
    ),
    "fewer heads": (lambda: Same(heads=3), (X, MEMORY), 4),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("two parts", 16),
        *(pytest.param(name, None, marks=pytest.mark.slow) for name in CROSSED),
    ],
)
def test_every_part_of_a_projection_multiplies_codes(name, block, tmp_path):
    build, inputs, products = CROSSED[name]
    graph, file = written(built(build), inputs, tmp_path / "m.onnx", block=block)
    assert file.census["MatMulNBits"] == len(graph.sites) == products
    assert {file.recount.stored[site.name].bits for site in graph.sites} == {4}
    assert not any("float weights" in note for note in file.notes)
    assert file.modes["reference"] < 1e-5


@pytest.mark.slow
def test_tied_and_equal_weights_are_all_known_as_encoded(tmp_path):
    class Tied(nn.Module):
        """One layer twice under two names, and one with the same weights."""

        def __init__(self):
            super().__init__()
            self.first, self.second, self.equal = (nn.Linear(16, 16) for _ in range(3))
            self.second.weight = self.first.weight
            with torch.no_grad():
                self.equal.weight.copy_(self.first.weight)

        def forward(self, x):
            return self.equal(torch.tanh(self.second(torch.tanh(self.first(x)))))

    graph, file = written(built(Tied), torch.randn(2, 16), tmp_path / "m.onnx", bits=8)
    assert [site.name for site in graph.sites] == ["first", "equal"]
    assert not any("float weights" in note for note in file.notes)
    assert {stored.bits for stored in file.recount.stored.values()} == {8}


@pytest.mark.slow
def test_equal_weights_run_in_integers_each_with_codes_of_its_own(tmp_path):
    def pair():
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        model[2].load_state_dict(model[0].state_dict())
        return model

    graph = quantize(built(pair), torch.randn(4, 8))
    file = write_qdq(graph, EYERISS, tmp_path / "m.onnx")
    assert file.census["QGemm"] == 2
    assert not any("float weights" in note for note in file.notes)
    names = {stored.name for stored in file.recount.stored.values()}
    assert names == {"0.weight", "2.weight"}


def merged(readers, sites, bits=(4, 8)):
    """A file in which one weight serves several sites."""
    weight = torch.eye(3)
    x = helper.make_tensor_value_info("v0", TensorProto.FLOAT, [1, 3])
    y = helper.make_tensor_value_info(f"v{readers}", TensorProto.FLOAT, [1, 3])
    nodes = [helper.make_node("MatMul", [f"v{i}", "w"], [f"v{i + 1}"]) for i in range(readers)]
    made = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weight.numpy(), "w")])
    rewriter = Rewriter(helper.make_model(made))
    names = [f"s{i}" for i in range(sites)]
    found = [Site(name, ((name, "weight"),), 0, 9, ()) for name in names]
    encodings = {n: Encoding(b, torch.ones(3, 1)) for n, b in zip(names, bits, strict=False)}
    held = held_weights(rewriter, found, dict.fromkeys(names, weight), encodings)
    return rewriter, held


@pytest.mark.parametrize(
    ("readers", "sites", "expected"),
    [
        (1, 2, ["w"]),
        (2, 1, ["w", "w"]),
        (2, 2, ["w", "s1.weight"]),
        (3, 2, ["w", "s1.weight", "w"]),
    ],
)
def test_merged_weights_are_separated_by_sites(readers, sites, expected):
    rewriter, held = merged(readers, sites)
    assert held["w"].sites == ("s0", "s1")[:sites]
    parts = separated(rewriter, held)
    assert [node.input[1] for node in rewriter.nodes] == expected
    assert set(parts) == set(expected)
    assert all(part.sites == held["w"].sites for part in parts.values())
    assert all(np.array_equal(rewriter.array(name), np.eye(3)) for name in parts)


def test_of_equal_weights_the_narrowest_grid_is_written():
    assert [merged(2, 2, bits)[1]["w"].bits for bits in ((4, 8), (8, 4))] == [4, 4]


@pytest.mark.parametrize(
    ("rounded", "expected", "other"),
    [
        (False, "no convolution and no product", "integer kernel"),
        (True, "integer kernel", "no convolution and no product"),
    ],
)
def test_the_note_on_float_weights_says_why(rounded, expected, other):
    grid = SimpleNamespace(narrow=True, signed=False)
    draft = SimpleNamespace(
        integer=frozenset(), encoded={}, grids=[grid] if rounded else [],
        floating=frozenset({"a", "b"}), bypassed=frozenset(),
    )  # fmt: skip
    census = SimpleNamespace(decoded=frozenset(), operators={})
    agreement = SimpleNamespace(failures={}, modes={})
    graph = SimpleNamespace(encodings={})
    [note] = notes_of(graph, draft, frozenset({"b"}), agreement, census)
    assert note.startswith("float weights in a: ")
    assert expected in note
    assert other not in note
