# SPDX-License-Identifier: BSD-3-Clause
"""Runs a job's program so that it cannot outgrow its limits nor outlive its agent.

Between the agent and the payload stands a small process (`runner.py`) that holds the limits and, as the reaper of the
whole tree, ends every descendant: when the program ends, when a limit breaks, when the run is cancelled, and when the
agent dies in any way (it holds the other end of the runner's standard input).  Should the runner itself be killed, the
payload's first process dies with it and the rest is found by a mark in its environment.

What this is not: a wall between users.  The payload runs as the agent's user, and what that user can read it can read.

Threads: runs on the asyncio loop, which must be the main thread's.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

from cernvm.kit.errors import sentence

from .errors import CopilotProblem
from .job import STDERR, STDOUT, Limits
from .runner import KILL_SECONDS, Orders

RUNNER: Final = Path(__file__).with_name("runner.py")
DEFAULT_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
LOG_BYTES: Final = 16 * 1024 * 1024
REPORT_SECONDS: Final = 5.0
MARK: Final = "COPILOT_SANDBOX"
"""Environment variable by which processes of one run are known."""
MB: Final = 1024 * 1024


class SandboxFailed(CopilotProblem):
    """The run could not be made or watched; nothing of it is left."""


class Ending(StrEnum):
    """Why a run ended."""

    EXITED = "exited"
    """By itself; the exit code tells."""
    SIGNALLED = "signalled"
    NOT_STARTED = "not_started"
    """No such program, or it cannot be executed."""
    WALL = "wall"
    CPU = "cpu"
    MEMORY = "memory"
    DISK = "disk"
    PROCESSES = "processes"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Progress:
    """What the payload's whole tree uses now: seconds and bytes."""

    wall_seconds: float
    cpu_seconds: float
    rss_bytes: int
    disk_bytes: int
    processes: int


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    `exit_code` is a shell's (128 + number for a signal); `reason` tells a person why the job is no success, and is
    empty when it is one.
    """

    exit_code: int
    ending: Ending
    reason: str
    wall_seconds: float
    cpu_seconds: float
    max_rss_bytes: int
    disk_bytes: int

    @property
    def success(self) -> bool:
        """Whether the program ended by itself with exit code 0."""
        return self.ending is Ending.EXITED and self.exit_code == 0


class Program(Protocol):
    """The part of a job that is run."""

    @property
    def command(self) -> str: ...
    @property
    def arguments(self) -> Sequence[str]: ...


async def run(
    job: Program,
    workdir: Path,
    environment: Mapping[str, str],
    limits: Limits,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    log_bytes: int = LOG_BYTES,
    report_every: float = REPORT_SECONDS,
) -> Outcome:
    """Run the program in `workdir` and wait for its end; its output goes to `_stdout` and `_stderr` there.

    The program sees `environment` and PATH, HOME, TMPDIR and LANG, nothing of the agent's.  A command that names a
    file of `workdir` is that file.  Cancelling ends the whole tree before it returns.  Raises SandboxFailed.
    """
    workdir = workdir.resolve()
    mark = uuid.uuid4().hex
    try:
        temporary = workdir / "tmp"
        temporary.mkdir(exist_ok=True)
        argv = [_program(job.command, workdir), *job.arguments]
    except OSError as error:
        raise SandboxFailed(f"the job's directory cannot be prepared: {sentence(error)}") from error
    orders = Orders(
        argv=argv,
        environment=_clean_environment(environment, workdir, temporary, mark),
        directory=str(workdir),
        stdout=str(workdir / STDOUT),
        stderr=str(workdir / STDERR),
        wall=limits.wall_seconds,
        cpu=limits.cpu_seconds,
        memory=limits.memory_mb * MB,
        disk=limits.disk_mb * MB,
        processes=limits.processes,
        log_bytes=log_bytes,
        report_every=report_every,
    )
    end = await _watch(orders, mark, on_progress)
    return tell(end, job.command, limits)


def output_file(workdir: Path, name: str) -> Path | None:
    """The output `name` of a finished run, or None when it is not there as a regular file.

    A symlink, in the last place or on the way, counts as not there: the payload may not have the agent read for it.
    """
    path = workdir
    for part in PurePosixPath(name).parts:
        path = path / part
        try:
            mode = path.lstat().st_mode
        except (OSError, ValueError):
            return None
        if stat.S_ISLNK(mode) or part == "..":
            return None
    return path if path != workdir and stat.S_ISREG(mode) else None


async def _watch(orders: Orders, mark: str, on_progress: Callable[[Progress], None]) -> dict[str, Any]:
    """Start the runner, hear it, and see that it and all below it are gone; its `end` event."""
    try:
        runner = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            "-B",
            str(RUNNER),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={"LANG": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxFailed(f"the runner of the job cannot be started: {sentence(error)}") from error
    end: dict[str, Any] | None = None
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(orders.wall + 2 * KILL_SECONDS + 20.0):
                end = await _listen(runner, orders, on_progress)
    finally:
        await _let_go(runner, mark, clean=end is not None)
    if end is None:
        raise SandboxFailed("the runner of the job was killed or failed before the job ended")
    return end


async def _listen(
    runner: asyncio.subprocess.Process, orders: Orders, on_progress: Callable[[Progress], None]
) -> dict[str, Any] | None:
    assert runner.stdin is not None
    assert runner.stdout is not None
    with suppress(ConnectionError):
        runner.stdin.write(json.dumps(asdict(orders)).encode() + b"\n")
        await runner.stdin.drain()
    while line := await runner.stdout.readline():
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "end":
            return event
        if event["event"] == "progress":
            on_progress(Progress(event["wall"], event["cpu"], event["memory"], event["disk"], event["processes"]))
    return None


async def _let_go(runner: asyncio.subprocess.Process, mark: str, *, clean: bool) -> None:
    """Cut the leash and wait until the runner has ended the payload's tree and itself; sweep if it could not."""
    assert runner.stdin is not None
    runner.stdin.close()
    with suppress(TimeoutError):
        await asyncio.wait_for(runner.wait(), KILL_SECONDS + 5.0)
    if runner.returncode is None:
        with suppress(ProcessLookupError):
            runner.kill()
        await runner.wait()
    if not clean or runner.returncode != 0:
        await asyncio.to_thread(_sweep, mark)


def _sweep(mark: str) -> None:
    """Kill every process that has the mark of a run whose runner is gone."""
    wanted = f"{MARK}={mark}".encode()
    for _ in range(50):
        found = [int(place.name) for place in Path("/proc").iterdir() if _has(place, wanted)]
        if not found:
            return
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _has(process: Path, variable: bytes) -> bool:
    if not process.name.isdigit():
        return False
    try:
        return variable in (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _program(command: str, workdir: Path) -> str:
    """What to execute: a file of `workdir` (made executable), else a path or a name for PATH.  Raises OSError."""
    if not command.startswith("/"):
        own = output_file(workdir, command)
        if own is not None:
            own.chmod(own.stat().st_mode | 0o100)
            return str(own)
    return command


def _clean_environment(given: Mapping[str, str], workdir: Path, temporary: Path, mark: str) -> dict[str, str]:
    return {
        "PATH": DEFAULT_PATH,
        "LANG": "C.UTF-8",
        **given,
        "HOME": str(workdir),
        "TMPDIR": str(temporary),
        MARK: mark,
    }


def tell(end: Mapping[str, Any], command: str, limits: Limits) -> Outcome:
    """The runner's last word as an outcome with a sentence."""
    ending, code = Ending(end["reason"]), int(end["exit_code"])
    texts = {
        Ending.EXITED: f"{command} ended with exit code {code}",
        Ending.SIGNALLED: f"{command} was ended by signal {code - 128}",
        Ending.NOT_STARTED: f"the command cannot be started: {end['note']}",
        Ending.WALL: f"stopped after its {limits.wall_seconds} s of wall time",
        Ending.CPU: f"stopped after its {limits.cpu_seconds} s of CPU time",
        Ending.MEMORY: f"stopped for using more than its {limits.memory_mb} MB of memory",
        Ending.DISK: f"stopped for using more than its {limits.disk_mb} MB of disk",
        Ending.PROCESSES: f"stopped for having more than its {limits.processes} processes",
        Ending.STOPPED: "stopped by the agent",
    }
    note = f" ({end['note']})" if end["note"] and ending is not Ending.NOT_STARTED else ""
    success = ending is Ending.EXITED and code == 0
    return Outcome(
        exit_code=code,
        ending=ending,
        reason="" if success else texts[ending] + note,
        wall_seconds=end["wall"],
        cpu_seconds=end["cpu"],
        max_rss_bytes=end["memory_peak"],
        disk_bytes=end["disk"],
    )
