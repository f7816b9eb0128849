"""Training with input masks, through the verb: phases, what they touch, what is returned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from masked_runs import (
    EPOCHS,
    KEEP,
    Script,
    Watcher,
    conv_net,
    floor,
    image_batches,
    mask_names,
    masked_run,
    recounted,
)
from torch import nn
from training_runs import Falling, plain, run, seeded, trained_rows

import transform
from transform.fingerprint import state_digest

# Trainings with masked inputs: `make test-slow` runs them.
pytestmark = pytest.mark.slow


@pytest.fixture
def watcher(monkeypatch):
    return Watcher(monkeypatch)


def assert_holds(result):
    """The certificate, against an independent recount of the finished model."""
    assert result.certificate.holds
    row = result.certificate.rows[0]
    assert row.reached == recounted(result.model)[0] <= row.maximum


@pytest.mark.parametrize("select", ["best", "last"])
@pytest.mark.parametrize("mask_cost", ["energy", "count"])
@pytest.mark.parametrize(("start", "order"), [("weights", "wmwmw"), ("masks", "mwmw")])
def test_every_phase_touches_its_own_and_keeps_its_budget(start, order, mask_cost, select, watcher):
    result = masked_run(start=start, mask_cost=mask_cost, train={"select": select})
    assert_holds(result)
    assert watcher.phases == order
    maximum, shares, state = result.certificate.rows[0].maximum, iter(KEEP), None
    for row in watcher.rows:
        before, trained, after = (row[name] for name in ("before", "trained", "after"))
        masks = mask_names(before)
        assert len(masks) == 2
        if row["phase"] == "weights":
            assert all(torch.equal(before[key], trained[key]) for key in masks)
            assert any(not torch.equal(before[k], trained[k]) for k in row["parameters"])
            assert row["energy"] - row["still_saved"] <= maximum
        else:
            assert all(torch.equal(before[key], trained[key]) for key in row["parameters"])
            assert any(not torch.equal(before[key], trained[key]) for key in masks)
            assert_rounded([after[key] for key in masks], row, next(shares), mask_cost)
        assert row["recounted"] == (row["energy"], row["inputs"])
        # What has become useless when a phase ends is zeroed, and no other parameter is touched.
        kept = {key: after[key] != 0 for key in row["parameters"]}
        assert all(torch.equal(after[key][k], trained[key][k]) for key, k in kept.items())
        assert state is None or all(torch.equal(state[key], before[key]) for key in state)
        state = after


def assert_rounded(masks, row, share, mask_cost):
    """0 or 1, and within their share of what all inputs cost."""
    assert all(set(mask.unique().tolist()) <= {0.0, 1.0} for mask in masks)
    prices = [p if mask_cost == "energy" else np.ones_like(p) for p in row["prices"]]
    supports = [mask.numpy() != 0 for mask in masks]
    used = sum(int(p[keep].sum()) for p, keep in zip(prices, supports, strict=True))
    opened = [keep.reshape(len(keep), -1).any(axis=1) for keep in supports]
    used += sum(int(p[keep].sum()) for p, keep in zip(row["openings"], opened, strict=True))
    assert used <= share * sum(int(p.sum()) for p in (*prices, *row["openings"]))


def test_more_weights_are_kept_once_inputs_are_masked(watcher):
    masked_run(mask_keep=(0.6, 0.4))
    weights = [row for row in watcher.rows if row["phase"] == "weights"]
    masks = [row for row in watcher.rows if row["phase"] == "masks"]
    assert [row["inputs"] for row in masks] == sorted((r["inputs"] for r in masks), reverse=True)
    saved = weights[0]["inputs"] - masks[0]["inputs"]
    assert saved > 0
    # What weights may cost rises by exactly what is saved; a recount may mask further inputs.
    assert weights[1]["capacity"] - weights[0]["capacity"] >= saved
    kept = [row["nonzeros"] for row in weights]
    assert kept[0] < kept[1] < kept[2]


def test_the_history_tells_the_phases():
    rows = trained_rows(masked_run(valid=None))
    assert [row["epoch"] for row in rows] == list(range(1, 11))
    phases = [row.get("phase", "weights")[0] for row in rows[::EPOCHS]]
    assert "".join(phases) == "wmwmw"
    rates = {row["lr"] for row in rows if row.get("phase") == "masks"}
    assert rates == {0.05}


STOPS = [
    # Evaluations: one before, then two in each phase.
    ((0.0, *[0.1, 0.2], *[0.9, 0.9], *[0.1, 0.2]), "wmw"),
    ((0.0, *[0.1, 0.2], *[0.9, 0.9], *[0.1, 0.3], *[0.9, 0.9], *[0.3, 0.3]), "wmwmw"),
    ((0.0, *[0.1, 0.2], *[0.0, 0.0], *[0.3, 0.1], *[0.9, 0.9], *[0.2, 0.2]), "wmwmw"),
    ((0.5,), "wmw"),
]


@pytest.mark.parametrize(("values", "order"), STOPS)
def test_it_stops_after_weights_that_are_not_strictly_better(values, order, watcher):
    keep = (0.9, 0.8, 0.7, 0.6)
    masked_run(stop_early=True, mask_keep=keep, metric=Script(*values), schedule="none")
    assert watcher.phases == order


def test_without_valid_data_every_alternation_is_run(watcher):
    result = masked_run(stop_early=True, valid=None, mask_keep=(0.9, 0.8, 0.7))
    assert watcher.phases == "wmwmwmw"
    assert_holds(result)
    # The last one is the result.
    last, final = watcher.rows[-1]["after"], result.model.state_dict()
    masks = mask_names(last)
    assert all(((final[key] != 0) <= (last[key] != 0)).all() for key in masks)


BEST = {
    # The best epoch of all is in the second phase of weights: its first, its second.
    "best": (0.0, *[0.1, 0.2], *[0.9, 0.9], *[0.6, 0.5], *[0.9, 0.9], *[0.3, 0.3]),
    "last": (0.0, *[0.9, 0.2], *[0.9, 0.9], *[0.1, 0.5], *[0.9, 0.9], *[0.7, 0.3]),
}


@pytest.mark.parametrize("select", BEST)
def test_the_best_alternation_is_returned_and_not_the_last(select, watcher):
    options = {"train": {"select": select}, "schedule": "none"}
    result = masked_run(metric=Script(*BEST[select]), **options)
    assert watcher.phases == "wmwmw"
    assert_holds(result)
    # A run that ends with that alternation; what the masks reach on the way is not looked at.
    other = [value if value != 0.9 else 0.0 for value in BEST[select]]
    other[1] = BEST[select][1]
    shorter = masked_run(metric=Script(*other), mask_keep=KEEP[:1], **options)
    assert state_digest(result.model) == state_digest(shorter.model)
    last = masked_run(metric=Script(0.5, *[float(n) for n in range(12)]), **options)
    assert state_digest(last.model) != state_digest(result.model)


def test_the_first_alternation_may_be_the_best():
    options = {"schedule": "none", "metric": Falling()}
    result = masked_run(train={"select": "last"}, **options)
    alone = masked_run(train={"select": "last"}, schedule="none", stop_early=True, metric=Falling())
    assert state_digest(result.model) == state_digest(alone.model)
    tied = masked_run(train={"select": "last"}, schedule="none", metric=Script(0.5))
    assert state_digest(result.model) == state_digest(tied.model)
    for mask in (b for k, b in result.model.named_buffers() if k.startswith("input_masks")):
        assert set(mask.unique().tolist()) <= {0.0, 1.0}


def test_below_the_floor_only_masks_that_come_first_help():
    below = floor() - 1
    for method in (
        transform.EnergyProjection(),
        transform.EnergyProjection(input_mask=True),
        transform.Magnitude(),
    ):
        with pytest.raises(transform.InfeasibleBudget) as caught:
            transform.compress(
                conv_net(), f"energy<={below}", image_batches(), method=method, progress="none"
            )
        assert caught.value.tightest > below
        assert "method 'energy' with input_mask=True, start='masks'" in caught.value.remedy
    result = masked_run(f"energy<={below}", start="masks")
    assert_holds(result)
    assert result.certificate.rows[0].reached <= below
    assert sum(int((p != 0).sum()) for n, p in result.model.named_parameters() if "weight" in n) > 0


def test_the_outputs_are_those_before_the_useless_was_removed(watcher, monkeypatch):
    from passes.methods.input_masking import InputMasking

    seen = []
    for name in ("drop_unmet", "settle_channels"):
        original = getattr(InputMasking, name)

        def checked(masking, *args, original=original):
            model, x = masking.graph.runnable, image_batches()[0][0]
            flags = [m.training for m in model.modules()]
            model.eval()
            before = model(x)
            changed = original(masking, *args)
            assert torch.equal(model(x), before)
            for module, flag in zip(model.modules(), flags, strict=True):
                module.training = flag
            seen.append(changed)
            return changed

        monkeypatch.setattr(InputMasking, name, checked)
    result = masked_run("energy<=45%", mask_keep=(0.5, 0.2), start="masks", valid=None)
    assert_holds(result)
    assert len(seen) == 2 * 3 + 2
    assert max(seen) > 0


def test_in_one_shot_masks_are_refused():
    for options in ({"train": False}, {"data": [image_batches()[0][0]], "train": None}):
        with pytest.raises(transform.ArgumentError, match="nothing to train on") as caught:
            transform.compress(
                conv_net(),
                "energy<=60%",
                options.get("data", image_batches()),
                train=options["train"],
                method=transform.EnergyProjection(input_mask=True),
                progress="none",
            )
        assert caught.value.where == "EnergyProjection.input_mask"


def test_nothing_to_mask_is_an_error():
    with pytest.raises(transform.PreconditionError, match="no convolution"):
        run(model=plain(), method=transform.EnergyProjection(input_mask=True))


def test_no_epochs_only_project():
    result = masked_run(train={"epochs": 0})
    assert_holds(result)
    assert trained_rows(result) == []
    with pytest.raises(transform.InfeasibleBudget):
        masked_run(f"energy<={floor() - 1}", train={"epochs": 0}, start="masks")


def test_in_mixed_precision_the_masks_are_counted_too(watcher):
    result = masked_run(train={"amp": "bf16"}, mask_keep=(0.6,))
    assert_holds(result)
    assert watcher.rows[1]["inputs"] < watcher.rows[0]["inputs"]
    assert [row["recounted"] for row in watcher.rows] == [
        (row["energy"], row["inputs"]) for row in watcher.rows
    ]


def test_rules_for_layers_hold():
    layers = {"0": False, "3": {"max_sparsity": 0.3}}
    result = masked_run("energy<=85%", layers=layers, mask_keep=(0.4, 0.1), valid=None)
    assert_holds(result)
    modules = dict(result.model.named_modules())
    assert int((modules["0"].weight != 0).sum()) == 36
    assert int((modules["3"].weight != 0).sum()) >= 0.7 * 144
    masks = [k for k, _ in result.model.named_buffers() if k.startswith("input_masks")]
    assert masks == ["input_masks.3"]


def test_the_callers_model_is_left_as_it_was():
    model = conv_net()
    before, names = state_digest(model), list(model.state_dict())
    result = masked_run(model=model)
    assert state_digest(model) == before
    assert list(model.state_dict()) == names
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(b.requires_grad for b in result.model.buffers())


def test_the_same_seed_gives_the_same_bits_and_another_others():
    first, second = masked_run(), masked_run()
    assert state_digest(first.model) == state_digest(second.model)
    assert first.history == second.history
    assert state_digest(masked_run(seed=1).model) != state_digest(first.model)


class TwoImages(nn.Module):
    """Two inputs, each with a convolution, and a dict of outputs."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)
        self.head = nn.Linear(72, 3)

    def forward(self, a, b, scale=1.0):
        both = torch.relu(self.left(a)) + scale * torch.relu(self.right(b))
        return {"scores": self.head(both.flatten(1))}


def test_two_inputs_and_a_dict_of_outputs():
    batches = [((x, x.flip(3)), y) for x, y in image_batches()]

    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs["scores"], targets)

    result = transform.compress(
        seeded(TwoImages),
        "energy<=70%",
        batches,
        valid=batches,
        loss=loss,
        train=1,
        method=transform.EnergyProjection(input_mask=True, mask_keep=(0.7,), mask_lr=0.05),
        progress="none",
    )
    assert result.certificate.holds
    masks = [k for k, _ in result.model.named_buffers() if k.startswith("input_masks")]
    assert masks == ["input_masks.left", "input_masks.right"]
    assert set(result.model(*batches[0][0])) == {"scores"}
