"""Sizes side by side: against counts by hand, on the screen, saved and loaded."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import transform
from energy_model.errors import ExportError, ParityError
from energy_model.hardware import load_hardware
from passes.inputs import as_call
from passes.joint.codebook import Codebook
from passes.tracing.trace import trace
from transform.limits import Subject
from transform.sizes import Sizes, count_sizes

X = torch.ones(2, 6)
# Three values in use of four that two bits have; 5 of 24 weights are not zero.
FIRST = [0.5, 0.5, -1.0, 0.25, 0.5]
# 12 of 12 weights, two values.
SECOND = [1.0, -1.0] * 6


def subject():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)).eval()
    first, second = torch.zeros(24), torch.tensor(SECOND)
    first[[0, 5, 9, 10, 23]] = torch.tensor(FIRST)
    with torch.no_grad():
        model[0].weight.copy_(first.view(4, 6))
        model[1].weight.copy_(second.view(3, 4))
    graph = trace(model, as_call(model, X))
    graph.codebooks["0"] = Codebook(torch.tensor([-1.0, 0.25, 0.5, 2.0]), 2)
    return Subject(graph, load_hardware("eyeriss"))


@pytest.fixture
def bytes_of_files(monkeypatch):
    """Stands for the files."""
    monkeypatch.setattr(Subject, "archive_bytes", property(lambda self: 300))
    monkeypatch.setattr(Subject, "onnx_bytes", property(lambda self: 1_000))


def test_every_count_by_hand(bytes_of_files):
    found = count_sizes(subject(), 32 * 36, 2_500)
    assert found.dense_bits == 1_152
    # The second layer has no codebook: its weights are floats.
    assert found.nominal_bits == 2 * 5 + 32 * 12
    assert found.authors_bits == pytest.approx(math.log2(3) * 5 + math.log2(max(1, 2 - 1)) * 12)
    positions = 5 * math.log2(24 / 5) + 19 * math.log2(24 / 19)
    codes = 3 * math.log2(5 / 3) + 2 * math.log2(5)
    assert found.entropy_bits == pytest.approx(positions + codes + 3 * 32 + 12 + 2 * 32)
    assert (found.archive_bytes, found.onnx_bytes, found.original_bytes) == (300, 1_000, 2_500)


@pytest.mark.parametrize("error", [ExportError("no form"), ParityError("off", max_abs_error=1.0)])
def test_without_a_file_the_rest_is_counted(monkeypatch, error):
    def refuse(self):
        raise error

    monkeypatch.setattr(Subject, "exported", property(refuse))
    found = count_sizes(subject(), 1_152, None)
    assert (found.archive_bytes, found.onnx_bytes) == (None, None)
    assert found.nominal_bits == 394
    text = str(found)
    assert "archive" not in text
    assert "ONNX" not in text
    assert "394 bits" in text


def test_other_errors_are_not_hidden(monkeypatch):
    def refuse(self):
        raise ZeroDivisionError

    monkeypatch.setattr(Subject, "exported", property(refuse))
    with pytest.raises(ZeroDivisionError):
        count_sizes(subject(), 1_152, None)


SIZES = Sizes(1_152, 394, 7.924, 321.5, 300, 1_000, 2_500)


def test_they_are_printed_side_by_side():
    rows = [line.split() for line in str(SIZES).splitlines() if line.strip()]
    ends = {" ".join(row[:2]): row[-3:] for row in rows}
    assert ends["nominal, as"] == ["394", "bits", "2.9x"]
    assert ends["codes in"] == ["8", "bits", "145.4x"]
    assert ends["entropy, with"] == ["322", "bits", "3.6x"]
    assert ends["archive, everything"] == ["300", "bytes", "8.3x"]
    assert ends["ONNX file"] == ["1", "kB", "2.5x"]


def test_what_is_not_known_is_left_out():
    unknown = Sizes(1_152, 0, 0.0, 0.0, 300)
    lines = str(unknown).splitlines()
    assert next(line.rstrip() for line in lines if "archive" in line).endswith("300 bytes")
    assert not any("x" in line.split()[-1] for line in lines if "0 bits" in line)


def test_they_can_be_written_and_read():
    for sizes in (SIZES, Sizes(1, 2, 3.0, 4.0)):
        assert Sizes.from_dict(json.loads(json.dumps(sizes.to_dict()))) == sizes


@pytest.mark.slow
def test_a_result_tells_them_and_keeps_them(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    options = {"example_inputs": X, "method": transform.Joint(), "progress": "none"}
    result = transform.compress(model, "weight_bits<=10%", **options)
    sizes = result.sizes
    rows = [(row.nonzeros, row.bits) for row in result.costs.after]
    assert sizes.nominal_bits == sum(k * b for k, b in rows) == result.certificate.rows[0].reached
    assert sizes.dense_bits == 32 * (96 + 48)
    # Codes in use are never more than there are.
    assert sizes.authors_bits <= sizes.nominal_bits < sizes.entropy_bits
    exported = result.export(tmp_path / "model.packed")
    assert sizes.archive_bytes == exported.bytes
    assert sizes.entropy_bits / 8 < sizes.archive_bytes < sizes.onnx_bytes
    assert str(sizes) in repr(result)
    result.save(tmp_path / "saved")
    assert transform.load(tmp_path / "saved", model).sizes == sizes
    assert str(sizes) in (tmp_path / "saved" / "report.txt").read_text()


def test_where_neither_bits_nor_bytes_matter_they_are_not_told(bytes_of_files):
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)).eval()
    options = {"example_inputs": X, "method": "magnitude", "progress": "none"}
    result = transform.compress(model, "nonzeros<=50%", **options)
    assert result.sizes is None
    assert "entropy" not in repr(result)
