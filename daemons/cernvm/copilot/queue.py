# SPDX-License-Identifier: BSD-3-Clause
"""The durable queue: records under their ids, each change one transaction that is on the disk before it returns.

`Queue` is what the broker needs; `SqliteQueue` is the default and suits one job manager.  A back end for several job
managers has to offer the same few methods, with its own row locks in `change` and `take`.

Thread rule: one owner, one thread (SQLite's connection is not shared).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, Self

from cernvm.kit.errors import UserMistake

from .errors import NoSuchJob, QueueFailed
from .job import Job, JobId, State, job_table, read_job
from .record import Attempt, Output, Record

FORMAT: Final = 1
"""PRAGMA user_version of a database of this form."""

SCHEMA: Final = """
CREATE TABLE jobs (
    number    INTEGER PRIMARY KEY AUTOINCREMENT,
    id        TEXT NOT NULL UNIQUE,
    state     TEXT NOT NULL,
    owner     INTEGER NOT NULL,
    agent     TEXT NOT NULL,
    until     REAL,
    job       TEXT NOT NULL,
    progress  TEXT NOT NULL
);
CREATE INDEX jobs_by_state ON jobs (state, number);
"""

Step = Callable[[Record], Record]


class Queue(Protocol):
    """Where jobs wait and are remembered.  Every method is one transaction; what it returned survives a crash."""

    def add(self, record: Record) -> None:
        """Put a new job at the end."""

    def get(self, job: JobId) -> Record:
        """The record of `job`.  Raises NoSuchJob."""

    def change(self, job: JobId, step: Step) -> Record:
        """Replace the record by `step(record)` and return that; whatever `step` raises changes nothing."""

    def take(self, now: float, step: Step) -> Record | None:
        """`change` for the oldest of the QUEUED jobs whose time has come; None when there is none."""

    def ready(self, now: float) -> int:
        """How many jobs `take` could give."""

    def select(
        self, states: Iterable[State], *, agent: str | None = None, due: float | None = None, most: int = 1000
    ) -> list[Record]:
        """The jobs in `states`, oldest first; only `agent`'s, and only those whose time ran out by `due`, if given."""

    def newest(self, most: int) -> list[Record]:
        """The `most` youngest jobs, oldest first."""

    def counts(self) -> Mapping[State, int]:
        """How many jobs are in each state."""

    def postpone(self, states: Iterable[State], until: float) -> None:
        """Give every job in `states` time until `until` at least."""


class SqliteQueue:
    """The queue in one SQLite file (journal mode WAL, synchronous FULL)."""

    def __init__(self, path: Path | str) -> None:
        """Open or make the file `path` (":memory:" keeps nothing).  Raises UserMistake or QueueFailed naming it."""
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=5.0)
        except sqlite3.Error as error:
            raise UserMistake(f"{path}: cannot open the queue: {error}") from None
        try:
            self._prepare()
        except (sqlite3.Error, UserMistake) as error:
            self._db.close()
            if isinstance(error, UserMistake):
                raise
            raise QueueFailed(f"{path}: cannot use the queue: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; further calls fail."""
        self._db.close()

    def add(self, record: Record) -> None:
        """See Queue."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO jobs (id, state, owner, agent, until, job, progress) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    record.job.id,
                    record.state.value,
                    record.owner,
                    record.agent,
                    record.until,
                    _dump(job_table(record.job)),
                    _dump(_progress(record)),
                ),
            )

    def get(self, job: JobId) -> Record:
        """See Queue."""
        with self._transaction() as db:
            return self._get(db, job)

    def change(self, job: JobId, step: Step) -> Record:
        """See Queue."""
        with self._transaction() as db:
            return self._put(db, step(self._get(db, job)))

    def take(self, now: float, step: Step) -> Record | None:
        """See Queue."""
        with self._transaction() as db:
            row = db.execute(
                f"SELECT {_COLUMNS} FROM jobs WHERE {_READY} ORDER BY number LIMIT 1", (State.QUEUED.value, now)
            ).fetchone()
            return None if row is None else self._put(db, step(_record(row)))

    def ready(self, now: float) -> int:
        """See Queue."""
        with self._transaction() as db:
            (count,) = db.execute(f"SELECT count(*) FROM jobs WHERE {_READY}", (State.QUEUED.value, now)).fetchone()
            return int(count)

    def select(
        self, states: Iterable[State], *, agent: str | None = None, due: float | None = None, most: int = 1000
    ) -> list[Record]:
        """See Queue."""
        names = [state.value for state in states]
        query = f"SELECT {_COLUMNS} FROM jobs WHERE state IN ({', '.join('?' * len(names))})"
        values: list[object] = [*names]
        if agent is not None:
            query, values = f"{query} AND agent = ?", [*values, agent]
        if due is not None:
            query, values = f"{query} AND until <= ?", [*values, due]
        with self._transaction() as db:
            return [_record(row) for row in db.execute(f"{query} ORDER BY number LIMIT ?", (*values, most))]

    def newest(self, most: int) -> list[Record]:
        """See Queue."""
        with self._transaction() as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM jobs ORDER BY number DESC LIMIT ?", (most,)).fetchall()
        return [_record(row) for row in reversed(rows)]

    def counts(self) -> dict[State, int]:
        """See Queue."""
        with self._transaction() as db:
            found = dict(db.execute("SELECT state, count(*) FROM jobs GROUP BY state"))
        return {state: found.get(state.value, 0) for state in State}

    def postpone(self, states: Iterable[State], until: float) -> None:
        """See Queue."""
        names = [state.value for state in states]
        marks = ", ".join("?" * len(names))
        with self._transaction() as db:
            db.execute(f"UPDATE jobs SET until = max(until, ?) WHERE state IN ({marks})", (until, *names))

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        with self._transaction() as db:
            (found,) = db.execute("PRAGMA user_version").fetchone()
            if found == FORMAT:
                return
            if found != 0 or db.execute("SELECT count(*) FROM sqlite_schema").fetchone() != (0,):
                raise UserMistake(f"{self._path}: this is not a queue of format {FORMAT}; move it away")
            for statement in SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {FORMAT}")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction; an exception in the block undoes it."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise QueueFailed(f"{self._path}: the queue failed: {error}") from error

    def _get(self, db: sqlite3.Connection, job: JobId) -> Record:
        row = db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (job,)).fetchone()
        if row is None:
            raise NoSuchJob(f"there is no job {job}")
        return _record(row)

    def _put(self, db: sqlite3.Connection, record: Record) -> Record:
        db.execute(
            "UPDATE jobs SET state = ?, agent = ?, until = ?, progress = ? WHERE id = ?",
            (record.state.value, record.agent, record.until, _dump(_progress(record)), record.job.id),
        )
        return record


_COLUMNS: Final = "job, owner, state, agent, until, progress"
_READY: Final = "state = ? AND (until IS NULL OR until <= ?)"

_PLAIN: Final = ("submitted", "attempt", "blamed", "leased", "started", "finished", "exit_code", "reason")


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _progress(record: Record) -> dict[str, Any]:
    return {
        **{name: getattr(record, name) for name in _PLAIN},
        "verdict": record.verdict,
        "outputs": [vars(output) for output in record.outputs],
        "usage": dict(record.usage),
        "history": [vars(attempt) for attempt in record.history],
    }


def _record(row: tuple[str, int, str, str, float | None, str]) -> Record:
    text, owner, state, agent, until, progress_text = row
    progress = json.loads(progress_text)
    job: Job = read_job(json.loads(text), where="the queue")
    return Record(
        job=job,
        owner=owner,
        state=State(state),
        agent=agent,
        until=until,
        verdict=State(progress["verdict"]) if progress["verdict"] else None,
        outputs=tuple(Output(**output) for output in progress["outputs"]),
        usage=progress["usage"],
        history=tuple(Attempt(**attempt) for attempt in progress["history"]),
        **{name: progress[name] for name in _PLAIN},
    )
