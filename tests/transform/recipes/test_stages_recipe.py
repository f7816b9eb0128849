"""Stages of a recipe: each goes on from the result of the last, also after a stop."""

from __future__ import annotations

import json

import pytest

import transform
from energy_model.errors import ArgumentError
from transform.recipes import run as recipe_run
from transform.recipes.recipe import Recipe
from transform.recipes.run import run_cell

pytestmark = pytest.mark.slow

VALUES = {
    "name": "toy",
    "model": "bench.zoo:digits_cnn",
    "data": "digits",
    "input": "1x8x8",
    "classes": 10,
    "budget": "weight_bits<=1% x 4 bit",
    "method": {"name": "joint", "mode": "prune"},
    "train": {"epochs": 2, "batches_per_epoch": 1, "optimizer": "adam", "eval_every": 2},
    "stages": [
        {"budget": "nonzeros<=50%", "method": {"name": "magnitude"}, "train": {"epochs": 1}},
        {"budget": "weight_bits<=25%"},
    ],
    "cost": {"minutes": 1},
}


def recipe(**changes):
    return Recipe.from_dict(VALUES | changes)


@pytest.fixture(autouse=True, scope="module")
def without_onnx():
    """Without ONNX files, which take longer than everything else."""
    save = transform.Compressed.save

    def saved(self, directory, *, onnx=False):
        return save(self, directory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transform.Compressed, "save", saved)
        patch.setattr("transform.pipeline.count_sizes", lambda *args: None)
        yield


class Calls(list):
    """Noted calls of compress; those after a number of them are stopped."""

    most = 99

    def compress(self, model, budget, data, **options):
        if len(self) >= self.most:
            raise KeyboardInterrupt
        self.append((type(model).__name__, str(budget), options))
        return transform.compress(model, budget, data, **options)


@pytest.fixture
def calls(monkeypatch):
    found = Calls()
    monkeypatch.setattr(recipe_run, "compress", found.compress)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A cell that ran without a stop: its folder, its result and its calls."""
    folder, noted = tmp_path_factory.mktemp("stages") / "cell", Calls()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe_run, "compress", noted.compress)
        return folder, run_cell(recipe(), recipe().single(), folder, progress="none"), noted


def test_stages_have_what_the_recipe_has_where_they_do_not_differ():
    first, second = recipe().earlier(seed=3)
    assert (first.number, second.number) == (0, 1)
    assert (first.budget, second.budget) == ("nonzeros<=50%", "weight_bits<=25%")
    assert (first.label, second.label) == ("magnitude", "joint (mode prune)")
    assert (first.seed, second.seed) == (3, 3)
    assert (first.train.epochs, second.train.epochs) == (1, 2)
    assert first.train.optimizer == second.train.optimizer == "adam"
    again = Recipe.from_dict(json.loads(json.dumps(recipe().to_dict())))
    assert again == recipe()
    assert recipe(stages=[]).earlier(0) == ()


def test_every_stage_goes_on_from_the_last(whole):
    folder, found, calls = whole
    assert [call[:2] for call in calls] == [
        ("Sequential", "nonzeros<=50%"),
        ("Compressed", "weight_bits<=25%"),
        ("Compressed", "weight_bits<=1% x 4 bit"),
    ]
    # Shapes stay until the last, so that shares are of the layers that there were.
    assert [call[2]["keep_shapes"] for call in calls] == [True, True, False]
    assert found["holds"]
    saved = transform.load(folder / "compressed")
    assert saved.bases["nonzeros"] == found["nonzeros"]["before"]
    assert saved.limits[0].base == 32 * found["nonzeros"]["before"]
    assert found["nonzeros"]["after"] * 32 <= saved.limits[0].maximum
    # What is told of before is told of the model that the recipe names.
    assert found["metrics"]["valid"]["before"] == saved.metrics["before"] is not None
    first = transform.load(next(folder.glob("stage-1*")))
    assert first.costs.after.total.nonzeros <= 0.5 * found["nonzeros"]["before"]


def test_a_stage_that_is_finished_is_not_run_again(tmp_path, calls, whole):
    for most in (1, 2):
        calls.most = most
        with pytest.raises(KeyboardInterrupt):
            run_cell(recipe(), recipe().single(), tmp_path / "cell", progress="none")
    calls.most = 99
    found = run_cell(recipe(), recipe().single(), tmp_path / "cell", progress="none")
    assert [call[1] for call in calls] == [
        "nonzeros<=50%",
        "weight_bits<=25%",
        "weight_bits<=1% x 4 bit",
    ]
    same = ("metrics", "nonzeros", "energy", "test_correct", "curve")
    assert {key: found[key] for key in same} == {key: whole[1][key] for key in same}
    # A finished cell is only read.
    run_cell(recipe(), recipe().single(), tmp_path / "cell", progress="none")
    assert len(calls) == 3


@pytest.mark.slow
def test_a_stage_that_was_stopped_while_it_was_written_is_run_again(tmp_path, calls):
    calls.most = 1
    folder = tmp_path / "cell"
    with pytest.raises(KeyboardInterrupt):
        run_cell(recipe(), recipe().single(), folder, progress="none")
    [stage] = folder.glob("stage-1*")
    (stage / "compressed.json").unlink()
    (stage / "checkpoints").mkdir()
    calls.most = 99
    assert run_cell(recipe(), recipe().single(), folder, progress="none")["holds"]
    assert [call[1] for call in calls].count("nonzeros<=50%") == 2


def test_other_stages_are_another_run(tmp_path, calls):
    other = recipe(stages=[{"budget": "nonzeros<=40%", "method": {"name": "magnitude"}}])
    assert other.single().folder == recipe().single().folder
    calls.most = 1
    with pytest.raises(KeyboardInterrupt):
        run_cell(recipe(), recipe().single(), tmp_path / "cell", progress="none")
    calls.most = 99
    run_cell(other, other.single(), tmp_path / "cell", progress="none")
    assert [call[1] for call in calls].count("nonzeros<=40%") == 1
    with pytest.raises(transform.StorageError, match="another run"):
        run_cell(recipe(), recipe().single(), tmp_path / "cell", progress="none")


def test_a_dry_run_does_every_stage_and_saves_none(tmp_path, calls):
    dry = recipe().dry()
    assert all(stage.train.epochs == 1 for stage in dry.earlier(0))
    found = run_cell(dry, dry.single(), tmp_path / "cell", dry=True, progress="none")
    assert found["holds"]
    assert len(calls) == 3
    assert {call[2]["out"] for call in calls} == {None}
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["result.json"]


@pytest.mark.parametrize(
    ("stages", "where"),
    [
        ("nonzeros<=50%", "stages"),
        ({"budget": "nonzeros<=50%"}, "stages"),
        (["nonzeros<=50%"], "stages"),
        ([{"method": {"name": "magnitude"}}], "stages"),
        ([{"budget": "nonzeros<=50%", "epochs": 3}], "stages"),
        ([{"budget": "nonzeros<=50%", "train": 3}], "stages"),
        ([{"budget": "nonzeros<=50%"}, {"budget": "nonsense"}], "budget"),
        ([{"budget": "nonzeros<=50%", "method": {"name": "nobody"}}], "method"),
        ([{"budget": "nonzeros<=50%", "train": {"epoch": 3}}], "train"),
        (3, "stages"),
    ],
)
def test_bad_stages_are_refused(stages, where):
    with pytest.raises(ArgumentError) as caught:
        recipe(stages=stages)
    assert caught.value.where.startswith(where)
