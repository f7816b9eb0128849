"""The recipes of keep-states: equal settings for all methods, and data that are not here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from energy_model.errors import StorageError
from passes.methods.ising.config import Ising
from transform.recipes.recipe import load_recipe, recipe_names
from transform.recipes.run import run_cell

COMPARED = ("resnet20-cifar10-states", "resnet8-fashion-states")
# Where the data that are not here have to lie.
ABSENT = {
    "resnet18-kmnist-states": "KMNIST",
    "resnet18-cifar100-states": "cifar-100-python",
    "resnet18-flowers-states": "flowers-102",
}
ENERGIES = {
    "margin": Ising(),
    "free energy": Ising(energy="free_energy_nll"),
    "Ising energy": Ising(energy="ising"),
    "random energy": Ising(energy="random"),
}
WAYS = {
    "margin": Ising(),
    "margin + Ising": Ising(energy="combined"),
    "margin, de+ls": Ising(search="de+ls"),
    "margin, de": Ising(search="de"),
    "margin, before": Ising(search_share=0),
    "margin, in eights": Ising(channel_multiple=8),
}
SETTING = ("model", "weights", "data", "input", "classes", "layers", "hardware")
AT_ONCE = "l2, at once"
SCORES = ["l2", "l2 per layer", "l1", "bn_gamma", "taylor", "random per layer"]


def rows(name):
    """One cell of every method, by its label."""
    return {cell.label: cell for cell in load_recipe(name).cells()}


@pytest.mark.parametrize("name", COMPARED)
def test_searches_differ_in_what_their_labels_say(name):
    found = rows(name)
    searched = {label: cell.method for label, cell in found.items() if label not in SCORES}
    assert searched == ENERGIES
    assert list(found)[: len(SCORES)] == SCORES
    for label in SCORES:
        assert (found[label].method.scope == "layer") == label.endswith("per layer")


@pytest.mark.parametrize("name", COMPARED)
def test_all_are_trained_alike_on_all_budgets_and_seeds(name):
    recipe = load_recipe(name)
    cells = recipe.cells()
    assert len({repr(cell.train) for cell in cells}) == 1
    assert cells[0].train.select == "last"
    assert recipe.matrix["budget"] == ["macs<=50%", "macs<=25%", "macs<=15%"]
    assert recipe.matrix["seed"] == [0, 1, 2, 3, 4]
    assert len(cells) == len(rows(name)) * 3 * 5
    assert len(rows(name)) == len(ENERGIES) + len(SCORES)


def test_the_ways_to_search_differ_in_nothing_else():
    recipe, states = (
        load_recipe("resnet20-cifar10-searches"),
        load_recipe("resnet20-cifar10-states"),
    )
    found = rows(recipe.name)
    assert {label: cell.method for label, cell in found.items() if label != AT_ONCE} == WAYS
    assert {repr(cell.train) for cell in recipe.cells()} == {repr(states.cells()[0].train)}
    assert recipe.budget == "macs<=25%" and recipe.budget in states.matrix["budget"]
    for name in SETTING:
        assert getattr(recipe, name) == getattr(states, name), name


def test_the_setting_is_that_of_the_scores_alone():
    ours, theirs = load_recipe("resnet20-cifar10-states"), load_recipe("resnet20-cifar10-macs")
    for name in (*SETTING, "train"):
        assert getattr(ours, name) == getattr(theirs, name), name
    labels = {cell.label: cell.method for cell in theirs.cells()}
    own = rows(ours.name)
    assert rows("resnet20-cifar10-searches")[AT_ONCE].method == labels["l2"]
    slowly = {"steps": 8, "until": 0.25}
    assert {label: replace(labels[label], **slowly) for label in SCORES} == {
        label: own[label].method for label in SCORES
    }


@pytest.mark.parametrize("name", ["resnet8-fashion-states", "resnet18-fashion-states"])
def test_from_random_weights_scores_remove_when_the_search_does(name):
    for label, cell in rows(name).items():
        if isinstance(cell.method, Ising):
            assert cell.method.search_share == (0 if label.endswith("before") else 0.25)
        else:
            assert (cell.method.steps, cell.method.until) == (8, 0.25)


@pytest.mark.parametrize("name", ABSENT)
def test_the_authors_training(name):
    for cell in load_recipe(name).cells():
        train = cell.train
        assert (train.epochs, train.optimizer, train.weight_decay) == (200, "adadelta", 1e-5)
        assert train.schedule == {0: 1.0, 50: 0.1, 100: 0.01, 150: 0.001}
        method = cell.method
        share = method.search_share if isinstance(method, Ising) else method.until
        assert share == 0.5
        assert not isinstance(method, Ising) or (method.states, method.init_keep) == (8, 0.5)
    assert "batch=128" in load_recipe(name).data


@pytest.mark.parametrize(("name", "folder"), ABSENT.items())
def test_absent_data_are_told(name, folder, tmp_path):
    recipe = load_recipe(name)
    assert "not here" in recipe.about and "not here" in recipe.cost.needs
    assert f"DATA_ROOT/{folder}" in recipe.cost.needs
    with pytest.raises(StorageError, match="is not there") as caught:
        run_cell(recipe, recipe.single(), tmp_path / "cell", data_root=tmp_path, progress="none")
    assert str(tmp_path / folder) in str(caught.value)
    assert not (tmp_path / "cell").exists()


def test_all_recipes_of_states_are_checked():
    found = {name for name in recipe_names() if name.endswith("-states")}
    assert found == {*COMPARED, *ABSENT, "resnet18-fashion-states"}
