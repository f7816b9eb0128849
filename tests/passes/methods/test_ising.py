"""The method `ising` by `compress`: what is met, what is kept, what is said."""

from __future__ import annotations

import copy
import json

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from ising_nets import (
    AttentionNet,
    attention_data,
    compressed,
    conv_data,
    conv_net,
    seeded,
    trained_net,
)
from torch import nn

import transform
from passes.methods.ising import Ising
from passes.methods.ising.energies import CandidateEnergies

SLOW = pytest.mark.slow
UNLABELLED = [x for x, _ in conv_data()]
EXAMPLE = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def without_data(**options):
    return transform.compress(
        conv_net(), example_inputs=EXAMPLE, train=False, progress="none", **options
    )


def cross_entropy(outputs, targets):
    return F.cross_entropy(outputs, targets)


def test_in_training_the_budget_is_met_by_smaller_layers_and_all_is_said():
    search = {"search_share": 0.4, "states": 4, "search": "de", "anneal": False}
    result = compressed(train=True, search=search)
    assert result.certificate.holds
    first, second = result.model[0].out_channels, result.model[3].out_channels
    assert (first, second) != (12, 16)
    assert result.model[8].in_features == 4 * second
    assert type(result.model) is nn.Sequential
    assert (result.model[3].in_channels, result.model[4].num_features) == (first, second)
    rows = [row for row in result.history if row["event"] == "trained"]
    told = [row["search"] for row in rows if "search" in row]
    assert [row["epoch"] for row in rows if "search" in row] == [1, 2]  # 11 of 28 steps
    assert [each["generation"] for each in told] == [7, 11]
    for each in told:
        assert each["energy_best"] <= each["energy_mean"]
        assert 0 <= each["diversity"] <= 1
        assert set(each["kept"]) == {"0", "3"}
        assert (each["compared_by"], each["skipped"]) == ("compact", 0)
    assert told[1]["over"] == "40 % of the training are over"
    assert list(told[1]["kept"].values()) == [first, second]
    assert json.loads(json.dumps(result.history)) == result.history
    [ended] = [d for d in result.decisions if d.what == "the search by 'margin' ended"]
    assert ended.why == "40 % of the training are over"
    assert ended.before == "11 generations"
    assert [d.layer for d in result.decisions if d.what == "channels removed"] == ["0", "3"]
    assert any(d.what == "batch norms estimated anew" for d in result.decisions)


def test_without_training_the_search_is_before_and_the_weights_are_the_callers():
    model = conv_net()
    result = compressed(model, search={"bn_batches": 0})
    assert result.certificate.holds
    units = result.plan.details["units"]
    assert torch.equal(result.model[0].weight, model[0].weight[units["0"]])
    assert torch.equal(result.model[3].weight, model[3].weight[units["3"]][:, units["0"]])
    assert torch.equal(result.model[1].running_mean, model[1].running_mean[units["0"]])
    assert result.plan.reached["macs"] == result.costs.after.total.macs
    told = result.plan.details["search"]
    assert (told["generation"], told["over"]) == (6, "6 generations are over")
    [ended] = [d for d in result.decisions if "search" in d.what]
    assert (ended.why, ended.before) == ("6 generations are over", "6 generations")
    assert [row.keep for row in result.plan.rows if row.size in (12, 16)] == [
        len(units["0"]),
        len(units["3"]),
    ]


def test_statistics_of_batch_norms_are_estimated_anew():
    result = compressed()
    own = copy.deepcopy(result.model)
    for norm in (own[1], own[4]):
        norm.reset_running_stats()
        norm.momentum = None  # the average of all batches
    x = torch.cat([x for x, _ in conv_data()])
    with torch.no_grad():
        own.train()(x)
    assert torch.allclose(own[1].running_mean, result.model[1].running_mean, atol=1e-6)
    assert torch.allclose(own[1].running_var, result.model[1].running_var, atol=1e-6)


@pytest.mark.slow
def test_the_search_beats_importance_on_the_energy_that_it_lowers():
    x, y = (torch.cat(parts) for parts in zip(*conv_data(), strict=True))

    def energy(**options):
        result = compressed(trained_net(), "macs<=30%", **options)
        with torch.no_grad():
            return float(F.cross_entropy(result.model(x), y)), result

    search = {"energy": cross_entropy, "search": "de+ls", "generations": 20, "bn_batches": 0}
    search |= {"norms": "running", "anneal": False}
    found, result = energy(search=search | {"score_samples": 56})
    assert found < 0.7 * energy(method="l2")[0]
    assert result.plan.details["search"]["energy_best"] == pytest.approx(found, abs=1e-5)
    assert result.config["energy"].endswith("cross_entropy")


ONE_SHOT = {
    "a search before training": {"train": True, "epochs": 1, "search": {"search_share": 0}},
    "distill": {"data": UNLABELLED, "search": {"energy": "distill", "search": "de+ls"}},
    "margin_prob": {"search": {"energy": "margin_prob", "temperature": 2.0}},
    "free energy": {"search": {"energy": "free_energy_nll", "norms": "batch"}},
    "random": {"search": {"energy": "random"}},
    "combined": {"search": {"energy": "combined", "search": "de+ls"}},
    "ratios": {"search": {"search": "ratio-de"}},
    "half": {"search": {"init_keep": 0.5}},
    "annealed": {"search": {"anneal": True}},
    "gradients": {"search": {"importance": "taylor"}},
    "two limits": {"budget": "macs<=60%, params<=40%"},
    "energy": {"budget": "energy<=70%"},
    "samples": {"search": {"score_samples": 2, "energy": "distill"}},
}


@pytest.mark.parametrize(
    "name",
    [n if n == "two limits" else pytest.param(n, marks=SLOW)
     for n in ONE_SHOT],
)  # fmt: skip
def test_options(name):
    result = compressed(**ONE_SHOT[name])
    assert all(row.holds for row in result.certificate.rows)
    for row in result.certificate.rows:
        if row.limit == "params" or len(result.certificate.rows) == 1:
            assert row.reached > 0.75 * row.maximum  # what fits returns


TRAINED = {
    **{f"{b}, {n}": {"search": {"backend": b, "norms": n}}
       for b in ("loop", "fold", "vmap", "compact", "measured") for n in ("running", "batch")},
    "mixed precision": {"train": transform.TrainConfig(epochs=2, lr=0.05, amp="bf16")},
    "forced in mixed precision": {
        "train": transform.TrainConfig(epochs=2, lr=0.05, amp="bf16"),
        "search": {"backend": "compact"},
    },
    "accumulated": {"train": transform.TrainConfig(epochs=2, lr=0.05, accumulate=2)},
    "every third step": {"search": {"every": 3, "search_share": 0.7}},
    "shorter than a generation": {"search": {"every": 50}},
    "all of it": {"search": {"search_share": 1.0}},
    "annealed": {"search": {"anneal": True, "search_share": 0.7, "init_keep": 0.5}},
    "size": {"budget": "size<=70%"},
    "energy and params": {"budget": "energy<=70%, params<=60%"},
    "best epoch": {"train": transform.TrainConfig(epochs=3, lr=0.05), "valid": conv_data(2)},
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "mixed precision" else SLOW) for n in TRAINED]
)
def test_options_in_training(name):
    options = {"train": True, "epochs": 2} | TRAINED[name]
    options["search"] = {"states": 4} | options.get("search", {})
    result = compressed(**options)
    assert result.certificate.holds
    assert (result.model[0].out_channels, result.model[3].out_channels) != (12, 16)
    assert not any("gate" in path for path, _ in result.model.named_modules())


@pytest.mark.slow
def test_all_back_ends_lead_to_the_same_result():
    found = [
        compressed(search={"backend": name, "generations": 20, "states": 6}).plan.details["units"]
        for name in ("loop", "fold", "vmap", "compact", "auto")
    ]
    assert all(each == found[0] for each in found)


def test_the_ising_energy_needs_no_data():
    result = without_data(budget="macs<=50%", method=Ising(energy="ising", generations=5))
    assert result.certificate.holds
    assert not any(d.what == "batch norms estimated anew" for d in result.decisions)


@pytest.mark.parametrize("train", [False, pytest.param(True, marks=SLOW)])
def test_a_budget_that_keeps_everything_changes_nothing_but_weights(train):
    model = conv_net()
    result = compressed(model, "macs<=100%", train=train, epochs=1)
    assert (result.model[0].out_channels, result.model[3].out_channels) == (12, 16)
    assert not any(d.what == "channels removed" for d in result.decisions)
    if not train:
        assert all(
            torch.equal(t, model.state_dict()[n]) for n, t in result.model.state_dict().items()
        )


class Opaque(nn.Module):
    """Cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        hidden = torch.relu(self.hidden(x))
        if hidden.sum() > 0:
            hidden = hidden * 1.0
        return self.head(hidden)


@pytest.mark.parametrize("train", [False, pytest.param(True, marks=SLOW)])
@pytest.mark.parametrize("build", [Opaque, lambda: nn.Sequential(nn.Linear(8, 3))])
def test_a_model_with_nothing_to_remove(build, train):
    rows = [(torch.randn(8, 8), torch.randint(3, (8,))) for _ in range(3)]
    result = compressed(seeded(build), "macs<=100%", rows, train=train, epochs=1)
    assert result.certificate.holds
    with pytest.raises(transform.InfeasibleBudget) as refused:
        compressed(seeded(build), "macs<=50%", rows, train=train)
    assert refused.value.tightest == result.costs.after.total.macs


def test_rules_for_layers():
    result = compressed(budget="macs<=60%", layers={"0": False})
    assert result.model[0].out_channels == 12
    assert any(d.layer == "0" and d.what == "channels stay" for d in result.decisions)


@pytest.mark.slow
def test_multiples_and_the_most_that_a_group_loses():
    result = compressed(budget="macs<=50%", search={"channel_multiple": 8})
    assert (result.model[0].out_channels, result.model[3].out_channels) in {(8, 8), (12, 8)}
    result = compressed(budget="macs<=60%", search={"max_removed": 0.25})
    assert result.model[0].out_channels >= 9
    assert result.model[3].out_channels >= 12


def test_attention_heads_go_and_the_rest_is_as_it_was():
    model = seeded(AttentionNet).eval()
    model.attention.train()  # as its author may want it
    result = compressed(
        model, "macs<=55%", attention_data(), train=True, epochs=2, search={"states": 4}
    )
    assert result.certificate.holds
    assert type(result.model) is AttentionNet
    flags = {path: part.training for path, part in result.model.named_modules() if "." not in path}
    assert flags == {p: part.training for p, part in model.named_modules() if "." not in p}


@pytest.mark.slow
def test_an_attention_layer_that_keeps_its_heads_is_in_the_mode_it_came_in():
    model = seeded(AttentionNet).eval()
    result = compressed(
        model, "macs<=93%", attention_data(), train=True, epochs=2,
        search={"states": 4, "max_removed": 0.2, "search_share": 1.0},
    )  # fmt: skip
    assert type(result.model.attention) is nn.MultiheadAttention
    assert not any(part.training for part in result.model.modules())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 12)
        self.third, self.head = nn.Linear(12, 12), nn.Linear(12, 4)
        self.third.weight = self.second.weight

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(torch.relu(self.third(x)))


@pytest.mark.parametrize("train", [False, pytest.param(True, marks=SLOW)])
def test_tied_weights_stay_tied(train):
    generator = torch.Generator().manual_seed(0)
    rows = [
        (torch.randn(8, 8, generator=generator), torch.randint(4, (8,), generator=generator))
        for _ in range(4)
    ]
    result = compressed(seeded(Tied), "params<=60%", rows, train=train, epochs=2)
    assert result.certificate.holds
    assert result.model.third.weight is result.model.second.weight
    assert result.model.second.weight.shape[0] < 12


class FixedWidth(nn.Module):
    """Its forward is written for the width that it was made with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 12, 3, padding=1), nn.Linear(12, 4)

    def forward(self, x):
        x = torch.relu(self.conv(x)) + torch.zeros(1, 12, 1, 1)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.slow
def test_where_the_forward_does_not_follow_the_graph_is_the_model(train, tmp_path):
    result = compressed(seeded(FixedWidth), "macs<=60%", train=train, epochs=2)
    assert result.certificate.holds
    assert isinstance(result.model, torch.fx.GraphModule)
    path = tmp_path / "small.onnx"
    result.export(path)
    session = onnxruntime.InferenceSession(path)
    x = conv_data(1)[0][0]
    [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(found), result.model(x), atol=1e-4)


@pytest.mark.slow
def test_shapes_that_are_kept_and_files_of_the_result(tmp_path):
    for keep_shapes in (True, False):
        result = compressed(train=True, epochs=2, keep_shapes=keep_shapes)
        assert result.certificate.holds
        assert type(result.model) is nn.Sequential
        folder = tmp_path / str(keep_shapes)
        result.save(folder)
        loaded = transform.load(folder, model=conv_net())
        assert torch.equal(loaded.model(EXAMPLE), result.model(EXAMPLE))
        result.export(folder / "small.onnx")
        session = onnxruntime.InferenceSession(folder / "small.onnx")
        [found] = session.run(None, {session.get_inputs()[0].name: EXAMPLE.numpy()})
        assert torch.allclose(torch.from_numpy(found), result.model(EXAMPLE), atol=1e-4)


def test_on_weights_as_they_are_hardly_a_state_is_run_twice(monkeypatch):
    compared, seen = CandidateEnergies._compared, []

    def spied(self, population, batch):
        seen.append([row.numpy().tobytes() for row in population])
        return compared(self, population, batch)

    monkeypatch.setattr(CandidateEnergies, "_compared", spied)
    compressed()
    assert len(seen) == 6
    known = set(seen[0])
    for each in seen[1:]:
        assert len(known & set(each)) <= 1  # the best of the others goes along
        assert len(each) == len(set(each)) <= 9
        known |= set(each)
