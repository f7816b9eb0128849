"""A full-size model takes the shapes of a smaller copy of it."""

from __future__ import annotations

import pytest
import structure_nets
import torch
from slicing import random_state, randomize
from torch import nn

import transform
from energy_model.errors import StorageError
from passes.inputs import as_call
from passes.rewrite.fit_shapes import fit_shapes
from passes.rewrite.shrink import shrink
from passes.structure.groups import channel_groups
from passes.tracing.trace import trace


class Norms(nn.Module):
    """Norms without parameters follow the width of what they are given."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.tied = nn.Conv2d(8, 6, 1)
        self.tied.weight = self.two.weight
        self.bare, self.groups = nn.InstanceNorm2d(8), nn.GroupNorm(4, 8)
        self.norm, self.slope = nn.BatchNorm2d(6), nn.PReLU(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = self.groups(self.bare(self.one(x)))
        x = self.slope(self.norm(self.two(x) + self.tied(x)))
        return self.head(x.mean((2, 3)))


MODELS = [
    (Norms, (2, 3, 5, 5)),
    (structure_nets.Multihead, (2, 3, 4, 4)),
]


@pytest.mark.parametrize(("build", "shape"), MODELS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_full_model_takes_a_small_ones_state(build, shape):
    x = torch.randn(*shape)
    small = randomize(build().eval())
    graph = trace(small, as_call(small, x))
    groups = channel_groups(graph)
    shrink(graph, groups, random_state(groups, 0))
    fresh = build().eval()
    fit_shapes(fresh, small.state_dict(), as_call(fresh, x))
    fresh.load_state_dict(small.state_dict())
    assert sum(p.numel() for p in fresh.parameters()) == sum(p.numel() for p in small.parameters())
    with torch.no_grad():
        torch.testing.assert_close(fresh(x), small(x), rtol=0, atol=0)
    assert repr(fresh) == repr(small)  # the layers' own numbers are those of the small one


def test_equal_shapes_change_nothing():
    model = Norms()
    before = {name: id(p) for name, p in model.named_parameters()}
    fit_shapes(model, Norms().state_dict(), as_call(model, torch.zeros(1, 3, 5, 5)))
    assert {name: id(p) for name, p in model.named_parameters()} == before


def test_a_saved_result_loads_into_the_original_model(tmp_path):
    x = torch.randn(4, 3, 5, 5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Norms().eval()
    result = transform.compress(
        model, "params<=60%", example_inputs=x, method="l2", progress="none"
    )
    result.save(tmp_path / "saved")
    loaded = transform.load(tmp_path / "saved", model=Norms())
    assert type(loaded.model) is Norms
    with torch.no_grad():
        assert torch.equal(loaded.model(x), result.model(x))
    assert loaded.model.tied.weight is loaded.model.two.weight

    other = Norms()
    other.head = nn.Sequential(nn.Linear(6, 2))
    with pytest.raises(StorageError, match="do not fit"):
        transform.load(tmp_path / "saved", model=other)
