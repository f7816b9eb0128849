from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from passes.inputs import as_call
from passes.quantize.encoding import Encoding, largest_code, snap
from passes.rewrite.fold_batch_norm import fold_batch_norms
from passes.tracing.trace import equal_outputs, trace


class Twice(nn.Module):
    """One convolution, called twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(self.conv(x)))


class ReadTwice(Twice):
    """The convolution's output is read by the norm and by something else."""

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class Returned(Twice):
    def forward(self, x):
        y = self.conv(x)
        return self.norm(y), y


class OneNorm(nn.Module):
    """Two layers before one norm."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.second(self.norm(self.first(x)).relu()))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b, self.norm_b = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return (self.norm_a(self.a(x)) + self.norm_b(self.b(x))).relu()


class ReadsTheWeight(nn.Module):
    """The weight of the convolution before the norm is used without it as well."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)) + F.conv2d(x, self.conv.weight)


class TiedWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.norm(self.a(x)))


def norm(kind, channels, **options):
    """A norm in float64 whose statistics and parameters are not those of a new one."""
    generator = torch.Generator().manual_seed(channels)
    layer = kind(channels, **options).double()
    if layer.running_mean is not None:
        layer.running_mean.normal_(generator=generator)
        layer.running_var.uniform_(0.5, 2.0, generator=generator)
    if layer.affine:
        with torch.no_grad():
            layer.weight.normal_(generator=generator)
            layer.bias.normal_(generator=generator)
    return layer


def used(model):
    """The model in float64, its norms in use."""
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            new = norm(
                type(module),
                module.num_features,
                affine=module.affine,
                track_running_stats=module.track_running_stats,
            )
            model.set_submodule(path, new)
    return model.double().eval()


def folded(model, inputs):
    graph = trace(copy.deepcopy(model), as_call(model, inputs))
    module = graph.graph_module.eval()
    return module, fold_batch_norms(module, flat_layers(model, inputs))


def flat_layers(model, inputs):
    """Paths of the linear layers whose output has two dimensions, seen in a run."""
    watched, found = copy.deepcopy(model), set()

    def noting(path):
        return lambda layer, args, output: found.add(path) if output.dim() == 2 else None

    for path, layer in watched.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(noting(path))
    watched(inputs)
    return frozenset(found)


def norms_left(module):
    return [
        str(node.target)
        for node in module.graph.nodes
        if node.op == "call_module"
        and isinstance(module.get_submodule(str(node.target)), nn.modules.batchnorm._BatchNorm)
    ]


def image(channels=2, dims=2):
    return torch.randn(3, channels, *[6] * dims, dtype=torch.float64)


FOLDED = {
    "conv1d": (nn.Sequential(nn.Conv1d(2, 4, 3, groups=2), nn.BatchNorm1d(4)), image(2, 1), ["1"]),
    "conv2d": (nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), image(), ["1"]),
    "no bias": (nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)), image(), ["1"]),
    "depthwise": (nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4)), image(), ["1"]),
    "conv3d": (nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4)), image(2, 3), ["1"]),
    "transposed": (
        nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6)),
        image(4),
        ["1"],
    ),
    "transposed, groups": (
        nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)),
        image(4),
        ["1"],
    ),
    "transposed 1d, groups": (
        nn.Sequential(nn.ConvTranspose1d(4, 8, 3, groups=4), nn.BatchNorm1d(8)),
        image(4, 1),
        ["1"],
    ),
    "linear": (
        nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)),
        torch.randn(3, 8, dtype=torch.float64),
        ["1"],
    ),
    "not affine": (
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, affine=False)),
        image(),
        ["1"],
    ),
    "two in a row": (
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)),
        image(),
        ["1", "2"],
    ),
    "residual": (Residual(), image(4), ["norm_a", "norm_b"]),
    "one norm after two layers": (OneNorm(), image(4), ["norm", "norm"]),
}
KEPT = {
    "called twice": (Twice(), image(4)),
    "read twice": (ReadTwice(), image(4)),
    "returned as well": (Returned(), image(4)),
    "tied": (TiedWeights(), torch.randn(3, 8, dtype=torch.float64)),
    "no statistics": (
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        image(),
    ),
    "no layer before": (nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3)), image()),
    "relu between": (nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), image()),
    "over tokens": (
        nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(5)),
        torch.randn(3, 5, 8, dtype=torch.float64),
    ),
    "over as many tokens as features": (
        nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5)),
        torch.randn(3, 5, 8, dtype=torch.float64),
    ),
    "weight read directly": (ReadsTheWeight(), image()),
}


@pytest.mark.spread(6)
@pytest.mark.parametrize("name", FOLDED)
def test_folding_keeps_the_function(name):
    model, inputs, paths = FOLDED[name]
    model = used(copy.deepcopy(model))
    module, found = folded(model, inputs)
    assert found == paths
    assert norms_left(module) == []
    expected = model(inputs)
    assert (module(inputs) - expected).abs().max() <= 1e-9 * expected.abs().max()
    again = torch.randn(5, *inputs.shape[1:], dtype=torch.float64)
    assert torch.allclose(module(again), model(again), rtol=1e-9, atol=1e-9)


@pytest.mark.spread(6)
@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_be_folded_is_left_alone(name):
    model, inputs = KEPT[name]
    model = used(copy.deepcopy(model))
    module, found = folded(model, inputs)
    assert found == []
    assert len(norms_left(module)) == 1
    assert equal_outputs(module(inputs), model(inputs))


def test_a_linear_layer_that_nobody_calls_flat_is_left_alone():
    model = used(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)))
    x = torch.randn(3, 8, dtype=torch.float64)
    module = trace(copy.deepcopy(model), as_call(model, x)).graph_module.eval()
    assert fold_batch_norms(module) == []
    assert norms_left(module) == ["1"]


def test_zeros_stay_zeros():
    model = used(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)))
    with torch.no_grad():
        model[0].weight.view(-1)[::3] = 0.0
    module, _ = folded(model, image())
    assert torch.equal(module.get_submodule("0").weight == 0, model[0].weight == 0)


def test_a_fold_that_is_wrong_would_be_seen():
    model = used(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)))
    module, _ = folded(model, image())
    with torch.no_grad():
        module.get_submodule("0").bias[0] += 1e-6
    x = image()
    assert not torch.allclose(module(x), model(x), rtol=1e-9, atol=1e-9)


def on_grid(layer, axis, bits=5):
    matrix = layer.weight.detach().float().movedim(axis, 0).flatten(1)
    scale = matrix.abs().amax(1, keepdim=True) / largest_code(bits)
    encoding = Encoding(bits, snap(scale), axis)
    layer.float()
    with torch.no_grad():
        layer.weight.copy_(encoding.nearest(layer.weight))
    return encoding


CODED = [name for name in FOLDED if name not in ("residual", "one norm after two layers")]


@pytest.mark.spread(5)
@pytest.mark.parametrize("name", CODED)
def test_folding_keeps_levels_legal(name):
    model, inputs, paths = FOLDED[name]
    model = used(copy.deepcopy(model)).float()
    axis = int("transposed" in name)
    encoding = on_grid(model[0], axis)
    codes = encoding.codes(model[0].weight)
    graph = trace(copy.deepcopy(model), as_call(model, inputs.float()))
    module, encodings = graph.graph_module.eval(), {"0": encoding}
    found = fold_batch_norms(module, flat_layers(model, inputs.float()), encodings)
    weight = module.get_submodule("0").weight
    if "transposed" in name and "groups" in name:  # a row's scale would serve several channels
        assert found == []
        assert encodings == {"0": encoding}
        return
    assert found == paths
    folded_encoding = encodings["0"]
    assert folded_encoding.holds(weight)
    assert torch.equal(folded_encoding.codes(weight).abs(), codes.abs())
    torch.testing.assert_close(module(inputs.float()), model(inputs.float()), rtol=1e-3, atol=1e-4)


def test_a_row_that_a_norm_all_but_silences_becomes_zero():
    model = used(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))).float()
    encoding = on_grid(model[0], 0)
    with torch.no_grad():
        model[1].weight[2] = 1e-38
    graph = trace(copy.deepcopy(model), as_call(model, image().float()))
    encodings = {"0": encoding}
    fold_batch_norms(graph.graph_module.eval(), frozenset(), encodings)
    weight = graph.graph_module.get_submodule("0").weight
    assert int(torch.count_nonzero(weight[2])) == 0 < int(torch.count_nonzero(weight[1]))
    assert encodings["0"].holds(weight)
