# SPDX-License-Identifier: BSD-3-Clause
"""The sandbox without a payload: which files count as outputs, how ends are told, what logs and disks hold."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cernvm.copilot.job import Limits
from cernvm.copilot.runner import Log, Process, descendants, disk_use, processes, tasks_of
from cernvm.copilot.sandbox import Ending, output_file, tell


def test_outputs_are_regular_files_inside_the_directory(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("s")
    (work / "sub/a").write_text("a")
    (work / "link").symlink_to(tmp_path / "secret")
    (work / "way").symlink_to(tmp_path)
    os.mkfifo(work / "fifo")
    assert output_file(work, "sub/a") == work / "sub/a"
    for name in ("link", "way/secret", "fifo", "sub", "absent", "../secret", "sub/a/b", ".", ""):
        assert output_file(work, name) is None


@pytest.mark.parametrize("ending", list(Ending))
def test_every_ending_has_its_sentence(ending: Ending) -> None:
    end = {
        "reason": ending.value,
        "exit_code": 137,
        "note": "why",
        "wall": 1.0,
        "cpu": 1.0,
        "memory_peak": 1,
        "disk": 1,
    }
    outcome = tell(end, "sim", Limits())
    assert outcome.ending is ending
    assert outcome.reason
    assert not outcome.success
    assert outcome.reason.endswith("why" if ending is Ending.NOT_STARTED else "(why)")


def test_a_success_has_no_reason_unless_something_was_left() -> None:
    end = {"reason": "exited", "exit_code": 0, "note": "", "wall": 1.0, "cpu": 1.0, "memory_peak": 1, "disk": 1}
    outcome = tell(end, "sim", Limits())
    assert (outcome.success, outcome.reason) == (True, "")


def test_a_log_keeps_its_bound_and_says_so_once(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"), 5)
    for data in (b"123", b"4567", b"89"):
        os.write(log.payload_end, data)
        assert log.move()
    os.close(log.payload_end)
    assert not log.move()
    log.close()
    assert (tmp_path / "log").read_bytes() == b"12345\n[the rest is over the limit and was dropped]\n"


def test_disk_use_counts_blocks_once_and_follows_nothing(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "sub").mkdir(parents=True)
    (tmp_path / "outside").write_bytes(b"x" * 1_000_000)
    before = disk_use(str(work))
    (work / "link").symlink_to(tmp_path / "outside")
    (work / "way").symlink_to(tmp_path)
    (work / "sub/a").write_bytes(b"x" * 100_000)
    os.link(work / "sub/a", work / "b")
    with (work / "sparse").open("wb") as sparse:
        sparse.truncate(10_000_000)
    assert 100_000 <= disk_use(str(work)) - before < 150_000


def test_this_process_is_among_all_processes_and_below_its_parent() -> None:
    me = [process for process in processes() if process.pid == os.getpid()]
    assert [process.parent for process in me] == [os.getppid()]
    assert isinstance(me[0], Process)
    assert os.getpid() in [process.pid for process in descendants(os.getppid())]


def test_the_threads_of_a_user_are_counted() -> None:
    before = tasks_of(os.getuid())
    assert before >= threading.active_count()
    assert tasks_of(2**31 - 7) == 0
