"""Candidates trained in other processes, with Ray: the same outcomes, and workers may die."""

from __future__ import annotations

import threading

import pytest
from student_nets import Width, assert_same, build, lesson, make_build

import transform.training.workers as module
from energy_model.errors import ArgumentError, TrainingError
from passes.derived_seed import derived_seed
from passes.methods.embedding.climb import Climb
from passes.methods.embedding.config import EmbeddingSearch
from passes.methods.embedding.jobs import Job
from passes.methods.embedding.ladder import Ladder
from passes.methods.embedding.ledger import Ledger, LedgerIdentity, Row
from passes.methods.embedding.reward import Reward
from passes.methods.embedding.weights import CandidateWeights
from transform.training.workers import RayEvaluator, SerialEvaluator, make_evaluator

ray = pytest.importorskip("ray", reason="workers are tested with Ray: pip install ray")

# Starting Ray and its processes takes a quarter of a minute.
pytestmark = pytest.mark.slow
WIDTHS = (5, 9, 16)


def jobs(fault="", epochs=1, states=(None,) * 3):
    faults = ("", fault, "")
    trio = zip(WIDTHS, faults, states, strict=True)
    return [Job(Width(width, fault), 0, epochs, 3, state) for width, fault, state in trio]


@pytest.fixture(scope="module")
def serial():
    return SerialEvaluator(lesson(), build)


@pytest.fixture(scope="module")
def running():
    """Ray that somebody else has started."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def workers(running):
    with RayEvaluator(lesson(), make_build, 2) as evaluator:
        yield evaluator
    assert ray.is_initialized()


def assert_all_same(found, expected):
    for first, second in zip(found, expected, strict=True):
        assert_same(first, second)


def test_one_worker_starts_ray_and_ends_it(serial):
    assert not ray.is_initialized()
    with RayEvaluator(lesson(), make_build, 1) as evaluator:
        assert_all_same(evaluator.evaluate(jobs()), serial.evaluate(jobs()))
    assert not ray.is_initialized()


def test_the_outcomes_are_those_of_this_process(workers, serial):
    first = serial.evaluate(jobs())
    assert_all_same(workers.evaluate(jobs()), first)
    climbing = jobs(epochs=3, states=[outcome.state for outcome in first])
    assert_all_same(workers.evaluate(climbing), serial.evaluate(climbing))


def test_several_ends_at_once(workers, serial):
    mixed = [*jobs(), *jobs(epochs=2)]
    assert_all_same(workers.evaluate(mixed), serial.evaluate(mixed))


def test_a_failure_is_an_outcome(workers, serial):
    for fault in ("build", "shape"):
        found, expected = workers.evaluate(jobs(fault)), serial.evaluate(jobs(fault))
        assert [o.failure for o in found] == [o.failure for o in expected]
        assert found[1].accuracy == 1 / 3
        assert_all_same(found[::2], expected[::2])


def test_workers_may_die(workers, serial, tmp_path):
    once = Job(Width(7, f"die:{tmp_path / 'died'}"), 0, 1, 3)
    found = workers.evaluate([*jobs("die"), once])
    # The one that kills every worker has failed; those beside it have not.
    assert found[1].failure == "the process that trained it died, and so did a second one"
    assert (found[1].accuracy, found[1].state) == (1 / 3, None)
    assert_all_same(found[:3:2], serial.evaluate(jobs())[::2])
    # Killed in its first batch: it began anew.
    assert (tmp_path / "died").exists()
    assert_all_same(found[3:], serial.evaluate([Job(Width(7), 0, 1, 3)]))
    assert_all_same(workers.evaluate(jobs()), serial.evaluate(jobs()))


def record(folder, evaluator):
    """Two steps of a search, one of whose candidates fails."""
    weights = CandidateWeights(folder / "weights")
    reward = Reward("width", {"width": 24}, 0.8)
    with Ledger.open(folder / "ledger.sqlite", LedgerIdentity("m", "r", 1)) as ledger:
        climb = Climb(
            ledger, weights, evaluator, Ladder((1, 2), probes=0), reward, lambda d: Width(**d), 2
        )
        for step in range(2):
            made = [Width(5 + 4 * step + slot, "shape" if slot == 2 else "") for slot in range(4)]
            ledger.add(
                Row(
                    step,
                    slot,
                    0,
                    w.digest,
                    w.to_dict(),
                    {"width": w.width},
                    derived_seed(step, slot),
                )
                for slot, w in enumerate(made)
            )
            climb.finish(step)
        return ledger.to_json(times=False), sorted(weights.known())


def test_the_record_of_a_search_is_the_same(workers, serial, tmp_path):
    found, expected = record(tmp_path / "two", workers), record(tmp_path / "one", serial)
    assert found == expected
    assert [row["status"] for row in expected[0]].count("failed") == 2
    assert [row["rung"] for row in expected[0]].count(1) == 4


def broken(outputs, targets):
    raise KeyError("mine")


def unbuilt():
    raise ValueError("no such model")


def test_what_fails_for_all_is_raised(running):
    evaluator = RayEvaluator(lesson(loss=broken), make_build, 1)
    with pytest.raises(TrainingError, match="mine"):
        evaluator.evaluate(jobs())
    evaluator.close()
    with pytest.raises(TrainingError, match="no such model"):
        RayEvaluator(lesson(), unbuilt, 1)


def test_what_cannot_be_sent(running):
    data = [threading.Lock()]
    with pytest.raises(ArgumentError, match="cannot be sent"):
        RayEvaluator(lesson(data=data), make_build, 1)


def test_a_search_with_workers_has_them(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "RayEvaluator", lambda *values: asked.append(values))
    shared = lesson()
    make_evaluator(EmbeddingSearch(workers=2), shared, make_build)
    make_evaluator(EmbeddingSearch(address="auto"), shared, make_build)
    assert asked == [
        (shared, make_build, 2, None, None),
        (shared, make_build, 1, "auto", None),
    ]


@pytest.mark.parametrize("error", [ConnectionError, ray.exceptions.RpcError, Exception])
def test_a_cluster_that_cannot_be_reached(error, monkeypatch):
    def init(**options):
        assert options["address"] == "far:1"
        raise error("nobody there")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ArgumentError, match="cannot be started or reached"):
        RayEvaluator(lesson(), make_build, 1, address="far:1")
