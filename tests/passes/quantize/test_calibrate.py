"""Ranges from data: against numpy, by every observer, and what strange data is answered with."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from quantize_nets import Residual, perceptron, randomized, seeded, traced
from torch import nn

from energy_model.errors import ArgumentError, PreconditionError
from passes.inputs import Call
from passes.quantize.calibrate import Observer, calibrate
from passes.quantize.eligible import eligible
from passes.quantize.placement import CONTAINER, insert_quantizers, places


def prepared(model, inputs, *, bits=8, signed=False):
    graph = traced(model.eval(), inputs)
    insert_quantizers(
        graph, places(graph, eligible(graph, static=True).layers), bits, signed=signed
    )
    return graph


def images(count, size=4, seed=0):
    generator = seeded(seed)
    return [Call((torch.randn(size, 3, 8, 8, generator=generator),)) for _ in range(count)]


def residual(**options):
    return prepared(randomized(Residual()), images(1)[0].args[0], **options)


def quantizers(graph):
    return dict(graph.graph_module.get_submodule(CONTAINER).named_children())


def grids(graph):
    return {n: (float(q.scale), int(q.zero_point)) for n, q in quantizers(graph).items()}


def reached(graph, calls):
    """What every quantizer reads when none rounds, by hand."""
    seen = {name: [] for name in quantizers(graph)}
    plain = copy.deepcopy(graph.graph_module)
    for name, part in plain.get_submodule(CONTAINER).named_children():
        part.ready.fill_(False)
        part.register_forward_pre_hook(lambda m, args, n=name: seen[n].append(args[0].clone()))
    with torch.no_grad():
        for call in calls:
            call(plain)
    # The second call of a shared quantizer reads values that were moved.
    return {
        n: torch.cat([t.reshape(-1) for t in v[:: len(v) // len(calls)]]) for n, v in seen.items()
    }


def ends(quantizer):
    low, high = quantizer.low - quantizer.zero_point, quantizer.high - quantizer.zero_point
    return float(low * quantizer.scale), float(high * quantizer.scale)


def test_all_values_are_within_the_range_of_minmax():
    graph, calls = residual(), images(3)
    calibrate(graph, iter(calls), Observer("minmax"))
    for name, values in reached(graph, calls).items():
        quantizer = quantizers(graph)[name]
        low, high = ends(quantizer)
        step = float(quantizer.scale)
        assert low == pytest.approx(min(float(values.min()), 0.0), abs=step)
        assert high == pytest.approx(max(float(values.max()), 0.0), abs=step)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentiles_are_those_of_numpy(percentile):
    graph, calls = residual(), images(3)
    calibrate(graph, iter(calls), Observer("percentile", percentile))
    for name, values in reached(graph, calls).items():
        quantizer = quantizers(graph)[name]
        shares = [1 - percentile / 100, percentile / 100]
        low, high = np.quantile(values.numpy(), shares, method="inverted_cdf")
        step = float(quantizer.scale)
        wanted = (min(float(low), 0.0), max(float(high), 0.0))
        assert ends(quantizer) == pytest.approx(wanted, rel=2**-7, abs=1.01 * step)


def error(quantizer, values, low, high):
    tried = copy.deepcopy(quantizer)
    tried.set_range(low, high)
    return float((tried(values) - values).double().square().sum())


@pytest.mark.spread(1)
@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("signed", [False, True])
def test_mse_finds_a_better_range_than_the_others(bits, signed):
    graph, calls = residual(bits=bits, signed=signed), images(3)
    calibrate(graph, iter(calls), Observer("mse"))
    for name, values in reached(graph, calls).items():
        quantizer = quantizers(graph)[name]
        own = float((quantizer(values) - values).double().square().sum())
        low, high = float(values.min()), float(values.max())
        tried = [error(quantizer, values, low * a, high * b)
                 for a in (0.3, 0.5, 0.7, 0.85, 1) for b in (0.3, 0.5, 0.7, 0.85, 1)]  # fmt: skip
        assert own <= min(tried) * 1.03


def test_after_a_relu_the_zero_point_is_the_smallest_code():
    for signed in (False, True):
        graph = residual(signed=signed)
        calibrate(graph, images(2))
        for name in ("relu", "relu6", "relu_1"):
            assert int(quantizers(graph)[name].zero_point) == quantizers(graph)[name].low


def test_the_model_is_in_evaluation_mode_and_left_as_it_was():
    model = randomized(Residual()).train()
    graph = traced(model, images(1)[0].args[0])
    insert_quantizers(graph, places(graph, {"stem", "first", "second"}), 8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state, flags = torch.get_rng_state(), [m.training for m in graph.graph_module.modules()]
    calibrate(graph, images(2))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in graph.graph_module.modules()] == flags
    evaluated = traced(randomized(Residual()).eval(), images(1)[0].args[0])
    insert_quantizers(evaluated, places(evaluated, {"stem", "first", "second"}), 8)
    calibrate(evaluated, images(2))
    assert grids(graph) == grids(evaluated)


def test_it_depends_on_neither_the_order_nor_what_was_before():
    graph, other = residual(), residual()
    calls = images(4)
    calibrate(graph, calls)
    calibrate(other, images(1, seed=9))
    assert grids(graph) != grids(other)
    calibrate(other, calls[::-1])
    assert grids(graph) == grids(other)


def test_inputs_are_not_changed_in_place():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x.add_(1.0))

    graph = traced(InPlace().eval(), torch.zeros(2, 3))
    insert_quantizers(graph, places(graph, {"layer"}), 8)
    call = Call((torch.zeros(2, 3),))
    calibrate(graph, [call])
    assert not bool(call.args[0].any())


def test_the_decision_says_how():
    [decision] = calibrate(residual(), images(2))
    assert decision.what == "activations calibrated"
    assert "99.999 %" in decision.why
    assert "8 samples in 2 batches" in decision.why


def test_no_batch_is_refused():
    graph = residual()
    with pytest.raises(PreconditionError, match="no batch") as caught:
        calibrate(graph, iter(()))
    assert "activations=None" in caught.value.remedy


def test_a_single_sample_goes_on_with_a_warning():
    decisions = calibrate(residual(), images(1, size=1))
    assert "calibrated with a single sample" in [d.what for d in decisions]
    assert "calibrated with a single sample" not in [
        d.what for d in calibrate(residual(), images(1))
    ]


@pytest.mark.spread(3)
@pytest.mark.parametrize("kind", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("constant", [2.5, -1.5, 0.0])
def test_constant_activations_have_the_range_of_the_constant_and_zero(kind, constant):
    graph = prepared(perceptron(), torch.randn(2, 3, 4))
    call = Call((torch.full((2, 3, 4), constant),))
    decisions = calibrate(graph, [call], Observer(kind))
    [found] = [d for d in decisions if d.layer == "input 'input' of the model"]
    assert found.what == "constant activation"
    assert f"{constant:.6g}" in found.why
    quantizer = quantizers(graph)["input_1"]
    assert quantizer(call.args[0]) == pytest.approx(call.args[0], rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused_with_the_layer(bad):
    graph = prepared(randomized(perceptron()), torch.randn(2, 3, 4))
    before = grids(graph)
    with torch.no_grad():
        graph.module[3].bias[2] = bad
    with pytest.raises(PreconditionError, match="3: 2 activations are not finite in batch 1"):
        calibrate(graph, [Call((torch.randn(2, 3, 4, generator=seeded()),))])
    assert grids(graph) == before
    assert not any(bool(q.ready) for q in quantizers(graph).values())


def test_minmax_tells_of_outliers_and_percentiles_clip_them():
    graph = prepared(randomized(perceptron()), torch.randn(2, 3, 4))
    x = torch.randn(400, 3, 4, generator=seeded())
    x[0, 0, 0] = 5000.0
    told = calibrate(graph, [Call((x,))], Observer("minmax"))
    assert "outlier in the activations" in [d.what for d in told]
    assert float(quantizers(graph)["input_1"].scale) > 10
    told = calibrate(graph, [Call((x,))], Observer("percentile", 99.9))
    assert "outlier in the activations" not in [d.what for d in told]
    assert float(quantizers(graph)["input_1"].scale) < 0.05


@pytest.mark.parametrize("kind", ["minmax", "percentile", "mse"])
def test_an_outlier_that_no_observer_can_clip_is_told(kind):
    graph = prepared(randomized(perceptron()), torch.randn(2, 3, 4))
    x = torch.randn(400, 3, 4, generator=seeded())
    x[0, 0, 0] = 1e30  # one of 4,800 values: more than 0.001 %
    told = calibrate(graph, [Call((x,))], Observer(kind))
    assert "outlier in the activations" in [d.what for d in told]
    assert float(quantizers(graph)["input_1"].scale) > 1e20


def test_where_almost_all_values_are_zero_the_others_count():
    graph = prepared(perceptron(), torch.randn(2, 3, 4))
    x = torch.zeros(4000, 3, 4)
    x[0, 0, 0] = 3.0
    calibrate(graph, [Call((x,))], Observer("percentile", 99.9))
    assert ends(quantizers(graph)["input_1"]) == pytest.approx((0.0, 3.0), rel=1e-4)


def test_batches_that_the_model_refuses():
    with pytest.raises(PreconditionError, match="fails on a batch of data") as caught:
        calibrate(residual(), [Call((torch.randn(2, 5, 8, 8),))])
    assert "\n" not in str(caught.value)


def test_batches_without_samples_are_refused():
    with pytest.raises(PreconditionError, match="there is no sample to calibrate"):
        calibrate(residual(), [Call((torch.randn(0, 3, 8, 8),))])


@pytest.mark.parametrize(
    "options",
    [{"kind": "max"}, {"percentile": 50}, {"percentile": 101.0}, {"percentile": True}],
)
def test_other_observers_are_refused(options):
    with pytest.raises(ArgumentError, match="not allowed"):
        Observer(**options)
