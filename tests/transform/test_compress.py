"""The verb: what comes out, and what it leaves alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from transform_nets import (
    INPUTS,
    Branching,
    HoldsOwnLeaf,
    Recurrent,
    SmallConv,
    TiedNet,
    made,
    nonzeros_of,
    weights_of,
)

import transform
from transform.fingerprint import state_digest


def global_state():
    numpy_state = np.random.get_state()  # noqa: NPY002 -- the global state is what is watched
    return torch.get_rng_state().tolist(), random.getstate(), str(numpy_state)


def flags(model):
    return [module.training for module in model.modules()]


@pytest.mark.spread(2)
@pytest.mark.parametrize("model_class", INPUTS)
@pytest.mark.parametrize("method", ["energy", "magnitude"])
def test_the_budget_holds_on_a_plain_model_of_the_callers_class(model_class, method):
    model, example = made(model_class)
    result = transform.compress(
        model, "nonzeros<=40%", example_inputs=example, method=method, keep_shapes=True
    )
    [row] = result.certificate.rows
    dense = sum(weight.numel() for weight in weights_of(model))
    assert result.certificate.holds
    assert (row.limit, row.base, row.maximum) == ("nonzeros", dense, int(0.4 * dense))
    assert nonzeros_of(result.model) == row.reached <= row.maximum
    assert type(result.model) is model_class
    assert result.model is not model
    before, after = model.state_dict(), result.model.state_dict()
    assert list(before) == list(after)
    assert [t.shape for t in before.values()] == [t.shape for t in after.values()]
    assert not any(torch.nn.utils.parametrize.is_parametrized(m) for m in result.model.modules())


@pytest.mark.parametrize("model_class", [SmallConv, Recurrent, Branching])
def test_weights_that_stay_are_as_they_were_and_all_else_too(model_class):
    model, example = made(model_class)
    result = transform.compress(model, "nonzeros<=50%", example_inputs=example)
    before, after = model.state_dict(), result.model.state_dict()
    compressed = {site.name for site in result.graph.sites}
    changed = 0
    for name, tensor in after.items():
        if torch.equal(tensor, before[name]):
            continue
        changed += 1
        assert name.removesuffix(".weight") in compressed
        kept = tensor != 0
        assert torch.equal(tensor[kept], before[name][kept])
        assert not torch.signbit(tensor[~kept]).any()
    assert changed == len(compressed)


@pytest.mark.parametrize("train", [False, 1])
def test_the_callers_model_and_the_random_state_are_untouched(train):
    model, example = made(SmallConv)
    model.train()
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    digest, modes, state = state_digest(model), flags(model), global_state()
    attributes = {name: set(vars(m)) for name, m in model.named_modules()}
    result = transform.compress(
        model,
        "energy<=50%",
        [(example, torch.tensor([0, 1]))],
        valid=[(example, torch.tensor([0, 1]))],
        train=train,
    )
    assert state_digest(model) == digest
    assert flags(model) == modes == flags(result.model)
    assert global_state() == state
    assert {name: set(vars(m)) for name, m in model.named_modules()} == attributes
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert [p.requires_grad for p in result.model.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    assert not any(module._forward_hooks for module in model.modules())
    ours, theirs = ({p.data_ptr() for p in module.parameters()} for module in (model, result.model))
    assert not ours & theirs


def test_an_error_leaves_them_untouched_too():
    model, example = made(SmallConv)
    model.train()
    digest, modes, state = state_digest(model), flags(model), global_state()
    with pytest.raises(transform.InfeasibleBudget):
        transform.compress(model, "energy<=1%", example_inputs=example)
    with pytest.raises(transform.TraceError):
        transform.compress(model, "energy<=50%", example_inputs=torch.zeros(2, 3, 8, 8))
    assert (state_digest(model), flags(model), global_state()) == (digest, modes, state)


def test_the_result_can_be_trained_on():
    model, example = made(SmallConv)
    result = transform.compress(model.train(), "energy<=50%", example_inputs=example)
    result.model(example).square().sum().backward()
    assert all(p.grad is not None for p in result.model.parameters())


@pytest.mark.spread(1)
@pytest.mark.parametrize("method", ["energy", "magnitude", transform.Magnitude(scope="layer")])
def test_the_same_seed_gives_the_same_bytes_on_any_thread_count(method):
    model = nn.Sequential(nn.Linear(512, 700), nn.ReLU(), nn.Linear(700, 300))
    threads, digests, example = torch.get_num_threads(), set(), torch.zeros(1, 512)
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            result = transform.compress(
                model, "nonzeros<=123456", example_inputs=example, method=method, seed=7
            )
            digests.add(state_digest(result.model))
    finally:
        torch.set_num_threads(threads)
    assert len(digests) == 1
    assert result.certificate.source.sha256 in digests


def test_tied_weights_stay_tied_and_count_once():
    model, example = made(TiedNet)
    result = transform.compress(model, "nonzeros<=50%", example_inputs=example)
    assert result.model.first.weight is result.model.second.weight
    assert result.certificate.rows[0].base == 64 + 24
    assert len(result.costs.after.rows) == 2
    assert "tied" in result.costs.after["first"].note


def test_weights_in_channels_last_order_are_compressed_like_any_other():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    example = torch.zeros(1, 4, 8, 8)
    expected = transform.compress(model, "nonzeros<=50%", example_inputs=example)
    model = model.to(memory_format=torch.channels_last)
    result = transform.compress(model, "nonzeros<=50%", example_inputs=example)
    assert result.certificate.rows == expected.certificate.rows
    assert state_digest(result.model) == state_digest(expected.model)


@pytest.mark.parametrize("budget", ["nonzeros<=10%", "energy<=100%"])
def test_a_model_of_zeros_fits_any_budget(budget):
    model = nn.Sequential(nn.Linear(20, 20))
    nn.init.zeros_(model[0].weight)
    result = transform.compress(model, budget, example_inputs=torch.zeros(1, 20))
    assert result.certificate.holds
    assert state_digest(result.model) == state_digest(model)


def test_what_cannot_be_traced_still_compresses_and_says_so():
    for model_class, layer in ((Branching, ""), (HoldsOwnLeaf, "leaf")):
        model, example = made(model_class)
        result = transform.compress(model, "nonzeros<=30%", example_inputs=example)
        [opaque] = [d for d in result.decisions if d.what == "kept opaque"]
        assert opaque.layer == layer
        assert "control flow" in opaque.why
        assert "transform_nets.py:" in opaque.why
        assert all(row.nonzeros < row.weights for row in result.costs.after.rows)
        assert "opaque" in repr(result)
    assert "inside opaque leaf" in result.costs.after["leaf.inner"].note
    assert "opaque" not in result.costs.after["head"].note


@pytest.mark.parametrize(
    ("budget", "method", "reason"),
    [
        ("energy<=50%", "energy", "worth their energy"),
        ("nonzeros<=50%", "magnitude", "same price"),
        ("weight_bits<=50%", "magnitude", "same price"),
        ("sparse_macs<=50%", "energy", "worth their MACs"),
        ("sparse_macs<=50%, macs<=90%", "l1", "only removing channels lowers"),
        ("energy<=60%, nonzeros<=50%", "energy", "worth their energy"),
    ],
)
def test_auto_picks_by_budget_and_says_why(budget, method, reason):
    model, example = made(SmallConv)
    result = transform.compress(model, budget, example_inputs=example)
    [decision] = [d for d in result.decisions if d.what.startswith("method")]
    assert result.method == method
    assert decision.what == f"method {method!r}"
    assert reason in decision.why
    assert result.config["config"] == type(transform.methods()[method].config()).__name__


@pytest.mark.slow
def test_auto_removes_channels_little_by_little_while_the_model_is_trained():
    model, example = made(SmallConv)
    labels = torch.zeros(len(example), dtype=torch.long)
    result = transform.compress(model, "params<=50%", [(example, labels)] * 12, train=2)
    assert (result.method, result.config["steps"], result.config["until"]) == ("l2", 8, 0.25)
    assert result.certificate.holds


def test_a_method_that_was_asked_for_is_used():
    model, example = made(SmallConv)
    config = transform.Magnitude(scope="layer", min_per_layer=3)
    result = transform.compress(model, "energy<=70%", example_inputs=example, method=config)
    assert result.method == "magnitude"
    assert result.config == config.to_dict()
    assert "asked for" in {decision.why for decision in result.decisions}
    shares = [row.keep / row.size for row in result.plan.rows]
    assert max(shares) - min(shares) < 0.02


def test_one_shot_keeps_two_percent_of_every_layer_unless_told_otherwise():
    model, example = made(SmallConv)
    with torch.no_grad():
        model.conv.weight.mul_(1e-6)
    result = transform.compress(model, "nonzeros<=5%", example_inputs=example)
    assert result.plan.kept["conv"] == 3  # ceil(0.02 x 108)
    bare = transform.Magnitude(min_density=0.0, min_per_layer=0)
    result = transform.compress(model, "nonzeros<=5%", example_inputs=example, method=bare)
    assert result.plan.kept["conv"] == 0


def test_metrics_are_measured_on_valid_data_or_not_at_all():
    model, example = made(SmallConv)
    labels = model.eval()(example).argmax(1)
    result = transform.compress(model, "energy<=50%", example_inputs=example)
    assert result.metrics == {"before": None, "after": None}
    assert repr(result).count("not measured") == 2
    wrong = torch.stack([labels[0], (labels[1] + 1) % 5])
    valid = ((x, y) for x, y in [(example, labels), (example, wrong)])
    result = transform.compress(model, "nonzeros<=100%", example_inputs=example, valid=valid)
    assert result.metrics == {"before": 0.75, "after": 0.75}
    assert "not measured" not in repr(result)
    assert repr(result).count("75.00 %") == 2
    for no_labels in ([example], [(example, torch.randn(2, 5))]):
        result = transform.compress(model, "energy<=50%", example_inputs=example, valid=no_labels)
        assert result.metrics == {"before": None, "after": None}


def test_the_history_and_the_costs_tell_before_and_after():
    model, example = made(SmallConv)
    result = transform.compress(model, "energy<=50%", example_inputs=example)
    before, after = result.costs.before.total, result.costs.after.total
    assert before == transform.analyze(model, example).total
    assert after == transform.analyze(result.model, example).total
    assert [row["energy"] for row in result.history] == [
        before.energy.relaxed,
        after.energy.relaxed,
    ]
    assert after.energy.relaxed == result.certificate.rows[0].reached


def test_the_device_may_be_named():
    model, example = made(SmallConv)
    result = transform.compress(model, "energy<=50%", example_inputs=example, device="cpu")
    assert next(result.model.parameters()).device == torch.device("cpu")


@pytest.mark.spread(1)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_keep_their_type_and_bits(dtype):
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to(dtype)
    example = torch.zeros(1, 8, dtype=dtype)
    result = transform.compress(model, "weight_bits<=50%", example_inputs=example, keep_shapes=True)
    [row] = result.certificate.rows
    assert row.base == (8 * 16 + 16 * 4) * torch.finfo(dtype).bits
    assert row.reached == row.base // 2
    assert {p.dtype for p in result.model.parameters()} == {dtype}


@pytest.mark.slow
def test_out_saves_the_model_its_file_and_its_certificate(tmp_path):
    from bench.check_certificate import check

    model, example = made(SmallConv)
    result = transform.compress(
        model, "energy<=50%", example_inputs=example, out=tmp_path / "deep" / "out"
    )
    folder = tmp_path / "deep" / "out"
    assert {"model.onnx", "model.certificate.json"} <= {p.name for p in folder.iterdir()}
    assert check(folder / "model.certificate.json") == []
    assert state_digest(transform.load(folder, model).model) == state_digest(result.model)


def test_progress_names_the_stages_on_the_error_stream(capfd):
    model, example = made(SmallConv)
    for mode, talks in (("none", False), (False, False), ("log", True)):
        transform.compress(model, "energy<=50%", example_inputs=example, progress=mode)
        out, err = capfd.readouterr()
        assert out == ""
        assert bool(err) == talks
    assert "tracing the model" in err
    assert "planning (energy)" in err
