"""Where quantizers go, node by node on small networks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from quantize_nets import (
    Dense,
    Encoder,
    Residual,
    Shared,
    Squeeze,
    perceptron,
    randomized,
    seeded,
    traced,
)
from torch import nn

from energy_model.errors import PreconditionError
from passes.graph import LayerRule
from passes.quantize.activations import ActivationQuantizer
from passes.quantize.eligible import eligible
from passes.quantize.placement import CONTAINER, insert_quantizers, placed, places

IMAGE = torch.randn(2, 3, 8, 8, generator=seeded())


def table(model, inputs, *, outputs=False, rules=None):
    """Node, quantizer (`=` if it is shared) and readers, in the order of the graph."""
    graph = traced(model.eval(), inputs)
    graph.rules = rules or {}
    found = places(graph, eligible(graph, static=True).layers, outputs=outputs)
    return [(p.node, ("=" if p.shared else "") + p.name, " ".join(p.readers)) for p in found]


def test_perceptron():
    assert table(perceptron(), torch.randn(2, 3, 4)) == [
        ("input_1", "input_1", "_0"),
        ("_0", "=input_1", "_1"),
        ("_2", "_2", "_3"),
        ("_3", "_3", "_4"),
        # The dropout is not there in evaluation: what it reads is quantized.
        ("_4", "_4", "_5"),
    ]


def test_residual_block():
    assert table(Residual(), IMAGE) == [
        ("x", "x", "stem"),
        ("relu", "relu", "pool"),
        ("pool", "=relu", "first add"),
        ("relu6", "relu6", "second"),
        ("norm2", "norm2", "add"),
        ("relu_1", "relu_1", "mean"),
        ("mean", "mean", "head"),
    ]


def test_concatenation_and_a_norm_on_its_own():
    assert table(Dense(), IMAGE) == [
        ("x", "x", "stem"),
        # The stem has two readers, so that its norm stays.
        ("stem", "stem", "norm cat"),
        ("relu", "relu", "grow"),
        ("grow", "grow", "cat"),
        ("cat", "cat", "norm2"),
        ("relu_1", "relu_1", "last"),
        ("last", "last", "hardswish"),
        ("hardswish", "hardswish", "adaptive_avg_pool2d"),
        ("adaptive_avg_pool2d", "adaptive_avg_pool2d", "flatten"),
        ("flatten", "=adaptive_avg_pool2d", "head"),
    ]


def test_products_stay_float_between_quantized_layers():
    assert table(Squeeze(), IMAGE) == [
        ("x", "x", "first"),
        ("relu", "relu", "adaptive_avg_pool2d mul"),
        ("adaptive_avg_pool2d", "adaptive_avg_pool2d", "down"),
        ("relu_1", "relu_1", "up"),
        ("up", "up", "sigmoid"),
        ("mul", "mul", "last"),
    ]


def test_attention_and_norms_stay_float_between_linear_layers():
    assert table(Encoder(), torch.randint(11, (2, 5))) == [
        ("norm", "norm", "qkv"),
        ("qkv", "qkv", "chunk"),
        # The product of attention is on no grid, and the sums are not either.
        ("matmul_1", "matmul_1", "out"),
        ("out", "out", "add"),
        ("norm2", "norm2", "up"),
        ("up", "up", "gelu"),
        ("gelu", "gelu", "down"),
        ("down", "down", "add_1"),
        ("add_1", "add_1", "head"),
    ]


def test_a_layer_that_is_called_twice_keeps_its_norm_apart():
    assert table(Shared(), torch.randn(3, 6)) == [
        ("x", "x", "layer"),
        ("layer", "layer", "norm"),
        ("relu", "relu", "layer_1"),
        ("relu_1", "relu_1", "last"),
    ]


def test_what_the_model_returns_is_float_unless_it_is_asked_for():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    inputs = torch.randn(2, 4)
    inner = [("input_1", "input_1", "_0"), ("_1", "_1", "_2")]
    assert table(model, inputs) == inner
    assert table(model, inputs, outputs=True) == [*inner, ("_2", "_2", "output")]


def test_logits_stay_float_before_a_softmax_too():
    model = nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1))
    assert table(model, torch.randn(2, 4)) == [("input_1", "input_1", "_0")]


def test_a_convolution_at_the_end_computes_in_floats():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Sigmoid()).eval()
    graph = traced(model, IMAGE)
    chosen, found = placed(graph, eligible(graph, static=True))
    assert [s.name for s in chosen.sites] == ["0"]
    assert "outputs=True" in chosen.reasons["2"]
    # What it reads is written by an integer layer all the same.
    assert [(p.node, p.readers) for p in found] == [("input_1", ("_0",)), ("_1", ("_2",))]
    chosen, found = placed(graph, eligible(graph, static=True), outputs=True)
    assert chosen.reasons == {}
    assert [p.node for p in found] == ["input_1", "_1", "_2", "_3"]


def test_before_a_float_layer_outputs_are_quantized_all_the_same():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2)).eval()
    assert table(model, IMAGE) == [("input_1", "input_1", "_0"), ("_1", "_1", "_2")]


def test_an_output_in_the_middle_stays_float_as_well():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            hidden = self.first(x)
            return hidden, self.second(hidden)

    found = table(Two(), torch.randn(2, 4))
    assert found == [("x", "x", "first"), ("first", "first", "second")]
    graph = traced(Two().eval(), torch.randn(2, 4))
    insert_quantizers(graph, places(graph, {"first", "second"}), 8)
    [output] = [n for n in graph.graph_module.graph.nodes if n.op == "output"]
    assert [n.name for n in output.args[0]] == ["first", "second"]


def test_layers_that_are_left_alone_are_float_inside():
    rules = {"first": LayerRule(1.0)}
    assert table(Residual(), IMAGE, rules=rules) == [
        ("x", "x", "stem"),
        ("relu", "relu", "pool"),
        ("pool", "=relu", "first add"),
        # What a float layer gives is quantized where an integer layer reads it.
        ("relu6", "relu6", "second"),
        ("norm2", "norm2", "add"),
        ("relu_1", "relu_1", "mean"),
        ("mean", "mean", "head"),
    ]
    rules = {name: LayerRule(1.0) for name in ("stem", "first", "second")}
    assert table(Residual(), IMAGE, rules=rules) == [("mean", "mean", "head")]


class Moves(nn.Module):
    """Between two layers, one thing that may or may not keep values on their grid."""

    def __init__(self, move):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.move = move

    def forward(self, x):
        return self.last(self.move(self.first(x)))


KEEPING = {
    "reshape": lambda x: x.reshape(-1, 1, 4),
    "view": lambda x: x.view(-1, 1, 4),
    "slice": lambda x: x[:, :, ::2].repeat(1, 1, 2),
    "zeros": lambda x: F.pad(x[:, :, 1:], (0, 1)),
    "reflect": lambda x: F.pad(x[:, :, :3], (0, 1), mode="reflect"),
    "max pool": lambda x: F.max_pool1d(x, 2).repeat(1, 1, 2),
    "split": lambda x: x.chunk(2, -1)[1].repeat(1, 1, 2),
    "unsqueeze": lambda x: x.unsqueeze(0),
    "nearest": lambda x: F.interpolate(x[:, :, :2], scale_factor=2),
}
CHANGING = {
    "ones": lambda x: F.pad(x[:, :, 1:], (0, 1), value=1.0),
    "linear": lambda x: F.interpolate(x[:, :, :2], scale_factor=2, mode="linear"),
    "product": lambda x: x * 2,
    "shift": lambda x: x + 1,
    "weighted sum": lambda x: torch.add(x, x, alpha=2),
}


@pytest.mark.parametrize("name", KEEPING)
def test_what_only_moves_values_shares_their_quantizer(name):
    found = table(Moves(KEEPING[name]), torch.randn(2, 3, 4))
    assert found[:2] == [("x", "x", "first"), ("first", "first", found[1][2])]
    assert found[2:], "nothing follows"
    assert all(quantizer == "=first" for _, quantizer, _ in found[2:])
    assert found[-1][2] == "last"


@pytest.mark.parametrize("name", CHANGING)
def test_what_changes_values_has_a_quantizer_of_its_own(name):
    found = table(Moves(CHANGING[name]), torch.randn(2, 3, 4))
    node, quantizer, readers = found[-1]
    assert (quantizer, readers) == (node, "last")
    assert node not in ("x", "first")


def test_a_moved_value_that_nothing_quantized_reads_is_left():
    class Tail(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            hidden = self.first(x)
            return self.second(hidden), hidden.reshape(-1).softmax(0)

    found = table(Tail(), torch.randn(2, 4))
    assert found == [("x", "x", "first"), ("first", "first", "second reshape")]


def test_inserted_quantizers_pass_everything_on_and_are_shared():
    model = randomized(Residual()).eval()
    graph = traced(model, IMAGE)
    expected = model(IMAGE)
    found = places(graph, eligible(graph, static=True).layers)
    [decision] = insert_quantizers(graph, found, 6, signed=True)
    assert "6 bits, signed" in decision.what
    assert "6 values" in decision.why
    assert graph.rewritten
    assert graph.runnable is graph.graph_module
    assert torch.equal(graph.runnable(IMAGE), expected)
    parts = graph.graph_module.get_submodule(CONTAINER)._modules
    assert sorted(parts) == sorted({p.name for p in found})
    assert all((q.bits, q.signed) == (6, True) for q in parts.values())
    calls = [n for n in graph.graph_module.graph.nodes if str(n.target) == f"{CONTAINER}.relu"]
    assert len(calls) == 2
    parts["relu"].set_range(0.0, 0.5)
    assert not torch.equal(graph.runnable(IMAGE), expected)


def test_a_traced_copy_keeps_the_quantizers():
    graph = traced(randomized(Residual()).eval(), IMAGE)
    insert_quantizers(graph, places(graph, {"stem", "first"}), 8)
    again = traced(graph.runnable, IMAGE)
    kept = [m for m in again.graph_module.modules() if isinstance(m, ActivationQuantizer)]
    assert len(kept) == len(graph.graph_module.get_submodule(CONTAINER)._modules)
    assert [s.name for s in again.sites] == [s.name for s in graph.sites]


def test_several_inputs_come_before_their_quantizers():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, y):
            return self.a(x) + self.b(y)

    graph = traced(Two().eval(), (torch.randn(2, 4), torch.randn(2, 4)))
    found = places(graph, {"a", "b"})
    # The sum is what the model returns: it stays float, though it reads quantized values.
    assert [p.node for p in found] == ["x", "y", "a", "b"]
    insert_quantizers(graph, found, 8)
    assert [n.op for n in graph.graph_module.graph.nodes][:2] == ["placeholder"] * 2


def test_a_node_named_like_an_attribute_of_modules():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)

        def forward(self, training):
            return self.first(training)

    graph = traced(Named().eval(), torch.randn(2, 4))
    [place] = places(graph, {"first"})
    insert_quantizers(graph, [place], 8)
    quantizer = graph.graph_module.get_submodule(f"{CONTAINER}.{place.name}")
    assert isinstance(quantizer, ActivationQuantizer)


def test_quantizing_twice_is_refused():
    graph = traced(perceptron().eval(), torch.randn(2, 12))
    found = places(graph, {"1"})
    insert_quantizers(graph, found, 8)
    with pytest.raises(PreconditionError, match="quantized already"):
        insert_quantizers(graph, found, 8)


def test_a_model_that_cannot_be_traced_is_refused():
    class Opaque(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(x) if float(x.sum()) > -1e9 else x

    graph = traced(Opaque().eval(), torch.randn(2, 4))
    with pytest.raises(PreconditionError, match="activations=None"):
        places(graph, {"inner"})
