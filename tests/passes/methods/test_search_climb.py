"""A step of a search: who is trained when, what is recorded, and how a killed one goes on."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import torch
from ledger_rows import IDENTITY, row

from energy_model.errors import StorageError, TrainingError
from passes.methods.embedding.climb import Climb
from passes.methods.embedding.jobs import Outcome, TrainingState
from passes.methods.embedding.ladder import Ladder
from passes.methods.embedding.ledger import Ledger
from passes.methods.embedding.ranking import best_rows
from passes.methods.embedding.reward import Reward
from passes.methods.embedding.weights import CandidateWeights

BATCH = 9


@pytest.fixture(autouse=True)
def unflushed(monkeypatch):
    """Nothing here is killed for real, and waiting for the disk is most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@dataclass(frozen=True)
class Numbered:
    number: int

    @classmethod
    def read(cls, data):
        return cls(int(data["removed"][0].removeprefix("layer")))

    @property
    def digest(self):
        return f"{self.number:064x}"

    def to_dict(self):
        return {"removed": [f"layer{self.number}"], "widths": {}, "skips": []}


class Table:
    """Trains nothing: accuracy follows the number of the candidate; some fail."""

    def __init__(self, failing=(), killed_at=None, misleading=False):
        self.calls = []
        self.failing = failing
        self.killed_at = killed_at
        self.misleading = misleading

    def evaluate(self, jobs):
        self.calls.append([(job.genotype.number, job.rung) for job in jobs])
        if len(self.calls) == self.killed_at:
            raise KeyboardInterrupt
        return [self.outcome(job) for job in jobs]

    def outcome(self, job):
        number = job.genotype.number
        assert job.seed == 2**62 + number
        before = job.start.epochs if job.start else 0
        assert before == ([0, *Ladder().fidelity][job.rung])
        if (number, job.rung) in self.failing:
            return Outcome(0.1, 1.0, None, "NaN")
        right = (7 * number) % 101 / 101
        accuracy = 1 - right if self.misleading and job.rung == 0 else right
        state = TrainingState(job.epochs, {"w": torch.tensor([float(number)])}, {})
        return Outcome(accuracy, 1.0, state)

    def close(self):
        pass


class Search:
    """Steps of nine candidates."""

    def __init__(self, folder, evaluator, probes=0, keep=2):
        self.evaluator = evaluator
        self.ledger = Ledger.open(folder / "ledger.sqlite", IDENTITY)
        self.weights = CandidateWeights(folder / "weights")
        reward = Reward("params", {"params": 100_000}, 1.0)
        self.climb = Climb(
            self.ledger, self.weights, evaluator, Ladder(probes=probes), reward, Numbered.read, keep
        )

    def run(self, steps=2):
        for step in range(steps):
            if not self.ledger.rows(step=step):
                self.ledger.add([row(step, slot) for slot in range(BATCH)])
            self.climb.finish(step)
        return self.ledger.to_json(times=False)


def counted(search, step=0):
    rungs = [r.rung for r in search.ledger.rows(step=step)]
    return tuple(rungs.count(rung) for rung in range(3))


def test_nine_candidates_train_for_22_epochs(tmp_path):
    table = Table()
    search = Search(tmp_path, table)
    search.run(1)
    assert counted(search) == (9, 3, 1)
    # 7n mod 101 is largest for 8, 7, 6.
    assert table.calls[1:] == [[(6, 1), (7, 1), (8, 1)], [(8, 2)]]
    rows = search.ledger.rows()
    assert all(r.status == "done" for r in rows)
    last = rows[-1]
    assert last.place == (0, 8, 2)
    assert last.reward == search.climb.reward(last.costs, 56 / 101)


def test_a_failed_candidate_stays_behind(tmp_path):
    table = Table(failing={(8, 0), (7, 1)})
    search = Search(tmp_path, table)
    search.run(1)
    assert table.calls[1:] == [[(5, 1), (6, 1), (7, 1)], [(6, 2)]]
    found = {r.place: r for r in search.ledger.rows()}
    assert (found[0, 8, 0].status, found[0, 8, 0].failure) == ("failed", "NaN")
    assert found[0, 8, 0].accuracy == 0.1
    assert found[0, 7, 1].status == "failed"


def test_all_may_fail(tmp_path):
    search = Search(tmp_path, Table(failing={(n, 0) for n in range(BATCH)}))
    search.run(1)
    assert counted(search) == (9, 0, 0)
    assert search.weights.known() == frozenset()


@pytest.mark.slow
@pytest.mark.parametrize(("misleading", "later"), [(False, (9, 3, 1)), (True, (9, 9, 3))])
def test_the_first_sixteen_are_trained_to_the_end(tmp_path, misleading, later):
    search = Search(tmp_path, Table(misleading=misleading), probes=16)
    search.run(3)
    assert [counted(search, step) for step in range(3)] == [(9, 9, 9), (9, 9, 9), later]


def test_only_weights_of_the_best_stay(tmp_path):
    search = Search(tmp_path, Table(killed_at=3), keep=2)
    with pytest.raises(KeyboardInterrupt):
        search.run(1)
    # The best has just been promoted; of the others the second stays.
    assert {(int(d, 16), rung) for d, rung in search.weights.known()} == {(8, 1), (7, 1)}
    search.run(1)
    assert {(int(d, 16), rung) for d, rung in search.weights.known()} == {(8, 2), (7, 1)}
    search.run(3)
    best = best_rows(search.ledger.rows(), 2)
    assert search.weights.known() == {r.key for r in best}
    assert all(search.weights.load(*r.key).epochs == 10 for r in best)


@pytest.mark.spread(1)
@pytest.mark.parametrize("moment", range(1, 7))
def test_a_killed_search_goes_on_as_if_nothing_had_been(tmp_path, moment):
    whole = Search(tmp_path / "whole", Table(failing={(4, 0), (107, 1)}))
    expected = whole.run()
    killed = Search(tmp_path / "killed", Table(failing={(4, 0), (107, 1)}, killed_at=moment))
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    killed.ledger.close()
    table = Table(failing={(4, 0), (107, 1)})
    again = Search(tmp_path / "killed", table)
    assert again.run() == expected
    assert again.weights.known() == whole.weights.known()
    # Nothing is trained twice but what was under way.
    assert table.calls == whole.evaluator.calls[moment - 1 :]


@pytest.mark.parametrize("lost", ["between weights and row", "between two rows"])
def test_killed_while_a_rung_is_recorded(tmp_path, monkeypatch, lost):
    expected = Search(tmp_path / "whole", Table()).run()
    killed = Search(tmp_path / "killed", Table())
    finish, count = Ledger.finish, []

    def stop(ledger, *key, **values):
        count.append(1)
        if len(count) == 11 and lost == "between weights and row":
            raise KeyboardInterrupt
        row = finish(ledger, *key, **values)
        if len(count) == 11:
            raise KeyboardInterrupt
        return row

    monkeypatch.setattr(Ledger, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    monkeypatch.undo()
    assert Search(tmp_path / "killed", Table()).run() == expected


def test_what_fails_for_all_leaves_the_record_whole(tmp_path):
    class Broken(Table):
        def evaluate(self, jobs):
            raise TrainingError("the loss is broken")

    search = Search(tmp_path, Broken())
    with pytest.raises(TrainingError, match="broken"):
        search.run()
    assert [r.status for r in search.ledger.rows()] == ["pending"] * BATCH


def test_lost_weights_are_told(tmp_path):
    search = Search(tmp_path, Table(killed_at=2))
    with pytest.raises(KeyboardInterrupt):
        search.run(1)
    search.weights.keep([])
    with pytest.raises(StorageError, match="missing"):
        search.run(1)
