# SPDX-License-Identifier: BSD-3-Clause
"""What the kernel adapter alone can do: hot work without requests, killed readers that go at once, other ways in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from cernvm.cvmfs.publish import create_repository, publish_tree
from tests.support.cvmfs import Site, site
from tests.support.gate import Gate
from tests.support.server import wait_until

pytestmark = pytest.mark.real
FQRN: Final = "kernel.test.org"
FILES: Final = 200
STALLED: Final = 90
"""Readers that wait at the same time: many more than threads that wait when there is nothing to do."""
PATIENT: Final = {"CVMFS_TIMEOUT_DIRECT": "60", "CVMFS_LOW_SPEED_LIMIT": "1"}


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published repository."""
    top = tmp_path_factory.mktemp("kernel")
    (top / "tree" / "files").mkdir(parents=True)
    for number in range(FILES):
        (top / "tree" / "files" / f"f{number}").write_text(f"content {number}\n" * 50)
    for name in ("stalled", "stalled-later"):
        (top / "tree" / name).write_text(name * 5000)
    for number in range(STALLED):
        (top / "tree" / f"alone{number}").mkdir()
        (top / "tree" / f"alone{number}" / "file").write_text(f"alone {number}\n" * 2000)
    (top / "tree" / "link").symlink_to("files/f1")
    create_repository(FQRN, top / "web" / FQRN, top / "keys")
    publish_tree(FQRN, top / "tree", top / "web" / FQRN, top / "keys")
    return top


@pytest.fixture
def gate(top: Path, tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path / "gate", top / "web") as running:
        yield running


@pytest.fixture
def here(top: Path, gate: Gate, tmp_path: Path) -> Iterator[Site]:
    given = {"CVMFS_KEYS_DIR": str(top / "keys"), "CVMFS_SERVER_URL": f"{gate.url}/@fqrn@", **PATIENT}
    with site(tmp_path / "site", top / "web", given, "fuse = kernel") as running:
        running.call("Mount", FQRN)
        yield running


def requests(here: Site, mount: str, work: Callable[[], object]) -> dict[str, int]:
    """How many requests of each kind `work` made the daemon answer."""
    kinds = ("lookups", "listings", "opens", "reads")
    before = dict(here.properties(mount)["Statistics"])
    work()
    after = dict(here.properties(mount)["Statistics"])
    return {kind: after[kind] - before[kind] for kind in kinds if after[kind] != before[kind]}


def test_what_was_read_once_reads_again_without_a_request(here: Site) -> None:
    mount = here.call("Mount", FQRN)
    root = here.mounts / FQRN

    def everything() -> None:
        for directory, _, files in os.walk(root):
            for name in files:
                path = Path(directory) / name
                path.stat()
                path.read_bytes()
        (root / "link").readlink()
        assert not (root / "absent").exists()

    assert requests(here, mount, everything)["reads"] >= FILES
    before = pages_come_back()
    again = requests(here, mount, everything)
    given_up = pages_come_back() - before
    # Some machines page out idle memory by themselves (DAMON); what the kernel gave up, and only that, is asked again:
    # a file's page by a read, and of a directory the whole listing when one page of it is missing.
    assert set(again) <= {"reads", "listings"}
    assert again.get("reads", 0) <= given_up
    assert given_up or not again


def pages_come_back() -> int:
    """Pages of files that the kernel has had to bring back after giving them up, since it started (proc_vmstat(5))."""
    numbers = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(numbers["workingset_refault_file"])


def interrupted(here: Site, gate: Gate, name: str, first: signal.Signals | None, last: signal.Signals) -> float:
    """Seconds from the signal `last` to the end of a process that waits for the object of `name`."""
    digest = os.getxattr(here.mounts / FQRN / name, "user.hash").decode()
    path = f"/{FQRN}/data/{digest[:2]}/{digest[2:]}"
    gate.hold(path)
    program = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
        "signal.signal(signal.SIGUSR1, lambda *_: None); "
        f"fd = os.open({str(here.mounts / FQRN / name)!r}, os.O_RDONLY); "
        "os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM); os.read(fd, 100)"
    )
    with subprocess.Popen([sys.executable, "-S", "-c", program]) as process:
        gate.await_request(path)
        if first is not None:
            process.send_signal(first)
            wait_until(lambda: process.poll() is None, seconds=1, what="a process that lives")
        begun = time.monotonic()
        process.send_signal(last)
        assert process.wait(20) == -last
        return time.monotonic() - begun


def test_a_reader_of_a_stalled_server_dies_when_it_is_told_to(here: Site, gate: Gate) -> None:
    assert interrupted(here, gate, "stalled", None, signal.SIGINT) < 5


def test_a_reader_that_was_signalled_before_can_still_be_killed(here: Site, gate: Gate) -> None:
    assert interrupted(here, gate, "stalled-later", signal.SIGUSR1, signal.SIGKILL) < 5
    gate.release()
    assert (here.mounts / FQRN / "stalled-later").read_text() == "stalled-later" * 5000


def test_a_hundred_stalled_readers_keep_nobody_else_waiting(here: Site, gate: Gate) -> None:
    root = here.mounts / FQRN
    cached = (root / "files" / "f7").read_text()
    paths = [root / f"alone{number}" / "file" for number in range(STALLED)]
    for path in paths:
        digest = os.getxattr(path, "user.hash").decode()
        gate.hold(f"/{FQRN}/data/{digest[:2]}/{digest[2:]}")
    with ThreadPoolExecutor(STALLED) as readers:
        waiting = [readers.submit(path.read_text) for path in paths]
        gate.await_any(16)
        with (root / "files" / "f7").open("rb") as again:
            os.posix_fadvise(again.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begun = time.monotonic()
        assert (root / "files" / "f7").read_text() == cached
        assert len(os.listdir(root / "files")) == FILES  # noqa: PTH208 - the plain listing is meant
        assert not (root / "absent").exists()
        assert time.monotonic() - begun < 5
        assert not any(one.done() for one in waiting)
        gate.release()
        for number, one in enumerate(waiting):
            assert one.result(timeout=30) == f"alone {number}\n" * 2000
