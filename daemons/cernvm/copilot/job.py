# SPDX-License-Identifier: BSD-3-Clause
"""What a job is, which states it may take, and the file in which a physicist writes one.

The same field names stand in the job file (TOML), on the wire (JSON), on D-Bus and in the queue, so there is one
reader of tables here, with a sentence per mistake.  docs/jobs.md is the contract.  Pure and thread-safe: values only.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from enum import StrEnum
from pathlib import PurePosixPath
from re import compile as pattern
from typing import Final, NewType, TypeAlias, cast
from uuid import UUID

from .errors import IllegalMove, JobMistake
from .messages import Json

JobId = NewType("JobId", str)
"""A random UUID in its usual text form: it is part of URLs and of directory names."""

Table: TypeAlias = Mapping[str, object]

MAX_NAMES: Final = 1000
MAX_TEXT: Final = 32 * 1024
STDOUT: Final = "_stdout"
STDERR: Final = "_stderr"
LOGS: Final = (STDOUT, STDERR)
"""The names under which every attempt's standard output and error are stored beside its output files."""

_REPOSITORY: Final = pattern(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+")
_VARIABLE: Final = pattern(r"[A-Za-z_][A-Za-z0-9_]*")
_SHA256: Final = pattern(r"[0-9a-f]{64}")


class State(StrEnum):
    """Where a job is."""

    STAGING = "staging"
    """Submitted; its input files are being uploaded."""
    QUEUED = "queued"
    LEASED = "leased"
    """Given to an agent that has not yet said that it runs."""
    RUNNING = "running"
    STORING = "storing"
    """The agent has finished; the storage adapter checks the outputs."""
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


LEGAL: Final[Mapping[State, frozenset[State]]] = {
    State.STAGING: frozenset({State.QUEUED, State.CANCELLED}),
    State.QUEUED: frozenset({State.LEASED, State.CANCELLED}),
    State.LEASED: frozenset({State.RUNNING, State.STORING, State.QUEUED, State.FAILED, State.CANCELLED}),
    State.RUNNING: frozenset({State.STORING, State.QUEUED, State.FAILED, State.CANCELLED}),
    State.STORING: frozenset({State.DONE, State.FAILED, State.QUEUED, State.CANCELLED}),
    State.DONE: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}

ENDED: Final = frozenset(state for state, following in LEGAL.items() if not following)
HELD: Final = frozenset({State.LEASED, State.RUNNING})
"""States in which an agent holds the job under a lease."""


def move(job: JobId, now: State, to: State) -> State:
    """`to`, when a job may go there from `now`.  Raises IllegalMove."""
    if to not in LEGAL[now]:
        raise IllegalMove(f"job {job} is {now} and cannot become {to}")
    return to


@dataclass(frozen=True)
class InputFile:
    """A file that the submitter uploads and the agent puts into the job's directory before the run."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Package:
    """Software that the job needs: a CVMFS repository, and the path in it that must exist."""

    repository: str
    path: str = ""


@dataclass(frozen=True)
class Limits:
    """What one attempt may use at most; whatever goes beyond is stopped."""

    wall_seconds: int = 3600
    cpu_seconds: int = 3600
    memory_mb: int = 2048
    disk_mb: int = 1024
    processes: int = 256


@dataclass(frozen=True)
class Job:
    """A program, what it needs, and what it leaves."""

    id: JobId
    command: str
    name: str = ""
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    input_files: tuple[InputFile, ...] = ()
    packages: tuple[Package, ...] = ()
    output_files: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    @property
    def stored_names(self) -> tuple[str, ...]:
        """The names that an attempt may leave in the store: its output files and its logs."""
        return (*self.output_files, *LOGS)


def job_id(text: object) -> JobId:
    """`text` as a job's id.  Raises JobMistake when it is not a UUID in its usual form."""
    try:
        if isinstance(text, str) and str(UUID(text)) == text:
            return JobId(text)
    except ValueError:
        pass
    raise JobMistake(f"{str(text)[:80]!r} is not the id of a job, which looks like {UUID(int=0)}")


def job_table(job: Job) -> dict[str, Json]:
    """`job` as the table that `read_job` reads, for JSON."""
    return {
        "id": job.id,
        "name": job.name,
        "command": job.command,
        "arguments": list(job.arguments),
        "environment": dict(job.environment),
        "input_files": [{"name": f.name, "size": f.size, "sha256": f.sha256} for f in job.input_files],
        "packages": [{"repository": p.repository, "path": p.path} for p in job.packages],
        "output_files": list(job.output_files),
        "limits": {f.name: getattr(job.limits, f.name) for f in fields(Limits)},
    }


def read_job(table: Table, job: JobId | None = None, where: str = "the job") -> Job:
    """The job in `table`; its id is `job`, or the table's own.  Raises JobMistake naming `where` and the field."""
    known = tuple(f.name for f in fields(Job))
    reader = _Reader(table, where)
    reader.only(known)
    command = reader.text("command", longest=4096)
    if not command:
        raise JobMistake(f"{where}: field command is missing; it names the program to run")
    if not reader.text("name").isprintable():
        raise reader.wrong("name", "printable text")
    read = Job(
        id=job if job is not None else job_id(table.get("id")),
        command=command,
        name=reader.text("name", longest=200),
        arguments=tuple(reader.texts("arguments")),
        environment=_environment(reader),
        input_files=tuple(_input_file(inner) for inner in reader.tables("input_files")),
        packages=tuple(_package(inner) for inner in reader.tables("packages")),
        output_files=tuple(file_name(where, "output_files", name) for name in reader.texts("output_files")),
        limits=_limits(reader),
    )
    _all_different(where, "input_files", [f.name for f in read.input_files])
    _all_different(where, "output_files", read.output_files)
    return read


def read_job_file(text: str, where: str) -> dict[str, object]:
    """The job file `text` as a table for `read_job`, but with `input_files` as plain local paths.

    The submitter looks at the files and replaces the paths by name, size and hash.  `where` is the file's name, for
    sentences.  Raises JobMistake.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise JobMistake(f"{where}: this is not TOML: {error}") from None
    reader = _Reader(table, where)
    paths = reader.texts("input_files")
    if "id" in table:
        raise JobMistake(f"{where}: field id is given by the job manager; leave it out")
    read_job({**table, "input_files": []}, JobId(str(UUID(int=0))), where)
    return {**table, "input_files": paths}


def file_name(where: str, key: str, name: str) -> str:
    """`name` when it is a relative path that stays inside the job's directory.  Raises JobMistake."""
    path = PurePosixPath(name)
    plain = str(path) == name and not path.is_absolute() and ".." not in path.parts and name != "."
    if not plain or len(name.encode()) > 240 or not name.isprintable() or name in LOGS or "\\" in name:
        raise JobMistake(
            f"{where}: field {key}: {name!r} must be a relative path inside the job's directory, "
            f"without '..', of at most 240 bytes, and not {STDOUT} or {STDERR}"
        )
    return name


@dataclass(frozen=True)
class _Reader:
    """Reads typed fields of one table; every complaint names the place and the field."""

    table: Table
    where: str

    def wrong(self, key: str, must: str) -> JobMistake:
        return JobMistake(f"{self.where}: field {key} must be {must}")

    def only(self, known: tuple[str, ...]) -> None:
        for key in self.table:
            if key not in known:
                close = get_close_matches(key, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else f"; known fields: {', '.join(known)}"
                raise JobMistake(f"{self.where}: unknown field {key!r}{hint}")

    def text(self, key: str, *, longest: int = MAX_TEXT) -> str:
        value = self.table.get(key, "")
        if not isinstance(value, str) or len(value) > longest or "\0" in value:
            raise self.wrong(key, f"text of at most {longest} characters")
        return value

    def texts(self, key: str) -> list[str]:
        value = self.table.get(key, [])
        if not isinstance(value, list | tuple) or len(value) > MAX_NAMES:
            raise self.wrong(key, f"a list of at most {MAX_NAMES} texts")
        for item in value:
            if not isinstance(item, str) or len(item) > MAX_TEXT or "\0" in item:
                raise self.wrong(key, f"a list of texts of at most {MAX_TEXT} characters")
        return list(value)

    def number(self, key: str, default: int, least: int, most: int) -> int:
        value = self.table.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(key, f"a whole number from {least} to {most}")
        return value

    def inner(self, key: str) -> _Reader:
        value = self.table.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "a table")
        return _Reader(cast(dict[str, object], value), f"{self.where}: {key}")

    def tables(self, key: str) -> list[_Reader]:
        value = self.table.get(key, [])
        if not isinstance(value, list | tuple) or len(value) > MAX_NAMES:
            raise self.wrong(key, f"a list of at most {MAX_NAMES} tables")
        if not all(isinstance(item, dict) for item in value):
            raise self.wrong(key, "a list of tables")
        return [_Reader(item, f"{self.where}: {key}[{index}]") for index, item in enumerate(value)]


def _environment(reader: _Reader) -> dict[str, str]:
    inner = reader.inner("environment")
    if len(inner.table) > MAX_NAMES:
        raise reader.wrong("environment", f"a table of at most {MAX_NAMES} variables")
    for key in inner.table:
        if not _VARIABLE.fullmatch(key) or not isinstance(inner.table[key], str):
            raise reader.wrong(f"environment.{key}", "a text, under a name of letters, digits and '_'")
    return {key: inner.text(key) for key in inner.table}


def _input_file(reader: _Reader) -> InputFile:
    reader.only(("name", "size", "sha256"))
    sha256 = reader.text("sha256")
    if not _SHA256.fullmatch(sha256):
        raise reader.wrong("sha256", "64 hexadecimal digits in lower case")
    name = file_name(reader.where, "name", reader.text("name"))
    return InputFile(name, reader.number("size", -1, 0, 2**50), sha256)


def _package(reader: _Reader) -> Package:
    reader.only(("repository", "path"))
    repository, path = reader.text("repository"), reader.text("path", longest=4096).strip("/")
    if not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
        raise reader.wrong("repository", "a full repository name such as software.example.org")
    if ".." in PurePosixPath(path).parts:
        raise reader.wrong("path", "a path inside the repository, without '..'")
    return Package(repository, path)


def _limits(reader: _Reader) -> Limits:
    inner = reader.inner("limits")
    inner.only(tuple(f.name for f in fields(Limits)))
    values = {f.name: inner.number(f.name, cast(int, f.default), 1, 2**31) for f in fields(Limits)}
    return Limits(**values)


def _all_different(where: str, key: str, names: tuple[str, ...] | list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise JobMistake(f"{where}: field {key}: {name!r} stands there twice")
