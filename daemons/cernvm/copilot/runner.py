# SPDX-License-Identifier: BSD-3-Clause
"""The process between an agent and a payload: it starts the payload, watches it, and leaves nothing of it.

A script of its own (standard library only, started by `cernvm.copilot.sandbox`), so that it is small, starts at once,
and shares nothing with the agent.  It is the reaper of the payload's whole tree: a descendant that leaves its session
or loses its parents becomes a child of this process, so the tree can always be found and ended.

    standard input   one JSON line: what to run (class Orders); then a leash: when it closes, however the agent ended,
                     the payload is killed
    standard output  JSON lines: {"event": "progress", ...} now and then, {"event": "end", ...} last

One thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
TICK: Final = 0.25
"""Seconds between two looks at time, memory and processes."""
DISK_EVERY: Final = 1.0
"""Seconds between two looks at the disk, at least; a look may take a twentieth of the time."""
KILL_SECONDS: Final = 20.0
PROC: Final = Path("/proc")
PAGE: Final = resource.getpagesize()
CLOCK: Final = os.sysconf("SC_CLK_TCK")

libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Orders:
    """What to run.  Times in seconds, sizes in bytes; `log_bytes` bounds each of stdout and stderr."""

    argv: list[str]
    environment: dict[str, str]
    directory: str
    stdout: str
    stderr: str
    wall: float
    cpu: float
    memory: int
    disk: int
    processes: int
    log_bytes: int
    report_every: float


@dataclass
class Use:
    """What the payload's tree uses now; `memory_peak` is the most that was seen."""

    wall: float = 0.0
    cpu: float = 0.0
    memory: int = 0
    memory_peak: int = 0
    disk: int = 0
    processes: int = 0


@dataclass(frozen=True)
class Process:
    """A line of /proc/PID/stat: ids, CPU seconds with those of reaped children, resident bytes."""

    pid: int
    parent: int
    cpu: float
    resident: int


def processes() -> Iterator[Process]:
    """All processes of the machine that can be seen; proc(5)."""
    for directory in PROC.iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (directory / "stat").read_bytes().rpartition(b")")[2].split()
                cpu = sum(map(int, fields[11:15])) / CLOCK
                yield Process(int(directory.name), int(fields[1]), cpu, int(fields[21]) * PAGE)


def tasks_of(user: int) -> int:
    """How many threads a user has: what RLIMIT_NPROC is compared with (not for root)."""
    count = 0
    for directory in PROC.iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):
                if directory.stat().st_uid == user:
                    count += int((directory / "stat").read_bytes().rpartition(b")")[2].split()[17])
    return count


def descendants(root: int) -> list[Process]:
    """All processes below `root`."""
    children: dict[int, list[Process]] = {}
    for process in processes():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += [process.pid for process in below]
    return found


def proportional(pid: int) -> int:
    """Bytes of memory of a process, pages shared with others counted in part; 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in (PROC / str(pid) / "smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def disk_use(directory: str) -> int:
    """Bytes on the disk below `directory`; symlinks are not followed, hard links count once."""
    total, seen = 0, set()
    waiting = [directory]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if status.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                        if status.st_ino in seen:
                            continue
                        seen.add(status.st_ino)
                    total += status.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    return total


def kill_tree() -> bool:
    """End everything below this process; False when something survives KILL_SECONDS (stuck in the kernel)."""
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:
        reap()
        found = descendants(os.getpid())
        if not found:
            return True
        # Stopped first, so that nothing can fork away between the look and the kill.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)
            if number == signal.SIGSTOP:
                found = descendants(os.getpid())
        time.sleep(0.005)
    return False


def reap() -> dict[int, int]:
    """Wait for all children that have ended; process id -> wait status."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = status
    return ended


class Log:
    """One output of the payload, on its way from a pipe to a file that may not outgrow its bound."""

    def __init__(self, path: str, bound: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o644)
        self._room = bound
        self._cut = False
        self.end, self.payload_end = os.pipe()
        os.set_blocking(self.end, False)

    def move(self) -> bool:
        """Take what is in the pipe (a part of it, when the payload writes without end); False at its end."""
        for _ in range(16):
            try:
                data = os.read(self.end, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            with contextlib.suppress(OSError):  # a full disk costs the log, not the job
                self._keep(data)
        return True

    def _keep(self, data: bytes) -> None:
        kept = data[: self._room]
        self._room -= len(kept)
        os.write(self._file, kept)
        if len(kept) < len(data) and not self._cut:
            self._cut = True
            os.write(self._file, b"\n[the rest is over the limit and was dropped]\n")

    def close(self) -> None:
        """Nothing more comes."""
        os.close(self.end)
        os.close(self._file)


class Runner:
    """One payload, from start to end."""

    def __init__(self, orders: Orders, wakeup: int) -> None:
        self._orders = orders
        self._use = Use()
        self._began = time.monotonic()
        self._logs = [Log(orders.stdout, orders.log_bytes), Log(orders.stderr, orders.log_bytes)]
        self._wakeup = wakeup
        self._stop = False
        self._tasks_before = tasks_of(os.getuid())
        self._next = {"look": 0.0, "disk": 0.0, "report": self._began + orders.report_every}
        self._selector = selectors.DefaultSelector()
        for fd in (0, wakeup, *(log.end for log in self._logs)):
            self._selector.register(fd, selectors.EVENT_READ)

    def run(self) -> dict[str, Any]:
        """Start the payload and stay with it; the `end` event."""
        try:
            pid = self._start()
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            return self._ended("not_started", 127, f"{self._orders.argv[0]}: {why}")
        say({"event": "started", "pid": pid})
        status: int | None = None
        reason = ""
        while not reason:
            self._wait()
            status = reap().get(pid)
            reason = "exited" if status is not None else "stopped" if self._stop else self._look()
        clean = kill_tree()
        for log in self._logs:
            log.move()
            log.close()
        self._measure()
        code = 0 if status is None else os.waitstatus_to_exitcode(status)
        if status is None:
            code = 128 + signal.SIGKILL
        elif code < 0:
            limit = {signal.SIGXCPU: "cpu", signal.SIGXFSZ: "disk"}
            reason, code = limit.get(signal.Signals(-code), "signalled"), 128 - code
        return self._ended(reason, code, "" if clean else "processes of the payload survived SIGKILL")

    def _ended(self, reason: str, code: int, note: str) -> dict[str, Any]:
        return {"event": "end", "reason": reason, "exit_code": code, "note": note, **asdict(self._use)}

    def _start(self) -> int:
        """Start the payload in a session of its own.  Raises OSError."""
        out, err = self._logs
        try:
            # Not waited for through this object: `reap` sees to all children alike.
            payload = subprocess.Popen(
                self._orders.argv,
                cwd=self._orders.directory,
                env=self._orders.environment,
                stdin=subprocess.DEVNULL,
                stdout=out.payload_end,
                stderr=err.payload_end,
                start_new_session=True,
                preexec_fn=self._confine,
            )
        finally:
            os.close(out.payload_end)
            os.close(err.payload_end)
        payload.returncode = 0
        return payload.pid

    def _confine(self) -> None:
        """In the payload, before its program: limits that the kernel holds by itself, as a second line."""
        orders = self._orders
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        limit(resource.RLIMIT_CORE, 0)
        limit(resource.RLIMIT_CPU, int(orders.cpu) + 5)
        limit(resource.RLIMIT_FSIZE, orders.disk)
        limit(resource.RLIMIT_DATA, 2 * orders.memory)
        limit(resource.RLIMIT_NPROC, self._tasks_before + 8 * orders.processes + 64)
        with contextlib.suppress(OSError):  # if the kernel runs out of memory, the payload goes first
            (PROC / "self/oom_score_adj").write_bytes(b"500")

    def _wait(self) -> None:
        """Sleep until something happens or the next look is due."""
        for key, _ in self._selector.select(max(0.0, min(self._next.values()) - time.monotonic())):
            if key.fd == self._wakeup:
                self._stop |= bool({signal.SIGTERM, signal.SIGINT} & set(os.read(key.fd, 4096)))
            elif key.fd == 0:
                self._stop = True  # the leash: the agent let go, or is gone
                self._selector.unregister(0)
            else:
                log = next(log for log in self._logs if log.end == key.fd)
                if not log.move():
                    self._selector.unregister(key.fd)

    def _look(self) -> str:
        """Measure what is due; the limit that is broken, or ''."""
        now = time.monotonic()
        orders, use = self._orders, self._use
        if now >= self._next["look"]:
            self._measure()
            self._next["look"] = now + TICK
        if now >= self._next["disk"]:
            use.disk = disk_use(orders.directory)
            self._next["disk"] = now + max(DISK_EVERY, 20 * (time.monotonic() - now))
        if now >= self._next["report"]:
            say({"event": "progress", **asdict(use)})
            self._next["report"] = now + orders.report_every
        broken = (
            ("wall", use.wall > orders.wall),
            ("cpu", use.cpu > orders.cpu),
            ("memory", use.memory > orders.memory),
            ("processes", use.processes > orders.processes),
            ("disk", use.disk > orders.disk),
        )
        return next((name for name, yes in broken if yes), "")

    def _measure(self) -> None:
        use, tree = self._use, descendants(os.getpid())
        reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
        use.wall = time.monotonic() - self._began
        use.cpu = max(use.cpu, reaped.ru_utime + reaped.ru_stime + sum(process.cpu for process in tree))
        use.processes = len(tree)
        use.memory = sum(process.resident for process in tree)
        if use.memory > self._orders.memory:  # pages that processes share were counted for each of them
            use.memory = sum(proportional(process.pid) for process in tree)
        use.memory_peak = max(use.memory_peak, use.memory, reaped.ru_maxrss * 1024)


def limit(which: int, value: int) -> None:
    """Set a resource limit, or the nearest that is allowed."""
    _, hard = resource.getrlimit(which)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def say(event: dict[str, Any]) -> None:
    """One JSON line to the agent; silent when there is none any more."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(event).encode() + b"\n")


def read_orders(stream: IO[bytes]) -> Orders:
    """The first line of `stream`.  Raises ValueError, TypeError."""
    return Orders(**json.loads(stream.readline()))


def main() -> int:
    """Run what standard input says; 0 unless this script itself fails."""
    wakeup, write = os.pipe()
    for fd in (wakeup, write):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    with open(0, "rb", buffering=0, closefd=False) as stream:
        orders = read_orders(stream)
    os.set_blocking(1, False)  # an agent that does not listen may not stop the watching: reports are dropped
    try:
        end = Runner(orders, wakeup).run()
    except FileExistsError as error:
        end = {"event": "end", "reason": "not_started", "exit_code": 127, "note": f"{error.filename} is there already"}
        end |= asdict(Use())
    os.set_blocking(1, True)
    say(end)
    return 0


if __name__ == "__main__":
    sys.exit(main())
