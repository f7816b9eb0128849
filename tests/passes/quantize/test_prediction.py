"""Bytes of a quantized file before there is one."""

from __future__ import annotations

import torch
from quantize_nets import traced
from torch import nn

from passes.quantize.prediction import (
    BIAS_BYTES,
    QUANTIZER_BYTES,
    WEIGHT_BYTES,
    predicted_file_bytes,
)


def graph():
    model = nn.Sequential(nn.ConvTranspose1d(3, 5, 1), nn.Flatten(), nn.Linear(35, 7))
    return traced(model.eval(), torch.randn(2, 3, 7))


def test_codes_scales_biases_and_operators_are_counted():
    own = WEIGHT_BYTES + 4
    assert predicted_file_bytes(graph(), 10_000, {}) == 10_000
    assert predicted_file_bytes(graph(), 10_000, {}, quantizers=3) == 10_000 + 3 * QUANTIZER_BYTES
    # 15 weights, 5 output channels along the second dimension: 15 codes and 5 scales.
    assert predicted_file_bytes(graph(), 10_000, {"0": 8}) == 10_000 - 60 + 15 + 25 + own
    # Two codes in a byte; 245 weights in rows of 35.
    found = predicted_file_bytes(graph(), 10_000, {"2": 4})
    assert found == 10_000 - 980 + 123 + 35 + own
    found = predicted_file_bytes(graph(), 10_000, {"2": 4}, blocks={"2": 16})
    assert found == 10_000 - 980 + 123 + 3 * 35 + own
    # Together with activations the seven biases are integers with scales of their own.
    found = predicted_file_bytes(graph(), 10_000, {"2": 4}, quantizers=1)
    assert found == 10_000 - 980 + 123 + 35 + 63 + own + BIAS_BYTES + 4 + QUANTIZER_BYTES


def test_narrower_weights_take_no_more():
    sizes = [predicted_file_bytes(graph(), 10_000, {"0": b, "2": b}) for b in range(2, 9)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 2


def test_half_precision_weights_save_less():
    model = nn.Sequential(nn.Linear(8, 4)).bfloat16()
    half = traced(model.eval(), torch.randn(2, 8).bfloat16())
    full = traced(nn.Sequential(nn.Linear(8, 4)).eval(), torch.randn(2, 8))
    both = [predicted_file_bytes(g, 1000, {"0": 8}) for g in (half, full)]
    assert both[0] - both[1] == 2 * 32
