from __future__ import annotations

import collections
import json
import math

import pytest
import torch
from torch import fx, nn

from energy_model.errors import StorageError
from passes.storage.atomic import json_bytes
from passes.storage.graph_json import (
    custom_functions,
    graph_from_json,
    graph_state,
    graph_to_json,
)


class Custom(nn.Module):
    """A user's layer that no allow-list knows."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.factor = factor

    def forward(self, x):
        return self.linear(x) * self.factor if x.sum() > 0 else self.linear(x)


class LeafTracer(fx.Tracer):
    def is_leaf_module(self, m, module_qualified_name):
        return isinstance(m, Custom) or super().is_leaf_module(m, module_qualified_name)


@fx.wrap
def user_function(x):
    return x * 3 if x.sum() > 0 else x


Pair = collections.namedtuple("Pair", "first second")  # noqa: PYI024


def trip(graph, **given):
    text = json_bytes(graph_to_json(graph))
    return graph_from_json(json.loads(text), graph_state(graph), **given)


def trace(model):
    tracer = LeafTracer()
    return fx.GraphModule(model, tracer.trace(model), type(model).__name__)


def module(forward, **children):
    """A model with this forward."""
    model = type("Model", (nn.Module,), {"forward": forward})()
    for name, child in children.items():
        setattr(model, name, child)
    return model


def same_output(a, b, *inputs):
    found = b(*inputs)
    torch.testing.assert_close(found, a(*inputs), rtol=0, atol=0)
    return found


def test_arguments_of_every_kind_survive():
    def forward(self, x, scale=2.5, *rest, **options):
        y = torch.full((2, 2), float("inf"), dtype=torch.float64, device=torch.device("cpu"))
        y = torch.clamp(x, min=-math.inf, max=1e30) + y.to(torch.float32)
        y = y.nan_to_num(posinf=4.0)[..., None, 0:2:1, :][:, 0].contiguous(
            memory_format=torch.contiguous_format
        )
        return {"a": (y, [x, None, True]), "b": {"c": slice(None, 2, None)}, "d": x * scale}

    graph = trace(module(forward))
    graph.graph.lint()
    rebuilt = trip(graph)
    x = torch.randn(2, 2)
    expected, found = graph(x), rebuilt(x)
    assert found["b"] == {"c": slice(None, 2, None)}
    assert found["a"][1][1:] == [None, True]
    assert torch.equal(found["a"][0], expected["a"][0])
    assert torch.equal(rebuilt(x, 3.0)["d"], x * 3.0)
    assert rebuilt.code == graph.code


def test_nan_and_size_arguments_survive():
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.nan_to_num, (x,), {"nan": math.nan})
    z = graph.call_function(torch.reshape, (y, torch.Size([4])))
    graph.output((z, torch.channels_last, torch.int8, torch.strided, range(3), ...))
    rebuilt = trip(fx.GraphModule(nn.Module(), graph))
    tensor, *constants = rebuilt(torch.full((2, 2), math.nan))
    assert tensor.isnan().all()
    assert constants == [torch.channels_last, torch.int8, torch.strided, range(3), ...]


def test_tied_weights_are_one_object_again():
    def forward(self, x):
        return self.decode(self.encode(x)) + self.encode.weight.sum()

    encode, decode = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    decode.weight = encode.weight
    graph = trace(module(forward, encode=encode, decode=decode))
    rebuilt = trip(graph)
    assert rebuilt.encode.weight is rebuilt.decode.weight
    assert len(graph_state(graph)) == 1
    same_output(graph, rebuilt, torch.randn(3, 4))


def test_parameters_that_share_storage_share_it_again_but_stay_two():
    def forward(self, x):
        return self.a(x) + self.b(x)

    a, b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    b.weight = nn.Parameter(a.weight.detach(), requires_grad=False)
    rebuilt = trip(trace(module(forward, a=a, b=b)))
    assert rebuilt.a.weight is not rebuilt.b.weight
    assert rebuilt.a.weight.data_ptr() == rebuilt.b.weight.data_ptr()
    assert (rebuilt.a.weight.requires_grad, rebuilt.b.weight.requires_grad) == (True, False)


def test_a_module_in_two_places_is_one_object_again():
    graph = trace(module(lambda self, x: self.a(x), a=nn.Sequential(nn.Linear(2, 2), nn.ReLU())))
    graph.b = graph.a
    rebuilt = trip(graph)
    assert rebuilt.a is rebuilt.b


def test_buffers_constants_and_persistence():
    def forward(self, x):
        return x * self.kept + self.dropped + torch.tensor([7.0])

    model = module(forward)
    model.register_buffer("kept", torch.tensor(2.0))
    model.register_buffer("dropped", torch.tensor(3, dtype=torch.int64), persistent=False)
    graph = trace(model)
    graph.register_buffer("dropped", graph.dropped, persistent=False)  # fx forgets it
    rebuilt = trip(graph)
    assert set(rebuilt.state_dict()) == {"kept", "_tensor_constant0"}
    assert rebuilt.dropped.dtype == torch.int64
    assert "dropped" in graph_state(graph)
    same_output(graph, rebuilt, torch.ones(1))


def test_a_plain_tensor_that_the_graph_reads_is_stored():
    graph = fx.Graph()
    graph.output(graph.get_attr("table"))
    root = nn.Module()
    root.register_buffer("table", torch.arange(3))
    module = fx.GraphModule(root, graph)
    del module.table
    module.table = torch.arange(3)
    rebuilt = trip(module)
    assert rebuilt().tolist() == [0, 1, 2]
    assert rebuilt.state_dict() == {}


def test_training_flags_and_requires_grad_are_kept():
    def forward(self, x):
        return self.norm(self.linear(x))

    model = module(forward, linear=nn.Linear(2, 2), norm=nn.BatchNorm1d(2))
    model.norm.eval()
    model.linear.bias.requires_grad_(False)
    rebuilt = trip(trace(model))
    assert (rebuilt.training, rebuilt.linear.training, rebuilt.norm.training) == (True, True, False)
    assert (rebuilt.linear.weight.requires_grad, rebuilt.linear.bias.requires_grad) == (True, False)


def test_weights_of_another_dtype_are_kept():
    graph = trace(module(lambda self, x: self.linear(x), linear=nn.Linear(2, 2).bfloat16()))
    assert trip(graph).linear.weight.dtype is torch.bfloat16


def test_views_are_stored_contiguous():
    base = torch.randn(4, 6)
    linear = nn.Linear(3, 4, bias=False)
    linear.weight = nn.Parameter(base[:, ::2])
    graph = trace(module(lambda self, x: self.linear(x), linear=linear))
    assert graph_state(graph)["linear.weight"].is_contiguous()
    same_output(graph, trip(graph), torch.randn(2, 3))


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True),
        nn.GRU(3, 4, bias=False),
        nn.RNN(3, 4, nonlinearity="relu"),
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(
                3, 1, 8, dropout=0.0, activation="gelu", norm_first=True, batch_first=True
            ),
            2,
            norm=nn.LayerNorm(3),
            enable_nested_tensor=False,
        ),
        nn.ConvTranspose1d(3, 6, 2, stride=2, groups=3, bias=False, padding_mode="zeros"),
        nn.Conv1d(3, 2, 3, padding="same", padding_mode="reflect"),
        nn.Embedding(5, 3, padding_idx=1),
        nn.PReLU(3),
        nn.Upsample(scale_factor=2, mode="nearest"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_of_torch_come_back_without_the_users_help(layer):
    graph = trace(module(lambda self, x: self.layer(x), layer=layer)).eval()
    x = torch.randint(5, (2, 3)) if isinstance(layer, nn.Embedding) else torch.randn(2, 3, 3)
    rebuilt = trip(graph)
    assert type(rebuilt.layer) is type(layer)
    same_output(graph, rebuilt, x)


def test_a_recurrent_layer_computes_with_its_loaded_weights():
    graph = trace(module(lambda self, x: self.lstm(x)[0], lstm=nn.LSTM(2, 3)))
    rebuilt = trip(graph)
    with torch.no_grad():
        rebuilt.lstm.weight_ih_l0.zero_()
        rebuilt.lstm.weight_hh_l0.zero_()
        rebuilt.lstm.bias_ih_l0.zero_()
        rebuilt.lstm.bias_hh_l0.zero_()
    assert rebuilt(torch.randn(1, 1, 2)).abs().max() == 0


def test_random_state_is_left_alone():
    graph = trace(module(lambda self, x: self.a(x), a=nn.Linear(64, 64)))
    before = torch.get_rng_state()
    trip(graph)
    assert torch.equal(before, torch.get_rng_state())


def test_custom_modules_are_asked_for_and_copied():
    model = module(lambda self, x: self.custom(x) + 1, custom=Custom(3))
    graph = trace(model)
    with pytest.raises(StorageError, match=r"Custom.*Pass model="):
        trip(graph)
    given = Custom(3)
    rebuilt = trip(graph, modules={"custom": given})
    same_output(graph, rebuilt, torch.ones(1, 4))
    assert rebuilt.custom is not given


def test_a_custom_module_of_another_class_or_shape_is_refused():
    graph = trace(module(lambda self, x: self.custom(x), custom=Custom(1)))
    with pytest.raises(StorageError, match=r"Linear here, the saved one a .*Custom"):
        trip(graph, modules={"custom": nn.Linear(4, 4)})
    other = Custom(1)
    other.linear = nn.Linear(5, 4)
    with pytest.raises(StorageError, match=r"custom\.linear\.weight.*\(4, 4\).*\(4, 5\)"):
        trip(graph, modules={"custom": other})


def with_forward(layer):
    layer.forward = lambda x: x
    return layer


def with_hook(layer):
    layer.register_forward_hook(lambda *_: None)
    return layer


def with_other_shape(layer):
    layer.weight = nn.Parameter(torch.zeros(2, 5))
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        with_forward(nn.Linear(4, 2)),
        with_hook(nn.Linear(4, 2)),
        with_other_shape(nn.Linear(4, 2)),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)),
    ],
    ids=["own forward", "hook", "shape", "parametrization"],
)
def test_a_layer_that_its_arguments_do_not_rebuild_is_custom(layer):
    data = graph_to_json(trace(module(lambda self, x: self.a(x), a=layer)))
    assert list(data["modules"][0]) == ["path", "custom"]


def test_functions_of_the_user_are_asked_for():
    graph = fx.symbolic_trace(module(lambda self, x: user_function(x)))
    assert list(custom_functions(graph).values()) == [user_function]
    with pytest.raises(StorageError, match=r"user_function.*Pass model="):
        trip(graph)
    same_output(graph, trip(graph, functions=custom_functions(graph)), torch.ones(2))


def test_a_named_tuple_is_a_function_of_the_user():
    graph = fx.symbolic_trace(module(lambda self, x: Pair(x, x + 1)))
    rebuilt = trip(graph, functions=custom_functions(graph))
    assert isinstance(rebuilt(torch.ones(1)), Pair)


def test_an_unstorable_argument_is_named():
    graph = fx.Graph()
    graph.output(graph.call_function(torch.add, (graph.placeholder("x"), 1j)))
    with pytest.raises(StorageError, match=r"add: an argument of type builtins\.complex"):
        graph_to_json(fx.GraphModule(nn.Module(), graph))


@pytest.mark.parametrize("method", ["numpy", "data_ptr", "apply_"])
def test_a_method_outside_the_list_is_refused_when_saving(method):
    graph = fx.symbolic_trace(module(lambda self, x: getattr(x, method)()))
    with pytest.raises(StorageError, match=f"method '{method}'.*module of its own"):
        graph_to_json(graph)


def test_state_that_does_not_fit_is_refused():
    graph = trace(module(lambda self, x: self.a(x), a=nn.Linear(2, 3)))
    data, state = graph_to_json(graph), graph_state(graph)
    with pytest.raises(StorageError, match=r"a\.bias: the tensor is missing"):
        graph_from_json(data, {"a.weight": state["a.weight"]})
    with pytest.raises(StorageError, match=r"a\.weight.*\(3, 3\)"):
        graph_from_json(data, state | {"a.weight": torch.zeros(3, 3)})
    with pytest.raises(StorageError, match=r"a\.bias.*float64"):
        graph_from_json(data, state | {"a.bias": torch.zeros(3, dtype=torch.float64)})


def test_another_version_is_refused():
    data = graph_to_json(trace(module(lambda self, x: x)))
    with pytest.raises(StorageError, match="not a stored graph of version 1"):
        graph_from_json(data | {"version": 2}, {})


def test_lazy_parameters_are_refused():
    graph = fx.Graph()
    graph.output(graph.call_module("lazy", (graph.placeholder("x"),)))
    root = nn.Module()
    root.lazy = nn.LazyLinear(3)
    with pytest.raises(StorageError, match=r"lazy.*one forward pass"):
        graph_to_json(fx.GraphModule(root, graph))
