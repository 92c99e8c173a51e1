# SPDX-License-Identifier: BSD-3-Clause
"""Nothing on a mount hangs: stopped workers, killed daemons, stalled servers, bad disks below the cache, reloads."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import dbus
import pytest

from cernvm.cvmfs.publish import create_repository, publish_tree
from tests.support.cvmfs import Site, complaint, gone, mounts_below, site, worker_of
from tests.support.daemon import project_environment
from tests.support.gate import Gate
from tests.support.server import wait_until

pytestmark = pytest.mark.real
FQRN = "hang.test.org"
SIZE = 3_000_000


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """A published repository, below a web server's root."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "small").write_text("small\n")
    for number in range(8):
        (tree / f"big{number}").write_bytes(os.urandom(SIZE))
    create_repository(FQRN, tmp_path / "web" / FQRN, tmp_path / "keys")
    publish_tree(FQRN, tree, tmp_path / "web" / FQRN, tmp_path / "keys")
    return tmp_path / "web"


@pytest.fixture
def here(tmp_path: Path, web: Path) -> Iterator[Site]:
    keys = {"CVMFS_KEYS_DIR": str(tmp_path / "keys")}
    with site(tmp_path / "site", web, keys, "deadline = 5\n        patience = 20") as running:
        yield running


class Reader:
    """Reads a file over and over in a thread of its own, each time opened anew, and keeps what went wrong."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stop = threading.Event()
        self.reads = 0
        self.longest = 0.0
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "the reader hangs"

    def _run(self) -> None:
        while not self._stop.wait(0.002):
            begun = time.monotonic()
            try:
                fd = os.open(self._path, os.O_RDONLY)
                try:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                    assert os.read(fd, 100) == b"small\n"
                finally:
                    os.close(fd)
                self.reads += 1
            except OSError as error:
                self.failures.append(os.strerror(error.errno or 0))
            self.longest = max(self.longest, time.monotonic() - begun)


def test_a_silent_worker_is_replaced_within_ten_seconds(here: Site) -> None:
    mount = here.call("Mount", FQRN)
    mounted = here.mounts / FQRN
    first = worker_of(mounted)
    (mounted / "small").read_bytes()
    os.kill(first, signal.SIGSTOP)
    begun = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit((mounted / "big0").read_bytes)
        with suppress(OSError):  # who waits for a worker that is given up gets an error, and does not hang
            stuck.result(timeout=20)
        wait_until(lambda: new_worker(mounted, first), seconds=20, what="another worker")
    assert time.monotonic() - begun < 12, "8 s of silence, and the time to mount"
    assert (mounted / "small").read_bytes() == b"small\n"
    assert gone(first)
    assert here.properties(mount)["Statistics"]["restarts"] == 1
    assert "no sign of life" in here.properties(mount)["LastError"]


def new_worker(mounted: Path, old: int) -> bool:
    try:
        return worker_of(mounted) != old
    except OSError:
        return False


def test_readers_do_not_notice_that_cvmfsd_is_killed_and_started_again(here: Site) -> None:
    mount = here.call("Mount", FQRN)
    mounted = here.mounts / FQRN
    worker = worker_of(mounted)
    with Reader(mounted / "small") as reader:
        wait_until(lambda: reader.reads > 5, seconds=10, what="some reads")
        here.daemon.kill()
        before = reader.reads
        wait_until(lambda: reader.reads > before + 50, seconds=10, what="reads without cvmfsd")
        here.daemon.start()
        before = reader.reads
        wait_until(lambda: reader.reads > before + 50, seconds=10, what="reads after the adoption")
    assert reader.failures == []
    assert reader.longest < 2.0
    assert worker_of(mounted) == worker
    assert here.properties(mount)["State"] == "mounted"
    assert here.properties(mount)["Revision"] == 2
    assert here.properties(mount)["Statistics"]["downloads"] > 0, "numbers live on with the worker"
    assert here.refresh(mount) == 2
    here.call("Unmount", FQRN)
    assert not mounted.exists()
    wait_until(lambda: gone(worker), seconds=5, what="the worker's end")


def test_a_worker_that_nobody_adopts_leaves_nothing(tmp_path: Path, web: Path) -> None:
    with site(tmp_path / "site", web, {"CVMFS_KEYS_DIR": str(tmp_path / "keys")}, "patience = 1") as here:
        here.call("Mount", FQRN)
        worker = worker_of(here.mounts / FQRN)
        here.daemon.kill()
        wait_until(lambda: gone(worker), seconds=15, what="the worker's end")
        assert mounts_below(tmp_path) == []


def test_a_worker_that_does_not_answer_the_next_cvmfsd_is_replaced(here: Site) -> None:
    here.call("Mount", FQRN)
    mounted = here.mounts / FQRN
    worker = worker_of(mounted)
    here.daemon.kill()
    os.kill(worker, signal.SIGSTOP)
    here.daemon.start()
    wait_until(lambda: new_worker(mounted, worker), seconds=20, what="another worker")
    assert (mounted / "small").read_bytes() == b"small\n"
    assert gone(worker)


def test_an_adopted_worker_that_dies_is_mounted_again(here: Site) -> None:
    here.call("Mount", FQRN)
    mounted = here.mounts / FQRN
    worker = worker_of(mounted)
    here.daemon.kill()
    here.daemon.start()
    os.kill(worker, signal.SIGKILL)
    begun = time.monotonic()
    wait_until(lambda: new_worker(mounted, worker), seconds=20, what="another worker")
    assert time.monotonic() - begun < 10
    assert (mounted / "small").read_bytes() == b"small\n"


@pytest.mark.parametrize("fuse", ["kernel", "llfuse"])
def test_a_stalled_server_costs_its_readers_an_error_in_time_and_nobody_else_anything(
    tmp_path: Path, web: Path, fuse: str
) -> None:
    with Gate(tmp_path / "gate", web) as gate:
        given = {
            "CVMFS_KEYS_DIR": str(tmp_path / "keys"),
            "CVMFS_SERVER_URL": f"{gate.url}/@fqrn@",
            "CVMFS_TIMEOUT_DIRECT": "60",
        }
        with site(tmp_path / "site", web, given, f"deadline = 5\n        fuse = {fuse}") as here:
            here.call("Mount", FQRN)
            mounted = here.mounts / FQRN
            (mounted / "small").read_bytes()
            digest = os.getxattr(mounted / "big1", "user.hash").decode()
            path = f"/{FQRN}/data/{digest[:2]}/{digest[2:]}"
            gate.hold(path)
            begun = time.monotonic()
            with ThreadPoolExecutor(40) as pool:
                stuck = [pool.submit((mounted / "big1").read_bytes) for _ in range(40)]
                gate.await_request(path)
                alive = time.monotonic()
                os.statvfs(mounted)
                (mounted / "big2").stat()
                assert len((mounted / "big3").read_bytes()) == SIZE
                assert os.getxattr(mounted, "user.fqrn") == FQRN.encode()
                assert time.monotonic() - alive < 3, "others do not wait for the stalled object"
                for one in stuck:
                    with pytest.raises(OSError) as refused:
                        one.result(timeout=40)
                    assert refused.value.errno == errno.EIO
            assert time.monotonic() - begun < 20, "5 s, and once more when the kernel asks again"
            assert gate.asked().count(path) == 1, "the transfer goes on for the next reader"
            gate.release()
            wait_until(lambda: reads(mounted / "big1"), seconds=20, what="the object once the server answers")


def reads(path: Path) -> bool:
    try:
        return len(path.read_bytes()) == SIZE
    except OSError:
        return False


def test_a_reload_pauses_no_reader_and_keeps_open_files(here: Site) -> None:
    mount = here.call("Mount", FQRN)
    mounted = here.mounts / FQRN
    old = worker_of(mounted)
    with (mounted / "big0").open("rb") as opened, Reader(mounted / "small") as reader:
        first = opened.read(1000)
        wait_until(lambda: reader.reads > 5, seconds=10, what="some reads")
        here.call("Reload", FQRN)
        assert worker_of(mounted) != old
        assert Path(f"/proc/{old}").exists(), "it serves the open file"
        opened.seek(SIZE // 2)
        assert len(opened.read()) == SIZE // 2
        opened.seek(0)
        assert opened.read(1000) == first
    assert [one for one in reader.failures if one != "No such file or directory"] == []
    assert len(reader.failures) <= 20, "only in the moment of the exchange is the path away"
    assert reader.longest < 1.0
    wait_until(lambda: gone(old), seconds=10, what="the old worker's end")
    assert here.properties(mount)["State"] == "mounted"
    assert here.properties(mount)["Statistics"]["restarts"] == 0


def test_a_reload_that_fails_leaves_the_mount_as_it_is(here: Site) -> None:
    here.call("Mount", FQRN)
    old = worker_of(here.mounts / FQRN)
    file = here.parameters / "default.local"
    text = file.read_text()
    file.write_text(text + "CVMFS_HTTP_PROXY=''\n")
    with pytest.raises(dbus.DBusException) as refused:
        here.call("Reload", FQRN)
    assert complaint(refused.value)[0] == "InvalidArgument"
    assert worker_of(here.mounts / FQRN) == old
    file.write_text(text)
    here.call("Reload", FQRN)
    assert worker_of(here.mounts / FQRN) != old


def test_a_restart_by_systemd_leaves_the_mounts_for_the_next_cvmfsd(here: Site) -> None:
    here.call("Mount", FQRN)
    mounted = here.mounts / FQRN
    worker = worker_of(mounted)
    with systemd_that_restarts(here.bus_address), Reader(mounted / "small") as reader:
        here.daemon.stop()
        here.daemon.start()
        wait_until(lambda: reader.reads > 50, seconds=10, what="reads")
    assert reader.failures == []
    assert worker_of(mounted) == worker


SYSTEMD = """
import asyncio
from cernvm.kit.bus import Bus, BusObject, prop

class Unit(BusObject):
    interface = "org.freedesktop.systemd1.Unit"

    @prop("(uo)")
    def Job(self):
        return (7, "/org/freedesktop/systemd1/job/7")

class Job(BusObject):
    interface = "org.freedesktop.systemd1.Job"

    @prop("s")
    def JobType(self):
        return "restart"

async def main():
    async with Bus.system() as bus:
        bus.export("/org/freedesktop/systemd1/unit/cvmfsd_2eservice", Unit())
        bus.export("/org/freedesktop/systemd1/job/7", Job())
        await bus.own("org.freedesktop.systemd1")
        print("ready", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@contextmanager
def systemd_that_restarts(address: str) -> Iterator[None]:
    """Something on the bus that answers as systemd does while it restarts cvmfsd."""
    environment = project_environment({"DBUS_SYSTEM_BUS_ADDRESS": address})
    process = subprocess.Popen([sys.executable, "-c", SYSTEMD], env=environment, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        process.communicate(timeout=10)
