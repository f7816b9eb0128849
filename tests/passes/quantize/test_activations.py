"""Quantizers of activations: the grid of a range, ties, clipping, gradients, storage."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import ArgumentError
from passes.quantize.activations import ActivationQuantizer


@settings(max_examples=60)
@given(
    bits=st.integers(2, 8),
    signed=st.booleans(),
    low=st.floats(-50, 0, width=32),
    high=st.floats(0, 50, width=32),
)
def test_rounding_is_idempotent_and_near(bits: int, signed: bool, low: float, high: float) -> None:
    quantizer = ActivationQuantizer(bits, signed=signed)
    quantizer.set_range(low, high)
    values = torch.linspace(low, high, 257)
    once = quantizer(values)
    assert torch.equal(quantizer(once), once)
    assert torch.equal(quantizer(torch.zeros(3)), torch.zeros(3))
    step = float(quantizer.scale)
    if high - low > 1e-3:
        # The zero point is rounded, so that an end of the range may be clipped by half a step.
        assert float((once - values).abs().max()) <= step * 1.01


@pytest.mark.parametrize("signed", [False, True])
def test_a_range_from_zero_has_its_zero_point_at_the_smallest_code(signed: bool) -> None:
    quantizer = ActivationQuantizer(8, signed=signed)
    quantizer.set_range(0.0, 5.1)
    assert int(quantizer.zero_point) == quantizer.low
    assert float(quantizer(torch.tensor(-3.0))) == 0.0
    assert float(quantizer(torch.tensor(100.0))) == pytest.approx(5.1, rel=1e-4)


def test_ties_go_to_even_as_in_onnx() -> None:
    quantizer = ActivationQuantizer(8)
    quantizer.set_range(0.0, 255.0)
    given_values = torch.tensor([0.5, 1.5, 2.5, 3.5])
    assert quantizer(given_values).tolist() == [0.0, 2.0, 2.0, 4.0]


@pytest.mark.parametrize("training", [True, False])
def test_gradients_pass_where_nothing_is_clipped(training: bool) -> None:
    quantizer = ActivationQuantizer(8).train(training)
    quantizer.set_range(0.0, 1.0)
    values = torch.tensor([-1.0, 0.2, 0.9, 7.0], requires_grad=True)
    quantizer(values).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_it_passes_values_on_until_it_has_a_range() -> None:
    values = torch.randn(5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ActivationQuantizer()(values), values)


def test_a_range_without_values_has_scale_one() -> None:
    quantizer = ActivationQuantizer()
    quantizer.set_range(0.0, 0.0)
    assert float(quantizer.scale) == 1.0
    assert torch.equal(quantizer(torch.zeros(2)), torch.zeros(2))


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_other_ranges_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ArgumentError, match="range"):
        ActivationQuantizer().set_range(*bounds)


@pytest.mark.parametrize("bits", [0, 1, 9])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ArgumentError, match="bits"):
        ActivationQuantizer(bits)


def test_it_is_rebuilt_from_its_configuration_and_tensors() -> None:
    quantizer = ActivationQuantizer(6, signed=True)
    quantizer.set_range(-1.0, 2.0)
    other = ActivationQuantizer.from_config(quantizer.to_config())
    other.load_state_dict(quantizer.state_dict())
    values = torch.randn(50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(other(values), quantizer(values))
