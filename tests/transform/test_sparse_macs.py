"""The limit `sparse_macs`, against a count of the products that a forward really forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode
from transform_nets import SmallConv, TiedNet, made
from typer.testing import CliRunner

import transform
from bench.check_certificate import check, main
from energy_model.hardware import load_hardware
from passes.inputs import as_call
from passes.tracing.trace import trace
from transform.cli.app import app
from transform.limits import Subject, base_value, reached_value


class Everything(nn.Module):
    """Stride, groups, dilation, a transposed convolution, tokens, attention, a weight used twice.

    Input `(N, 4, 9, 9)`.
    """

    def __init__(self):
        super().__init__()
        self.strided = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=3)
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, groups=2, bias=False)
        self.free = nn.Parameter(torch.randn(5, 4))
        self.query, self.key, self.value = (nn.Linear(5, 5, bias=False) for _ in "qkv")
        self.shared = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.up(torch.relu(self.grouped(self.strided(x))))
        x = F.linear(x.flatten(2).transpose(1, 2), self.free)
        scores = torch.softmax(self.query(x) @ self.key(x).transpose(1, 2), -1)
        x = self.shared(torch.relu(self.shared(scores @ self.value(x))))
        return self.head(x.mean(1))


class CountedProducts(TorchFunctionMode):
    """Adds up, over every layer that runs, its products whose weight is not zero.

    Ones take the place of the inputs, padding included, and the support that of the weight: the
    sum of the outputs then is the number of products. Of a transposed convolution also those
    count whose output is cut off.
    """

    def __init__(self):
        super().__init__()
        self.macs = self.dense = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in ARGUMENTS:
            given = dict(zip(ARGUMENTS[function], args, strict=False)) | kwargs
            with torch.no_grad(), torch._C.DisableTorchFunction():
                support = (given["weight"] != 0).double()
                self.macs += products(function, support, given)
                self.dense += products(function, torch.ones_like(support), given)
        return function(*args, **kwargs)


CONV = ("input", "weight", "bias", "stride", "padding")
ARGUMENTS = {
    F.linear: ("input", "weight", "bias"),
    F.conv2d: (*CONV, "dilation", "groups"),
    F.conv_transpose2d: (*CONV, "output_padding", "groups", "dilation"),
}


def products(function, support, given):
    """Products of one call, from ones in place of its inputs."""
    ones = torch.ones_like(given["input"][:1], dtype=torch.float64)
    options = {name: given.get(name, 1) for name in ("stride", "dilation", "groups")}
    if function is F.linear:
        return int(F.linear(ones, support).sum())
    if function is F.conv2d:
        padding = given.get("padding", (0, 0))
        ones = F.pad(ones, [p for p in reversed(padding) for _ in "ab"], value=1.0)
    return int(function(ones, support, **options).sum())


def counted(model, example):
    """Products with nonzero weights of one sample, and all of them."""
    model.eval()
    with CountedProducts() as products, torch.no_grad():
        model(example)
    return products.macs, products.dense


def thinned(model, density, seed=0):
    """The model with zeros in its weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand(parameter.shape, generator=generator) < density)
    return model


def seeded(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def subject_of(model, example):
    model.eval()
    return Subject(trace(model, as_call(model, example)), load_hardware("eyeriss"))


EXAMPLE = torch.zeros(2, 4, 9, 9)


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_the_count_is_that_of_the_products_of_a_forward(density):
    model = thinned(seeded(Everything), density)
    subject, (sparse, dense) = subject_of(model, EXAMPLE), counted(model, EXAMPLE)
    assert reached_value("sparse_macs", subject).number == sparse
    assert base_value("sparse_macs", subject).number == dense
    assert reached_value("macs", subject).number == dense
    assert reached_value("sparse_macs", subject).kind == "exact"


@pytest.mark.slow
@settings(max_examples=30)
@given(
    groups=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2)),
    transposed=st.booleans(),
    density=st.floats(0, 1),
    seed=st.integers(0, 100),
)
def test_any_convolution(groups, widths, window, transposed, density, seed):
    kernel, stride, padding, dilation = window
    channels = [groups * width for width in widths]
    layer = nn.ConvTranspose2d if transposed else nn.Conv2d
    options = {"stride": stride, "dilation": dilation, "groups": groups}
    options["padding"] = 0 if transposed else padding
    model = seeded(lambda: nn.Sequential(layer(*channels, kernel, **options)), seed)
    example = torch.zeros(1, channels[0], 6, 5)
    sparse, dense = counted(thinned(model, density, seed), example)
    subject = subject_of(model, example)
    assert reached_value("sparse_macs", subject).number == sparse
    assert base_value("sparse_macs", subject).number == dense


def test_a_repeated_weight_counts_in_every_copy():
    class Repeated(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0, 0.0, 2.0, 0.0]).view(1, 1, 2, 2))

        def forward(self, x):
            return F.conv2d(x, self.weight.expand(3, 1, 2, 2), groups=3)

    model, example = Repeated(), torch.zeros(1, 3, 5, 5)
    subject = subject_of(model, example)
    assert counted(model, example) == (2 * 3 * 16, 4 * 3 * 16)
    assert reached_value("sparse_macs", subject).number == 2 * 3 * 16
    assert base_value("sparse_macs", subject).number == 4 * 3 * 16


LAYERWISE = transform.Magnitude(scope="layer")


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("method", "share"), [("energy", 0.15), ("energy", 0.6), ("magnitude", 0.3), (LAYERWISE, 0.3)]
)
def test_a_budget_is_met_in_every_way_of_counting(method, share):
    model = seeded(Everything)
    result = transform.compress(
        model, {"sparse_macs": share}, example_inputs=EXAMPLE, method=method, keep_shapes=True
    )
    [row] = result.certificate.rows
    sparse, dense = counted(result.model, EXAMPLE)
    assert (row.limit, row.unit, row.kind) == ("sparse_macs", "count", "exact")
    assert result.plan.reached["sparse_macs"] == row.reached == sparse
    assert sparse <= row.maximum == int(dense * share)
    # What dense kernels execute is another count, which zeros leave as it was.
    assert result.costs.after.total.macs == dense == row.base


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A compressed model, and the certificate of its file."""
    options = {"example_inputs": EXAMPLE, "method": "magnitude", "progress": "none"}
    result = transform.compress(seeded(Everything), "sparse_macs<=20%", **options)
    return result, result.export(tmp_path_factory.mktemp("sparse") / "net.onnx").certificate


@pytest.mark.slow
def test_the_file_holds_what_the_model_executes(exported, capsys):
    result, path = exported
    [claim] = json.loads(path.read_text())["limits"]
    assert claim["reached"] == counted(result.model, EXAMPLE)[0]
    assert claim["counted_from"] == "file"
    assert check(path) == []
    assert main([str(path)]) == 0
    [line] = [x for x in capsys.readouterr().out.splitlines() if x.startswith("sparse_macs ")]
    assert line.split() == ["sparse_macs", "sparse_macs<=20%", *[str(claim["reached"])] * 2, "yes"]


@pytest.mark.parametrize("change", [-1, 1])
def test_the_checker_sees_a_false_value(exported, change, tmp_path):
    _, path = exported
    claims = json.loads(path.read_text())
    claims["limits"][0]["reached"] += change
    false = tmp_path / path.name
    false.write_text(json.dumps(claims))
    [problem] = check(false, path.with_name("net.onnx"))
    told = claims["limits"][0]["reached"]
    assert problem == f"sparse_macs: the certificate says {told}, the file says {told - change}"


def test_one_weight_more_would_break_the_budget():
    model = seeded(Everything)
    options = {"example_inputs": EXAMPLE, "method": "energy", "keep_shapes": True}
    result = transform.compress(model, "sparse_macs<=40%", **options)
    [row] = result.certificate.rows
    rows = result.costs.after
    left = [each.macs // each.weights for each in rows if each.nonzeros < each.weights]
    assert row.maximum - row.reached < min(left)


def test_weights_that_are_used_more_often_cost_more():
    model, example = made(TiedNet)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    result = transform.compress(model, "sparse_macs<=50%", example_inputs=example, method="energy")
    # 24 products of the head first; then half as many of the 64 weights that are used twice.
    assert result.plan.kept == {"first": 26, "head": 24}
    assert result.certificate.rows[0].reached == 2 * 26 + 24 == (2 * 64 + 24) // 2


@pytest.mark.slow
def test_training_ends_within_the_budget():
    model, _ = made(SmallConv)
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(8, 2, 8, 8, generator=generator), torch.arange(8) % 5)] * 4
    train = transform.TrainConfig(epochs=2, lr=0.01)
    options = {"valid": data[:1], "train": train, "method": "energy", "progress": "none"}
    result = transform.compress(model, "sparse_macs<=20%", data, **options)
    [row] = result.certificate.rows
    assert row.reached == counted(result.model, data[0][0])[0] <= row.maximum
    assert row.reached > 0.19 * row.base


@pytest.mark.spread(1)
@pytest.mark.parametrize("method", ["l2", ["l2", "magnitude"], ["magnitude", "quantize"]])
def test_channels_and_chains_serve_it(method):
    model, example = thinned(made(SmallConv)[0], 0.8), made(SmallConv)[1]
    options = {"example_inputs": example, "method": method, "progress": "none"}
    if method == ["magnitude", "quantize"]:
        options["method"] = ["magnitude", transform.Quantize(weights=8, activations=None)]
    result = transform.compress(model, "sparse_macs<=35%", **options)
    [row] = result.certificate.rows
    assert row.reached == counted(result.model, example)[0] <= row.maximum
    assert row.reached <= result.plan.reached["sparse_macs"]


def test_both_counts_may_be_limited():
    model, example = made(SmallConv)
    budget = "macs<=60%, sparse_macs<=20%"
    result = transform.compress(model, budget, example_inputs=example, method=["l2", "magnitude"])
    rows = {row.limit: row for row in result.certificate.rows}
    assert list(rows) == ["macs", "sparse_macs"]
    sparse, dense = counted(result.model, example)
    assert (rows["macs"].reached, rows["sparse_macs"].reached) == (dense, sparse)
    assert result.certificate.holds


@pytest.mark.parametrize("method", ["quantize", "joint"])
def test_what_chooses_bits_alone_refuses_it(method):
    model, example = made(SmallConv)
    with pytest.raises(transform.UnsupportedBudget, match="serve the limit 'sparse_macs'") as told:
        transform.compress(model, "sparse_macs<=50%", example_inputs=example, method=method)
    assert "These do: " in told.value.remedy
    assert "magnitude" in told.value.remedy


def computed_first():
    """A large layer whose weight is computed when it runs, and a small one."""
    first = parametrizations.weight_norm(nn.Linear(8, 16))
    return nn.Sequential(first, nn.ReLU(), nn.Linear(16, 4))


@pytest.mark.slow
def test_computed_weights_count_and_cannot_go(tmp_path):
    model, example = seeded(computed_first), torch.zeros(2, 8)
    result = transform.compress(model, "sparse_macs<=80%", example_inputs=example)
    [row] = result.certificate.rows
    assert (row.base, row.reached) == (8 * 16 + 16 * 4, (8 * 16 + 16 * 4) * 8 // 10)
    assert row.reached == counted(result.model, example)[0]
    assert check(result.export(tmp_path / "net.onnx").certificate) == []
    with pytest.raises(transform.InfeasibleBudget, match="computed in forward") as caught:
        transform.compress(model, "sparse_macs<=50%", example_inputs=example)
    assert caught.value.binding_layer == "0"
    assert caught.value.tightest == 8 * 16 + 2  # two of 64 weights: 2 %
    assert "they alone are 66.67 %, 98 % of that" in str(caught.value)


def test_the_least_of_an_infeasible_budget_names_the_layer_with_most_products():
    model, example = made(SmallConv)
    with pytest.raises(transform.InfeasibleBudget) as caught:
        transform.compress(model, "sparse_macs<=1%", example_inputs=example)
    error = caught.value
    # 3 of 108 weights at 64 positions, and 39 of 1,920.
    assert (error.tightest, error.binding_layer) == (3 * 64 + 39, "conv")
    assert "activations" not in str(error)
    assert "a smaller input" in str(error)
    least = {"sparse_macs": int(error.tightest)}
    assert transform.compress(model, least, example_inputs=example).certificate.holds


@pytest.mark.slow
def test_the_command_line_takes_it(tmp_path: Path):
    out = tmp_path / "out"
    command = ["compress", "bench.zoo:lenet5", "--input", "1,1,32,32", "--out", str(out)]
    result = CliRunner().invoke(app, [*command, "--budget", "sparse_macs<=100k"])
    assert result.exit_code == 0, result.output
    assert "sparse_macs<=100 kMAC: holds" in result.stdout
    loaded = transform.load(out)
    [row] = loaded.certificate.rows
    assert row.reached == counted(loaded.model, torch.zeros(1, 1, 32, 32))[0] <= 100_000
    assert (row.base, row.maximum) == (416_520, 100_000)
    assert check(out / "model.certificate.json") == []
    failed = CliRunner().invoke(
        app, [*command[:-1], str(tmp_path / "no"), "--budget", "sparse_mac<=10%"]
    )
    assert failed.exit_code == 1
    assert "Did you mean sparse_macs" in failed.stderr
