"""What is said to be constant is constant, whatever the input, also where NaN is swallowed."""

from __future__ import annotations

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from channel_nets import values
from masked_nets import Branching, Called, FixedBatch
from torch import nn
from torch.fx import GraphModule

from passes.graph import ModelGraph
from passes.inputs import as_call
from passes.rewrite import constants
from passes.rewrite.channelwise import CONVS, Channelwise
from passes.rewrite.constants import constant_inputs
from passes.tracing.trace import trace

SIZES = {1: (6,), 2: (6, 5), 3: (4, 5, 3)}


class Partly(nn.Module):
    """An operation on an input of which channel 0 is 0, channel 1 is 0.7, other elements known."""

    def __init__(self, operation, shape=(4, 6, 5)):
        super().__init__()
        self.operation = operation
        self.first = CONVS[len(shape) - 2](shape[0], shape[0], 1)  # a graph needs a layer
        mask = (values(*shape, seed=1) > 0).double()
        mask[:2] = 0
        shift = torch.where(mask == 0, values(*shape, seed=2), 0.0)
        shift[0], shift[1] = 0.0, 0.7
        self.register_buffer("mask", mask)
        self.register_buffer("shift", shift)

    def forward(self, x):
        return self.operation(self.first(x) * self.mask + self.shift)


def result_of(graph):
    """What is known of the graph's output."""
    return next(iter(constant_inputs(graph, ["output"])["output"].values()), None)


def known(model, shape=(4, 6, 5), check=True):
    """What is known of a model's output; it is the same for every input, and all that is."""
    model = model.double().eval()
    found = result_of(trace(model, as_call(model, values(2, *shape)), train=False))
    if check:
        for seed in range(6):
            with torch.no_grad():
                output = model(values(1, *shape, seed=seed) * 3 ** (seed - 2))
            kept = ~found.isnan()
            torch.testing.assert_close(output[kept], found[kept], rtol=1e-13, atol=1e-13)
    return found


def constant(found):
    """Which elements are known, of one sample."""
    return ~found[0].isnan()


LAYERS = {
    "Threshold": (0.1, 5.0), "Dropout": (0.5,), "Softmax": (1,), "LogSoftmax": (1,),
    "MaxPool{n}d": (2,), "AvgPool{n}d": (2,), "LPPool{n}d": (2, 2), "AdaptiveMaxPool{n}d": (2,),
    "AdaptiveAvgPool{n}d": (2,), "BatchNorm{n}d": (4,), "InstanceNorm{n}d": (4,),
}  # fmt: skip


def channelwise_layers():
    for n in SIZES:
        arguments = {name.format(n=n): given for name, given in LAYERS.items()}
        every = Channelwise.of(n).layers | Channelwise.of(n).norms
        for kind in sorted(every, key=lambda kind: kind.__name__):
            plain = kind not in Channelwise.of(n).norms and "Pool" not in kind.__name__
            if (plain and n != 2) or kind is nn.Dropout1d:
                continue
            layer = kind(*arguments.get(kind.__name__, ()))
            yield pytest.param(n, layer, id=f"{n}-{kind.__name__}")


@pytest.mark.spread(6)
@pytest.mark.parametrize(("n", "layer"), channelwise_layers())
def test_channelwise_layers(n, layer):
    shape = (4, *SIZES[n])
    found = known(Partly(layer, shape), shape)
    assert constant(found)[:2].all()
    assert not constant(found)[2:].all()


# (input, ...) of functions that need more than their input.
ARGUMENTS = {
    "threshold": (0.1, 5.0), "threshold_": (0.1, 5.0), "clamp": (-0.2, 0.3), "clamp_": (-0.2, 0.3),
    "pow": (2,), "add": (1.5,), "sub": (1.5,), "mul": (1.5,), "div": (1.5,), "truediv": (1.5,),
    "max_pool{n}d": (2,), "avg_pool{n}d": (2,), "lp_pool{n}d": (2, 2),
    "adaptive_max_pool{n}d": (2,), "adaptive_avg_pool{n}d": (2,), "dropout": (0.5, False),
    "dropout1d": (0.5, False), "dropout2d": (0.5, False), "dropout3d": (0.5, False),
    "alpha_dropout": (0.5, False), "feature_alpha_dropout": (0.5, False),
    "rrelu": (0.1, 0.3, False), "rrelu_": (0.1, 0.3, False),
}  # fmt: skip
UNTRUSTED = ("celu_", "rrelu_", "threshold_")


def channelwise_functions():
    for n in SIZES:
        arguments = {name.format(n=n): given for name, given in ARGUMENTS.items()}
        found = Channelwise.of(n).functions
        for number, function in enumerate(sorted(found, key=lambda f: f.__name__)):
            name = function.__name__.removeprefix("_")  # `F.threshold` is called so
            if ("pool" not in name and n != 2) or name == "dropout1d":
                continue
            given = arguments.get(name, ())
            yield pytest.param(n, function, given, id=f"{n}-{name}-{number}")


@pytest.mark.spread(8)
@pytest.mark.parametrize(("n", "function", "arguments"), channelwise_functions())
def test_channelwise_functions(n, function, arguments):
    shape = (4, *SIZES[n])
    if function.__name__ == "fn":  # what torch calls pools that may return indices
        arguments = (2,)
    found = known(Partly(lambda x: function(x, *arguments), shape), shape)
    assert constant(found)[:2].all() == (function.__name__ not in UNTRUSTED)
    assert not constant(found)[2:].all()


METHODS = {
    "relu": (), "sigmoid": (), "tanh": (), "clamp": (-0.2, 0.3), "abs": (), "neg": (), "square": (),
    "exp": (), "add": (1.5,), "sub": (1.5,), "mul": (1.5,), "div": (1.5,), "relu_": (),
    "sigmoid_": (), "clamp_": (-0.2, 0.3), "mul_": (1.5,), "contiguous": (), "clone": (),
    "permute": (0, 2, 3, 1), "transpose": (2, 3), "flatten": (2,), "reshape": (-1, 4, 30),
    "view": (-1, 4, 30), "unflatten": (2, (2, 3)), "unsqueeze": (1,), "flip": (2,), "roll": (1, 2),
    "repeat": (1, 1, 2, 1), "narrow": (2, 1, 3), "repeat_interleave": (2, 2), "mean": ((2, 3),),
    "sum": (2,), "amax": ((2, 3),), "amin": (3,), "std": (2,), "var": (2,), "prod": (2,),
    "logsumexp": (2,), "softmax": (-1,), "log_softmax": (2,), "cumsum": (3,), "squeeze": (),
    "expand": (1, 4, 6, 5), "ravel": (), "select": (1, 2), "swapdims": (1, 2), "tile": (2,),
    "moveaxis": (1, 3), "swapaxes": (2, 3), "movedim": (2, 3), "float": (), "detach": (),
}  # fmt: skip


@pytest.mark.spread(7)
@pytest.mark.parametrize("name", METHODS)
def test_methods(name):
    found = known(Partly(lambda x: getattr(x, name)(*METHODS[name])))
    assert found.isnan().any()
    assert not found.isnan().all()


LIKE = ("expand_as", "view_as", "reshape_as")
CREATED = {
    "zeros": lambda x: torch.zeros(x.shape), "ones": lambda x: torch.ones(x.shape),
    "full": lambda x: torch.full(x.shape, 2.0), "zeros_like": torch.zeros_like,
    "ones_like": torch.ones_like, "full_like": lambda x: torch.full_like(x, 3.0),
    "new_zeros": lambda x: x.new_zeros(x.shape), "new_ones": lambda x: x.new_ones(x.shape),
    "new_full": lambda x: x.new_full(x.shape, 2.0),
}  # fmt: skip


@pytest.mark.spread(5)
@pytest.mark.parametrize("name", [*LIKE, *CREATED])
def test_what_takes_the_shape_alone(name):
    make = CREATED.get(name, lambda x: getattr(x * 2, name)(x))
    found = known(Partly(lambda x: x + make(x)))
    number = make(torch.zeros(1, 4, 6, 5)).unique().item()
    expected = known(Partly(lambda x: x * 3 if name in LIKE else x + number))
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0, equal_nan=True)


OTHERS = {
    "layer norm": nn.LayerNorm(5), "function of it": lambda x: F.layer_norm(x, (6, 5)),
    "group norm": nn.GroupNorm(2, 4), "softmax": nn.Softmax(-1), "glu": nn.GLU(2),
    "softmin": lambda x: F.softmin(x, 2), "nearest": nn.Upsample(scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "reflection": nn.ReflectionPad2d(2), "replication": nn.ReplicationPad2d(1),
    "circular": lambda x: F.pad(x, (1, 1, 2, 2), mode="circular"), "slopes": nn.PReLU(4),
    "pixel shuffle": nn.PixelShuffle(2), "max pool that pads": nn.MaxPool2d(3, 1, 1),
    "max": lambda x: x.max(2)[0], "min": lambda x: torch.min(x, 3)[0],
    "larger of two": lambda x: torch.max(x, x.flip(3)),
    "stack": lambda x: torch.stack([x, x.tanh()]).amax(0),
    "concat": lambda x: torch.concat([x, x.tanh()], 2),
    "concatenate": lambda x: torch.concatenate([x, x.tanh()], dim=3),
    "tensor_split": lambda x: x.tensor_split(2, 2)[1],
    "t": lambda x: x[0, 1:].flatten(1).t()[None],
    "parts": lambda x: torch.cat([x.split(2, 1)[0].exp(), x.split(2, 1)[1]], 2),
    "pieces": lambda x: x.unbind(1)[1] + x.chunk(2, 1)[1][:, 0],
    "items": lambda x: x[:, [0, 2, 1]][..., ::2],
    "transposed": lambda x: x.mT @ torch.ones(6, 2, dtype=torch.float64),
    "minimum": lambda x: torch.minimum(x, x.relu() * 2),
    "lerp": lambda x: torch.lerp(x, x * x, 0.25), "nan to num": lambda x: torch.nan_to_num(x, 1.0),
    "choice by a constant": lambda x: torch.where(torch.arange(5) > 2, x, 0.0),
    "filled": lambda x: x.masked_fill(torch.arange(5) > 2, 1.0),
    "attention over positions": lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1),
}  # fmt: skip


@pytest.mark.spread(7)
@pytest.mark.parametrize("name", OTHERS)
def test_other_operations(name):
    found = known(Partly(copy.deepcopy(OTHERS[name])))
    assert found.isnan().any()
    assert constant(found)[:1].any() or name in ("group norm", "pixel shuffle")


SWALLOWING = (
    lambda x: (x > 0.1).double(), lambda x: torch.where(x > 0, 1.0, 2.0),
    lambda x: x.argmax(1).double(), lambda x: x.max(2)[1] + 0.5, lambda x: x.topk(2, 1)[0],
    lambda x: x.sort(1)[0], lambda x: torch.sign(x), lambda x: x * x.sum((1, 2, 3)).item(),
    lambda x: torch.norm(x, 0), lambda x: x.long() + 0.5, lambda x: torch.isnan(x) + 1.0,
    lambda x: torch.heaviside(x, x), lambda x: torch.fmax(x, x - 1),
    lambda x: F.one_hot((x > 0).long()).double(),
)  # fmt: skip


@pytest.mark.parametrize("operation", SWALLOWING)
def test_what_swallows_nan_hides_nothing(operation):
    found = known(Partly(operation))
    output = operation(Partly(nn.Identity()).double()(values(1, 4, 6, 5, seed=3)))
    assert found.shape == output.shape
    assert found.isnan().any()


def test_all_that_is_trusted_to_pass_nan_on_is_tested_here():
    names = (constants._MOVEMENTS + constants._REDUCTIONS + constants._CREATIONS).split()
    others = {"cat", "chunk", "concat", "concatenate", "max", "min", "softmin", "split", "stack"}
    others |= {"t", "tensor_split", "unbind"}
    assert set(names) <= others | {*METHODS, *CREATED, *LIKE}


def zeroed(layer, rows=(), columns=()):
    """A layer without some of its outputs and inputs."""
    layer = copy.deepcopy(layer).double()
    with torch.no_grad():
        for tensor in layer.parameters():
            tensor.copy_(values(*tensor.shape, seed=tensor.dim()))
        layer.weight[list(rows)] = 0
        layer.weight[:, list(columns)] = 0
    return layer


# A layer, and which of its outputs have zero weights; those are all that is known.
PRODUCTS = {
    "convolution": (nn.Conv2d(4, 5, 3), [0, 2]),
    "stride and dilation": (nn.Conv2d(4, 5, 2, stride=2, dilation=2), [0, 2]),
    "border": (nn.Conv2d(4, 5, 3, padding=1), [0, 2]),
    "reflected": (nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect"), [0, 2]),
    "same": (nn.Conv2d(4, 5, 3, padding="same"), [0]),
    "no bias": (nn.Conv2d(4, 5, 3, bias=False), [4]),
    "groups": (nn.Conv2d(4, 6, 3, groups=2), [5]),
}


def channels(found):
    """The channels that are known; no other has a known element."""
    whole = constant(found).flatten(1).all(1)
    assert torch.equal(whole, constant(found).flatten(1).any(1))
    return whole.nonzero().flatten().tolist()


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_row_of_zeros_gives_its_bias(name):
    layer, rows = PRODUCTS[name]
    layer = zeroed(layer, rows)
    found = known(nn.Sequential(nn.Conv2d(4, 4, 1), layer))
    assert channels(found) == rows
    bias = torch.zeros(5) if layer.bias is None else layer.bias
    assert torch.equal(found[0, rows, 1, 0], bias[rows].to(found))


def test_transposed_convolutions():
    for layer, column, rows in (
        (nn.ConvTranspose2d(4, 5, 3), [0, 2], [0, 2]),
        (nn.ConvTranspose2d(4, 6, 2, 2, groups=2), [2], [2, 5]),
    ):
        assert channels(known(nn.Sequential(zeroed(layer, (), column)))) == rows


def test_a_reader_of_constants_alone_computes_constants():
    first, second = zeroed(nn.Conv2d(4, 5, 1), [1, 3]), zeroed(nn.Conv2d(5, 3, 3), (), [0, 2, 4])
    found = known(nn.Sequential(first, nn.Sigmoid(), second))
    assert not found.isnan().any()
    rows = second.weight.sum((2, 3))[:, [1, 3]] @ torch.sigmoid(first.bias[[1, 3]])
    torch.testing.assert_close(found[0, :, 0, 0], (rows + second.bias).detach())


def test_a_constant_at_a_border_is_one_of_the_resolution():
    first, second = zeroed(nn.Conv2d(4, 5, 1), range(5)), nn.Conv2d(5, 3, 3, padding=1)
    assert known(nn.Sequential(first, zeroed(second))).isnan().all()
    assert known(nn.Sequential(first, nn.ReLU(), nn.ZeroPad2d(1)))[..., 1:-1, 1:-1].isnan().any()
    assert known(nn.Sequential(first, nn.AvgPool2d(2, padding=1))).isnan().all()
    assert not known(nn.Sequential(first, nn.AvgPool2d(2))).isnan().any()
    with torch.no_grad():
        first.bias.zero_()
    for border in (zeroed(second), nn.ZeroPad2d(1), nn.AvgPool2d(2, padding=1)):
        assert not known(nn.Sequential(first, border)).isnan().any()


def test_products_in_functions():
    rows = zeroed(nn.Conv2d(4, 5, 3), [2])
    parts = {"w": rows.weight, "b": rows.bias, "v": zeroed(nn.Linear(5, 6), [4]).weight}
    products = (
        lambda m, x: F.conv2d(x, m.w, m.b, 1, padding=1),
        lambda m, x: F.conv2d(bias=m.b, weight=m.w, input=x),
        lambda m, x: F.linear(x, m.v).transpose(1, 3),
        lambda m, x: (x @ m.v.t()).transpose(1, 3),
    )
    for product, expected in zip(products, (2, 2, 4, 4), strict=True):
        found = known(Called(product, **parts))
        assert channels(found) == [expected]
    found = known(Called(lambda m, x: m.w[:, :, 0, 0] @ F.linear(x, m.v).flatten(2), **parts))
    assert constant(found)[:, 4::6].all()
    assert constant(found)[2].all()


def test_zero_times_anything_is_zero():
    mask = (torch.arange(5) > 2).double()
    for times in (torch.mul, operator.mul, lambda x, m: x.mul_(m), lambda x, m: (x + 1) * m):
        found = known(Partly(lambda x, times=times: times(x.flip(1), mask)))
        assert torch.equal(found[..., :3], torch.zeros(1, 4, 6, 3, dtype=torch.float64))
        assert found[..., 3:].isnan().any()
    assert torch.equal(known(Partly(lambda x: x * 0)), torch.zeros(1, 4, 6, 5, dtype=torch.float64))
    assert known(Partly(lambda x: 0 / x)).isnan().any()


def test_a_scale_of_zero_leaves_the_bias():
    for norm in (nn.BatchNorm2d(4), nn.GroupNorm(2, 4)):
        norm.weight.data[1], norm.bias.data[1] = 0, 0.3
        found = known(nn.Sequential(nn.Conv2d(4, 4, 1), norm))
        assert torch.equal(found[0, 1], torch.full((6, 5), norm.bias[1].item()).double())
        assert found[0, [0, 2, 3]].isnan().all()
    assert known(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False))).isnan().all()


def test_attention_is_known_or_lost_head_by_head():
    heads = torch.tensor([1.0, 0.0], dtype=torch.float64).reshape(2, 1, 1)

    def attention(x, **options):
        x = x.flip(1).unflatten(1, (2, 2)).flatten(3).transpose(2, 3) * heads
        return F.scaled_dot_product_attention(x, x, x, **options)

    found = known(Partly(attention))
    assert found[:, 0].isnan().all()
    assert torch.equal(found[:, 1], torch.zeros(1, 30, 2, dtype=torch.float64))
    assert known(Partly(lambda x: attention(x, is_causal=True))).isnan().all()
    attend = F.scaled_dot_product_attention
    assert known(Partly(lambda x: attend(x * 0, x * 0, x * 0, x[0, 2].sum(1, True)))).isnan().all()


def test_inputs_that_are_no_numbers():
    parts = {"table": nn.Embedding(5, 4), "head": zeroed(nn.Linear(4, 3), [1])}
    model = Called(lambda m, words: m.head(m.table(words)), **parts).double()
    found = result_of(trace(model, as_call(model, torch.tensor([[1, 2], [3, 4]]))))
    assert constant(found).all(0).tolist() == [False, True, False]


def test_random_numbers_are_not_constants():
    dropped = (lambda x: F.dropout(x * 0 + 1, 0.5, True), lambda x: F.dropout(x * 0 + 1))
    for operation in (*dropped, lambda x: torch.rand_like(x) * 1):
        assert known(Partly(operation), check=False).isnan().all()
    assert not known(Partly(lambda x: F.dropout(x * 0 + 1, training=False))).isnan().any()


IN_PLACE = {
    "function": lambda x: (x.relu_(), x * 1)[1],
    "argument": lambda x: (F.relu(x, inplace=True), x * 1)[1],
    "behind a view": lambda x: (x[:, 1:].mul_(2), x * 1)[1],
    "behind what does nothing": lambda x: (F.dropout(x, training=False).mul_(3), x * 1)[1],
    "of something unknown": lambda x: (x.index_fill_(1, torch.tensor([0]), 5.0), x * 1)[1],
    "by what is unknown": lambda x: (x.add_((x > 0).double()), x * 1)[1],
    "dropout": lambda x: (F.dropout(x, 0.5, False, True), x * 1)[1],
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_is_changed_in_place_has_changed_for_all_that_read_it(name):
    found = known(Partly(IN_PLACE[name]))
    lost = name in ("of something unknown", "by what is unknown")
    assert bool(constant(found)[:1].any()) != lost


class Branched(nn.Module):
    def forward(self, x):
        return x.view(x.shape) if x.sum() > -1e9 else x


def test_a_change_behind_a_view_that_nobody_sees():
    def forward(m, x):
        x = m.first(x)
        m.view(x).mul_(2)
        return x * 1

    model = Called(forward, first=zeroed(nn.Conv2d(4, 4, 1), [0, 1, 2]), view=Branched()).eval()
    graph = trace(model, as_call(model, values(2, 4, 6, 5)))
    assert [leaf.path for leaf in graph.leaves] == ["view"]
    assert constant_inputs(graph)["view"]["first"].isnan().all()


def test_a_model_that_counts_its_calls_has_no_constants_and_counts_none_of_ours():
    model = zeroed(nn.Conv2d(4, 4, 1), range(4))
    model.register_buffer("calls", torch.zeros((), dtype=torch.float64))
    graph = torch.fx.Graph()
    graph.placeholder("x")
    calls, bias = graph.get_attr("calls"), graph.get_attr("bias")
    graph.output(graph.call_function(torch.add, (bias, calls)))
    whole = ModelGraph(model, GraphModule(model, graph), as_call(model, values(2, 4, 6, 5)), ())
    assert not result_of(whole).isnan().any()
    with graph.inserting_after(bias):
        graph.call_method("add_", (calls, 1.0))
    whole.graph_module.recompile()
    assert result_of(whole).isnan().all()
    assert model.calls == 0


def test_opaque_leaves_and_layers_with_hooks_are_not_trusted():
    first = zeroed(nn.Conv2d(4, 2, 1), range(2))
    assert known(nn.Sequential(first, Branching())).isnan().all()
    hooked = nn.ReLU()
    hooked.register_forward_hook(lambda layer, args, output: output * torch.rand(()))
    assert known(nn.Sequential(first, hooked), check=False).isnan().all()
    assert not known(nn.Sequential(first, nn.ReLU())).isnan().any()


def test_a_model_that_takes_its_whole_batch_alone_and_one_without_a_graph():
    model = FixedBatch().double().eval()
    model.head.weight.data[1] = 0
    found = result_of(trace(model, as_call(model, values(4, 1, 6, 6))))
    assert found.shape == (4, 3)
    assert torch.equal(found[:, 1], model.head.bias[1].expand(4))
    untraced = trace(Branching(), as_call(Branching(), torch.randn(1, 2, 6, 6)))
    assert constant_inputs(untraced) == {}


def test_nothing_is_changed_and_single_nodes_can_be_asked_for():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(), zeroed(nn.Conv2d(4, 2, 1))
    )
    model.double().train()
    graph = trace(model, as_call(model, values(2, 4, 6, 5)))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    assert list(constant_inputs(graph, ["_1"])) == ["_1"]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training


def test_the_check_fails_where_what_swallows_nan_is_trusted_to_pass_it_on(monkeypatch):
    monkeypatch.setattr(nn.ReLU, "forward", lambda layer, x: torch.where(x > 0, x, 0.0))
    monkeypatch.setitem(constants._LAYER_RULES, nn.ReLU, constants._native)
    with pytest.raises(AssertionError, match="not close"):
        known(Partly(nn.ReLU()))
