"""Masks of an earlier result: its structure with other values, and lottery tickets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from sparse_training_runs import (
    CONV_TOTAL,
    ROW_BATCHES,
    conv_net,
    nonzeros,
    row_net,
    trained,
    watched,
    weights_of,
)
from torch import Tensor, nn

from energy_model.errors import InfeasibleBudget, PreconditionError, StorageError

ACTIVE = CONV_TOTAL * 20 // 100


@dataclass
class Saved:
    folder: str
    weights: dict[str, Tensor]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A rewired result on disk."""
    result = trained("nonzeros<=20%", rule="rigl", stop=0.5)
    folder = tmp_path_factory.mktemp("earlier") / "result"
    result.save(folder)
    return Saved(str(folder), weights_of(result.model))


def test_the_zeros_of_a_result_are_the_first_masks(earlier, monkeypatch):
    seen = watched(monkeypatch)
    result = trained("nonzeros<=20%", model=conv_net(7), rule="static", masks=earlier.folder)
    for name, value in earlier.weights.items():
        assert torch.equal(seen.first[0][name].reshape(value.shape), value != 0)
        assert not bool(weights_of(result.model)[name][value == 0].any())
    told = [decision for decision in result.decisions if decision.what == "first masks"]
    assert len(told) == 1 and earlier.folder in told[0].why
    planned = {row.layer: row.keep for row in result.plan.rows}
    assert planned == {n: int(torch.count_nonzero(v)) for n, v in earlier.weights.items()}


def test_a_lottery_ticket_starts_from_the_values_of_the_model(earlier, monkeypatch):
    """Frankle and Carbin, ICLR 2019: the initial values of before, bit for bit, under the masks."""
    model = conv_net()
    seen = watched(monkeypatch)
    trained("nonzeros<=20%", model=model, rule="static", masks=earlier.folder, epochs=1)
    for name, value in weights_of(model).items():
        kept = earlier.weights[name] != 0
        assert torch.equal(seen.values[0][name], torch.where(kept, value, 0.0))


def test_masks_rewire_from_there(earlier, monkeypatch):
    seen = watched(monkeypatch)
    trained("nonzeros<=20%", rule="dsr_exact", masks=earlier.folder, share=0.3, epochs=2)
    first = torch.cat([seen.first[0][name] for name in ("0", "2", "5")])
    zeros = torch.cat([(v != 0).reshape(-1) for v in earlier.weights.values()])
    assert torch.equal(first, zeros)
    assert seen.active() == [int(zeros.sum())] * len(seen.events)
    assert not torch.equal(seen.masks()[-1], zeros)


def test_a_looser_budget_is_not_filled_up(earlier):
    result = trained("nonzeros<=50%", rule="static", masks=earlier.folder, epochs=1)
    assert sum(nonzeros(result.model).values()) <= ACTIVE
    assert result.certificate.holds


def test_masks_that_are_denser_than_the_budget(earlier):
    with pytest.raises(InfeasibleBudget) as caught:
        trained("nonzeros<=10%", rule="static", masks=earlier.folder)
    active = sum(int(torch.count_nonzero(v)) for v in earlier.weights.values())
    assert (caught.value.limit, caught.value.tightest) == ("nonzeros", active)
    tightest = trained(f"nonzeros<={active}", rule="static", masks=earlier.folder, epochs=1)
    assert tightest.certificate.holds


def test_masks_of_another_model(earlier):
    with pytest.raises(PreconditionError, match=r"'0'.*same model") as caught:
        trained(model=row_net(), data=ROW_BATCHES, rule="static", masks=earlier.folder)
    assert "(20, 12)" in str(caught.value)
    longer = nn.Sequential(*conv_net(), nn.Linear(2, 2))
    with pytest.raises(PreconditionError, match=r"layer '6': .* no such weight"):
        trained("nonzeros<=50%", model=longer, rule="static", masks=earlier.folder)


def test_masks_that_are_not_there(tmp_path):
    with pytest.raises(StorageError, match="missing"):
        trained(rule="static", masks=str(tmp_path / "nothing"))
    (tmp_path / "weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(StorageError):
        trained(rule="static", masks=str(tmp_path))


def test_a_layer_without_any_weight_is_refused(earlier, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(Path(earlier.folder) / "weights.safetensors")
    tensors["0.weight"] = torch.zeros_like(tensors["0.weight"])
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(PreconditionError, match="no active cell"):
        trained(rule="static", masks=str(tmp_path))
