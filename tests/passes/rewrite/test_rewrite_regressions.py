from __future__ import annotations
import sys
sys.path.insert(0, "/work/main/tests/passes/rewrite"); sys.path.insert(0, "/work/main/tests/passes/methods")
import pytest, torch
import torch.nn.functional as F
from torch import nn
from test_fold_batch_norm import used, folded
from lenet_problem import traced, costs_of, limits_of
from energy_model.errors import CompressionError
from passes.methods.energy_projection import SPEC
from torch.nn.utils import parametrizations

def test_r1_norm_over_tokens_when_tokens_equal_features():
    model = used(nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5)))
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    module, found = folded(model, x)
    assert torch.allclose(module(x), model(x))

class Reuse(nn.Module):
    def __init__(self):
        super().__init__(); self.c = nn.Conv2d(2, 4, 3); self.b = nn.BatchNorm2d(4)
    def forward(self, x):
        return self.b(self.c(x)) + F.conv2d(x, self.c.weight)

def test_r2_weight_used_functionally_as_well():
    model = used(Reuse()); x = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    module, found = folded(model, x)
    assert torch.allclose(module(x), model(x))

def test_m1_nothing_compressible():
    graph = traced(nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 4))), torch.randn(3, 8))
    with pytest.raises(CompressionError):
        SPEC.build().plan(graph, costs_of(graph), limits_of(graph, "energy<=50%"))

def test_m2_all_zero_model():
    graph = traced(nn.Sequential(nn.Linear(8, 4)), torch.randn(3, 8))
    with torch.no_grad(): graph.module[0].weight.zero_()
    plan = SPEC.build().plan(graph, costs_of(graph), limits_of(graph, "energy<=99%"))
    assert plan.kept == {"0": 0}
