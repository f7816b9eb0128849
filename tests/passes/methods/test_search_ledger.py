"""The record of a search: what is written is read, once, in order, and by the right search only."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import sqlite3
import time

import pytest
from ledger_rows import BATCH, IDENTITY, done, failed, finished, row, search

from energy_model.errors import ArgumentError, PostconditionError, StorageError
from passes.methods.embedding.ledger import Ledger


@pytest.fixture
def path(tmp_path):
    return tmp_path / "search" / "ledger.sqlite"


@pytest.fixture
def ledger(path):
    with Ledger.open(path, IDENTITY) as opened:
        yield opened


def reopened(path, identity=IDENTITY):
    with Ledger.open(path, identity) as opened:
        return opened.rows()


def test_what_is_written_is_read(ledger, path):
    rows = [row(0, 0), done(0, 1), failed(0, 2), row(1, 0)]
    ledger.add(rows)
    assert ledger.rows() == rows
    ledger.close()
    found = reopened(path)
    assert found == rows
    assert [r.seconds for r in found] == [None, 1.0, 0.5, None]
    assert found[0].seed == 2**62
    assert found[1].costs["energy"] == 0.1 * 1  # the same bits


def test_rows_come_in_the_order_of_the_proposals(ledger):
    # Later candidates have smaller digests.
    places = [(s, k, r) for s in range(3) for k in range(3) for r in range(2)]
    rows = [row(s, k, r, digest=f"{99 - 10 * s - k:064x}") for s, k, r in places]
    mixed = rows.copy()
    random.Random(3).shuffle(mixed)
    for made in mixed:
        ledger.add([made])
    assert ledger.rows() == rows
    assert ledger.rows(step=1) == rows[6:12]
    finished(ledger, rows[4])
    assert [r.place for r in ledger.rows(status="done")] == [rows[4].place]
    assert len(ledger.rows(status="pending", step=0)) == 5


def test_a_pending_row_is_finished_once(ledger):
    ledger.add([row(0, 0), row(0, 1)])
    first = ledger.finish(row(0, 0).digest, 0, accuracy=0.7, reward=0.6, seconds=2.0)
    assert first == done(0, 0, accuracy=0.7, reward=0.6)
    second = ledger.finish(
        row(0, 1).digest,
        0,
        accuracy=0.1,
        reward=0.05,
        seconds=0.5,
        failure="NaN",
        costs={"latency": 0.002},
    )
    assert second.status == "failed"
    assert second.costs == {**row(0, 1).costs, "latency": 0.002}
    assert ledger.rows() == [first, second]
    assert ledger.row(*first.key) == first
    assert ledger.row(first.digest, 1) is None
    for made in (row(0, 0), row(0, 1)):
        with pytest.raises(PostconditionError, match="already"):
            finished(ledger, made)
    with pytest.raises(PostconditionError, match="nothing is pending"):
        finished(ledger, row(5, 5))
    assert ledger.rows() == [first, second]


@pytest.mark.parametrize("name", ["accuracy", "reward", "seconds"])
def test_numbers_must_be_finite(ledger, name):
    ledger.add([row(0, 0)])
    values = {"accuracy": 0.5, "reward": 0.5, "seconds": 1.0, name: float("nan")}
    with pytest.raises(ArgumentError, match=f"{name} is nan"):
        ledger.finish(row(0, 0).digest, 0, **values)
    assert ledger.rows() == [row(0, 0)]


def test_a_step_is_written_whole_or_not_at_all(ledger):
    ledger.add([row(0, 0)])
    again = row(1, 1, digest=row(0, 0).digest)
    taken = row(0, 0, digest="f" * 64)
    for bad in (again, taken):
        with pytest.raises(PostconditionError, match="UNIQUE"):
            ledger.add([row(1, 0), bad])
    with pytest.raises(PostconditionError, match="CHECK"):
        ledger.add([row(1, 0), row(1, 1, status="lost")])
    assert ledger.rows() == [row(0, 0)]
    # The next rung of the same candidate is another row.
    ledger.add([row(0, 0, 1)])
    assert ledger.digests() == {row(0, 0).digest}


def test_scores_for_the_ladder(ledger):
    ledger.add([done(0, 0, reward=0.1), done(0, 0, 1, reward=0.2), row(0, 0, 2)])
    ledger.add([failed(0, 1), done(0, 2, reward=0.3), failed(0, 2, 1)])
    assert ledger.scores() == [{0: 0.1, 1: 0.2}, {}, {0: 0.3}]
    ledger.add([done(1, 0, reward=0.4)])
    assert ledger.scores(before=1) == ledger.scores()[:3]
    assert ledger.scores(before=2) == [{0: 0.1, 1: 0.2}, {}, {0: 0.3}, {0: 0.4}]


def test_json_without_times_is_the_same_for_equal_runs(ledger, tmp_path):
    ledger.add([row(0, 0), row(0, 1)])
    for made in (row(0, 1), row(0, 0)):
        finished(ledger, made)
    with Ledger.open(tmp_path / "other.sqlite", IDENTITY) as other:
        other.add([row(0, 1)])
        other.add([row(0, 0)])
        for made in (row(0, 0), row(0, 1)):
            other.finish(*made.key, accuracy=0.5, reward=0.25, seconds=99.0)
        assert other.to_json(times=False) == ledger.to_json(times=False)
        assert other.to_json() != ledger.to_json()
        assert other.rows() == ledger.rows()
    written = json.loads(json.dumps(ledger.to_json()))
    assert written[0]["genotype"] == row(0, 0).genotype
    assert written[0]["seconds"] == 0.5


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": "other"}, "another model"),
        ({"run": "other"}, "another search"),
        ({"tokens": 2}, "token layout 1, this release has 2"),
    ],
)
def test_another_search_is_refused(ledger, path, changed, words):
    ledger.add([row(0, 0)])
    with pytest.raises(StorageError, match=words) as error:
        Ledger.open(path, dataclasses.replace(IDENTITY, **changed))
    assert str(path) in str(error.value)
    assert reopened(path) == [row(0, 0)]


def test_another_version_is_refused(ledger, path):
    ledger._run("UPDATE header SET value = '2' WHERE key = 'version'")
    with pytest.raises(StorageError, match="has version 2, this release reads 1"):
        Ledger.open(path, IDENTITY)


def test_what_is_no_record_is_refused(tmp_path):
    text = tmp_path / "text"
    text.write_text("not a database, but long enough to be looked at as one" * 50)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (x)")
    alike = tmp_path / "alike.sqlite"
    with sqlite3.connect(alike) as connection:
        connection.execute("CREATE TABLE header (key, value)")
        connection.execute("CREATE TABLE candidates (x)")
    for place in (text, other, alike, tmp_path):
        with pytest.raises(StorageError, match="record") as error:
            Ledger.open(place, IDENTITY)
        assert str(place) in str(error.value)


def test_a_damaged_record_is_refused(ledger, path):
    for step in range(30):
        ledger.add([row(step, slot) for slot in range(BATCH)])
    ledger.close()
    data = bytearray(path.read_bytes())
    for place in range(4096 * 2, len(data)):
        data[place] = 0x5A
    path.write_bytes(data)
    with pytest.raises(StorageError, match=r"damaged|malformed"):
        reopened(path)


def test_damaged_json_is_told(ledger, path):
    ledger.add([row(0, 0)])
    ledger._run("UPDATE candidates SET costs = '{'")
    with pytest.raises(StorageError, match="damaged"):
        ledger.rows()


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Ledger.open(tmp_path / "file" / "ledger.sqlite", IDENTITY)


def test_a_second_writer_waits_or_is_told(ledger, path):
    ledger._run("PRAGMA busy_timeout = 0")
    with Ledger.open(path, IDENTITY) as other:
        other._run("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked"):
            ledger.add([row(0, 0)])
        other._run("ROLLBACK")
    ledger.add([row(0, 0)])
    assert ledger.rows() == [row(0, 0)]


def forked(path, scenario):
    """A search in a child, and the end of a pipe that tells its steps."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            search(path, scenario, lambda step: os.write(writing, b"."))
        finally:
            os._exit(1)
    os.close(writing)
    return child, reading


def ended(child, reading):
    os.close(reading)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_in_the_middle_of_a_transaction(ledger, path):
    before = [row(0, slot) for slot in range(BATCH)]
    ledger.add(before)
    ledger.close()
    ended(*forked(path, "adding"))
    assert reopened(path) == before
    ended(*forked(path, "finishing"))
    assert reopened(path) == before
    with Ledger.open(path, IDENTITY) as again:
        finished(again, row(0, 1))
        again.add([row(1, slot) for slot in range(BATCH)])
        assert len(again.rows(status="pending")) == 2 * BATCH - 1


def assert_a_prefix(rows):
    """Whole steps, all finished but for the end of the last."""
    assert len(rows) % BATCH == 0
    assert [r.place for r in rows] == [(n // BATCH, n % BATCH, 0) for n in range(len(rows))]
    pending = [n for n, r in enumerate(rows) if r.status == "pending"]
    assert pending == list(range(len(rows) - len(pending), len(rows)))
    assert len(pending) <= BATCH
    ended = rows[: len(rows) - len(pending)]
    assert all((r.status, r.accuracy, r.reward) == ("done", 0.5, 0.25) for r in ended)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment(tmp_path):
    moments = random.Random(0)
    for number in range(12):
        path = tmp_path / f"{number}.sqlite"
        child, reading = forked(path, "on")
        steps = moments.randrange(1, 6)
        for _ in range(steps):
            os.read(reading, 1)
        time.sleep(moments.random() * 0.05)
        os.kill(child, signal.SIGKILL)
        ended(child, reading)
        rows = reopened(path)
        assert_a_prefix(rows)
        # What was told to be written is there.
        assert len(rows) >= BATCH * steps
