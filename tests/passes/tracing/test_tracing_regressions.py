"""Failing tests of passes/tracing, to move into the tree with the fixes (imports toy_models)."""
from __future__ import annotations
import random, sys, dataclasses
sys.path.insert(0, "/work/main/tests/passes/tracing")
import numpy as np, pytest, torch
import torch.nn.functional as F
from torch import nn
from toy_models import Apply, DropPath, opaque, traced, uses
from energy_model.errors import TraceError
from energy_model.shapes import LayerShape
from passes.inputs import Call, as_call
from passes.tracing.trace import trace
from passes.projection.allocate import allocate
from passes.projection.ladder import build_ladder
linear, conv = LayerShape.linear, LayerShape.conv
X = torch.randn(3, 8)

def test_p1_all_zero_weights():
    result = allocate([torch.zeros(3), torch.zeros(2)], [build_ladder(n, [(n, (5,))]) for n in (3, 2)], [10])
    assert (result.counts, result.used, result.gap, result.next_charges) == ((0, 0), (0,), 0.0, None)

def test_t1_python_and_numpy_random_state():
    model = Apply(lambda m, x: m.fc(x) * random.random() * np.random.rand(), fc=nn.Linear(8, 4))
    a, b = random.getstate(), np.random.get_state()[1].tolist() + [np.random.get_state()[2]]
    traced(model, X)
    assert a == random.getstate()
    assert b == np.random.get_state()[1].tolist() + [np.random.get_state()[2]]

class Stateful(nn.Module):
    def __init__(self):
        super().__init__(); self.fc = nn.Linear(8, 4); self.register_buffer("n", torch.zeros(())); self.k = 0
    def forward(self, x):
        self.n += 1; self.k += 1; self.last = self.fc(x)
        return self.last

def test_t2_state_written_in_forward():
    model = Stateful(); keys = set(model.__dict__)
    traced(model, X)
    assert set(model.__dict__) == keys and model.k == 0 and model.n == 0

def test_t3_script_module():
    model = nn.Sequential(nn.Linear(8, 8), torch.jit.script(nn.Sequential(nn.Linear(8, 4))))
    graph = traced(model, X)
    assert "0" in uses(graph) and torch.equal(graph.call(graph.graph_module), graph.call(model))

class Heads(nn.Module):
    def __init__(self):
        super().__init__(); self.fc = nn.Linear(8, 8); self.w = nn.Parameter(torch.randn(2, 8, 3))
    def forward(self, x):
        return torch.einsum("bti,hio->bhto", self.fc(x), self.w)

def test_t4_einsum_with_a_weight_of_three_dimensions_is_not_lost():
    assert any("w" == s.name for s in traced(Heads(), torch.randn(3, 5, 8)).sites)

class Scaled(nn.Module):
    def __init__(self):
        super().__init__(); self.first = nn.Linear(8, 8); self.w = nn.Parameter(torch.randn(4, 8))
    def forward(self, x):
        return F.linear(self.first(x), self.w * 0.5)

def test_t5_a_functional_linear_with_a_computed_weight_is_not_lost():
    sites = traced(Scaled(), X).sites
    assert [u.shape for s in sites for u in s.uses] == [linear(8, 8), linear(8, 4)]
    assert sites[1].computed

def test_t6_channels_last_weights_are_compressible():
    graph = traced(nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last), torch.randn(3, 2, 6, 6))
    assert uses(graph) == {"weight": [(conv(2, 4, 3, (6, 6)), 1)]}
    assert len(graph.compressible) == 1

def test_t7_two_submodules_of_two_structures():
    graph = traced(nn.Sequential(DropPath(), nn.Linear(8, 8), DropPath()), X)
    assert sorted(opaque(graph)) == ["0", "2"]

@dataclasses.dataclass
class Out:
    y: torch.Tensor

def test_t8_a_dataclass_as_output():
    graph = traced(Apply(lambda m, x: Out(m.fc(x)), fc=nn.Linear(8, 4)), X)
    assert list(uses(graph)) == ["fc"]

class InPlace(nn.Module):
    def __init__(self):
        super().__init__(); self.e = nn.Embedding(20, 8); self.fc = nn.Linear(8, 4)
    def forward(self, t):
        t += 1
        return self.fc(self.e(t))

def test_t9_inputs_changed_in_place():
    tokens = torch.zeros(3, 5, dtype=torch.int64)
    graph = traced(InPlace(), tokens)
    assert not tokens.any()
    assert graph.leaves == ()

class VarArgs(nn.Module):
    def __init__(self):
        super().__init__(); self.fc = nn.Linear(8, 4)
    def forward(self, *xs):
        return self.fc(xs[0]) + self.fc(xs[1])

def test_t10_variadic_arguments():
    assert traced(VarArgs(), (X, X)).leaves == ()

class Flag(nn.Module):
    def __init__(self):
        super().__init__(); self.fc = nn.Linear(8, 4)
    def forward(self, x, twice=False):
        return self.fc(x) * 2 if twice else self.fc(x)

def test_t11_an_option_that_is_no_tensor():
    model = Flag()
    assert trace(model, Call((X,), {"twice": True})).leaves == ()

def test_t12_one_padded_tensor_read_twice():
    def pads(m, x):
        y = F.pad(x, (1, 1, 1, 1)); return m.c(y) + m.d(y)
    graph = traced(Apply(pads, c=nn.Conv2d(2, 4, 3), d=nn.Conv2d(2, 4, 3)), torch.randn(3, 2, 6, 6))
    shape = conv(2, 4, 3, (6, 6), padding=1)
    assert uses(graph) == {"c": [(shape, 1)], "d": [(shape, 1)]}

class Wrong(nn.Module):
    def __init__(self):
        super().__init__(); self.fc = nn.Linear(7, 4)
    def forward(self, x):
        return self.fc(x)

def test_t13_the_error_names_the_users_line():
    with pytest.raises(TraceError) as caught:
        traced(Wrong(), X)
    assert caught.value.where.startswith(__file__)

def test_t14_spectral_norm_is_one_computed_site():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 4)))
    assert [s.computed for s in traced(model, X).sites] == [True]

class Shared(nn.Module):
    def __init__(self):
        super().__init__(); self.fc = nn.Linear(8, 4)
    def forward(self, x, offset):
        return self.fc(x) + offset.sum()

def test_t15_a_second_input_without_a_batch():
    model = Shared()
    one = uses(trace(model, Call((torch.randn(1, 8), torch.randn(2)))))
    five = uses(trace(model, Call((torch.randn(5, 8), torch.randn(2)))))
    assert one == five

def test_t16_bilinear_is_costed():
    class B(nn.Module):
        def __init__(self):
            super().__init__(); self.fc = nn.Linear(8, 8); self.b = nn.Bilinear(8, 8, 4)
        def forward(self, x):
            return self.b(self.fc(x), x)
    assert "b" in uses(traced(B(), X))

def test_t17_a_layer_without_outputs():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 0))
    graph = traced(model, X)
    assert list(uses(graph))[0] == "0"
