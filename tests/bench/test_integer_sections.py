"""What the tables ask for, in which order; compressing and exporting are replaced."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx_builder as build
import pytest
import torch
from onnx import helper
from torch import nn

import bench.integer.cnn as cnn
import bench.integer.ours as ours
import bench.integer.post_training as post_training
import bench.integer.weight_only as weight_only
from bench.integer.models import Trained
from bench.integer.ours import EXACT_PRODUCTS, STORAGE_ONLY, Setup, weight_budget
from bench.integer.table import Row

SITES = (SimpleNamespace(name="a", size=30), SimpleNamespace(name="b", size=10))


class Result:
    """A compressed model whose file is a linear layer on flat inputs."""

    def __init__(self, model, features, encodings):
        self.model, self.features = model, features
        self.graph = SimpleNamespace(sites=SITES, encodings=encodings)

    def export(self, path, form):
        rng = np.random.default_rng(len(path.name))
        weight = rng.standard_normal((int(np.prod(self.features)), 4)).astype(np.float32)
        nodes = [
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node("MatMul", ["f", "w.weight"], ["y"]),
        ]
        proto = build.model(nodes, {"w.weight": weight}, ("x", ("batch", *self.features)))
        build.save(proto, path)
        return SimpleNamespace(path=path, form=form, bytes=path.stat().st_size)


@pytest.fixture
def asked(monkeypatch):
    """Every call of `compress`: budget, method and whether to reconstruct."""
    calls = []

    def compress(model, budget, *, progress, data=None, example_inputs=None, **arguments):
        assert progress == "none"
        example = example_inputs if data is None else next(iter(data))
        method = arguments.get("method")
        calls.append((budget, method, arguments.get("reconstruct")))
        encodings = {} if method is None else {"a": 4}
        return Result(model, tuple(example.shape[1:]), encodings)

    monkeypatch.setattr(ours.transform, "compress", compress)
    return calls


@pytest.fixture
def no_clock(monkeypatch):
    """Cases become rows without being run; the names of what was given are kept."""
    seen = {}

    def measured(cases, **arguments):
        seen.update(arguments, cases=cases)
        return tuple(Row(case.label, case.accuracy, note=case.note) for case in cases), "setting"

    for module in (cnn, weight_only):
        monkeypatch.setattr(module, "measured_rows", measured)
    return seen


@pytest.fixture
def setup(tmp_path):
    return Setup(tmp_path, tmp_path, rounds=2, say=lambda line: None)


def images():
    generator = torch.Generator().manual_seed(0)
    data = tuple(torch.randn(2, 3, 4, 4, generator=generator) for _ in range(2))
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    return Trained(model, data, [(x, torch.zeros(2, dtype=torch.long)) for x in data])


def widths(asked):
    return [(m.weights, m.activations, m.block) for _, m, _ in asked if m is not None]


def test_resnet20_with_half_the_macs(asked, no_clock, setup, monkeypatch, tmp_path):
    trained = images()
    monkeypatch.setattr(cnn, "trained_resnet20", lambda root: trained)
    monkeypatch.setattr(
        cnn,
        "plan_layers",
        lambda *files, rounds: SimpleNamespace(
            to_markdown=lambda: " ".join(file.stem for file in files)
        ),
    )
    half = Result(nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), (3, 4, 4), {})
    monkeypatch.setattr(cnn.transform, "load", lambda folder: half)
    section = cnn.resnet20_section(Setup(tmp_path, tmp_path, tmp_path / "h", 2, setup.say))
    assert [row.label for row in section.rows] == [
        "fp32",
        "int8",
        "int8, x64quantprecision",
        "int7 weights",
        "4-bit weights only",
        "quantize_static, MinMax",
        "quantize_static, Percentile",
        "half the MACs, fp32",
        "half the MACs, int8",
    ]
    assert widths(asked) == [(8, 8, None), (7, 8, None), (4, None, None), (8, 8, None)]
    assert [budget for budget, *_ in asked] == [
        "macs<=100%",
        "weight_bits<=25%",
        "weight_bits<=21.875%",
        "weight_bits<=12.5%",
        "weight_bits<=25%",
    ]
    cases = {case.label: case for case in no_clock["cases"]}
    assert cases["int8, x64quantprecision"].file == cases["int8"].file
    assert cases["int8, x64quantprecision"].options == EXACT_PRODUCTS
    assert cases["4-bit weights only"].options == STORAGE_ONLY
    assert cases["int8"].options == {}
    assert all(row.accuracy is not None for row in section.rows if "static" not in row.label)
    assert no_clock["test"] is trained.test
    assert "dense int8" in section.extra


def test_resnet20_without_half(asked, no_clock, setup, monkeypatch):
    monkeypatch.setattr(cnn, "trained_resnet20", lambda root: images())
    monkeypatch.setattr(
        cnn, "plan_layers", lambda *_, rounds: SimpleNamespace(to_markdown=lambda: "plan")
    )
    labels = [row.label for row in cnn.resnet20_section(setup).rows]
    assert len(labels) == 7
    assert not any("half" in label for label in labels)


def test_resnet18(asked, no_clock, setup, monkeypatch):
    monkeypatch.setattr(cnn, "torchvision_model", lambda name: nn.Identity())
    monkeypatch.setattr(cnn, "half_channels", lambda model, example: nn.Identity())
    section = cnn.resnet18_section(setup, side=4)
    assert [row.label for row in section.rows] == [
        "fp32",
        "int8",
        "half the channels, fp32",
        "half the channels, int8",
    ]
    assert len({case.file for case in no_clock["cases"]}) == 4
    assert "no accuracy is claimed" in section.text


def test_a_linear_layer(asked, no_clock, setup):
    section = weight_only.linear_section(setup, width=8)
    assert widths(asked) == [(8, None, None), (4, None, None), (4, None, 32)]
    assert no_clock["compared"].shape == (1, 8)
    # No weight may stay float: the budget is what all of them take at the width.
    assert [budget for budget, *_ in asked[1:]] == [weight_budget(bits) for bits in (8, 4, 4)]
    assert [row.label for row in section.rows][1] == "linear 8 x 8, 8-bit"
    assert len({case.file for case in no_clock["cases"]}) == 4


def test_alexnet_with_and_without_decoding(asked, no_clock, setup, monkeypatch):
    monkeypatch.setattr(weight_only, "torchvision_model", lambda name: nn.Identity())
    weight_only.alexnet_section(setup)
    options = [dict(case.options) for case in no_clock["cases"]]
    assert options == [{}, {}, {}, dict(STORAGE_ONLY), dict(STORAGE_ONLY)]
    files = [case.file for case in no_clock["cases"]]
    assert files[3:] == files[1:3]


def test_transformers(asked, no_clock, setup, monkeypatch):
    weight_only.encoder_section(setup, width=64, layers=1, tokens=3)
    assert no_clock["compared"].shape == (2, 3, 64)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.zeros_(model[1].weight)
    monkeypatch.setattr(weight_only, "torchvision_model", lambda name: model)
    before = model[0].weight.clone()
    section = weight_only.vit_section(setup)
    assert model[1].weight.abs().min() > 0
    assert torch.equal(model[0].weight, before)
    assert [row.label for row in section.rows] == [
        "ViT-B/16, fp32",
        "ViT-B/16, 8-bit",
        "ViT-B/16, 4-bit",
        "ViT-B/16, 4-bit, blocks of 32",
    ]


def test_post_training(asked, setup, monkeypatch):
    monkeypatch.setattr(post_training, "trained_resnet20", lambda root: images())
    section = post_training.post_training_section(setup)
    zeros = ["nonzeros<=50%", "nonzeros<=30%", "nonzeros<=20%"]
    budgets = [*zeros, "weight_bits<=12.5%", "macs<=70%", "energy<=15%"]
    assert [budget for budget, *_ in asked] == budgets * 2
    assert [reconstruct for *_, reconstruct in asked] == [False] * 6 + [True] * 6
    assert [row.label for row in section.rows][:3] == ["fp32", "50 % zeros", "70 % zeros"]
    assert section.rows[-3].label == "4-bit weights, reconstructed"
    assert all(row.seconds is not None for row in section.rows[1:])


def test_budgets_of_widths():
    assert [weight_budget(bits) for bits in (8, 7, 4)] == [
        "weight_bits<=25%",
        "weight_bits<=21.875%",
        "weight_bits<=12.5%",
    ]
