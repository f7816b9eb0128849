"""Every kind of use of a weight, exported: each is found in the file and counted again."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from transform_nets import DictInput, SmallConv, made

import transform
from bench.check_certificate import check


class TiedEmbedding(nn.Module):
    """A language model's head tied with its embedding: input `(N, T)` of token numbers."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 6), nn.Linear(6, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


class CrossAttention(nn.Module):
    """Query and memory differ: the three products use parts of one parameter."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x, memory):
        return self.attention(x, memory, memory, need_weights=False)[0]


class Autoencoder(nn.Module):
    """The decoder's weight is the encoder's, transposed: input `(N, 6)`."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = (nn.Linear(6, 6, bias=False) for _ in "ab")
        self.decoder.weight = nn.Parameter(self.encoder.weight.t())

    def forward(self, x):
        return self.decoder(torch.relu(self.encoder(x)))


def one_computed():
    """Two layers, of which the first one's weight is computed when it runs."""
    first = torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 16))
    return nn.Sequential(first, nn.ReLU(), nn.Linear(16, 8))


CASES = {
    "tied embedding": (TiedEmbedding, torch.arange(14).view(2, 7) % 10),
    "cross attention": (CrossAttention, (torch.zeros(2, 5, 8), torch.zeros(2, 4, 8))),
    "one computed weight": (one_computed, torch.zeros(2, 8)),
    "one dict": (DictInput, {"batch": made(DictInput)[1]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_weight_is_found_in_the_file_and_counted_again(name, tmp_path):
    model_class, example = CASES[name]
    result = transform.compress(model_class(), "nonzeros<=50%", example_inputs=example)
    exported = result.export(tmp_path / "net.onnx")
    layers = json.loads(exported.certificate.read_text())["layers"]
    found = {layer["name"] for layer in layers if layer["initializers"]}
    assert found >= {site.name for site in result.graph.compressible}
    assert check(exported.certificate) == []


@pytest.mark.slow
def test_a_weight_tied_with_its_transpose_is_saved_loaded_and_exported(tmp_path):
    result = transform.compress(Autoencoder(), "nonzeros<=50%", example_inputs=torch.zeros(1, 6))
    loaded = transform.load(result.save(tmp_path / "saved"))
    assert check(loaded.export(tmp_path / "net.onnx").certificate) == []


def compressed(dtype):
    model, example = made(SmallConv)
    model, example = model.eval().to(dtype), example.to(dtype)
    return transform.compress(model, "energy<=50%", example_inputs=example)


@pytest.mark.slow
def test_half_precision_is_exported_as_such(tmp_path):
    exported = compressed(torch.float16).export(tmp_path / "net.onnx")
    assert exported.top1_agreement == 1.0
    assert check(exported.certificate) == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_no_runtime_computes_is_refused_by_the_name_that_was_asked_for(tmp_path, dtype):
    with pytest.raises(transform.ExportError, match="refuses") as caught:
        compressed(dtype).export(tmp_path / "net.onnx")
    assert caught.value.where == str(tmp_path / "net.onnx")
    assert caught.value.remedy
    assert "transform-export-" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
