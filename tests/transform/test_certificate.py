"""The certificate: what it states, counted again by hand from the state dict."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from transform_nets import SmallConv, made

import transform
from bench.check_certificate import check
from transform.certificate import CertificateRow, format_value
from transform.fingerprint import state_digest

# Unit energies of the profile `eyeriss`, in multiples of one MAC... of which a MAC itself is 3.
DRAM, CACHE, REGISTER, MAC = 200, 6, 1, 3


def fully_connected(weight):
    """Energy of a linear layer at one position (Yang, Zhu, Liu, ICLR 2019), by hand.

    Every nonzero weight passes DRAM, cache and register file once and is multiplied once; every
    input passes DRAM, and cache and register file once per tile of 14 outputs and per output.
    """
    rows, columns = weight.shape
    nonzeros = int((weight != 0).sum())
    tiles = -(-rows // 14)
    moved = (DRAM + CACHE + REGISTER + MAC) * nonzeros
    return moved + DRAM * (columns + rows) + CACHE * columns * tiles + REGISTER * columns * rows


def convolution(weight, size):
    """The same for an unpadded convolution at stride 1 on a square input that fits its cache."""
    out_channels, in_channels, kernel, _ = weight.shape
    nonzeros = int((weight != 0).sum())
    positions = (size - kernel + 1) ** 2
    tiles = -(-positions // 12)
    moved = (DRAM + CACHE * tiles + (REGISTER + MAC) * positions) * nonzeros
    unfolded = positions * in_channels * kernel**2
    moved += DRAM * (in_channels * size**2 + positions * out_channels)
    return moved + CACHE * unfolded * -(-out_channels // 14) + REGISTER * unfolded * out_channels


def counted_by_hand(state):
    return (
        convolution(state["0.weight"], 6)
        + fully_connected(state["3.weight"])
        + fully_connected(state["5.weight"])
    )


@pytest.fixture(scope="module")
def by_hand():
    """A net whose energy can be counted by hand, and its compressed form."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 20), nn.ReLU())
        model = nn.Sequential(*layers, nn.Linear(20, 4))
    example = torch.zeros(1, 2, 6, 6)
    budget = "energy<=50%, nonzeros<=30%"
    return model, transform.compress(model, budget, example_inputs=example, keep_shapes=True)


def test_energies_and_counts_are_those_counted_by_hand(by_hand):
    model, result = by_hand
    dense = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    energy, nonzeros = result.certificate.rows
    assert (energy.limit, nonzeros.limit) == ("energy", "nonzeros")
    assert energy.base == counted_by_hand(dense)
    assert energy.reached == counted_by_hand(result.model.state_dict())
    assert energy.maximum == energy.base // 2
    weights = [t for name, t in result.model.state_dict().items() if name.endswith("weight")]
    assert nonzeros.base == sum(weight.numel() for weight in weights)
    assert nonzeros.reached == sum(int(weight.count_nonzero()) for weight in weights)
    assert nonzeros.maximum == nonzeros.base * 3 // 10


def test_one_weight_more_or_less_is_counted(by_hand):
    _, result = by_hand
    state = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}
    before = counted_by_hand(state)
    state["5.weight"].view(-1)[state["5.weight"].reshape(-1).nonzero()[0]] = 0
    assert before - counted_by_hand(state) == DRAM + CACHE + REGISTER + MAC


def test_rows_say_what_was_asked_and_how_it_was_counted(by_hand):
    _, result = by_hand
    certificate = result.certificate
    assert [row.asked for row in certificate.rows] == ["energy<=50%", "nonzeros<=30%"]
    assert [row.unit for row in certificate.rows] == ["MAC", "count"]
    assert {row.kind for row in certificate.rows} == {"exact"}
    assert {row.counted_from for row in certificate.rows} == {"model"}
    assert certificate.source.name == "model"
    assert certificate.source.sha256 == state_digest(result.model)
    assert certificate.initializers == {}
    assert certificate.holds


def test_a_certificate_survives_json(by_hand):
    certificate = by_hand[1].certificate
    data = json.loads(json.dumps(certificate.to_dict()))
    again = transform.Certificate.from_dict(data)
    assert again == certificate
    assert again.to_dict() == certificate.to_dict()
    assert str(again) == str(certificate)
    assert data["holds"] is True
    assert [layer["nonzeros"] for layer in data["layers"]] == [
        row.nonzeros for row in certificate.costs.rows
    ]


def test_a_limit_holds_up_to_its_maximum():
    row = CertificateRow(
        "nonzeros", "nonzeros<=10", 50, 10, 10, "count", "exact", "model", "model", "00"
    )
    assert row.holds
    assert not replace(row, reached=11).holds


def test_one_broken_limit_breaks_the_certificate(by_hand):
    certificate = by_hand[1].certificate
    first, second = certificate.rows
    broken = replace(certificate, rows=(first, replace(second, reached=second.maximum + 1)))
    assert not broken.holds
    assert broken.to_dict()["holds"] is False
    assert [row["holds"] for row in broken.to_dict()["limits"]] == [True, False]
    lines = str(broken).splitlines()
    assert "energy<=50%: holds" in lines[0]
    assert "nonzeros<=30%: FAILS" in lines[1]


def test_the_text_gives_share_kind_and_digest(by_hand):
    certificate = by_hand[1].certificate
    row = certificate.rows[1]
    line = str(certificate).splitlines()[1]
    assert f"({100 * row.reached / row.base:.2f} % of the original)" in line
    assert "exact" in line
    assert certificate.source.sha256[:12] in line


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("energy", 12_000, "MAC"),
        ("size", 2000, "kB"),
        ("latency", 0.003, "ms"),
        ("weight_bits", 64, "bits"),
        ("nonzeros", 12, "12"),
    ],
)
def test_values_print_with_their_unit(key, value, text):
    assert text in format_value(key, value)


def test_the_digest_is_over_names_shapes_types_and_values():
    model, _ = made(SmallConv)
    digest = state_digest(model)
    assert state_digest(made(SmallConv)[0]) == digest
    with torch.no_grad():
        model.norm.running_mean[0] += 1e-7
    assert state_digest(model) != digest
    flat, column = nn.Module(), nn.Module()
    flat.register_buffer("a", torch.zeros(4))
    column.register_buffer("a", torch.zeros(4, 1))
    assert state_digest(flat) != state_digest(column)
    assert state_digest(flat) != state_digest(nn.Module())
    assert state_digest(nn.Module()) == hashlib.sha256().hexdigest()


def test_negative_zero_and_the_sign_bit_count_in_the_digest():
    plus, minus = nn.Module(), nn.Module()
    plus.register_buffer("a", torch.zeros(1))
    minus.register_buffer("a", -torch.zeros(1))
    assert state_digest(plus) != state_digest(minus)


@pytest.mark.slow
def test_every_row_names_what_it_was_counted_from(tmp_path):
    model, example = made(SmallConv)
    result = transform.compress(model, "energy<=50%", example_inputs=example)
    [row] = result.certificate.rows
    assert (row.file, row.sha256) == ("model", state_digest(result.model))
    exported = result.export(tmp_path / "net.onnx")
    [claim] = json.loads(exported.certificate.read_text())["limits"]
    digest = hashlib.sha256(exported.path.read_bytes()).hexdigest()
    assert (claim["file"], claim["sha256"]) == ("net.onnx", digest)


@pytest.mark.slow
def test_parameters_are_those_of_the_model_not_of_the_file(tmp_path):
    """A folded norm is no parameter of the file, and gives a layer a bias that it had not."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3)
    ).eval()
    example = torch.randn(2, 3, 8, 8)
    result = transform.compress(
        model, "params<=50%", example_inputs=example, method="l2", progress="none"
    )
    exported = result.export(tmp_path / "small.onnx")
    [row] = json.loads(exported.certificate.read_bytes())["limits"]
    assert row["counted_from"] == "model"
    assert row["reached"] == sum(p.numel() for p in result.model.parameters())
    assert check(exported.certificate) == []
