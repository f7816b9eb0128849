"""Which products a run shows: geometry, repetitions, and the weight behind each."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Apply, Attention, TiedEmbedding, tied_linears, traced, uses

from energy_model.shapes import LayerShape

conv = LayerShape.conv
linear = LayerShape.linear


def image(channels=2, side=6):
    return torch.randn(3, channels, side, side)


def tokens(features=8, count=5):
    return torch.randn(3, count, features)


def flat():
    return torch.randn(3, 8)


def _read_padded_twice(model, x):
    padded = F.pad(x, (1, 1, 1, 1))
    return model.c(padded) + model.d(padded)


LAYERS = {
    "linear": (nn.Linear(8, 4), flat(), {"weight": [(linear(8, 4), 1)]}),
    "tokens": (nn.Linear(8, 4), tokens(), {"weight": [(linear(8, 4, 5), 1)]}),
    "no bias": (nn.Linear(8, 4, bias=False), flat(), {"weight": [(linear(8, 4), 1)]}),
    "conv1d": (
        nn.Conv1d(2, 4, 3, stride=2),
        torch.randn(3, 2, 9),
        {"weight": [(conv(2, 4, 3, (9,), stride=2), 1)]},
    ),
    "conv2d": (
        nn.Conv2d(4, 6, (3, 1), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
        image(4),
        {
            "weight": [
                (
                    conv(
                        4, 6, (3, 1), (6, 6), stride=(2, 1), padding=(1, 0), dilation=(1, 2),
                        groups=2,
                    ),
                    1,
                )
            ]
        },
    ),
    "conv3d": (
        nn.Conv3d(2, 4, 3),
        torch.randn(3, 2, 5, 6, 7),
        {"weight": [(conv(2, 4, 3, (5, 6, 7)), 1)]},
    ),
    "transposed": (
        nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1, groups=2),
        torch.randn(3, 2, 5, 6),
        {
            "weight": [
                (
                    LayerShape.conv_transpose(
                        2, 4, 3, (5, 6), stride=2, groups=2, output_size=(12, 14)
                    ),
                    1,
                )
            ]
        },
    ),
    "same, odd": (
        nn.Conv2d(2, 4, 3, padding="same"),
        image(),
        {"weight": [(conv(2, 4, 3, (6, 6), padding=1), 1)]},
    ),
    "same, even": (
        nn.Conv2d(2, 4, 4, padding="same"),
        image(),
        {"weight": [(conv(2, 4, 4, (6, 6), padding=((1, 2), (1, 2))), 1)]},
    ),
    "same, mixed": (
        nn.Conv2d(2, 4, (2, 3), padding="same"),
        image(),
        {"weight": [(conv(2, 4, (2, 3), (6, 6), padding=((0, 1), (1, 1))), 1)]},
    ),
    "padded before": (
        nn.Sequential(nn.ZeroPad2d((0, 1, 2, 3)), nn.Conv2d(2, 4, 3, padding=1)),
        image(),
        {"1": [(conv(2, 4, 3, (6, 6), padding=((3, 4), (1, 2))), 1)]},
    ),
    "padded once, read twice": (
        Apply(_read_padded_twice, c=nn.Conv2d(2, 4, 3), d=nn.Conv2d(2, 4, 3)),
        image(),
        {name: [(conv(2, 4, 3, (6, 6), padding=1), 1)] for name in "cd"},
    ),
    "padded with ones": (
        nn.Sequential(nn.ConstantPad2d(1, 1.0), nn.Conv2d(2, 4, 3)),
        image(),
        {"1": [(conv(2, 4, 3, (8, 8)), 1)]},
    ),
    "padded, then changed": (
        nn.Sequential(nn.ZeroPad2d(1), nn.Sigmoid(), nn.Conv2d(2, 4, 3)),
        image(),
        {"2": [(conv(2, 4, 3, (8, 8)), 1)]},
    ),
    "channels padded": (
        Apply(lambda m, x: m.c(F.pad(x, (0, 0, 0, 0, 0, 1))), c=nn.Conv2d(3, 4, 3)),
        image(),
        {"c": [(conv(3, 4, 3, (6, 6)), 1)]},
    ),
    "channels last": (
        nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last),
        image(),
        {"weight": [(conv(2, 4, 3, (6, 6)), 1)]},
    ),
    "circular": (
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
        image(),
        {"weight": [(conv(2, 4, 3, (8, 8)), 1)]},
    ),
    "lstm": (
        Apply(lambda m, x: m.r(x)[0], r=nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)),
        tokens(),
        {
            **{
                f"r.weight_ih_l{layer}{end}": [(linear(inputs, 24, 5), 1)]
                for layer, inputs in ((0, 8), (1, 12))
                for end in ("", "_reverse")
            },
            **{
                f"r.weight_hh_l{layer}{end}": [(linear(6, 24), 5)]
                for layer in (0, 1)
                for end in ("", "_reverse")
            },
        },
    ),
    "gru": (
        Apply(lambda m, x: m.r(x)[0], r=nn.GRU(8, 6, batch_first=True)),
        tokens(),
        {"r.weight_ih_l0": [(linear(8, 18, 5), 1)], "r.weight_hh_l0": [(linear(6, 18), 5)]},
    ),
    "rnn": (
        Apply(lambda m, x: m.r(x)[0], r=nn.RNN(8, 6, batch_first=True)),
        tokens(),
        {"r.weight_ih_l0": [(linear(8, 6, 5), 1)], "r.weight_hh_l0": [(linear(6, 6), 5)]},
    ),
    "lstm cell": (
        Apply(lambda m, x: m.r(x)[0], r=nn.LSTMCell(8, 6)),
        flat(),
        {"r.weight_ih": [(linear(8, 24), 1)], "r.weight_hh": [(linear(6, 24), 1)]},
    ),
    "self attention": (
        Apply(lambda m, x: m.a(x, x, x)[0], a=nn.MultiheadAttention(8, 2, batch_first=True)),
        tokens(),
        {"a.in_proj_weight": [(linear(8, 24, 5), 1)], "a.out_proj": [(linear(8, 8, 5), 1)]},
    ),
    "cross attention": (
        Attention(),
        (tokens(8, 5), tokens(8, 7), tokens(8, 7)),
        {
            "attention.in_proj_weight[0:8]": [(linear(8, 8, 5), 1)],
            "attention.in_proj_weight[8:16]": [(linear(8, 8, 7), 1)],
            "attention.in_proj_weight[16:24]": [(linear(8, 8, 7), 1)],
            "attention.out_proj": [(linear(8, 8, 5), 1)],
        },
    ),
    "attention of other widths": (
        Attention(kdim=6, vdim=4),
        (tokens(8, 5), tokens(6, 7), tokens(4, 7)),
        {
            "attention.q_proj_weight": [(linear(8, 8, 5), 1)],
            "attention.k_proj_weight": [(linear(6, 8, 7), 1)],
            "attention.v_proj_weight": [(linear(4, 8, 7), 1)],
            "attention.out_proj": [(linear(8, 8, 5), 1)],
        },
    ),
    "transformer": (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        tokens(),
        {
            "self_attn.in_proj_weight": [(linear(8, 24, 5), 1)],
            "self_attn.out_proj": [(linear(8, 8, 5), 1)],
            "linear1": [(linear(8, 16, 5), 1)],
            "linear2": [(linear(16, 8, 5), 1)],
        },
    ),
    "functional linear": (
        Apply(lambda m, x: F.linear(x, m.w), w=torch.randn(4, 8)),
        flat(),
        {"w": [(linear(8, 4), 1)]},
    ),
    "functional conv": (
        Apply(lambda m, x: F.conv2d(x, m.w, padding=1), w=torch.randn(4, 2, 3, 3)),
        image(),
        {"w": [(conv(2, 4, 3, (6, 6), padding=1), 1)]},
    ),
    "matmul": (
        Apply(lambda m, x: x @ m.w, w=torch.randn(8, 4)),
        tokens(),
        {"w": [(linear(8, 4, 5), 1)]},
    ),
    "matmul from the left": (
        Apply(lambda m, x: m.w @ x, w=torch.randn(4, 5)),
        tokens(),
        {"w": [(linear(5, 4, 8), 1)]},
    ),
    "einsum": (
        Apply(lambda m, x: torch.einsum("bti,oi->bto", x, m.w), w=torch.randn(4, 8)),
        tokens(),
        {"w": [(linear(8, 4, 5), 1)]},
    ),
    "einsum of rows": (
        Apply(lambda m, x: torch.einsum("bi,io->bo", x, m.w), w=torch.randn(8, 4)),
        flat(),
        {"w": [(linear(8, 4), 1)]},
    ),
    "einsum of heads": (
        Apply(lambda m, x: torch.einsum("bti,hio->bhto", x, m.w), w=torch.randn(2, 8, 3)),
        tokens(),
        {"w": [(linear(8, 2 * 3, 5), 1)]},
    ),
    "bilinear": (
        Apply(lambda m, x: m.b(x, x), b=nn.Bilinear(8, 8, 4)),
        flat(),
        {"b": [(linear(8 * 8, 4), 1)]},
    ),
    "addmm": (
        Apply(lambda m, x: torch.addmm(m.b, x, m.w), w=torch.randn(8, 4), b=torch.randn(4)),
        flat(),
        {"w": [(linear(8, 4), 1)]},
    ),
    "called twice": (
        Apply(lambda m, x: m.fc(m.fc(x)), fc=nn.Linear(8, 8)),
        flat(),
        {"fc": [(linear(8, 8), 2)]},
    ),
    "called on two shapes": (
        Apply(lambda m, x: m.fc(x).mean(1) + m.fc(x[:, 0]), fc=nn.Linear(8, 8)),
        tokens(),
        {"fc": [(linear(8, 8, 5), 1), (linear(8, 8), 1)]},
    ),
    "transposed use": (
        Apply(lambda m, x: F.linear(F.linear(x, m.w), m.w.t()), w=torch.randn(4, 8)),
        flat(),
        {"w": [(linear(8, 4), 1), (linear(4, 8), 1)]},
    ),
    "tied linears": (tied_linears(), flat(), {"0": [(linear(8, 8), 2)]}),
    "tied embedding": (
        TiedEmbedding(),
        torch.randint(0, 10, (3, 5)),
        {"embedding": [(linear(8, 10, 5), 1)]},
    ),
    "half precision": (
        nn.Linear(8, 4).bfloat16(),
        flat().bfloat16(),
        {"weight": [(linear(8, 4), 1)]},
    ),
}  # fmt: skip


@pytest.mark.spread(9)
@pytest.mark.parametrize("name", LAYERS)
def test_products(name):
    model, inputs, expected = LAYERS[name]
    graph = traced(model, inputs)
    assert uses(graph) == expected
    assert not any(site.computed or site.opaque for site in graph.sites)
    assert graph.compressible == graph.sites
    assert graph.leaves == ()


@pytest.mark.spread(9)
@pytest.mark.parametrize("name", LAYERS)
def test_sizes_are_those_of_the_products(name):
    model, inputs, _ = LAYERS[name]
    graph = traced(model, inputs)
    for site in graph.sites:
        assert {use.shape.weights for use in site.uses} == {site.size}
        assert graph.weight(site).numel() == site.size


def test_attention_between_activations_is_no_site():
    model = Apply(lambda m, x: m.fc(x) @ x.transpose(1, 2), fc=nn.Linear(8, 8))
    assert list(uses(traced(model, tokens()))) == ["fc"]


def test_a_layer_without_outputs_is_no_site():
    assert list(uses(traced(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 0)), flat()))) == ["0"]
