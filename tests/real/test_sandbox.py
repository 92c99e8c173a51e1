# SPDX-License-Identifier: BSD-3-Clause
"""The sandbox with real processes: limits hold, and nothing outlives the run, the runner or the agent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cernvm.copilot.job import Limits
from cernvm.copilot.sandbox import MARK, Ending, Outcome, Progress, SandboxFailed, run
from tests.support.daemon import project_environment
from tests.support.server import wait_until

pytestmark = pytest.mark.real

LIMITS = Limits(wall_seconds=60, cpu_seconds=60, memory_mb=500, disk_mb=50, processes=50)


@dataclass(frozen=True)
class Script:
    """A Python program as a job."""

    text: str
    command: str = sys.executable
    more: tuple[str, ...] = field(default=())

    @property
    def arguments(self) -> tuple[str, ...]:
        return ("-c", self.text, *self.more)


@dataclass(frozen=True)
class Shell:
    """A command as a job."""

    command: str
    arguments: tuple[str, ...] = ()


def go(program: Script | Shell, workdir: Path, limits: Limits = LIMITS, **more: str) -> Outcome:
    return asyncio.run(run(program, workdir, more, limits))


def marked(text: str) -> list[int]:
    """Ids of processes whose command line or environment holds `text`."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and int(place.name) != os.getpid():
            with suppress(OSError):
                seen = (place / "cmdline").read_bytes() + b"\0" + (place / "environ").read_bytes()
                if text.encode() in seen:
                    found.append(int(place.name))
    return found


def gone(text: str) -> None:
    wait_until(lambda: not marked(text), seconds=10, what=f"no process of {text} left")


ESCAPE = """
import os, sys, time
for generation in range(3):
    if os.fork():
        if generation == 0 and len(sys.argv) > 1:
            time.sleep(600)
        os._exit(0)
    os.setsid()
open(f"escaped-{os.getpid()}", "w").close()
time.sleep(600)
"""


def test_output_exit_code_and_use_come_back(tmp_path: Path) -> None:
    outcome = go(Script("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"), tmp_path)
    assert (outcome.exit_code, outcome.ending, outcome.success) == (3, Ending.EXITED, False)
    assert "exit code 3" in outcome.reason
    assert (tmp_path / "_stdout").read_text() == "out\n"
    assert (tmp_path / "_stderr").read_text() == "err\n"
    assert outcome.max_rss_bytes > 1_000_000
    assert 0 < outcome.cpu_seconds < 10
    assert outcome.wall_seconds > 0


def test_the_environment_is_what_was_given_and_little_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_SECRET", "s")
    text = "import os; print('\\n'.join(sorted(f'{k}={v}' for k, v in os.environ.items())))"
    assert go(Script(text), tmp_path, JOB_ID="7", HOME="/root").success
    shown = dict(line.split("=", 1) for line in (tmp_path / "_stdout").read_text().splitlines())
    assert shown.pop("LC_CTYPE", "C.UTF-8") == "C.UTF-8"  # Python sets it for itself
    assert len(shown.pop(MARK)) == 32
    assert shown == {
        "JOB_ID": "7",
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path / "tmp"),
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
    }


def test_no_open_file_of_the_agent_reaches_the_payload(tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        assert go(Script("import os; print(sorted(os.listdir('/proc/self/fd')))"), tmp_path).success
    assert (tmp_path / "_stdout").read_text() == "['0', '1', '2', '3']\n"  # 3 is the listing's own


def test_a_file_of_the_job_is_made_executable_and_preferred(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text('#!/bin/sh\necho "mine $1"\n')
    assert go(Shell("run.sh", ("x",)), tmp_path).success
    assert (tmp_path / "_stdout").read_text() == "mine x\n"


@pytest.mark.parametrize("command", ["no-such-program", "/no/such/program", "./absent", "notes.txt"])
def test_a_command_that_cannot_start_is_told(tmp_path: Path, command: str) -> None:
    (tmp_path / "notes.txt").write_bytes(b"\0\1\2 no program")
    outcome = go(Shell(command), tmp_path)
    assert (outcome.exit_code, outcome.ending) == (127, Ending.NOT_STARTED)
    assert command.removeprefix("./") in outcome.reason


def test_a_signal_is_told_as_a_shell_does(tmp_path: Path) -> None:
    outcome = go(Script("import os; os.abort()"), tmp_path)
    assert (outcome.exit_code, outcome.ending) == (128 + signal.SIGABRT, Ending.SIGNALLED)


def test_descendants_that_escape_are_ended_with_the_program(tmp_path: Path) -> None:
    outcome = go(Script(ESCAPE + "#" + str(tmp_path)), tmp_path)
    assert outcome.exit_code == 0
    assert marked(str(tmp_path)) == []


def test_the_wall_limit_ends_the_whole_tree(tmp_path: Path) -> None:
    limits = Limits(**{**vars(LIMITS), "wall_seconds": 1})
    outcome = go(Script(ESCAPE + "#" + str(tmp_path), more=("stay",)), tmp_path, limits)
    assert outcome.ending is Ending.WALL
    assert outcome.exit_code == 137
    assert 1 <= outcome.wall_seconds < 8
    assert "1 s of wall time" in outcome.reason
    assert list(tmp_path.glob("escaped-*"))
    assert marked(str(tmp_path)) == []


def test_cpu_time_of_all_descendants_counts(tmp_path: Path) -> None:
    text = "import os\nfor _ in range(2): os.fork()\nwhile True: pass"
    outcome = go(Script(text), tmp_path, Limits(**{**vars(LIMITS), "cpu_seconds": 1}))
    assert outcome.ending is Ending.CPU
    assert outcome.cpu_seconds >= 1


def test_cpu_time_of_descendants_that_have_ended_counts(tmp_path: Path) -> None:
    text = """
import os, time
for _ in range(2):
    if not os.fork():
        while time.process_time() < 0.3: pass
        os._exit(0)
    os.wait()
"""
    assert go(Script(text), tmp_path).cpu_seconds >= 0.6


def test_memory_of_all_descendants_together_is_bounded(tmp_path: Path) -> None:
    text = "import os, time\nfor _ in range(2): os.fork()\ndata = os.urandom(80_000_000)\ntime.sleep(600)"
    outcome = go(Script(text), tmp_path, Limits(**{**vars(LIMITS), "memory_mb": 200}))
    assert outcome.ending is Ending.MEMORY
    assert outcome.max_rss_bytes > 200 * 1024 * 1024
    assert "200 MB of memory" in outcome.reason


def test_memory_that_processes_share_counts_once(tmp_path: Path) -> None:
    text = "import os, time\ndata = os.urandom(80_000_000)\nfor _ in range(2): os.fork()\ntime.sleep(2)"
    assert go(Script(text), tmp_path, Limits(**{**vars(LIMITS), "memory_mb": 200})).success


def test_a_sudden_giant_is_stopped_by_the_kernel_itself(tmp_path: Path) -> None:
    text = "try: bytearray(3_000_000_000)\nexcept MemoryError: print('no')"
    outcome = go(Script(text), tmp_path, Limits(**{**vars(LIMITS), "memory_mb": 200}))
    assert outcome.success
    assert (tmp_path / "_stdout").read_text() == "no\n"


def test_the_disk_limit_counts_all_files_together(tmp_path: Path) -> None:
    text = """
import time
for n in range(5):
    with open(f"f{n}", "wb") as f: f.write(b"x" * 1_000_000)
time.sleep(600)
"""
    outcome = go(Script(text), tmp_path, Limits(**{**vars(LIMITS), "disk_mb": 3}))
    assert outcome.ending is Ending.DISK


def test_a_single_file_over_the_limit_is_cut_at_once(tmp_path: Path) -> None:
    text = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\nopen('f', 'wb').write(b'x' * 9_000_000)"
    outcome = go(Script(text), tmp_path, Limits(**{**vars(LIMITS), "disk_mb": 3}))
    assert outcome.ending is Ending.DISK
    assert (tmp_path / "f").stat().st_size <= 3 * 1024 * 1024


def test_a_fork_bomb_is_ended(tmp_path: Path) -> None:
    text = f"import os, time\nwhile True:\n    os.fork()\n    time.sleep(0.1) # {tmp_path}"
    outcome = go(Script(text), tmp_path, Limits(**{**vars(LIMITS), "processes": 8}))
    assert outcome.ending is Ending.PROCESSES
    assert marked(str(tmp_path)) == []


def test_endless_output_is_cut_and_does_not_stop_the_job(tmp_path: Path) -> None:
    text = "import os\nfor _ in range(200): os.write(1, b'x' * 10_000)"

    async def scenario() -> Outcome:
        return await run(Script(text), tmp_path, {}, LIMITS, log_bytes=100_000)

    assert asyncio.run(scenario()).success
    data = (tmp_path / "_stdout").read_bytes()
    assert data.startswith(b"x" * 100_000)
    assert len(data) < 100_100
    assert b"dropped" in data


def test_progress_is_told(tmp_path: Path) -> None:
    seen: list[Progress] = []

    async def scenario() -> None:
        await run(Script("import time; time.sleep(1)"), tmp_path, {}, LIMITS, on_progress=seen.append, report_every=0.1)

    asyncio.run(scenario())
    assert len(seen) >= 2
    assert seen[-1].processes == 1
    assert seen[-1].rss_bytes > 0


def test_cancelling_ends_the_whole_tree_before_it_returns(tmp_path: Path) -> None:
    async def scenario() -> None:
        program = Script(ESCAPE + "#" + str(tmp_path), more=("stay",))
        task = asyncio.create_task(run(program, tmp_path, {}, LIMITS))
        await until(lambda: bool(list(tmp_path.glob("escaped-*"))))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert marked(str(tmp_path)) == []

    asyncio.run(scenario())


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - what is awaited happens in another process
            await asyncio.sleep(0.02)


def test_a_killed_runner_leaves_nothing_either(tmp_path: Path) -> None:
    async def scenario() -> None:
        program = Script(ESCAPE + "#" + str(tmp_path), more=("stay",))
        task = asyncio.create_task(run(program, tmp_path, {}, LIMITS))
        await until(lambda: bool(list(tmp_path.glob("escaped-*"))))
        runners = [pid for pid in marked("copilot/runner.py") if parent(pid) == os.getpid()]
        assert len(runners) == 1
        os.kill(runners[0], signal.SIGKILL)
        with pytest.raises(SandboxFailed):
            await task

    asyncio.run(scenario())
    gone(str(tmp_path))


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


AGENT = """
import asyncio, sys
from pathlib import Path
from cernvm.copilot.job import Limits
from cernvm.copilot.sandbox import run
class Program:
    command = sys.executable
    arguments = ("-c", sys.argv[2], "stay")
asyncio.run(run(Program(), Path(sys.argv[1]), {}, Limits()))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_agent_that_is_killed_leaves_no_payload(tmp_path: Path, number: signal.Signals) -> None:
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(tmp_path), ESCAPE + "#" + str(tmp_path)], env=project_environment({})
    )
    try:
        wait_until(lambda: bool(list(tmp_path.glob("escaped-*"))), seconds=20, what="the payload")
        assert len(marked(str(tmp_path))) >= 3  # agent, first process, the one that escaped
    finally:
        agent.send_signal(number)
        agent.wait(20)
    gone(str(tmp_path))


def test_a_job_does_not_start_over_old_logs(tmp_path: Path) -> None:
    (tmp_path / "_stdout").symlink_to(tmp_path / "elsewhere")
    outcome = go(Shell("true"), tmp_path)
    assert outcome.ending is Ending.NOT_STARTED
    assert "_stdout is there already" in outcome.reason
    assert not (tmp_path / "elsewhere").exists()
