"""`compress(result, ...)`: an earlier result goes on, and shares still mean its original."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transform_nets import SmallConv, made, nonzeros_of

import transform
from energy_model.errors import ArgumentError, UnsupportedBudget
from transform.fingerprint import state_digest


def joint(**options):
    """Few widths are tried faster."""
    return transform.Joint(min_bits=2, max_bits=4, **options)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def without_sizes(monkeypatch):
    """Without the files whose sizes are told, which take longer than everything else."""
    sizes = []

    def noted(subject, dense, original):
        sizes.append((dense, original))

    monkeypatch.setattr("transform.pipeline.count_sizes", noted)
    return sizes


def model_and_data():
    model, x = made(SmallConv)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(12, *x.shape[1:], generator=generator)
    with torch.no_grad():  # all right, before anything is changed
        classes = copy.deepcopy(model).eval()(inputs).argmax(1)
    return model, list(zip(inputs.split(4), classes.split(4), strict=True))


def run(model, budget, data=None, **options):
    options = {"method": joint(), "train": False, "progress": "none"} | options
    return transform.compress(model, budget, data, **options)


WEIGHTS = 2 * 6 * 9 + 6 * 64 * 5
DENSE = 32 * WEIGHTS


def nominal(result):
    return sum(row.nonzeros * row.bits for row in result.costs.after)


def test_a_chain_of_shares_means_the_original_each_time():
    model, data = model_and_data()
    result, sizes = model, []
    for rate in (40, 60, 100):
        result = run(result, f"weight_bits<={100 / rate}%", data)
        [limit] = result.limits
        assert (limit.base, limit.maximum) == (DENSE, DENSE // rate)
        sizes.append(nominal(result))
        assert sizes[-1] <= DENSE // rate
        assert result.certificate.rows[0].base == DENSE
        assert result.costs.before.total.nonzeros == WEIGHTS
        assert result.costs.before.total.dense > result.costs.after.total.energy.relaxed
        assert result.bases["weight_bits"] == DENSE
    assert sizes == sorted(sizes, reverse=True)
    # Not a share of what was there before, of which less would be left.
    assert sizes[-1] > 0.8 * DENSE / 100


def test_weights_that_were_removed_stay_so_without_training():
    model, data = model_and_data()
    first = run(model, "weight_bits<=3%", data, keep_shapes=True)
    second = run(first, "weight_bits<=2%", data, keep_shapes=True)
    for before, after in zip(first.model.parameters(), second.model.parameters(), strict=True):
        if before.dim() > 1:
            assert not after[before == 0].any()
    assert nonzeros_of(second.model) <= nonzeros_of(first.model)


def test_the_papers_form_counts_the_original_layers():
    model, data = model_and_data()
    first = run(model, "weight_bits<=2%", data)
    second = run(first, transform.joint_budget(0.05, 3), data)
    assert first.layers == second.layers == (108, 1920)
    assert second.limits[0].maximum == 3 * (6 + 96)


def test_the_metric_before_is_the_originals():
    model, data = model_and_data()
    first = run(model, "weight_bits<=2%", data, valid=data)
    second = run(first, "weight_bits<=0.5%", data, valid=data)
    assert second.metrics["before"] == first.metrics["before"]
    correct = [(first.model.eval()(x).argmax(1) == y).double() for x, y in data]
    assert first.metrics["after"] == pytest.approx(torch.cat(correct).mean().item())
    assert first.metrics["after"] < first.metrics["before"] == 1


def test_a_metric_that_was_never_measured_is_not_made_up():
    model, data = model_and_data()
    first = run(model, "weight_bits<=2%", data)
    second = run(first, "weight_bits<=0.5%", data, valid=data)
    assert first.metrics["before"] is None
    assert second.metrics["before"] is None
    assert second.metrics["after"] is not None


@pytest.mark.slow
def test_training_goes_on_and_is_the_same_for_a_saved_result(tmp_path):
    model, data = model_and_data()
    options = {"train": {"epochs": 2, "lr": 0.02}, "method": joint(project_every=2)}
    first = run(model, "weight_bits<=3%", data, keep_shapes=True, **options)
    first.save(tmp_path / "first")
    loaded = transform.load(tmp_path / "first", made(SmallConv)[0])
    fresh, loaded = (run(each, "weight_bits<=1%", data, **options) for each in (first, loaded))
    assert state_digest(fresh.model) == state_digest(loaded.model)
    assert fresh.certificate == loaded.certificate
    assert fresh.limits == loaded.limits
    assert fresh.bases == loaded.bases
    assert fresh.costs.before.total == loaded.costs.before.total == first.costs.before.total
    assert nominal(fresh) <= DENSE // 100


def test_other_methods_go_on_as_well():
    model, data = model_and_data()
    first = run(model, "nonzeros<=50%", data, method="magnitude")
    second = run(first, "nonzeros<=20%, energy<=40%", data, method="energy")
    assert nonzeros_of(second.model) <= 0.2 * WEIGHTS
    assert [limit.base for limit in second.limits] == [
        first.bases[limit.key] for limit in second.limits
    ]
    base = first.costs.before.total.dense
    assert second.certificate.rows[0].base == base
    third = run(second, "energy<=33%", data, method="energy")
    assert third.costs.after.total.energy.relaxed <= 0.33 * base


def test_examples_come_from_the_earlier_result():
    model, data = model_and_data()
    first = run(model, "weight_bits<=2%", data)
    second = run(first, "weight_bits<=1%")
    assert nominal(second) <= DENSE // 100


@pytest.mark.spread(1)
@pytest.mark.parametrize("budget", ["energy<=30%", "energy<=40 MMAC", "nonzeros<=20%"])
def test_other_hardware_is_refused(budget):
    model, data = model_and_data()
    first = run(model, "nonzeros<=50%", data, method="magnitude")
    with pytest.raises(UnsupportedBudget, match="made for another hardware") as caught:
        run(first, budget, data, method="energy", hardware="horowitz")
    assert "hardware='eyeriss'" in caught.value.remedy


def test_what_is_not_known_of_the_original_is_refused():
    model, data = model_and_data()
    first = run(model, "weight_bits<=5%", data)
    known = {"energy", "macs", "nonzeros", "params", "sparse_macs", "weight_bits"}
    assert set(first.bases) == known
    with pytest.raises(UnsupportedBudget, match="does not know the 'archive'") as caught:
        run(first, "archive<=10%", data)
    assert "weight_bits" in caught.value.remedy
    older = dataclasses.replace(first, bases={})
    with pytest.raises(UnsupportedBudget, match="does not know the 'weight_bits'"):
        run(older, "weight_bits<=1%", data)


def test_absolute_limits_need_nothing_of_the_original():
    model, data = model_and_data()
    first = run(model, "weight_bits<=5%", data)
    older = dataclasses.replace(first, bases={})
    second = run(older, "nonzeros<=100", data, method="magnitude")
    assert nonzeros_of(second.model) <= 100
    assert second.certificate.holds
    assert "nonzeros" not in second.bases
    assert "of the original" not in str(second.certificate)


def test_bytes_of_the_original_are_carried_along(without_sizes):
    model, data = model_and_data()
    first = run(model, "weight_bits<=5%", data)
    known = dataclasses.replace(first, bases=first.bases | {"size": 12_345})
    second = run(known, "weight_bits<=2%", data)
    assert second.bases == known.bases
    run(second, "weight_bits<=1%", data)
    assert without_sizes == [(DENSE, None), (DENSE, 12_345), (DENSE, 12_345)]


def test_what_is_no_result_is_refused():
    for other in (None, 3, "model", nn.Linear):
        with pytest.raises(ArgumentError):
            run(other, "weight_bits<=5%", torch.ones(2, 2))


@pytest.mark.slow
def test_the_first_result_is_not_changed():
    model, data = model_and_data()
    first = run(model, "weight_bits<=3%", data)
    digest, books = state_digest(first.model), dict(first.graph.codebooks)
    decisions = first.decisions
    run(first, "weight_bits<=1%", data, train={"epochs": 1}, loss=F.cross_entropy)
    assert state_digest(first.model) == digest
    assert first.graph.codebooks == books
    assert first.decisions == decisions


@pytest.mark.parametrize("steps", [1, 2])
def test_a_size_of_a_result_is_counted_from_its_own_file(steps):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.ReLU())
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))
    data = [(torch.randn(4, 3, 8, 8), torch.arange(4))] * 4
    config = transform.L2Channels(steps=steps)
    first = transform.compress(model.eval(), "size<=70%", data, method=config, train=steps > 1)
    [row] = transform.compress(
        first, "size<=50%", data, method=config, train=steps > 1
    ).certificate.rows
    assert row.holds
    assert row.reached > 0.85 * row.maximum
