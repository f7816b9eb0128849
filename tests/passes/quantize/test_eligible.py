"""Which weights are quantized, and why the others are not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from quantize_nets import Encoder, traced
from torch import nn
from torch.nn.utils import parametrizations

from passes.graph import LayerRule
from passes.quantize.eligible import axis_of, eligible, is_linear, rows_of
from passes.rewrite.head_attention import HeadAttention


def reasons(model, inputs, *, static=True, rules=None):
    graph = traced(model.eval(), inputs)
    graph.rules = rules or {}
    found = eligible(graph, static=static)
    told = {d.layer: d.why for d in found.decisions()}
    assert told == found.reasons
    assert all(d.what == "stays float" for d in found.decisions())
    assert {s.name for s in found.sites} | set(told) == {s.name for s in graph.sites}
    return found.reasons


def test_layers_of_every_dimension():
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.ConvTranspose1d(4, 4, 3), nn.Unflatten(1, (2, 2)),
        nn.Conv2d(2, 2, 1), nn.ConvTranspose2d(2, 2, 1), nn.Unflatten(1, (1, 2)),
        nn.Conv3d(1, 2, 1), nn.ConvTranspose3d(2, 1, 1), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip
    graph = traced(model.eval(), torch.randn(2, 2, 8))
    static = eligible(graph, static=True)
    assert [s.name for s in static.sites] == ["0", "3", "6", "9"]
    assert all("transposed" in why for why in static.reasons.values())
    found = eligible(graph, static=False)
    assert found.reasons == {}
    assert [axis_of(graph, s) for s in found.sites] == [0, 1, 0, 1, 0, 1, 0]
    assert [is_linear(graph, s) for s in found.sites] == [False] * 6 + [True]
    assert found.layers == {"0", "1", "3", "4", "6", "7", "9"}


def test_rules_leave_layers_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    rules = {"0": LayerRule(1.0), "1": LayerRule(0.5)}
    assert reasons(model, torch.randn(2, 4), rules=rules) == {"0": "the layer is left alone"}


class Attended(nn.Module):
    """Queries, keys and values from one tensor, or from two."""

    def __init__(self, *, cross=False, **options):
        super().__init__()
        self.cross = cross
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **options)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        keys = x * 2 if self.cross else x
        return self.head(self.attention(x, keys, keys)[0])


TOKENS = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
PARTS = ["attention.in_proj_weight[0:4]", "attention.in_proj_weight[4:12]"]


@pytest.mark.parametrize("static", [True, False])
def test_recurrent_layers_stay_float(static):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTM(4, 4, batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.cell(x)[0])

    found = reasons(Mixed(), TOKENS, static=static)
    assert "head" not in found
    assert "LSTM" in found["cell.weight_ih_l0"]


@pytest.mark.parametrize(
    ("options", "names"),
    [({}, ["attention.in_proj_weight"]), ({"cross": True}, PARTS)],
)
def test_attention_serves_weights_alone(options, names):
    model = Attended(**options)
    graph = traced(model.eval(), TOKENS)
    found = eligible(graph, static=False)
    assert [site.name for site in found.sites] == [*names, "attention.out_proj", "head"]
    assert {axis_of(graph, site) for site in found.sites} == {0}
    assert all(is_linear(graph, site) for site in found.sites)
    static = reasons(Attended(**options), TOKENS)
    assert set(static) == {*names, "attention.out_proj"}
    assert "NonDynamicallyQuantizableLinear" in static["attention.out_proj"]
    assert reasons(Attended(), TOKENS)["attention.in_proj_weight"].endswith("MultiheadAttention")


def test_projections_of_their_own_and_attention_with_fewer_heads():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True, kdim=6, vdim=2)

        def forward(self, x):
            return self.attention(x, torch.cat([x, x], -1)[..., :6], x[..., :2])[0]

    wide = [f"attention.{name}_proj_weight" for name in "qkv"]
    for build, names in ((Attended, ["attention.in_proj_weight"]), (Wide, wide)):
        model = build()
        model.attention = HeadAttention.of(model.attention)
        graph = traced(model.eval(), TOKENS)
        chosen = [site.name for site in eligible(graph, static=False).sites]
        assert chosen[: len(names) + 1] == [*names, "attention.out_proj"]


def test_parts_of_one_parameter_are_quantized_together_or_not_at_all():
    rules = {PARTS[0]: LayerRule(1.0)}
    found = reasons(Attended(cross=True), TOKENS, static=False, rules=rules)
    assert found[PARTS[0]] == "the layer is left alone"
    assert "the rest of it float" in found[PARTS[1]]
    assert set(found) == set(PARTS)
    graph = traced(Attended(cross=True).eval(), TOKENS)
    rows = [rows_of(graph, site) for site in graph.sites]
    assert rows == [slice(0, 4), slice(4, 12), slice(0, 4), slice(0, 2)]


def test_projections_that_the_graph_reads_itself_stay_float():
    class Borrowed(Attended):
        def forward(self, x):
            return super().forward(F.linear(x, self.attention.in_proj_weight[:4]))

    found = reasons(Borrowed(), TOKENS, static=False)
    assert any("in_proj_weight" in name for name in found)
    assert "head" not in found


def test_computed_weights_and_grouped_transposed_convolutions_stay_float():
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv1d(2, 4, 1)), nn.ConvTranspose1d(4, 4, 1, groups=2)
    )
    found = reasons(model, torch.randn(2, 2, 3), static=False)
    assert "computed" in found["0"]
    assert "groups" in found["1"]


def test_functional_weights_stay_float():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))
            self.never_called = nn.Linear(4, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(F.linear(F.linear(x, self.weight), self.never_called.weight))

    for static in (True, False):
        found = reasons(Functional(), torch.randn(2, 4), static=static)
        assert "head" not in found
        assert "Functional" in found["weight"]
        assert "without calling" in found["never_called"]


def test_opaque_leaves_serve_weights_alone():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x) if float(x.sum()) > -1e9 else x

    model = nn.Sequential(Inner(), nn.Linear(4, 2))
    assert reasons(model, torch.randn(2, 4), static=False) == {}
    [why] = reasons(model, torch.randn(2, 4)).values()
    assert why == "it lies inside an opaque leaf"


def test_an_embedding_alone_stays_float_and_a_tied_one_does_not():
    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.embed(x)) @ F.linear(self.embed(x), self.embed.weight)[:, :3]

    tokens = torch.randint(11, (2, 5))
    assert reasons(Encoder(), tokens) == {}

    class Functional(Alone):
        def forward(self, x):
            return F.linear(self.embed(x), self.embed.weight), self.head(self.embed(x))

    found = reasons(Functional(), tokens)
    assert list(found) == ["embed"]
    assert "Embedding" in found["embed"]


def test_ties_across_different_dimensions_stay_float():
    model = nn.Sequential(nn.Conv1d(4, 4, 1), nn.ConvTranspose1d(4, 4, 1))
    model[1].weight = model[0].weight
    [why] = reasons(model, torch.randn(2, 4, 3)).values()
    assert "different dimensions" in why
