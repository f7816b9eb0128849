"""Transformers with weights of four bits: every weight, in the file, the certificate and after."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import transform
from bench.check_certificate import check
from passes.methods.quantize_config import Quantize

# Whole attention networks, quantized: `make test-slow` runs them.
pytestmark = pytest.mark.slow

WEIGHTS = Quantize(weights=4, activations=None)


class Decoder(nn.Module):
    """Attention to itself inside a layer of torch, then to a memory."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.cross = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x, memory):
        return self.head(self.cross(self.layer(x), memory, memory, need_weights=False)[0].mean(1))


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, n, 32, generator=generator) for n in (6, 7))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "budget"),
    [
        (WEIGHTS, "weight_bits<=12.5%"),
        pytest.param(["magnitude", WEIGHTS], "nonzeros<=50%", marks=pytest.mark.slow),
    ],
)
def test_all_weights_of_a_transformer_have_four_bits(method, budget, inputs, tmp_path):
    result = transform.compress(
        Decoder().eval(), budget, example_inputs=inputs, method=method, progress="none"
    )
    sites = {site.name for site in result.graph.sites}
    assert "cross.in_proj_weight[32:96]" in sites
    assert set(result.graph.encodings) == sites
    assert {encoding.bits for encoding in result.graph.encodings.values()} == {4}
    exported = result.export(tmp_path / "m.onnx", "qdq")
    assert exported.census["MatMulNBits"] == len(sites) == 8
    assert check(exported.certificate) == []
    loaded = transform.load(result.save(tmp_path / "saved"))
    assert torch.equal(loaded.model(*inputs), result.model(*inputs))
    assert set(loaded.graph.encodings) == sites


def test_with_rounded_activations_attention_stays_float(inputs):
    result = transform.compress(
        Decoder().eval(), "weight_bits<=100%", data=[inputs], method=Quantize(), progress="none"
    )
    assert set(result.graph.encodings) == {"head"}
    told = {d.layer: d.why for d in result.decisions if d.what == "stays float"}
    assert "cross.out_proj" in told
