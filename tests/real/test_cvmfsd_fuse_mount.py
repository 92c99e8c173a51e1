# SPDX-License-Identifier: BSD-3-Clause
"""Ways to a mount over the kernel's protocol: without root, and with kernels that offer less than is wanted."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cernvm.cvmfs.client import MountOptions
from cernvm.cvmfsd import adapters, fuse_mount, kernel, llfuse, wire
from cernvm.cvmfsd.fuse_wire import Feature, Opcode
from cernvm.cvmfsd.mounting import unmount
from cernvm.kit.errors import Problem
from tests.support.cvmfs import copy_of, fixture, mounts_below
from tests.support.daemon import project_environment
from tests.support.server import wait_until
from tests.support.storage import StorageView

pytestmark = pytest.mark.real
NOBODY = 65534
WAITING = 11
OPTIONS = MountOptions(check_permissions=True, allow_setuid=False)
EVERYTHING = Feature(sum(Feature))
SERVE = """
import sys
from pathlib import Path
from cernvm.cvmfsd import fuse_mount, kernel
from tests.support.storage import StorageView

storage, cache, point = map(Path, sys.argv[1:])
fd = fuse_mount.mount_by_helper(point, ["default_permissions"])
features = kernel.shake_hands(fd, point)
kernel.Session(StorageView(storage, cache).view, print, point, fd, features).serve(8)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may enter, unlike pytest's own."""
    directory = Path(tempfile.mkdtemp(prefix="fuse-mount-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def test_the_helper_mounts_for_who_is_not_root(place: Path) -> None:
    """As another user where users may open /dev/fuse, else as root, who then takes the same way."""
    open_to_all = fuse_mount.DEVICE.stat().st_mode & 0o006 == 0o006
    user = NOBODY if open_to_all and os.geteuid() == 0 else os.geteuid()
    copy_of(fixture("small") / "repo", place / "storage")
    for name in ("cache", "mount"):
        (place / name).mkdir()
        os.chown(place / name, user, -1)
    command = [sys.executable, "-c", SERVE, *(str(place / name) for name in ("storage", "cache", "mount"))]
    environment = {**project_environment({}), "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, user=user, extra_groups=[]) as process:
        try:
            wait_until(lambda: mounts_below(place) != [] or process.poll() is not None, seconds=30, what="the mount")
            assert read_by(user, place / "mount" / "README.txt") == "41"
            if user == NOBODY:
                assert read_by(0, place / "mount" / "README.txt") == "", "it is his alone"
        finally:
            unmount(place / "mount", lazy=True)
            process.wait(20)
    assert process.returncode == 0


def read_by(user: int, path: Path) -> str:
    """The length of a file that `user` reads, as text; empty if he may not."""
    command = [sys.executable, "-S", "-c", f"print(len(open({str(path)!r}).read()), end='')"]
    return subprocess.run(command, user=user, capture_output=True, text=True, timeout=30, check=False).stdout


def init(major: int, minor: int, features: int, unique: int = 2) -> bytes:
    """An INIT as a kernel sends it."""
    body = struct.pack("=IIIII44x", major, minor, 131072, features, 0)
    return struct.pack("=IIQQIIII", 40 + len(body), Opcode.INIT, unique, 0, 0, 0, 0, 0) + body


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, int]]:
    """A kernel's end, and the descriptor of a mount's."""
    kernel_end, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernel_end.settimeout(10)
    with kernel_end, ours:
        yield kernel_end, ours.fileno()


def test_a_new_kernel_is_agreed_with(pair: tuple[socket.socket, int]) -> None:
    pair[0].send(init(7, 45, EVERYTHING | 1 << 30))
    agreed = kernel.shake_hands(pair[1], Path("/mnt"))
    assert agreed & Feature.NO_OPEN_SUPPORT
    length, error, unique, major, minor, _, features = struct.unpack_from("=IiQIIII", pair[0].recv(4096))
    assert (length, error, unique, major, minor, features) == (80, 0, 2, 7, 31, int(agreed))


def test_a_kernel_of_another_major_version_is_offered_ours_and_begins_again(pair: tuple[socket.socket, int]) -> None:
    pair[0].send(init(8, 0, 0))
    pair[0].send(init(7, 31, EVERYTHING, unique=4))
    assert kernel.shake_hands(pair[1], Path("/mnt"))
    assert [struct.unpack_from("=IiQI", pair[0].recv(4096))[2:] for _ in range(2)] == [(2, 7), (4, 7)]


@pytest.mark.parametrize(
    ("major", "minor", "features", "told"),
    [
        (7, 27, EVERYTHING, "this kernel speaks FUSE 7.27, and 7.28 is needed"),
        (6, 99, EVERYTHING, "this kernel speaks FUSE 6.99, and 7.28 is needed"),
        (7, 31, EVERYTHING & ~Feature.NO_OPEN_SUPPORT, "asks at every open"),
    ],
)
def test_a_kernel_that_offers_less_is_told_from_a_broken_one(
    pair: tuple[socket.socket, int], major: int, minor: int, features: int, told: str
) -> None:
    pair[0].send(init(major, minor, features))
    with pytest.raises(kernel.KernelLacks, match=told):
        kernel.shake_hands(pair[1], Path("/mnt"))


def test_what_is_no_init_is_a_problem(pair: tuple[socket.socket, int]) -> None:
    for wrong in (b"short", init(7, 31, 0)[:50], init(7, 31, 0).replace(b"\x1a", b"\x03", 1)):
        pair[0].send(wrong)
        with pytest.raises(Problem, match="/mnt"):
            kernel.shake_hands(pair[1], Path("/mnt"))


@pytest.mark.parametrize("choice", list(wire.Choice))
def test_auto_takes_llfuse_where_the_kernel_offers_less_and_says_why(
    tmp_path: Path, choice: wire.Choice, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    view = StorageView(fixture("small") / "repo", tmp_path / "cache").view

    def lacks(*_: object) -> kernel.Session:
        raise kernel.KernelLacks("this kernel speaks FUSE 7.19, and 7.28 is needed")

    class Llfuse:
        name = "llfuse"

        def __init__(self, *_: object) -> None:
            """Nothing is mounted."""

    monkeypatch.setattr(kernel, "mount", lacks)
    monkeypatch.setattr(llfuse, "Session", Llfuse)
    if choice is wire.Choice.KERNEL:
        with pytest.raises(kernel.KernelLacks):
            adapters.mount_view(choice, view, print, tmp_path, OPTIONS)
        return
    assert adapters.mount_view(choice, view, print, tmp_path, OPTIONS).name == "llfuse"
    assert ("7.19" in caplog.text) is (choice is wire.Choice.AUTO)


def test_requests_are_answered_in_parallel_up_to_the_bound_and_the_threads_end(
    pair: tuple[socket.socket, int], tmp_path: Path
) -> None:
    """Over a pair of sockets in place of a kernel: every message is one request."""
    shown = StorageView(fixture("small") / "repo", tmp_path / "cache")
    readme = shown.walk("README.txt")
    session = kernel.Session(shown.view, lambda _: None, Path("/mnt"), pair[1], EVERYTHING)
    serving = threading.Thread(target=session.serve, args=(WAITING + 1,), daemon=True)
    serving.start()
    shown.storage.open_gate.clear()

    def ask(opcode: int, unique: int, node: int, body: bytes = b"") -> None:
        pair[0].send(struct.pack("=IIQQIIII", 40 + len(body), opcode, unique, node, 0, 0, 0, 0) + body)

    numbers = range(100, 100 + 2 * WAITING, 2)
    for unique in numbers:
        ask(Opcode.READ, unique, readme, struct.pack("=QQIIQII", 0, 0, 4096, 0, 0, 0, 0))
    ask(Opcode.GETATTR, 16, 1)
    assert struct.unpack_from("=IiQ", pair[0].recv(4096))[1:] == (0, 16), "all but one wait, and that one answers"
    ask(Opcode.INTERRUPT, 99, 0, struct.pack("=Q", 1000))
    assert struct.unpack_from("=IiQ", pair[0].recv(4096)) == (16, -11, 99), "what is not known is asked again"
    shown.storage.open_gate.set()
    answers = [pair[0].recv(8192) for _ in numbers]
    assert sorted(struct.unpack_from("=IiQ", one) for one in answers) == [(57, 0, unique) for unique in numbers]
    for unique in range(200, 400, 2):
        ask(Opcode.GETATTR, unique, 1)
        assert struct.unpack_from("=IiQ", pair[0].recv(4096))[1:] == (0, unique), "somebody is always there to read"
    pair[0].shutdown(socket.SHUT_RDWR)
    serving.join(10)
    assert not serving.is_alive()
