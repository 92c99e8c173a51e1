# SPDX-License-Identifier: BSD-3-Clause
"""What stands in this checkout, read once from its own files; the wall tests compare these readings."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cernvm.kit.proc import find_program

ROOT: Final = Path(__file__).resolve().parents[2]
LISTS: Final = ROOT / "packaging/packages"


@dataclass(frozen=True)
class Daemon:
    """One daemon under the name of its binary."""

    name: str

    @property
    def package(self) -> str:
        """Name of its Python package below `cernvm`."""
        return self.name.replace("-", "_")

    @property
    def bus_name(self) -> str:
        """What it must own on the bus: cvmfsd is Cvmfs1, copilot-jobmanagerd is CopilotJobManager1."""
        words = self.name.removesuffix("d").replace("jobmanager", "job-manager").split("-")
        return "ch.cern.cernvm." + "".join(word.capitalize() for word in words) + "1"

    @property
    def unit(self) -> str:
        """Text of its unit."""
        return (ROOT / f"systemd/system/{self.name}.service").read_text()


@dataclass(frozen=True)
class SystemPackage:
    """A line of a package list."""

    name: str
    programs: tuple[str, ...]
    headers: tuple[str, ...]
    why: str


@functools.cache
def project() -> dict[str, Any]:
    """The `project` table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def daemons() -> list[Daemon]:
    """The daemons among the project's scripts: those that start a package's `__main__`."""
    return [Daemon(name) for name, entry in project()["scripts"].items() if ".__main__:" in entry]


def commands() -> list[str]:
    """The other scripts."""
    return [name for name, entry in project()["scripts"].items() if ".__main__:" not in entry]


@functools.cache
def files() -> tuple[Path, ...]:
    """Every file that git knows or would add, as absolute paths that exist."""
    listed = subprocess.run(
        [find_program("git"), "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        stdout=subprocess.PIPE,
        check=True,
        timeout=20,
    ).stdout.decode()
    found = (ROOT / name for name in sorted(set(listed.split("\0"))) if name)
    return tuple(path for path in found if path.is_file())


def python_files() -> list[Path]:
    """Every Python file of the tree."""
    return [path for path in files() if path.suffix == ".py"]


def system_packages(distribution: str) -> list[SystemPackage]:
    """The lines of packaging/packages/`distribution`.list; raises AssertionError for one of a wrong shape."""
    packages = []
    for number, line in enumerate((LISTS / f"{distribution}.list").read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split("|")]
        assert len(fields) == 4, f"{distribution}.list, line {number}: not four fields"
        name, programs, headers, why = fields
        assert re.fullmatch(r"!?[a-z0-9:.+-]+", name), f"{distribution}.list, line {number}: {name}"
        assert why, f"{distribution}.list, line {number}: no reason"
        packages.append(SystemPackage(name, _words(programs), _words(headers), why))
    return packages


def _words(field: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in field.split(",") if word.strip())


def run(*command: str | Path, seconds: float = 60.0) -> str:
    """Run `command` in the root of the tree; returns what it printed, fails with it if its status is not 0."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
        check=False,
    )
    text = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"{Path(str(command[0])).name} ended with {done.returncode}:\n{text}"
    return text


def venv_program(name: str) -> Path:
    """A command that pip put beside this interpreter."""
    return Path(sys.executable).with_name(name)
