# SPDX-License-Identifier: BSD-3-Clause
"""The D-Bus face: ch.cern.cernvm.Cvmfs1, and one object per mount.  It translates and decides nothing.

Runs on the asyncio loop.  The contract: docs/dbus-cvmfs.md, enforced by tests/real/test_cvmfsd_mounts.py.
"""

from __future__ import annotations

from typing import ClassVar, Final, Protocol

from cernvm import __version__
from cernvm.kit.bus import BusObject, escape, method, prop, signal

from .caretaker import Caretaker
from .mount import Mount
from .supervisor import Supervisor

NAME: Final = "ch.cern.cernvm.Cvmfs1"
PATH: Final = "/ch/cern/cernvm/Cvmfs1"


class Exporter(Protocol):
    """Where objects are shown: the bus."""

    def export(self, path: str, obj: BusObject) -> None:
        """Show."""

    def unexport(self, path: str) -> None:
        """Take away."""


def path_of(fqrn: str) -> str:
    """The object path of a mount."""
    return f"{PATH}/mounts/{escape(fqrn)}"


class MountObject(BusObject):
    """One mounted repository."""

    interface: ClassVar[str] = "ch.cern.cernvm.Cvmfs1.Mount"

    def __init__(self, supervisor: Supervisor, mount: Mount) -> None:
        self._supervisor = supervisor
        self._mount = mount

    @method("", "t")
    async def Refresh(self) -> int:
        """Look for a newer revision now."""
        return await self._supervisor.refresh(self._mount)

    @prop("s")
    def Fqrn(self) -> str:
        """Repository name."""
        return self._mount.fqrn

    @prop("s")
    def MountPoint(self) -> str:
        """Directory."""
        return str(self._mount.point)

    @prop("t")
    def Revision(self) -> int:
        """What it shows."""
        return self._mount.revision

    @prop("s")
    def RootHash(self) -> str:
        """Hash of the root catalog."""
        return self._mount.root_hash

    @prop("s")
    def Adapter(self) -> str:
        """What carries it to the kernel: kernel or llfuse."""
        return self._mount.adapter

    @prop("s")
    def State(self) -> str:
        """starting, mounted, restarting or stopping."""
        return self._mount.state.value

    @prop("s")
    def LastError(self) -> str:
        """The sentence of the last request that was answered with an error; empty if none was."""
        return self._mount.last_error

    @prop("a{sv}")
    def Statistics(self) -> dict[str, int]:
        """Numbers by name."""
        return dict(self._mount.statistics())


class Control(BusObject):
    """The daemon."""

    interface: ClassVar[str] = NAME

    def __init__(self, caretaker: Caretaker) -> None:
        self._caretaker = caretaker
        self._supervisor: Supervisor | None = None

    def serve(self, supervisor: Supervisor) -> None:
        """Answer calls with `supervisor` from now on; to be called before the object is exported."""
        self._supervisor = supervisor

    @method("s", "o")
    async def Mount(self, fqrn: str) -> str:
        """Mount a repository, or find it mounted."""
        mount = await self.supervisor.mount(fqrn)
        return path_of(mount.fqrn)

    @method("s", "")
    async def Unmount(self, fqrn: str) -> None:
        """Unmount a repository that nobody uses."""
        await self.supervisor.unmount(fqrn)

    @method("s", "")
    async def Reload(self, fqrn: str) -> None:
        """Have a new worker with fresh parameters take a mount over."""
        await self.supervisor.reload(self.supervisor.known(fqrn))

    @method("", "t")
    async def Wipe(self) -> int:
        """Empty the cache; the bytes that stay."""
        return await self._caretaker.wipe()

    @method("", "tas")
    async def Check(self) -> tuple[int, list[str]]:
        """Look the cache through; how many objects, and the names of the damaged ones, which are gone."""
        found = await self._caretaker.check()
        return found.checked, list(found.damaged)

    @prop("s")
    def MountDirectory(self) -> str:
        """Repositories appear below it."""
        return str(self.supervisor.mount_directory)

    @prop("s")
    def Workspace(self) -> str:
        """The directory of the cache, with the sockets of `cvmfs_talk`."""
        return str(self._caretaker.directory)

    @method("", "a(soss)")
    async def ListMounts(self) -> list[tuple[str, str, str, str]]:
        """Name, object, mount point and state of each."""
        mounts = sorted(self.supervisor.mounts.values(), key=lambda mount: mount.fqrn)
        return [(one.fqrn, path_of(one.fqrn), str(one.point), one.state.value) for one in mounts]

    @prop("s")
    def Version(self) -> str:
        """Of cvmfsd."""
        return __version__

    @signal("sst")
    def MountAppeared(self, fqrn: str, mount_point: str, revision: int) -> None:
        """It is there."""

    @signal("s")
    def MountGone(self, fqrn: str) -> None:
        """It is not there any more."""

    @signal("st")
    def RevisionChanged(self, fqrn: str, revision: int) -> None:
        """It shows another revision."""

    @signal("ss")
    def MountFailed(self, fqrn: str, complaint: str) -> None:
        """It could not be mounted, or not again."""

    @property
    def supervisor(self) -> Supervisor:
        """What answers."""
        assert self._supervisor is not None
        return self._supervisor


class Announcer:
    """Tells the bus what happens to mounts, and keeps their objects there."""

    def __init__(self, bus: Exporter, control: Control) -> None:
        self._bus = bus
        self._control = control
        self._objects: dict[str, MountObject] = {}

    def appeared(self, mount: Mount) -> None:
        """Show the mount's object."""
        if mount.fqrn not in self._objects:
            self._objects[mount.fqrn] = MountObject(self._control.supervisor, mount)
            self._bus.export(path_of(mount.fqrn), self._objects[mount.fqrn])
        self.changed(mount)
        self._control.MountAppeared(mount.fqrn, str(mount.point), mount.revision)

    def gone(self, mount: Mount) -> None:
        """Take the mount's object away."""
        if self._objects.pop(mount.fqrn, None) is not None:
            self._bus.unexport(path_of(mount.fqrn))
        self._control.MountGone(mount.fqrn)

    def revision_changed(self, mount: Mount) -> None:
        """Tell the new revision."""
        self.changed(mount)
        self._control.RevisionChanged(mount.fqrn, mount.revision)

    def failed(self, fqrn: str, complaint: str) -> None:
        """Tell why a mount could not be made or kept."""
        self._control.MountFailed(fqrn, complaint)

    def changed(self, mount: Mount) -> None:
        """Tell the properties that may have changed."""
        shown = self._objects.get(mount.fqrn)
        if shown is not None:
            shown.changed("State", "LastError", "Revision", "RootHash")
