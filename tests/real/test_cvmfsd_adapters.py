# SPDX-License-Identifier: BSD-3-Clause
"""One file system, two adapters: whatever programs may rely on holds over the kernel's protocol and over llfuse."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import dbus
import pytest

from cernvm.cvmfs.publish import create_repository, publish_tree
from tests.support.cvmfs import Site, complaint, site
from tests.support.gate import Gate
from tests.support.server import wait_until

pytestmark = pytest.mark.real
FQRN: Final = "adapters.test.org"
MANY: Final = 5000
LONG: Final = "long" + "n" * 251
BIG: Final = 20_000_000
ADAPTERS: Final = ["kernel", "llfuse"]
PATIENT: Final = {"CVMFS_TIMEOUT_DIRECT": "60", "CVMFS_LOW_SPEED_LIMIT": "1"}


@dataclass
class World:
    """A mounted repository: what was published from where, through which server, at which site."""

    top: Path
    site: Site
    gate: Gate
    adapter: str
    mount: str

    @property
    def root(self) -> Path:
        """The mount point."""
        return self.site.mounts / FQRN

    @property
    def source(self) -> Path:
        """What is published."""
        return self.top / "tree"

    def publish(self) -> None:
        """Publish what `source` has now and have it shown."""
        revision = publish_tree(FQRN, self.source, self.top / "web" / FQRN, self.top / "keys").revision
        assert self.site.refresh(self.mount) == revision

    def object_of(self, name: str) -> tuple[str, Path]:
        """The path of a file's object on the server, and its place in the cache."""
        digest = os.getxattr(self.root / name, "user.hash").decode()
        return f"/{FQRN}/data/{digest[:2]}/{digest[2:]}", self.site.cache / digest[:2] / digest[2:]

    def statistics(self) -> dict[str, int]:
        """What the mount has done so far."""
        return dict(self.site.properties(self.mount)["Statistics"])


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published repository."""
    top = tmp_path_factory.mktemp("adapters")
    source = top / "tree"
    (source / "many").mkdir(parents=True)
    for number in range(MANY):
        (source / "many" / f"file{number:05d}").write_text(f"{number % 7}")
    (source / LONG).write_text("a long name")
    (source / "program").write_text("#!/bin/sh\necho one\n")
    (source / "program").chmod(0o755)
    (source / "python3").write_bytes(Path(sys.executable).resolve().read_bytes())
    (source / "python3").chmod(0o755)
    (source / "big").write_bytes(Random(1).randbytes(BIG))
    (source / "link").symlink_to("program")
    (source / "packages").mkdir()
    for number in range(300):
        (source / "packages" / f"p{number:03d}").write_bytes(Random(number).randbytes(1 + number * 97))
    for name in ("same", "evicted"):
        (source / name).write_text(f"{name}\n" * 1000)
    for name in ("slow", "patient"):  # each alone, so that nothing fetches it ahead
        (source / name).mkdir()
        (source / name / name).write_text(f"{name}\n" * 1000)
    create_repository(FQRN, top / "web" / FQRN, top / "keys")
    publish_tree(FQRN, source, top / "web" / FQRN, top / "keys")
    return top


@pytest.fixture(scope="module", params=ADAPTERS)
def world(request: pytest.FixtureRequest, top: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The repository mounted by one adapter."""
    adapter = str(request.param)
    with Gate(tmp_path_factory.mktemp(adapter) / "gate", top / "web") as gate:
        given = {"CVMFS_KEYS_DIR": str(top / "keys"), "CVMFS_SERVER_URL": f"{gate.url}/@fqrn@", **PATIENT}
        directory = tmp_path_factory.mktemp(adapter) / "site"
        with site(directory, top / "web", given, f"fuse = {adapter}") as here:
            yield World(top, here, gate, adapter, here.call("Mount", FQRN))


def test_the_adapter_is_the_one_that_was_chosen(world: World) -> None:
    assert world.site.properties(world.mount)["Adapter"] == world.adapter


# --- reading


def test_a_program_runs_from_the_mount(world: World) -> None:
    assert subprocess.run([world.root / "link"], capture_output=True, timeout=20, check=True).stdout == b"one\n"
    binary = world.root / "python3"
    done = subprocess.run([binary, "-S", "-c", "print(6 * 7)"], capture_output=True, timeout=60, check=False)
    assert done.stdout == b"42\n" or b"prefix" in done.stderr, "an interpreter away from its library says so"


def test_a_mapped_file_has_the_bytes_of_the_file(world: World) -> None:
    with (world.root / "big").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[BIG - 5000 :] == (world.source / "big").read_bytes()[-5000:]
        assert hashlib.sha1(mapped).digest() == hashlib.sha1((world.source / "big").read_bytes()).digest()


def test_sixteen_threads_reading_at_random_get_the_right_bytes(world: World) -> None:
    names = [f"packages/p{number:03d}" for number in range(300)]
    right = {name: (world.source / name).read_bytes() for name in names}
    big = (world.source / "big").read_bytes()

    def read(seed: int) -> int:
        random = Random(seed)
        with (world.root / "big").open("rb", buffering=0) as file:
            for _ in range(60):
                name = random.choice(names)
                assert (world.root / name).read_bytes() == right[name]
                at, size = random.randrange(BIG), random.randrange(1, 300_000)
                assert os.pread(file.fileno(), size, at) == big[at : at + size]
        return seed

    with ThreadPoolExecutor(16) as readers:
        assert sorted(readers.map(read, range(16))) == list(range(16))


def test_a_slow_fetch_keeps_no_other_reader_waiting(world: World) -> None:
    path, _ = world.object_of("slow/slow")
    world.gate.hold(path)
    with ThreadPoolExecutor(1) as slow:
        reading = slow.submit((world.root / "slow" / "slow").read_bytes)
        world.gate.await_request(path)
        begun = time.monotonic()
        assert (world.root / "packages" / "p007").read_bytes() == (world.source / "packages" / "p007").read_bytes()
        assert len(list((world.root / "packages").iterdir())) == 300
        assert not (world.root / "absent while another waits").exists()
        assert time.monotonic() - begun < 10
        assert not reading.done()
        world.gate.release()
        assert reading.result(timeout=20) == (world.source / "slow" / "slow").read_bytes()


def test_an_object_dropped_from_the_cache_is_fetched_again(world: World) -> None:
    content = (world.root / "evicted").read_bytes()
    path, cached = world.object_of("evicted")
    assert cached.exists()
    cached.unlink()
    world.site.call("Unmount", FQRN)
    world.mount = world.site.call("Mount", FQRN)
    assert (world.root / "evicted").read_bytes() == content
    assert world.gate.asked().count(path) == 2
    assert cached.exists()


def test_reading_again_takes_no_transfer_and_no_look_at_the_server(world: World) -> None:
    (world.root / "same").read_bytes()
    before = len(world.gate.asked())
    for _ in range(5):
        assert (world.root / "same").read_bytes() == (world.source / "same").read_bytes()
    assert len(world.gate.asked()) == before


# --- listings


def test_a_listing_of_thousands_is_whole(world: World) -> None:
    names = [f"file{number:05d}" for number in range(MANY)]
    for _ in range(2):
        assert sorted(entry.name for entry in os.scandir(world.root / "many")) == names
    with os.scandir(world.root / "many") as entries:
        for entry in entries:
            assert entry.inode() == entry.stat(follow_symlinks=False).st_ino
            assert entry.is_file(follow_symlinks=False)


def test_a_place_in_a_listing_can_be_gone_back_to(world: World) -> None:
    names, places = directory_stream(world.root / "many", [])
    assert names[:2] == [b".", b".."] or b"." not in names
    assert len(set(names)) == len(names) >= MANY
    for at in (0, 1, 57, 2500, MANY - 1):
        assert directory_stream(world.root / "many", [places[at]])[0] == names[at:]


def directory_stream(directory: Path, seek: list[int]) -> tuple[list[bytes], list[int]]:
    """Names of a directory from where telldir(3) once said, and the place before each of them."""

    class Dirent(ctypes.Structure):
        _fields_ = [
            ("ino", ctypes.c_uint64),
            ("off", ctypes.c_int64),
            ("length", ctypes.c_uint16),
            ("kind", ctypes.c_uint8),
            ("name", ctypes.c_char * 256),
        ]

    libc = ctypes.CDLL(None, use_errno=True)
    libc.opendir.restype = ctypes.c_void_p
    libc.readdir.restype = ctypes.POINTER(Dirent)
    libc.telldir.restype = ctypes.c_long
    stream = ctypes.c_void_p(libc.opendir(os.fsencode(directory)))
    assert stream
    try:
        for place in seek:
            libc.seekdir(stream, ctypes.c_long(place))
        names: list[bytes] = []
        places = [libc.telldir(stream)]
        while entry := libc.readdir(stream):
            names.append(entry.contents.name)
            places.append(libc.telldir(stream))
        return names, places
    finally:
        libc.closedir(stream)


# --- the rest of what stat(2) and its kin say


def test_names_of_255_bytes_are_found_and_longer_ones_are_too_long(world: World) -> None:
    assert (world.root / LONG).read_text() == "a long name"
    with pytest.raises(OSError, match="too long") as refused:
        (world.root / (LONG + "x")).stat()
    assert refused.value.errno == errno.ENAMETOOLONG


def test_extended_attributes_need_room_and_say_how_much(world: World) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(world.root / "same")
    size = libc.getxattr(path, b"user.hash", None, 0)
    assert size == 40
    room = ctypes.create_string_buffer(size)
    assert libc.getxattr(path, b"user.hash", room, size - 1) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert libc.getxattr(path, b"user.hash", room, size) == size
    with pytest.raises(OSError, match="No data"):
        os.getxattr(world.root / "same", "user.none")
    with pytest.raises(OSError) as refused:
        os.setxattr(world.root / "same", "user.mine", b"x")
    assert refused.value.errno in (errno.EROFS, errno.EOPNOTSUPP)


def test_the_mount_tells_its_usage_and_refuses_every_change(world: World) -> None:
    figures = os.statvfs(world.root)
    assert figures.f_frsize * figures.f_blocks == pytest.approx(4_000_000_000, abs=4096)
    assert (figures.f_namemax, figures.f_files > MANY, figures.f_ffree) == (255, True, 0)
    for change in (
        lambda: (world.root / "new").touch(),
        lambda: (world.root / "new").mkdir(),
        lambda: (world.root / "same").unlink(),
        lambda: (world.root / "same").rename(world.root / "other"),
        lambda: (world.root / "same").chmod(0o600),
        lambda: (world.root / "same").open("r+b"),
    ):
        with pytest.raises(OSError, match="Read-only"):
            change()


def test_a_data_base_that_only_reads_finds_its_locks_and_its_end(world: World) -> None:
    with (world.root / "same").open("rb") as one, (world.root / "same").open("rb") as other:
        for file in (one, other):
            fcntl.flock(file, fcntl.LOCK_SH)
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        size = (world.source / "same").stat().st_size
        assert (os.lseek(one.fileno(), 0, os.SEEK_DATA), os.lseek(one.fileno(), 0, os.SEEK_HOLE)) == (0, size)


def test_the_kernel_shows_the_mount_as_site_scripts_look_for_it(world: World) -> None:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    (line,) = [line for line in lines if line.split()[1] == str(world.root)]
    source, _, kind, options, *_ = line.split()
    assert (source, kind) == ("cvmfs2", "fuse")
    assert {"ro", "nosuid", "nodev"} <= set(options.split(","))


# --- revisions


def test_a_revision_changes_under_open_files_maps_and_listings(world: World) -> None:
    source, root = world.source, world.root
    (source / "data").write_bytes(b"old " * 100_000)
    (source / "tool").write_text("#!/bin/sh\necho old\n")
    (source / "tool").chmod(0o755)
    (source / "dir").mkdir(exist_ok=True)
    (source / "dir" / "stays").touch()
    (source / "dir" / "goes").write_text("x")
    (source / "dir" / "comes").unlink(missing_ok=True)
    (source / "pointer").symlink_to("old")
    world.publish()
    assert sorted(os.listdir(root / "dir")) == ["goes", "stays"]  # noqa: PTH208 - the plain listing is meant
    wait_until(lambda: not (root / "dir" / "comes").exists(), seconds=5, what="a negative entry")
    assert subprocess.run([root / "tool"], capture_output=True, timeout=20, check=True).stdout == b"old\n"
    before = (root / "data").stat().st_ino
    with (root / "data").open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:4] == b"old "
        (source / "data").write_bytes(b"new " * 100_000)
        (source / "tool").write_text("#!/bin/sh\necho new\n")
        (source / "dir" / "goes").unlink()
        (source / "dir" / "comes").write_text("here")
        (source / "pointer").unlink()
        (source / "pointer").symlink_to("new")
        world.publish()
        wait_until(lambda: (root / "data").read_bytes()[:4] == b"new ", seconds=10, what="new content")
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert opened.read() == b"old " * 100_000
        assert mapped[399_996:] == b"old "
    assert (root / "data").stat().st_ino != before
    wait_until((root / "dir" / "comes").exists, seconds=10, what="the new name")
    wait_until(lambda: not (root / "dir" / "goes").exists(), seconds=10, what="the end of the old name")
    assert sorted(os.listdir(root / "dir")) == ["comes", "stays"]  # noqa: PTH208 - the plain listing is meant
    assert (root / "pointer").readlink() == Path("new")
    assert subprocess.run([root / "tool"], capture_output=True, timeout=20, check=True).stdout == b"new\n"
    (source / "pointer").unlink()


def test_a_listing_changes_although_nothing_in_it_was_ever_looked_up(world: World) -> None:
    """Not even the directory's time: only what is in it."""
    listed = world.source / "listed"
    listed.mkdir(exist_ok=True)
    (listed / f"one-{world.adapter}").touch()
    os.utime(listed, (1e9, 1e9))
    world.publish()
    before = os.listdir(world.root / "listed")  # noqa: PTH208 - the plain listing is meant
    assert f"one-{world.adapter}" in before
    (listed / f"two-{world.adapter}").touch()
    os.utime(listed, (1e9, 1e9))
    world.publish()

    def names() -> list[str]:
        return os.listdir(world.root / "listed")  # noqa: PTH208 - the plain listing is meant

    wait_until(lambda: f"two-{world.adapter}" in names(), seconds=10, what="the new listing")
    assert f"one-{world.adapter}" in names()


# --- signals, ends


def reader(path: Path, *, handler: str = "") -> subprocess.Popen[bytes]:
    """A process that reads `path` and writes what it got."""
    program = f"import os, signal, sys\n{handler}\nsys.stdout.buffer.write(open({str(path)!r}, 'rb', 0).read())"
    return subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE)


def test_a_signal_that_does_not_kill_does_not_end_a_read(world: World) -> None:
    path, _ = world.object_of("patient/patient")
    world.gate.hold(path)
    with reader(
        world.root / "patient" / "patient", handler="signal.signal(signal.SIGUSR1, lambda *_: None)"
    ) as process:
        world.gate.await_request(path)
        for _ in range(5):
            process.send_signal(signal.SIGUSR1)
        assert process.poll() is None
        world.gate.release()
        assert process.communicate(timeout=20)[0] == (world.source / "patient" / "patient").read_bytes()


def test_unmounting_what_is_in_use_is_refused_and_harms_nobody(world: World) -> None:
    with (world.root / "same").open("rb") as opened:
        with pytest.raises(dbus.DBusException) as refused:
            world.site.call("Unmount", FQRN)
        assert complaint(refused.value)[0] == "Busy"
        assert opened.read() == (world.source / "same").read_bytes()
    world.site.call("Unmount", FQRN)
    assert not (world.root / "same").exists()
    world.mount = world.site.call("Mount", FQRN)
    assert (world.root / "same").exists()
