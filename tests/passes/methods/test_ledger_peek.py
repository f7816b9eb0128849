"""What a reader finds who has nothing but the file of a search."""

from __future__ import annotations

import sqlite3

import pytest
from ledger_rows import IDENTITY, row

from energy_model.errors import StorageError
from passes.methods.embedding.ledger import Ledger

ABOUT = {"limits": ["macs<=25%"], "rungs": [1, 3]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a folder#1" / "ledger.sqlite"


@pytest.fixture
def ledger(path):
    with Ledger.open(path, IDENTITY) as opened:
        yield opened


def test_a_running_search_is_read_and_left_alone(ledger, path):
    ledger.describe({"limits": []})
    ledger.describe(ABOUT)
    ledger.add([row(0, 0), row(0, 1)])
    before = path.read_bytes()
    assert Ledger.peek(path) == (ABOUT, ledger.rows())
    assert path.read_bytes() == before
    with Ledger.open(path, IDENTITY) as again:
        assert again.rows() == [row(0, 0), row(0, 1)]


def test_a_writer_does_not_keep_readers_out(ledger, path):
    ledger.describe(ABOUT)
    with ledger._transaction():
        ledger._run("DELETE FROM header WHERE key = 'about'")
        assert Ledger.peek(path) == (ABOUT, [])


def test_a_search_that_has_not_begun(ledger, path):
    with pytest.raises(StorageError, match="has not begun") as error:
        Ledger.peek(path)
    assert str(path) in str(error.value)


def test_another_version_is_told(ledger, path):
    ledger.describe(ABOUT)
    ledger._run("UPDATE header SET value = '2' WHERE key = 'version'")
    with pytest.raises(StorageError, match="has version 2, this release reads 1"):
        Ledger.peek(path)


@pytest.mark.parametrize("text", ["{", "", "not json"])
def test_a_damaged_description_is_told(ledger, path, text):
    ledger.describe(ABOUT)
    ledger._run("UPDATE header SET value = ? WHERE key = 'about'", (text,))
    with pytest.raises(StorageError, match="damaged") as error:
        Ledger.peek(path)
    assert str(path) in str(error.value)


def test_what_is_no_record_is_refused(tmp_path):
    text, other = tmp_path / "text", tmp_path / "other.sqlite"
    text.write_text("not a database, but long enough to be looked at as one" * 50)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE header (key, value)")
    missing = tmp_path / "missing.sqlite"
    for place in (text, other, missing):
        with pytest.raises(StorageError, match="record") as error:
            Ledger.peek(place)
        assert str(place) in str(error.value)
    assert not missing.exists()
