# SPDX-License-Identifier: BSD-3-Clause
"""A real cvmfsd on a private bus in front of a real nginx, with its own directories, and a way to talk to it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import dbus
import pytest

from cernvm.cvmfsd.mounting import unmount
from tests.support.bus import private_bus
from tests.support.daemon import ROOT, Daemon
from tests.support.nginx import Nginx

FIXTURES: Final = ROOT.parent / "shared" / "fixtures" / "cvmfs"
NAME: Final = "ch.cern.cernvm.Cvmfs1"
PATH: Final = "/ch/cern/cernvm/Cvmfs1"
MOUNT: Final = "ch.cern.cernvm.Cvmfs1.Mount"


def missing(what: str) -> None:
    """Fail in CI, skip elsewhere: the machine lacks something that a test needs."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


def fixture(name: str) -> Path:
    """The directory of a repository that the original server published."""
    found = FIXTURES / name
    if not found.is_dir():
        missing(f"{found} is not here")
    return found


def copy_of(repository: Path, to: Path) -> Path:
    """A writable copy of a repository's storage."""
    shutil.copytree(repository, to, symlinks=True)
    for path in [to, *to.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    return to


@dataclass(frozen=True)
class Site:
    """One machine: a bus, a web server below `web`, a cvmfsd with its directories."""

    directory: Path
    daemon: Daemon
    bus_address: str
    web: Nginx

    @property
    def mounts(self) -> Path:
        """Where repositories appear."""
        return self.directory / "mounts"

    @property
    def parameters(self) -> Path:
        """What /etc/cvmfs is elsewhere."""
        return self.directory / "etc"

    @property
    def cache(self) -> Path:
        """The cache directory."""
        return self.directory / "cache"

    def call(self, member: str, *arguments: str) -> Any:
        """Call a method of the daemon.  Raises dbus.DBusException."""
        return self._object(PATH).get_dbus_method(member, NAME)(*arguments, timeout=60)

    def refresh(self, path: str) -> int:
        """Have a mount look for a newer revision."""
        return int(self._object(path).get_dbus_method("Refresh", MOUNT)(timeout=60))

    def properties(self, path: str) -> dict[str, Any]:
        """The properties of a mount's object."""
        get_all = self._object(path).get_dbus_method("GetAll", "org.freedesktop.DBus.Properties")
        return dict(get_all(MOUNT, timeout=30))

    def _object(self, path: str) -> Any:
        bus = dbus.bus.BusConnection(self.bus_address)
        return bus.get_object(NAME, path, introspect=False)


@contextmanager
def site(directory: Path, web_root: Path, parameters: dict[str, str], config: str = "") -> Iterator[Site]:
    """Run a site; `parameters` go to default.local, `config` after the [cvmfsd] keys that every site needs."""
    if not Path("/dev/fuse").exists():
        missing("there is no /dev/fuse")
    etc = directory / "etc"
    etc.mkdir(parents=True)
    text = f"""
        [cvmfsd]
        parameters_directory = {etc}
        mount_directory = {directory / "mounts"}
        {config}
        [cache]
        directory = {directory / "cache"}
    """
    with private_bus(directory / "bus") as bus, Nginx(directory / "web", web_root) as web:
        given = {
            "CVMFS_SERVER_URL": f"{web.url}/@fqrn@",
            "CVMFS_HTTP_PROXY": "DIRECT",
            "CVMFS_CLAIM_OWNERSHIP": "no",
            "CVMFS_ARCH": "x86_64",
            "CVMFS_MAX_RETRIES": "0",
            **parameters,
        }
        (etc / "default.local").write_text("".join(f"{key}='{value}'\n" for key, value in given.items()))
        daemon = Daemon("cvmfsd", directory, text, {"DBUS_SYSTEM_BUS_ADDRESS": bus.address})
        try:
            with daemon:
                yield Site(directory, daemon, bus.address, web)
        finally:
            left = mounts_below(directory)
            for point in left:
                unmount(Path(point), lazy=True)
    assert left == [], "something stayed mounted"


def mounts_below(directory: Path) -> list[str]:
    """Mount points below `directory`, by the kernel's table."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if line.split()[4].startswith(f"{directory}/")]


def worker_of(mounted: Path) -> int:
    """The process id of the worker behind a mount."""
    return int(os.getxattr(mounted, "user.pid"))


def gone(pid: int) -> bool:
    """Whether a process has ended, also if nobody has taken its end yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def complaint(error: dbus.DBusException) -> tuple[str, str]:
    """The last part of the error's name, and its sentence."""
    return str(error.get_dbus_name()).rpartition(".")[2], str(error.get_dbus_message())
