"""Tests for tests/export that show bugs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bench.check_certificate import check
from energy_model.hardware import load_hardware
from export.dense import write_dense
from export.parity import compare_outputs
from passes.inputs import Call
from passes.tracing.trace import trace

import transform


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


class SameCallTwice(nn.Module):
    """A layer called twice on the same input: the exporter computes it once."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(self.a(x)), self.a(x)


class StackedLstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 6, num_layers=2, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


CASES = {
    "tied embedding": (TiedEmbedding, (torch.randint(0, 10, (2, 7)),)),
    "cross attention": (CrossAttention, (torch.zeros(2, 5, 8), torch.zeros(2, 4, 8))),
    "same call twice": (SameCallTwice, (torch.zeros(2, 6),)),
    "stacked lstm": (StackedLstm, (torch.zeros(2, 4, 5),)),
    "bilinear": (lambda: nn.Bilinear(4, 5, 3), (torch.zeros(2, 4), torch.zeros(2, 5))),
}


@pytest.mark.parametrize("name", CASES)
def test_the_checker_agrees(name, tmp_path):
    model_class, example = CASES[name]
    result = transform.compress(model_class(), "nonzeros<=50%", example_inputs=example)
    assert check(result.export(tmp_path / "net.onnx").certificate) == []


@pytest.mark.parametrize("name", ["tied embedding", "cross attention"])
def test_the_map_is_complete(name, tmp_path):
    model_class, example = CASES[name]
    graph = trace(model_class().eval(), Call(example))
    written = write_dense(graph, load_hardware("eyeriss"), tmp_path / "net.onnx")
    assert set(written.recount.stored) == {site.name for site in graph.compressible}


# test_parity.py
@pytest.mark.filterwarnings("error")
def test_no_rows_agree_without_a_figure_and_infinities_without_a_warning():
    empty = np.zeros((0, 3), dtype=np.float32)
    assert compare_outputs([empty], [empty], Call(), 1e-4, "f").top1_agreement is None
    infinite = np.array([np.inf, 1.0])
    assert compare_outputs([infinite], [infinite], Call(), 1e-4, "f").max_abs_error == 0.0


# test_onnx_file.py
def test_a_failing_export_writes_nothing_to_the_error_stream(tmp_path, capfd):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x):
            hidden = self.layer(x)
            return hidden * 2 if hidden.sum() > 0 else hidden

    graph = trace(Branching().eval(), Call((torch.zeros(2, 6),)))
    with pytest.raises(transform.ExportError):
        write_dense(graph, load_hardware("eyeriss"), tmp_path / "net.onnx")
    assert capfd.readouterr() == ("", "")
