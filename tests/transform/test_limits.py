"""The value of every limit, against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transform_nets import SmallConv, TiedNet, made

from energy_model.errors import UnsupportedBudget, UnsupportedLayer
from energy_model.hardware import load_hardware
from passes.inputs import as_call
from passes.tracing.trace import trace
from transform.limits import Subject, base_value, reached_value


def subject_of(model, example):
    model.eval()
    return Subject(trace(model, as_call(model, example)), load_hardware("eyeriss"))


def test_counts_of_a_thinned_model():
    model, example = made(SmallConv)
    with torch.no_grad():
        model.head.weight[0] = 0
        model.conv.weight[0, 0, 0, 0] = 0
    subject = subject_of(model, example)
    weights, zeros = 6 * 2 * 9 + 5 * 384, 384 + 1
    assert base_value("nonzeros", subject).number == weights
    assert reached_value("nonzeros", subject).number == weights - zeros
    assert base_value("weight_bits", subject).number == 32 * weights
    assert reached_value("weight_bits", subject).number == 32 * (weights - zeros)
    assert reached_value("params", subject).number == weights + 6 + 5 + 12
    assert reached_value("macs", subject).number == 6 * 2 * 9 * 64 + 5 * 384
    head, conv = 5 * 384 - 384, 6 * 2 * 9 - 1
    assert reached_value("sparse_macs", subject).number == 64 * conv + head
    assert base_value("sparse_macs", subject) == base_value("macs", subject)
    assert base_value("energy", subject).number > reached_value("energy", subject).number
    assert {reached_value(key, subject).kind for key in ("energy", "params", "macs")} == {"exact"}


def test_a_dense_model_reaches_its_base():
    subject = subject_of(*made(SmallConv))
    for key in ("energy", "nonzeros", "weight_bits", "params", "macs", "sparse_macs", "ram"):
        assert reached_value(key, subject) == base_value(key, subject)


def test_a_tied_weight_counts_once_as_a_parameter_and_twice_in_macs():
    subject = subject_of(*made(TiedNet))
    assert reached_value("params", subject).number == 64 + 8 + 8 + 24 + 3
    assert reached_value("nonzeros", subject).number == 64 + 24
    assert reached_value("macs", subject).number == 2 * 64 + 24
    assert reached_value("sparse_macs", subject).number == 2 * 64 + 24


def test_ram_is_the_peak_of_live_activations_for_one_sample():
    model = nn.Sequential(nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 5))
    subject = subject_of(model, torch.zeros(7, 10))
    # The two hidden vectors of 100 floats; the input is dead by then.
    assert reached_value("ram", subject).number == 4 * (100 + 100)


def test_ram_of_an_opaque_model_is_refused():
    from transform_nets import Branching

    subject = subject_of(*made(Branching))
    with pytest.raises(UnsupportedLayer, match="could not be traced"):
        reached_value("ram", subject)


@pytest.mark.slow
def test_size_is_that_of_the_exported_file():
    subject = subject_of(*made(SmallConv))
    assert subject.file is None
    size = reached_value("size", subject)
    assert subject.file.path.stat().st_size == size.number == subject.file.bytes
    assert size.kind == "exact"
    assert size.number > 4 * (6 * 2 * 9 + 5 * 384)


def test_what_nothing_counts_is_refused_by_name():
    with pytest.raises(UnsupportedBudget, match=r"'warmth' cannot be counted.*energy, nonzeros"):
        reached_value("warmth", subject_of(*made(TiedNet)))
    with pytest.raises(UnsupportedBudget, match="'warmth'"):
        base_value("warmth", subject_of(*made(TiedNet)))
