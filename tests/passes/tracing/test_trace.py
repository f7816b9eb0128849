from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from toy_models import Apply, Attention, Branch, DictInput, TwoInputs, traced, uses

from energy_model.errors import TraceError
from energy_model.hardware import load_hardware
from energy_model.shapes import LayerShape
from passes.analysis.costs import cost_table
from passes.inputs import Call, as_call
from passes.tracing.trace import equal_outputs, trace

EYERISS = load_hardware("eyeriss")
LINEAR = LayerShape.linear(8, 4)


@dataclass
class Output:
    scores: torch.Tensor


class Pair(NamedTuple):
    first: Any
    second: Any


def convnet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(32, 5),
    )


@pytest.mark.parametrize("batch", [1, 5])
def test_costs_do_not_depend_on_the_batch(batch):
    models = {
        "cnn": (convnet(), torch.randn(batch, 3, 9, 9)),
        "lstm": (
            Apply(lambda m, x: m.r(x)[0], r=nn.LSTM(8, 6, batch_first=True)),
            torch.randn(batch, 5, 8),
        ),
        "attention": (Attention(), (torch.randn(batch, 5, 8),) * 3),
        "branch": (nn.Sequential(nn.Linear(8, 8), Branch()), torch.randn(batch, 8)),
    }
    for model, inputs in models.values():
        other = traced(model, _repeated(inputs, 3))
        assert uses(other) == uses(traced(model, inputs))
        assert cost_table(other, EYERISS) == cost_table(traced(model, inputs), EYERISS)


def _repeated(inputs, batch):
    if isinstance(inputs, tuple):
        return tuple(_repeated(x, batch) for x in inputs)
    return torch.randn(batch, *inputs.shape[1:])


def test_a_model_that_needs_its_batch_is_divided():
    def normed(module, x):
        y = module.fc(module.conv(x).flatten(1))
        return torch.nn.functional.batch_norm(y, None, None, training=True)

    model = Apply(normed, conv=nn.Conv1d(2, 4, 3), fc=nn.Linear(28, 6))
    graph = traced(model, torch.randn(6, 2, 9))
    assert uses(graph) == {
        "conv": [(LayerShape.conv(2, 4, 3, (9,)), 1)],
        "fc": [(LayerShape.linear(28, 6), 1)],
    }


@pytest.mark.spread(2)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 1e30])
def test_values_of_the_example_are_ignored(value):
    model = convnet()
    wanted = cost_table(traced(model, torch.randn(2, 3, 9, 9)), EYERISS)
    assert cost_table(traced(model, torch.full((2, 3, 9, 9), value)), EYERISS) == wanted


def test_shapes_without_data():
    graph = traced(convnet().to("meta"), torch.empty(2, 3, 9, 9, device="meta"))
    assert uses(graph) == uses(traced(convnet(), torch.randn(2, 3, 9, 9)))


@pytest.mark.parametrize("mode", [False, True])
def test_the_graph_has_the_mode_of_the_model(mode):
    model = convnet().train(mode)
    graph = traced(model, torch.randn(2, 3, 9, 9))
    assert graph.graph_module.get_submodule("1").training is mode
    assert graph.graph_module.get_submodule("5").training is mode


def test_weights_are_shared_with_the_model():
    model = convnet().eval()
    graph = traced(model, torch.randn(2, 3, 9, 9))
    assert graph.module is model
    with torch.no_grad():
        model[6].weight.zero_()
        model[6].bias.fill_(3.0)
    assert torch.equal(graph.graph_module(torch.randn(4, 3, 9, 9)), torch.full((4, 5), 3.0))


def test_the_graph_trains():
    graph = traced(convnet(), torch.randn(2, 3, 9, 9))
    graph.graph_module.train()(torch.randn(4, 3, 9, 9)).sum().backward()
    for site in graph.sites:
        assert graph.parameter(site).grad.abs().sum() > 0


def test_another_image_size():
    model = convnet().eval()
    graph = traced(model, torch.randn(2, 3, 9, 9))
    x = torch.randn(1, 3, 17, 12)
    assert torch.equal(graph.graph_module(x), model(x))


A, B = torch.randn(3, 8), torch.randn(3, 5)


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        (A, ["left"]),
        ((A, B), ["left", "right"]),
        ({"b": B, "a": A}, ["left", "right"]),
        (Call((A,), {"scale": 3.0}), ["left"]),
        (Call((A,), {"b": B, "scale": 3.0}), ["left", "right"]),
    ],
)
def test_arguments_and_structured_outputs(inputs, names):
    model = TwoInputs()
    call = as_call(model, inputs)
    graph = trace(model, call)
    assert graph.leaves == ()
    assert list(uses(graph)) == names
    bigger = call.map(lambda t: torch.randn(7, *t.shape[1:]))
    output, expected = bigger(graph.graph_module), bigger(model)
    assert equal_outputs(output, expected)
    assert list(output) == ["sum", "parts"]
    assert output["parts"][1][1] is None


def test_a_dict_as_the_only_argument():
    model = DictInput()
    graph = traced(model, {"x": A, "y": torch.randn(3, 4)})
    batch = {"x": torch.randn(6, 8), "y": torch.randn(6, 4)}
    assert torch.equal(graph.graph_module(batch), model(batch))


def test_named_outputs():
    model = Apply(lambda m, x: Pair(m.fc(x), OrderedDict(x=x)), fc=nn.Linear(8, 4))
    graph = traced(model, A)
    output = graph.graph_module(A)
    assert isinstance(output, Pair)
    assert equal_outputs(output, model(A))


def test_a_dataclass_as_output():
    graph = traced(Apply(lambda m, x: Output(m.fc(x)), fc=nn.Linear(8, 4)), A)
    assert list(uses(graph)) == ["fc"]


class Options(nn.Module):
    """A second tensor that may have no batch, and a switch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x, offset=None, twice=False):
        y = self.fc(x)
        y = y if offset is None else y + offset.sum()
        return y * 2 if twice else y


class Variadic(Options):
    def forward(self, *xs):
        return self.fc(xs[0]) + self.fc(xs[1])


@pytest.mark.parametrize(
    ("model", "call"),
    [(Variadic(), Call((A, A))), (Options(), Call((A,), {"twice": True}))],
    ids=["variadic", "switch"],
)
def test_arguments_of_any_kind_are_traced(model, call):
    graph = trace(model.eval(), call)
    assert graph.leaves == ()
    assert torch.equal(graph.call(graph.graph_module), graph.call(model))


def test_an_input_without_a_batch_is_left_whole():
    model, offset = Options(), torch.randn(2)
    one, five = (Call((torch.randn(n, 8),), {"offset": offset}) for n in (1, 5))
    assert uses(trace(model, one)) == uses(trace(model, five)) == {"fc": [(LINEAR, 1)]}


def test_the_example_is_kept_as_it_was_given():
    call = as_call(convnet(), torch.randn(5, 3, 9, 9))
    assert trace(convnet(), call).call is call


def test_analysis_needs_no_training_mode():
    model = convnet()
    graph = trace(model, as_call(model, torch.randn(2, 3, 9, 9)), train=False)
    assert uses(graph) == uses(traced(model, torch.randn(2, 3, 9, 9)))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.randn(3, 7), r"\[\(1, 7\) float32\]|\[\(3, 7\) float32\]"),
        (torch.randn(3, 8).double(), "float64"),
        ((A, A), "positional argument"),
    ],
)
def test_a_model_that_fails_on_its_example(inputs, message):
    with pytest.raises(TraceError, match=message) as caught:
        traced(nn.Sequential(nn.Linear(8, 8)), inputs)
    assert "fails on the example inputs" in caught.value.what
    assert "right shapes" in caught.value.remedy
    assert caught.value.__cause__ is not None


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        raise KeyError("no such thing")


def test_an_error_of_the_model_names_its_line():
    line = Broken.forward.__code__.co_firstlineno + 1
    with pytest.raises(TraceError, match="KeyError") as caught:
        traced(nn.Sequential(nn.Linear(8, 8), Broken()), A)
    assert caught.value.where == f"{__file__}:{line}"


def test_an_error_below_the_model_names_the_models_line():
    model = Options()
    line = Options.forward.__code__.co_firstlineno + 1
    with pytest.raises(TraceError) as caught:
        traced(model, torch.randn(3, 7))
    assert caught.value.where == f"{__file__}:{line}"


def test_equal_outputs_sees_every_difference():
    x = torch.tensor([1.0, float("nan")])
    assert equal_outputs(x, x.clone())
    assert equal_outputs({"a": [x, None, 2]}, {"a": [x.clone(), None, 2]})
    different = [
        (x, torch.tensor([1.0, 2.0])),
        (x, torch.tensor([float("nan"), 1.0])),
        (x, x.double()),
        (x, x[:1]),
        (x, None),
        ([x], [x, x]),
        ({"a": x}, {"b": x}),
        ({"a": x, "b": x}, {"b": x, "a": x}),
        ((x, 1), (x, 2)),
    ]
    for left, right in different:
        assert not equal_outputs(left, right)
