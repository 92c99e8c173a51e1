# SPDX-License-Identifier: BSD-3-Clause
"""The whole house on loopback in one scratch directory: bus, Prosody, nginx, cvmfsd, managers, agents.

For the demo, the tests and the benchmarks: every part is the real one, configured as an admin would configure it.
One thread owns a House.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cernvm.kit.bus import SyncBus
from cernvm.kit.errors import Problem
from cernvm.kit.proc import find_program
from tests.support.bus import private_bus
from tests.support.daemon import Daemon, command_line, project_environment
from tests.support.nginx import Nginx
from tests.support.prosody import Prosody
from tests.support.server import ServerFailed, free_port

JOB_MANAGER = ("ch.cern.cernvm.CopilotJobManager1", "/ch/cern/cernvm/CopilotJobManager1")
MOUNT_INTERFACE = "ch.cern.cernvm.Cvmfs1.Mount"
CVMFS = ("ch.cern.cernvm.Cvmfs1", "/ch/cern/cernvm/Cvmfs1")


@dataclass(frozen=True)
class Repository:
    """A repository of ours: its name, what the web server serves, and the keys."""

    fqrn: str
    storage: Path
    keys: Path

    @property
    def public_key(self) -> Path:
        """The master key that clients trust."""
        return self.keys / f"{self.fqrn}.pub"

    def exists(self) -> bool:
        """Whether it has a published revision."""
        return (self.storage / ".cvmfspublished").exists()

    def publish(self, tree: Path) -> dict[str, Any]:
        """Publish `tree` through `cvmfs-server`, making the repository first if need be; returns its answer."""
        if not self.exists():
            self._server("mkfs")
        return self._server("publish", str(tree))

    def resign(self) -> None:
        """Renew the whitelist, as a release manager does once a month."""
        self._server("resign")

    def _server(self, verb: str, *arguments: str) -> dict[str, Any]:
        options = ["--storage", str(self.storage), "--keys", str(self.keys), "--json"]
        answer: dict[str, Any] = json.loads(run_command("cvmfs-server", verb, self.fqrn, *arguments, *options))
        return answer


@dataclass(frozen=True)
class Apart:
    """Web server and cvmfsd on two hosts: what wraps the command line of each, and the server's address."""

    server: Callable[..., list[str]]
    client: Callable[..., list[str]]
    address: str


class House:
    """Enter it to start everything in order of need; leaving it ends everything in the reverse order."""

    def __init__(
        self,
        directory: Path,
        *,
        repositories: Sequence[Repository] = (),
        agents: int = 2,
        lease_seconds: int = 30,
        max_attempts: int = 3,
        apart: Apart | None = None,
        fuse: str = "auto",
    ) -> None:
        self.directory = directory
        self.mounts = directory / "cvmfs"
        self._repositories = list(repositories)
        self._lease_seconds = lease_seconds
        self._max_attempts = max_attempts
        self._apart = apart
        self._fuse = fuse
        self._stack = ExitStack()
        self.environment: dict[str, str] = {}
        names = ["manager", "storage", *(f"agent{n}" for n in range(1, agents + 1))]
        accounts = {name: secrets.token_urlsafe(18) for name in names}
        self.prosody = Prosody(directory / "prosody", accounts=accounts)
        self._agent_names = names[2:]
        self._storage_port = free_port()
        self.agents: dict[str, Daemon] = {}

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        tidy(self.directory, keep=True)

    def _start(self, stack: ExitStack) -> None:
        self.environment = stack.enter_context(private_bus(self.directory / "bus")).environment
        place, apart = self.directory / "nginx", self._apart
        address, inside = (apart.address, apart.server) if apart else ("127.0.0.1", None)
        self.web = stack.enter_context(Nginx(place, self._web_root(), address=address, inside=inside))
        stack.enter_context(self.prosody)
        keys = self.directory / "tokens"
        run_command("copilotctl", "make-keys", "--directory", str(keys))
        self.cvmfsd = stack.enter_context(self._cvmfsd())
        self.storage = stack.enter_context(self._daemon("copilot-storaged", "storage", self._storage_config(keys)))
        self.manager = stack.enter_context(self._daemon("copilot-jobmanagerd", "manager", self._manager_config(keys)))
        for name in self._agent_names:
            self.agents[name] = stack.enter_context(self._daemon("copilot-agentd", name, self._agent_config(name)))

    def _web_root(self) -> Path:
        served = self.directory / "web" / "cvmfs"
        served.mkdir(parents=True)
        for repository in self._repositories:
            (served / repository.fqrn).symlink_to(repository.storage.resolve())
        return served.parent

    def _daemon(self, name: str, directory: str, config: str) -> Daemon:
        return Daemon(name, self.directory / directory, config, self.environment)

    def _cvmfsd(self) -> Daemon:
        parameters = self.directory / "etc-cvmfs"
        (parameters / "config.d").mkdir(parents=True)
        (parameters / "default.local").write_text(
            f"CVMFS_SERVER_URL={self.web.url}/cvmfs/@fqrn@\nCVMFS_HTTP_PROXY=DIRECT\n"
        )
        for one in self._repositories:
            (parameters / "config.d" / f"{one.fqrn}.conf").write_text(f"CVMFS_PUBLIC_KEY={one.public_key}\n")
        config = (
            f"[cvmfsd]\nparameters_directory = {parameters}\nmount_directory = {self.mounts}\nfuse = {self._fuse}\n"
            f"[cache]\ndirectory = {self.directory / 'cache'}\n"
        )
        inside = self._apart.client if self._apart else None
        return Daemon("cvmfsd", self.directory / "cvmfsd", config, self.environment, inside=inside)

    def _xmpp(self, account: str) -> str:
        return (
            f"[xmpp]\njid = {self.prosody.jid(account)}\npassword_file = {self.prosody.password_file(account)}\n"
            f"host = 127.0.0.1\nport = {self.prosody.port}\nca_file = {self.prosody.ca_file}\n"
        )

    def _storage_config(self, keys: Path) -> str:
        return (
            f"{self._xmpp('storage')}job_managers = {self.prosody.jid('manager')},\n"
            f"[http]\nport = {self._storage_port}\n"
            f"[store]\ndirectory = {self.directory / 'store'}\nreserve_mb = 64\n"
            f"[tokens]\npublic_key = {keys / 'token.pub'}\n"
        )

    def _manager_config(self, keys: Path) -> str:
        return (
            f"{self._xmpp('manager')}[queue]\nfile = {self.directory / 'manager' / 'queue.sqlite'}\n"
            f"[jobs]\nlease_seconds = {self._lease_seconds}\nmax_attempts = {self._max_attempts}\n"
            f"[storage]\njid = {self.prosody.jid('storage')}\nurl = http://127.0.0.1:{self._storage_port}\n"
            f"token_key = {keys / 'token.key'}\n"
        )

    def _agent_config(self, name: str) -> str:
        return (
            f"{self._xmpp(name)}manager = {self.prosody.jid('manager')}\n"
            f"[agent]\nname = {name}\ndirectory = {self.directory / name / 'spool'}\nask_seconds = 2\n"
            f"bus_name = ch.cern.cernvm.CopilotAgent1.{name}\n"
        )

    # --- what a person does

    def command(self, name: str, *arguments: str) -> str:
        """Run one of the project's commands against this house; returns its output.  Raises Problem."""
        return run_command(name, *arguments, environment=self.environment)

    def submit(self, job_file: str, *, name: str = "job") -> str:
        """Submit the job file with this text; returns the job's id."""
        path = self.directory / f"{name}.toml"
        path.write_text(job_file)
        return str(json.loads(self.command("copilotctl", "submit", "--json", str(path)))["id"])

    def hand_in(self, job: dict[str, Any]) -> str:
        """Submit a job without input files straight over D-Bus; returns its id.  Raises Problem."""
        access: dict[str, Any] = self._call(JOB_MANAGER, "Submit", "s", json.dumps(job))
        self._call(JOB_MANAGER, "Release", "s", access["id"])
        return str(access["id"])

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs as the job manager tells them over D-Bus.  Raises Problem."""
        found: list[dict[str, Any]] = json.loads(self._call(JOB_MANAGER, "List", "a{sv}", {}))
        return found

    def job(self, job: str) -> dict[str, Any]:
        """One job with all that is known of it.  Raises Problem."""
        found: dict[str, Any] = json.loads(self._call(JOB_MANAGER, "Get", "s", job))
        return found

    def await_job(self, job: str, *states: str, seconds: float = 60.0) -> dict[str, Any]:
        """Wait until the job is in one of `states` and return it.  Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.job(job)
            if found["state"] in states:
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"the job is {found['state']}, not {' or '.join(states)}, after {seconds:g} s: {found}"
                )
            time.sleep(0.05)

    def mount(self, fqrn: str) -> Path:
        """Have `fqrn` mounted; returns where.  Raises Problem."""
        self._call(CVMFS, "Mount", "s", fqrn)
        return self.mounts / fqrn

    def mount_properties(self, fqrn: str) -> dict[str, Any]:
        """What cvmfsd tells of the mount of `fqrn`.  Raises Problem."""
        path = self._call(CVMFS, "Mount", "s", fqrn)
        with self._bus() as bus:
            return bus.get_all(CVMFS[0], path, MOUNT_INTERFACE)

    def check(self) -> None:
        """Raise ServerFailed when a daemon of the house has ended."""
        for daemon in (self.cvmfsd, self.storage, self.manager, *self.agents.values()):
            status = daemon.process.poll()
            if status is not None:
                raise ServerFailed(f"{daemon.name} ended with status {status}: {daemon.log_end()}")

    def _call(self, service: tuple[str, str], member: str, signature: str, *arguments: Any) -> Any:
        with self._bus() as bus:
            return bus.call(service[0], service[1], service[0], member, signature, *arguments, timeout=60.0)

    @contextmanager
    def _bus(self) -> Iterator[SyncBus]:
        before = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS")
        os.environ.update(self.environment)
        try:
            with SyncBus.system() as bus:
                yield bus
        finally:
            if before is None:
                del os.environ["DBUS_SYSTEM_BUS_ADDRESS"]
            else:
                os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = before


def run_command(name: str, *arguments: str, environment: dict[str, str] | None = None) -> str:
    """Run a command of the project to its end; returns its standard output.  Raises Problem with its sentence."""
    done = subprocess.run(
        command_line(name, *arguments),
        env=project_environment(environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1800.0,
        check=False,
    )
    if done.returncode:
        raise Problem(done.stderr.strip() or f"{name} ended with status {done.returncode}")
    return done.stdout


def mounted_below(directory: Path) -> list[Path]:
    """The mount points inside `directory`, deepest first."""
    points = [Path(os.fsdecode(line.split()[1])) for line in Path("/proc/mounts").read_text().splitlines()]
    return sorted((p for p in points if directory.resolve() in p.parents), reverse=True)


def tidy(directory: Path, *, keep: bool = False) -> None:
    """Remove what a killed run may have left below `directory`: mounts always, files unless `keep`."""
    for point in mounted_below(directory):
        command = [find_program("fusermount"), "-u", "-z", str(point)]
        subprocess.run(command, capture_output=True, timeout=30, check=False)
    if not keep and directory.exists():
        shutil.rmtree(directory)


def processes_naming(text: str) -> list[int]:
    """The ids of the other processes whose command line contains `text`."""
    found = []
    for path in Path("/proc").iterdir():
        with suppress(OSError):
            other = path.name.isdigit() and int(path.name) != os.getpid()
            if other and text.encode() in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found
