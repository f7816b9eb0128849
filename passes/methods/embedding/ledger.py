"""The record of a search: one SQLite file that survives a kill at any moment.

One row for each candidate and rung. Every call that writes is one transaction, flushed to the disk
before it returns: a search that was killed finds what had been written, whole, and goes on from
there. The order of the rows is that of the proposals (step, slot, rung), not that in which workers
finished, so the record is the same for one worker and for many.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

from energy_model.errors import ArgumentError, PostconditionError, StorageError

FORMAT, VERSION = "transform-search", 1
Status = Literal["pending", "done", "failed"]

_SCHEMA = """
CREATE TABLE header (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE candidates (
    step INTEGER NOT NULL, slot INTEGER NOT NULL, rung INTEGER NOT NULL,
    digest TEXT NOT NULL, genotype TEXT NOT NULL, costs TEXT NOT NULL, seed INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('pending', 'done', 'failed')),
    accuracy REAL, reward REAL, seconds REAL, failure TEXT,
    PRIMARY KEY (step, slot, rung), UNIQUE (digest, rung)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class LedgerIdentity:
    """What makes two searches the same, so that one may go on with the other's record.

    Attributes:
        model: Digest of the teacher's state.
        run: Digest of everything else that decides what is proposed: configuration, data, seed.
        tokens: Version of the token layout that the surrogate reads.
    """

    model: str
    run: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate on a rung.

    Attributes:
        step: Step of the search that proposed it.
        slot: Its place in the batch of that step.
        rung: Number of the rung.
        digest: Digest of the genotype.
        genotype: The genotype as a JSON object.
        costs: Its costs by key, known before it is trained.
        seed: Of its own randomness.
        status: `"pending"` until it was evaluated; then `"done"` or `"failed"`.
        accuracy: The metric on the validation data; of chance if it failed.
        reward: See `passes.methods.embedding.reward`.
        seconds: Wall time of the evaluation of this rung; not compared.
        failure: Why it failed.
    """

    step: int
    slot: int
    rung: int
    digest: str
    genotype: Mapping[str, Any]
    costs: Mapping[str, int | float] = field(default_factory=dict)
    seed: int = 0
    status: Status = "pending"
    accuracy: float | None = None
    reward: float | None = None
    seconds: float | None = field(default=None, compare=False)
    failure: str | None = None

    @property
    def place(self) -> tuple[int, int, int]:
        """Step, slot and rung: the order of the record."""
        return self.step, self.slot, self.rung

    @property
    def key(self) -> tuple[str, int]:
        """Digest and rung."""
        return self.digest, self.rung


_COLUMNS = tuple(item.name for item in fields(Row))
_JSON = ("genotype", "costs")


class Ledger:
    """A search's record; see `open`.

    Args:
        path: The file.
        connection: To it.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    def open(cls, path: Path, identity: LedgerIdentity) -> Self:
        """Open a search's record, or begin one.

        Args:
            path: The file; missing parents are made.
            identity: The search. A record of another one is refused.

        Raises:
            StorageError: It is another search's, of another version, damaged, or no record at all;
                or the disk refuses.
        """
        path = Path(path)
        with _database_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, isolation_level=None)
        ledger = cls(path, connection)
        try:
            with _database_errors(path):
                connection.execute("PRAGMA synchronous = FULL")
                ledger._begin(identity)
        except StorageError:
            connection.close()
            raise
        return ledger

    def _begin(self, identity: LedgerIdentity) -> None:
        wanted = {
            "format": FORMAT,
            "version": str(VERSION),
            "model": identity.model,
            "run": identity.run,
            "tokens": str(identity.tokens),
        }
        with self._transaction():
            tables = {name for (name,) in self._run("SELECT name FROM sqlite_master")}
            if not tables:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    self._run(statement)
                self._run_all("INSERT INTO header VALUES (?, ?)", wanted.items())
                return
            if not {"header", "candidates"} <= tables:
                raise _foreign(self.path)
            found = dict(self._run("SELECT key, value FROM header"))
        if found.get("format") != FORMAT:
            raise _foreign(self.path)
        for key, words in _REFUSALS.items():
            if found.get(key) != wanted[key]:
                raise StorageError(
                    words.format(found=found.get(key), wanted=wanted[key]),
                    where=str(self.path),
                    remedy="Choose another folder, or remove this file to search anew.",
                )
        [(health,)] = self._run("PRAGMA quick_check(1)")
        if health != "ok":
            raise _damaged(self.path, health)

    def describe(self, about: Mapping[str, Any]) -> None:
        """Write down what tells the rows to a reader who has nothing but the file.

        Args:
            about: A JSON object; it replaces the one before.

        Raises:
            StorageError: The disk refuses.
        """
        with _database_errors(self.path), self._transaction():
            self._run("INSERT OR REPLACE INTO header VALUES (?, ?)", (_ABOUT, _text(about)))

    def add(self, rows: Iterable[Row]) -> None:
        """Write new rows, all or none: the proposals of a step, or those who climb a rung.

        Raises:
            PostconditionError: A candidate has a row for this rung already, or the place is taken.
            StorageError: The disk refuses.
        """
        statement = f"INSERT INTO candidates ({', '.join(_COLUMNS)}) VALUES "
        statement += f"({', '.join('?' * len(_COLUMNS))})"
        with _database_errors(self.path), self._transaction():
            self._run_all(statement, (_packed(row) for row in rows))

    def finish(
        self,
        digest: str,
        rung: int,
        *,
        accuracy: float,
        reward: float,
        seconds: float,
        failure: str | None = None,
        costs: Mapping[str, int | float] | None = None,
    ) -> Row:
        """Write what became of a pending row.

        Args:
            digest: The candidate.
            rung: The rung.
            accuracy: The metric; of chance if it failed.
            reward: Its reward.
            seconds: Wall time.
            failure: Why it failed, if it did.
            costs: Costs that were measured, added to those known before.

        Returns:
            The row as it stands now.

        Raises:
            ArgumentError: A number is not finite.
            PostconditionError: There is no such row, or it is not pending.
            StorageError: The disk refuses.
        """
        with _database_errors(self.path), self._transaction():
            row = self.row(digest, rung)
            if row is None or row.status != "pending":
                raise PostconditionError(
                    "nothing is pending" if row is None else f"this row is {row.status} already",
                    where=f"candidate {digest[:12]}, rung {rung}",
                )
            ended = Row(
                *row.place,
                digest,
                row.genotype,
                {**row.costs, **(costs or {})},
                row.seed,
                "done" if failure is None else "failed",
                accuracy,
                reward,
                seconds,
                failure,
            )
            self._run(
                "UPDATE candidates SET costs = ?, status = ?, accuracy = ?, reward = ?, "
                "seconds = ?, failure = ? WHERE digest = ? AND rung = ?",
                (*(_packed(ended)[_COLUMNS.index(name)] for name in _WRITTEN), digest, rung),
            )
        return ended

    def rows(self, *, status: Status | None = None, step: int | None = None) -> list[Row]:
        """Rows in the order of (step, slot, rung), by choice those of one status or step."""
        asked = {"status": status, "step": step}
        chosen = {name: value for name, value in asked.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in chosen)
        statement = f"SELECT {', '.join(_COLUMNS)} FROM candidates"
        statement += f" WHERE {where}" if where else ""
        with _database_errors(self.path):
            found = self._run(f"{statement} ORDER BY step, slot, rung", tuple(chosen.values()))
            return [_unpacked(values, self.path) for values in found]

    def row(self, digest: str, rung: int) -> Row | None:
        """The row of a candidate on a rung, if there is one."""
        statement = f"SELECT {', '.join(_COLUMNS)} FROM candidates WHERE digest = ? AND rung = ?"
        with _database_errors(self.path):
            found = [_unpacked(v, self.path) for v in self._run(statement, (digest, rung))]
        return found[0] if found else None

    def digests(self) -> frozenset[str]:
        """Every candidate that was ever proposed."""
        with _database_errors(self.path):
            return frozenset(d for (d,) in self._run("SELECT DISTINCT digest FROM candidates"))

    def scores(self, *, before: int | None = None) -> list[dict[int, float]]:
        """Rewards by rung of every candidate, in the order of the proposals, for the ladder.

        Rungs that are pending or failed are left out.

        Args:
            before: Only candidates of steps before this one.
        """
        found: dict[str, dict[int, float]] = {}
        for row in self.rows():
            if before is not None and row.step >= before:
                continue
            scores = found.setdefault(row.digest, {})
            if row.status == "done" and row.reward is not None:
                scores[row.rung] = row.reward
        return list(found.values())

    def to_json(self, *, times: bool = True) -> list[dict[str, Any]]:
        """All rows as JSON objects, in their order; without `times` equal runs give equal rows."""
        names = [name for name in _COLUMNS if times or name != "seconds"]
        return [
            {n: dict(v) if isinstance(v := getattr(row, n), Mapping) else v for n in names}
            for row in self.rows()
        ]

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @classmethod
    def peek(cls, path: Path) -> tuple[dict[str, Any], list[Row]]:
        """What a record tells of its search, and its rows; nothing is written.

        Args:
            path: The file, which a search may be writing.

        Raises:
            StorageError: It is missing, damaged, of another version, or no record.
        """
        path = Path(path)
        with _database_errors(path):
            uri = f"{path.absolute().as_uri()}?mode=ro"
            connection = sqlite3.connect(uri, isolation_level=None, uri=True)
        with cls(path, connection) as ledger:
            with _database_errors(path):
                tables = {name for (name,) in ledger._run("SELECT name FROM sqlite_master")}
                header = dict(ledger._run("SELECT key, value FROM header")) if tables else {}
            if header.get("format") != FORMAT:
                raise _foreign(path)
            if header.get("version") != str(VERSION):
                words = _REFUSALS["version"].format(found=header.get("version"), wanted=VERSION)
                raise StorageError(words, where=str(path), remedy="Read it with its own release.")
            if _ABOUT not in header:
                raise StorageError(
                    "the search has not begun",
                    where=str(path),
                    remedy="Wait for its first step, or start it again.",
                )
            return _read_json(header[_ABOUT], path), ledger.rows()

    def _run(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._connection.execute(statement, values).fetchall()

    def _run_all(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        self._connection.executemany(statement, rows)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._run("BEGIN IMMEDIATE")
        try:
            yield
            self._run("COMMIT")
        finally:
            # A full disk ends a transaction on its own.
            if self._connection.in_transaction:
                self._run("ROLLBACK")


_ABOUT = "about"
_WRITTEN = ("costs", "status", "accuracy", "reward", "seconds", "failure")
_REFUSALS = {
    "version": "the record has version {found}, this release reads {wanted}",
    "model": "the record is of a search over another model",
    "run": "the record is of another search (configuration, data or seed differ)",
    "tokens": "the record was made with token layout {found}, this release has {wanted}",
}


def _packed(row: Row) -> tuple[Any, ...]:
    for name in ("accuracy", "reward", "seconds"):
        value = getattr(row, name)
        # SQLite would write not-a-number as nothing, and JSON knows neither it nor infinity.
        if value is not None and not math.isfinite(value):
            raise ArgumentError(f"{name} is {value}", where=f"candidate {row.digest[:12]}")
    values = (getattr(row, name) for name in _COLUMNS)
    return tuple(_text(v) if isinstance(v, Mapping) else v for v in values)


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _unpacked(values: Sequence[Any], path: Path) -> Row:
    found = dict(zip(_COLUMNS, values, strict=True))
    for name in _JSON:
        found[name] = _read_json(found[name], path)
    return Row(**found)


def _read_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> StorageError:
    return StorageError(
        f"the record is damaged: {why}",
        where=str(path),
        remedy="Restore it from a copy, or remove it to search anew.",
    )


def _foreign(path: Path) -> StorageError:
    return StorageError(
        "this is no record of a search", where=str(path), remedy="Choose another folder."
    )


@contextmanager
def _database_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise PostconditionError(
            f"a row does not fit the record ({error})", where=str(path)
        ) from error
    except (sqlite3.Error, OSError) as error:
        raise StorageError(
            f"the record cannot be read or written ({error})",
            where=str(path),
            remedy="Check that the file is the record of a search, that no other program uses it, "
            "and that the disk has room and grants access.",
        ) from error
