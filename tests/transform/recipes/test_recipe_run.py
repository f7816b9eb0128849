"""Cells of recipes: every shipped one on random numbers, and what resuming skips."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import transform
from bench.zoo.digits import digits_batches
from energy_model.errors import ArgumentError, StorageError
from transform.evaluate import correct_samples
from transform.recipes import run as recipe_run
from transform.recipes.recipe import Recipe, load_recipe, recipe_names
from transform.recipes.run import packed, require_apart, run_cell, training_curve
from transform.storage import CHECKPOINTS

TOY = Recipe.from_dict(
    {
        "name": "toy",
        "model": "bench.zoo:digits_cnn",
        "data": "digits",
        "input": "1x8x8",
        "classes": 10,
        "budget": "energy<=30%",
        "train": {"epochs": 2, "batches_per_epoch": 3, "optimizer": "adam"},
        "cost": {"minutes": 1},
    }
)


# Many seconds or minutes: AlexNets, an archive that is written and measured several times, or more
# of what others show.
HEAVY = {
    "resnet20-cifar10-search",
    "lenet5-mnist-below-floor",
    "lenet5-mnist-joint-400x",
    "lenet5-mnist-masks",
    "alexnet-imagenet-energy",
    "alexnet-imagenet-joint",
    "lenet5-mnist-joint-1975x",
    "resnet20-cifar10-archive",
    "resnet20-cifar10-archive-pruned",
    "resnet20-cifar10-searches",
    "resnet20-cifar10-states",
    "resnet18-cifar100-states",
    "resnet18-fashion-states",
    "resnet18-flowers-states",
    "resnet18-kmnist-states",
    "resnet50-imagenet-rewiring-dense",
    "resnet50-imagenet-rewiring-pruned",
    "resnet50-imagenet-rewiring-s80",
    "resnet50-imagenet-rewiring-s90",
    "resnet50-imagenet-rewiring-shortcuts",
    "wrn16-1-cifar10-dense",
    "wrn28-2-cifar10-rewiring-dense",
    "wrn28-2-cifar10-rewiring-pruned",
    "wrn28-2-cifar10-rewiring-s50",
    "wrn28-2-cifar10-rewiring-s60",
    "wrn28-2-cifar10-rewiring-s70",
    "wrn28-2-cifar10-rewiring-s80",
    "wrn28-2-cifar10-rewiring-s90",
}


@pytest.mark.spread(6)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in HEAVY else ())
        for name in sorted(recipe_names())
    ],
)
def test_every_shipped_recipe_runs_dry(name, tmp_path):
    recipe = load_recipe(name).dry()
    found = run_cell(recipe, recipe.single(), tmp_path / "cell", dry=True, progress="none")
    assert found["holds"]
    assert found["steps"] >= 1
    assert any(found[key]["after"] < found[key]["before"] for key in ("energy", "params"))
    assert found["metrics"]["test"]["after"] is not None
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["result.json"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe") / "cell"
    return folder, run_cell(TOY, TOY.single(), folder, command="typed", progress="none")


def test_the_result_is_what_compress_gives(finished):
    folder, found = finished
    saved = transform.load(folder / "compressed")
    assert found == json.loads((folder / "result.json").read_bytes())
    assert found["command"] == "typed"
    assert found["cell"] == json.loads(json.dumps(TOY.single().to_dict()))
    assert found["steps"] == 6
    assert found["metrics"]["valid"] == saved.metrics
    assert found["energy"]["after"] == saved.costs.after.total.energy.relaxed
    assert found["nonzeros"]["after"] == saved.costs.after.total.nonzeros
    inputs, targets = (torch.cat(parts) for parts in zip(*digits_batches()[2], strict=True))
    with torch.no_grad():
        correct = saved.model.eval()(inputs).argmax(1) == targets
    assert found["metrics"]["test"]["after"] == pytest.approx(correct.double().mean().item())


def bits(text, samples):
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=samples).tolist()


def test_the_result_says_which_test_samples_are_right(finished):
    folder, found = finished
    saved, test = transform.load(folder / "compressed"), digits_batches()[2]
    right = found["test_correct"]
    assert right["samples"] == sum(len(targets) for _, targets in test)
    after = correct_samples(saved.model, test, torch.device("cpu"))
    assert bits(right["after"], right["samples"]) == after
    for name in ("before", "after"):
        share = sum(bits(right[name], right["samples"])) / right["samples"]
        assert found["metrics"]["test"][name] == share
    assert right["before"] != right["after"]


def test_the_order_of_the_test_samples_is_noted_whatever_the_batches():
    def noted(*batches):
        model, device = nn.Linear(2, 3), torch.device("cpu")
        return recipe_run._tested(model, model, batches, device)[1]["order"]

    inputs, targets = torch.randn(4, 2), torch.tensor([0, 1, 2, 1])
    whole = noted((inputs, targets))
    assert noted((inputs[:3], targets[:3]), (inputs[3:], targets[3:])) == whole
    assert noted((inputs.flip(0), targets.flip(0))) != whole


def test_the_test_data_are_read_once_for_each_of_the_two_models():
    class Counted(list):
        reads = 0

        def __iter__(self):
            Counted.reads += 1
            return super().__iter__()

    data = Counted([(torch.randn(4, 2), torch.tensor([0, 1, 2, 1]))])
    accuracy, correct = recipe_run._tested(
        nn.Linear(2, 3), nn.Linear(2, 3), data, torch.device("cpu")
    )
    assert Counted.reads == 2
    assert accuracy["after"] == sum(bits(correct["after"], 4)) / 4


def test_without_top_1_nothing_is_said_of_samples():
    none = ({"before": None, "after": None}, None)
    model, device = nn.Linear(2, 3), torch.device("cpu")
    regression = [(torch.randn(4, 2), torch.randn(4, 3))]
    for test in (None, regression, [torch.randn(4, 2)]):
        assert recipe_run._tested(model, model, test, device) == none


def test_truths_are_packed_from_the_highest_bit():
    assert packed([True]) == "80"
    assert packed([False] * 7 + [True, True]) == "0180"
    assert packed([]) == ""


def test_the_curve_has_one_row_an_epoch(finished):
    folder, found = finished
    saved = [row for row in transform.load(folder / "compressed").history if "epoch" in row]
    assert found["curve"] == [[r["epoch"], r["loss"], r["metric"], r["lr"]] for r in saved]
    assert [row[0] for row in found["curve"]] == [1, 2]


def test_what_was_logged_within_an_epoch_is_left_out_of_the_curve():
    history = [
        {"event": "original", "energy": 3},
        {"event": "trained", "epoch": 1, "step": 1, "loss": 9.0, "lr": 0.2},
        {"event": "trained", "epoch": 1, "step": 2, "loss": 5.0, "lr": 0.1},
        {"event": "trained", "epoch": 2, "step": 4, "loss": 4.0, "lr": 0.1, "metric": 0.5},
        {"event": "finished: energy", "energy": 1},
    ]
    assert training_curve(history) == [[1, 5.0, None, 0.1], [2, 4.0, 0.5, 0.1]]
    assert training_curve([]) == []


def test_a_finished_cell_is_not_run_again(finished, monkeypatch):
    folder, found = finished

    def never(*arguments, **options):
        raise AssertionError("it was run again")

    monkeypatch.setattr(recipe_run, "compress", never)
    assert run_cell(TOY, TOY.single(), folder, progress="none") == found
    with pytest.raises(StorageError, match="the result of another run"):
        run_cell(TOY, replace(TOY.single(), seed=1), folder, progress="none")
    with pytest.raises(StorageError, match="the result of another run"):
        run_cell(replace(TOY, hardware="other"), TOY.single(), folder, progress="none")


def test_a_cell_that_was_killed_before_its_result_only_tests(finished, tmp_path, monkeypatch):
    folder, found = finished
    shutil.copytree(folder / "compressed", tmp_path / "compressed")
    monkeypatch.setattr(recipe_run, "compress", None)
    again = run_cell(TOY, TOY.single(), tmp_path, command="typed", progress="none")
    assert again | {"seconds": 0} == found | {"seconds": 0}


@pytest.mark.slow
def test_a_cell_that_was_killed_goes_on_to_the_same_weights(finished, tmp_path, monkeypatch):
    from transform.training.checkpoint import Checkpoints

    folder, found = finished
    save = Checkpoints.save

    def killed(self, epoch, state):
        save(self, epoch, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", killed)
        run_cell(TOY, TOY.single(), tmp_path, progress="none")
    compressed = tmp_path / "compressed"
    assert [path.name for path in compressed.iterdir()] == [CHECKPOINTS]
    (compressed / "model.onnx").write_bytes(b"half")
    again = run_cell(TOY, TOY.single(), tmp_path, command="typed", progress="none")
    assert again | {"seconds": 0} == found | {"seconds": 0}
    names = ("weights.safetensors", "model.onnx")
    for name in names:
        assert (compressed / name).read_bytes() == (folder / "compressed" / name).read_bytes()


def test_weights_are_read_from_the_data_root(tmp_path):
    recipe = replace(TOY, weights="weights/net.pt", train=None)
    with pytest.raises(StorageError, match=r"weights.net\.pt: the weights are not there"):
        run_cell(recipe, recipe.single(), tmp_path / "a", data_root=tmp_path, progress="none")
    from bench.zoo import digits_cnn

    model = digits_cnn()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
            parameter.reshape(-1)[0] = 1
    (tmp_path / "weights").mkdir()
    torch.save(model.state_dict(), tmp_path / "weights" / "net.pt")
    found = run_cell(
        recipe, recipe.single(), tmp_path / "b", data_root=tmp_path, dry=True, progress="none"
    )
    assert found["nonzeros"]["before"] == sum(p.dim() > 1 for p in model.parameters())


def test_what_a_recipe_needs_is_told_when_it_is_absent(tmp_path):
    recipe = load_recipe("alexnet-imagenet-energy")
    with pytest.raises(StorageError, match="The recipe needs an accelerator, ImageNet"):
        run_cell(recipe, recipe.single(), tmp_path / "a", data_root=tmp_path, progress="none")


def test_validation_data_that_are_the_test_data_are_refused():
    batches, other = [torch.zeros(2, 3)], [torch.ones(2, 3)]
    for part in (batches, [torch.zeros(2, 3)]):
        with pytest.raises(ArgumentError, match="Nothing is ever selected on test data"):
            require_apart(batches, part)
    with pytest.raises(ArgumentError, match="Nothing is ever selected"):
        require_apart([(batches[0], {"y": 1})], [(batches[0], {"y": 1})])
    for pair in ((batches, other), (batches, None), (None, other), ([], [])):
        require_apart(*pair)


def test_a_callable_that_tests_on_its_validation_data_is_refused(tmp_path, monkeypatch):
    (tmp_path / "recipe_sources.py").write_text(
        "from bench.zoo import digits_batches\n"
        "def leaking():\n"
        "    train, valid, test = digits_batches()\n"
        "    return train, test, list(test)\n"
    )
    monkeypatch.chdir(tmp_path)
    recipe = replace(TOY, data="recipe_sources:leaking")
    with pytest.raises(ArgumentError, match="the validation data are the test data"):
        run_cell(recipe, recipe.single(), tmp_path / "cell", progress="none")
    assert not (tmp_path / "cell").exists()
