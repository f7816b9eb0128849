"""Recipes: what may stand in one, and how its matrix is expanded."""

from __future__ import annotations

import pytest
import yaml

from bench.zoo.data import parse_spec
from energy_model.errors import ArgumentError
from transform import EnergyProjection, Magnitude, TrainConfig
from transform.recipes.parts import MAX_MINUTES
from transform.recipes.recipe import Recipe, load_recipe, recipe_names, select_cells

SHIPPED = sorted(recipe_names())
BASE = {
    "name": "toy",
    "model": "bench.zoo:digits_cnn",
    "data": "digits",
    "input": "1x8x8",
    "classes": 10,
    "budget": "energy<=30%",
    "cost": {"minutes": 1},
}
MATRIX = {
    "method": [{"name": "energy"}, {"name": "magnitude", "scope": "layer", "label": "per layer"}],
    "budget": ["energy<=30%", "nonzeros<=10%"],
    "train.lr": [0.1, 0.2],
    "seed": [0, 7],
}


def recipe(**changes):
    return Recipe.from_dict({**BASE, **changes})


def test_the_matrix_is_the_product_of_its_lists():
    cells = recipe(matrix=MATRIX, train={"epochs": 3}).cells()
    found = [(c.method, c.budget, c.train.lr, c.seed) for c in cells]
    assert found == [
        (method, budget, lr, seed)
        for method in (EnergyProjection(), Magnitude(scope="layer"))
        for budget in MATRIX["budget"]
        for lr in MATRIX["train.lr"]
        for seed in MATRIX["seed"]
    ]
    assert [cell.number for cell in cells] == list(range(16))
    assert {cell.label for cell in cells} == {"energy", "per layer"}
    assert {cell.train.epochs for cell in cells} == {3}


def test_without_a_matrix_there_is_one_cell():
    [cell] = recipe().cells()
    assert cell == recipe().single()
    assert (cell.train, cell.seed, cell.method) == (None, 0, EnergyProjection())


def test_a_cells_folder_does_not_depend_on_the_rest_of_the_matrix():
    whole = recipe(matrix=MATRIX).cells()
    part = recipe(matrix={**MATRIX, "seed": [7]}).cells()
    assert {cell.folder for cell in part} == {cell.folder for cell in whole if cell.seed == 7}
    assert len({cell.folder for cell in whole}) == 16
    other = recipe(matrix=MATRIX, train={"epochs": 9}).cells()
    assert not {cell.folder for cell in other} & {cell.folder for cell in whole}


def test_cells_are_selected():
    found = recipe(matrix=MATRIX)
    assert select_cells(found, False, None) == (found.single(),)
    assert select_cells(found, True, None) == found.cells()
    assert select_cells(found, False, 5) == (found.cells()[5],)
    with pytest.raises(ArgumentError, match=r"there is no cell 16.* 0 to 15"):
        select_cells(found, True, 16)


@pytest.mark.parametrize("part", ["test", "train", "bench.data:test", None])
def test_a_recipe_that_names_test_data_as_valid_is_refused(part):
    with pytest.raises(ArgumentError, match=r"^valid: .*Nothing is ever selected on test data"):
        recipe(valid=part)
    assert recipe(valid="valid") == recipe()


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"modle": "a:b"}, "modle: there is no such field"),
        ({"name": "Not a name"}, "name: 'Not a name'"),
        ({"model": 3}, "model: 3 is no text"),
        ({"input": "1,8,8"}, "input: '1,8,8' is not a shape"),
        ({"classes": 0}, "classes: 0"),
        ({"classes": True}, "classes: True"),
        ({"budget": "enrgy<=30%"}, "budget: "),
        ({"weights": "../../w.pt"}, "leaves the data root"),
        ({"weights": "/w.pt"}, "leaves the data root"),
        ({"method": "energy"}, "method: 'energy' is no mapping"),
        ({"method": {"name": "enrgy"}}, "method: method: unknown method 'enrgy'"),
        ({"method": {"name": "energy", "scope": "layer"}}, r"unknown fields \['scope'\]"),
        ({"method": {"name": "energy", "interval": 0}}, r"EnergyProjection\.interval"),
        ({"train": {"epoch": 3}}, r"train: TrainConfig: unknown fields \['epoch'\]"),
        ({"train": {"lr": -1}}, r"train: TrainConfig\.lr"),
        ({"train": [3]}, "train: .* is no mapping"),
        ({"seed": -1}, "seed: -1"),
        ({"cost": {}}, "cost: the recipe does not say what it costs"),
        ({"cost": {"minutes": MAX_MINUTES + 1}}, r"cost\.minutes: 26 is not"),
        ({"cost": {"minutes": True}}, r"cost\.minutes"),
        ({"cost": {"hours": 1}}, r"cost\.hours: there is no such field"),
        ({"cost": 5}, "cost: 5 is no mapping"),
        ({"matrix": {"data": ["digits"]}}, r"matrix\.data: this cannot be varied"),
        ({"matrix": {"train.epoch": [1]}}, r"matrix\.train\.epoch: this cannot be varied"),
        ({"matrix": {"seed": 3}}, r"matrix\.seed: 3 is no list"),
        ({"matrix": {"seed": []}}, r"matrix\.seed: \[\] is no list"),
        ({"matrix": {"seed": [0, 0]}}, "matrix: two cells are the same"),
        ({"matrix": {"train.lr": [0.1, -1]}}, r"train: TrainConfig\.lr"),
    ],
)
def test_every_bad_field_is_named(changes, where):
    with pytest.raises(ArgumentError, match=where):
        recipe(**changes)


@pytest.mark.parametrize("name", ["name", "model", "data", "input", "classes", "budget", "cost"])
def test_a_missing_field_is_named(name):
    values = {key: value for key, value in BASE.items() if key != name}
    with pytest.raises(ArgumentError, match=f"{name}: the field is missing"):
        Recipe.from_dict(values)


def test_files_are_read(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump({**BASE, "matrix": MATRIX}))
    assert load_recipe(path) == recipe(matrix=MATRIX)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "cannot be read"),
        ("- a", "is no mapping"),
        ("1: a", "is no mapping"),
        ("!!python/object/apply:os.getcwd []", "cannot be read"),
        ("name: toy", "toy.yaml: model: the field is missing"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    path = tmp_path / "toy.yaml"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=message):
        load_recipe(path)


def test_an_unknown_recipe_lists_those_there_are(tmp_path):
    with pytest.raises(ArgumentError, match="digits-energy"):
        load_recipe("digit-energy")
    with pytest.raises(ArgumentError, match="there is no recipe"):
        load_recipe(tmp_path / "none.yaml")


def test_what_is_shipped():
    assert set(SHIPPED) >= {
        "alexnet-imagenet-energy",
        "digits-energy",
        "lenet5-mnist-below-floor",
        "lenet5-mnist-energy",
        "lenet5-mnist-masks",
        "resnet20-cifar10-energy",
    }
    lenet = load_recipe("lenet5-mnist-energy")
    assert len(lenet.cells()) == 3 * 4 * 5
    assert {cell.budget for cell in lenet.cells()} == {
        f"energy<={share}%" for share in (30, 20, 18, 17)
    }
    [trained] = {repr(cell.train) for cell in lenet.cells()}  # methods compete at equal training
    assert "select='last'" in trained
    masks = load_recipe("lenet5-mnist-masks").cells()
    assert {cell.label: cell.train.epochs for cell in masks} == {
        "with input masks": 6,
        "weights alone": 30,
    }
    assert "accelerator" in load_recipe("alexnet-imagenet-energy").cost.needs


@pytest.mark.spread(4)
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_sound(name):
    found = load_recipe(name)
    assert found.name == name
    assert Recipe.from_dict(found.to_dict()) == found
    assert found.about
    assert parse_spec(found.data).name
    for cell in found.cells():
        assert isinstance(cell.train, TrainConfig)
