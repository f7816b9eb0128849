"""Search over architectures through `compress`: what is promised holds, and all is recorded."""

from __future__ import annotations

import itertools
import json
import sqlite3

import pytest
import torch
from embedding_runs import CLASSES, Residual, data, searched, trained

import transform
from energy_model.errors import (
    ArgumentError,
    BudgetError,
    InfeasibleBudget,
    PreconditionError,
    StorageError,
    TrainingError,
)
from passes.architecture.genotype import Genotype
from passes.methods.embedding.loop import ArchitectureSearch
from passes.methods.embedding.method import RECORD
from transform.cli.app import app
from transform.search_stats import search_stats
from transform.storage import CHECKPOINTS
from transform.training.candidates import SEARCH

typer_testing = pytest.importorskip("typer.testing")


@pytest.fixture(scope="module")
def result():
    return searched()


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_budget_holds_and_the_best_finalist_is_the_result(result):
    assert result.certificate.holds
    assert count(result.model) == result.search.best.costs["params"]
    assert count(result.model) <= 0.6 * count(Residual())
    assert result.metrics["after"] == result.search.best.accuracy
    rewards = [one.reward for one in result.search.finalists]
    assert rewards == sorted(rewards, reverse=True) and len(rewards) == 2
    assert max(row.get("step", 0) for row in result.history) == 4  # of its full training
    x = data(1, 9)[0][0]
    assert result.model(x).shape == (12, 3)
    [told] = [d for d in result.decisions if d.what.startswith("the best of 9 students")]
    assert told.after == f"{count(result.model):,} params"


def test_every_candidate_is_recorded_and_keeps_the_budget(result):
    record = result.search
    firsts = [row for row in record.rows if row.rung == 0]
    assert [(row.step, row.slot) for row in firsts] == [(s, n) for s in range(3) for n in range(3)]
    assert len({row.digest for row in firsts}) == 9
    assert all(row.costs["params"] <= 0.6 * record.costs["params"] for row in record.rows)
    assert all(row.status == "done" for row in record.rows)
    for row in record.rows:
        saved = 1 - row.costs["params"] / record.costs["params"]
        assert row.reward == pytest.approx(saved * (2 - saved) * row.accuracy / record.accuracy)
    assert Genotype.from_dict(record.best.genotype).digest == record.best.digest
    assert record.epochs == sum(1 for _ in record.rows)  # rungs of one epoch each
    assert [step["step"] for step in record.steps] == [0, 1, 2]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model(result):
    again = searched()
    states = zip(result.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)
    assert again.search == result.search
    other = searched(seed=1)
    assert {row.digest for row in other.search.rows} != {row.digest for row in result.search.rows}


@pytest.mark.slow
def test_the_callers_model_is_left_alone():
    model = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    searched(model=model, search={"steps": 1})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", ["evolution", "features", "embedding"])
def test_every_proposer_serves(surrogate):
    found = searched("macs<=50%", search={"surrogate": surrogate, "batch": 4})
    assert found.certificate.holds
    assert {row.costs["macs"] <= 0.5 * found.search.costs["macs"] for row in found.search.rows} == {
        True
    }
    fitted = [step["fits"] for step in found.search.steps]
    if surrogate == "evolution":
        assert not any(fitted)
    else:
        assert fitted[0] == [] and fitted[2][0]["surrogate"] == surrogate
    if surrogate == "embedding":
        assert len(found.search.encoders) == 2


@pytest.mark.slow
def test_what_was_learned_is_saved_and_starts_another_search(tmp_path):
    learning = {"surrogate": "embedding", "batch": 4}
    first = searched(search=learning)
    first.save(tmp_path / "first")
    loaded = transform.load(tmp_path / "first").search.encoders
    states = [[e.state_dict() for e in encoders] for encoders in (first.search.encoders, loaded)]
    for mine, saved in zip(*states, strict=True):
        assert all(torch.equal(mine[name], saved[name]) for name in mine)
    warm = searched(search=learning | {"encoder": str(tmp_path / "first")})
    assert warm.search.rows[:4] == first.search.rows[:4]  # chance: nothing is known of rewards
    assert warm.search.rows != first.search.rows
    with pytest.raises(StorageError):
        searched(search=learning | {"encoder": str(tmp_path / "nowhere")})


@pytest.mark.slow
def test_without_a_budget_the_reward_alone_decides():
    found = searched(None, search={"steps": 1})
    [row] = found.certificate.rows
    assert row.asked == "params<=100%"
    with pytest.raises(BudgetError):
        transform.compress(trained(), None, data(2, 2), method="l2")


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["macs", ("params", "energy")])
def test_another_cost_can_be_what_counts(metric):
    record = searched(search={"steps": 1, "metric": metric}).search
    keys = (metric,) if isinstance(metric, str) else metric
    assert record.metric == keys
    row = record.rows[0]
    left = 1.0
    for key in keys:
        left *= (row.costs[key] / record.costs[key]) ** (1 / len(keys))
    saved = 1 - left
    assert row.reward == pytest.approx(saved * (2 - saved) * row.accuracy / record.accuracy)


@pytest.mark.slow
def test_without_training_the_weights_of_the_search_are_the_result():
    found = searched(train=False, search={"steps": 1, "fidelity": (1,)})
    assert found.certificate.holds
    assert found.metrics["after"] == found.search.best.accuracy == found.search.best.searched


@pytest.mark.slow
def test_it_is_saved_and_told(result, tmp_path):
    result.save(tmp_path / "saved")
    loaded = transform.load(tmp_path / "saved")
    assert loaded.search == result.search
    assert json.loads(json.dumps(result.search.to_dict())) == result.search.to_dict()
    run = typer_testing.CliRunner().invoke(
        app, ["search-stats", str(tmp_path / "saved"), "--plot", str(tmp_path / "front.png")]
    )
    assert run.exit_code == 0, run.output
    assert f"finalist {result.search.best.digest[:8]}" in run.output
    assert (tmp_path / "front.png").stat().st_size > 1000
    told = search_stats(result.search, top=1)
    assert "9 students in 3 steps, 0 failed" in told
    assert f"{count(Residual()) / count(result.model):.2f}x" in told


def test_a_file_that_is_no_record_is_refused(tmp_path):
    path = tmp_path / CHECKPOINTS / SEARCH / RECORD
    path.parent.mkdir(parents=True)
    sqlite3.connect(path).close()
    invoke = typer_testing.CliRunner().invoke
    for content in (b"", b"no database, but some text that is long enough"):
        path.write_bytes(content)
        run = invoke(app, ["search-stats", str(tmp_path)])
        assert run.exit_code == 1 and "record" in run.output


def test_a_folder_without_a_search_is_refused(tmp_path):
    plain = transform.compress(trained(), "nonzeros<=50%", data(2, 2), train=False, progress="none")
    plain.save(tmp_path / "plain")
    run = typer_testing.CliRunner().invoke(app, ["search-stats", str(tmp_path / "plain")])
    assert run.exit_code == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("after a step", marks=pytest.mark.slow),
        "within a step",
        pytest.param("among the finalists", marks=pytest.mark.slow),
    ],
)
def test_a_search_that_was_stopped_goes_on_as_if_it_had_not(result, tmp_path, monkeypatch, moment):
    stopped = {"count": 0}
    target, name = {
        "after a step": (ArchitectureSearch, "_propose"),
        "within a step": (ArchitectureSearch, "_finish"),
        "among the finalists": (transform.training.candidates.RequestTrainer, "train"),
    }[moment]
    original = getattr(target, name)

    def stop(self, *args):
        stopped["count"] += 1
        if stopped["count"] == 2:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(target, name, stop)
    with pytest.raises(KeyboardInterrupt):
        searched(out=tmp_path / "run")
    monkeypatch.undo()
    told = typer_testing.CliRunner().invoke(app, ["search-stats", str(tmp_path / "run")])
    assert told.exit_code == 0, told.output
    assert f"searched {result.search.rows[0].digest[:8]}" in told.output
    assert "finalist" not in told.output
    assert ("3 wait to be trained" in told.output) == (moment == "within a step")
    found = searched(out=tmp_path / "run")
    assert found.search.rows == result.search.rows
    assert found.search.finalists == result.search.finalists
    states = zip(found.model.state_dict().values(), result.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)


def test_a_record_of_another_search_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ArchitectureSearch, "_finish", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        searched(out=tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(StorageError, match="another search"):
        searched(out=tmp_path / "run", search={"steps": 4})


def _interrupted(self, step):
    raise KeyboardInterrupt


def test_a_budget_below_the_smallest_student_is_infeasible():
    with pytest.raises(InfeasibleBudget) as caught:
        searched("params<=10")
    assert caught.value.tightest > 10


@pytest.mark.parametrize("missing", ["data", "valid"])
def test_without_data_nothing_can_be_searched(missing):
    error = ArgumentError if missing == "data" else PreconditionError
    with pytest.raises(error, match="label"):
        train = None if missing == "data" else 1
        searched(**{missing: None}, train=train, example_inputs=torch.zeros(1, 2, 6, 6))


@pytest.mark.slow
def test_a_search_in_which_every_student_fails_says_why():
    with pytest.raises(TrainingError, match="none of 3 students could be trained"):
        searched(search={"steps": 1, "lr": 1e30, "optimizer": "sgd"})


def spoiled(runs):
    """An accuracy that is no number when these runs over the validation data are scored."""
    calls = itertools.count()

    def metric(outputs, targets):
        if next(calls) // 4 in runs:  # batches of the validation data
            return float("nan")
        return float((outputs.argmax(1) == targets).float().mean())

    return metric


ONE_STEP = {"steps": 1, "fidelity": (1,)}


@pytest.mark.slow
def test_the_file_of_a_student_keeps_to_its_limit(tmp_path):
    found = searched("size<=80%", search=ONE_STEP | {"metric": "size"})
    assert found.certificate.holds
    written = found.export(tmp_path / "student.onnx")
    assert written.bytes <= found.search.best.costs["size"] <= 0.8 * found.search.costs["size"]


@pytest.mark.slow
def test_a_student_without_a_score_fails_alone():
    # The first two runs are of the model itself.
    found = searched(metric=spoiled({3}), search=ONE_STEP)
    assert [row.status for row in found.search.rows] == ["done", "failed", "done"]
    assert "metric is nan" in found.search.rows[1].failure
    assert len(found.search.finalists) == 2


@pytest.mark.slow
def test_a_finalist_that_fails_is_left_out():
    found = searched(metric=spoiled({6}), search=ONE_STEP)
    [finalist] = found.search.finalists
    [told] = [decision for decision in found.decisions if "failed" in decision.what]
    best = found.search.top(2)
    assert told.what.startswith(f"student {best[0].digest[:8]}")
    assert finalist.digest == best[1].digest
    with pytest.raises(ArgumentError, match="metric is nan"):
        searched(metric=spoiled(set(range(5, 12))), search=ONE_STEP)


def test_a_model_of_one_layer_has_nothing_to_search():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(72, CLASSES)).eval()
    with pytest.raises(PreconditionError, match="nothing to search"):
        searched(None, model=model)
    with pytest.raises(InfeasibleBudget):
        searched("params<=50%", model=model)


@pytest.mark.slow
def test_two_workers_find_what_one_process_finds():
    pytest.importorskip("ray", reason="several workers need the extra 'ray'")
    options = {"steps": 1, "fidelity": (1,)}
    alone, both = searched(search=options), searched(search=options | {"workers": 2})
    assert both.search == alone.search
    states = zip(alone.model.state_dict().values(), both.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)
