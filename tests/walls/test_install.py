# SPDX-License-Identifier: BSD-3-Clause
"""`make install` lays what the RPMs list, and what it lays runs from where it lies."""

from __future__ import annotations

import fnmatch
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cernvm.kit.proc import find_program
from tests.walls.tree import ROOT, commands, daemons, project, run, venv_program

pytestmark = pytest.mark.walls

MACROS = {
    "_prefix": "/usr",
    "_sysconfdir": "/etc",
    "_bindir": "/usr/bin",
    "_sbindir": "/usr/sbin",
    "_datadir": "/usr/share",
    "_mandir": "/usr/share/man",
    "_unitdir": "/usr/lib/systemd/system",
    "_sysusersdir": "/usr/lib/sysusers.d",
    "_tmpfilesdir": "/usr/lib/tmpfiles.d",
}
SPEC = ROOT / "packaging/rpm/cernvm.spec"


def make_install(destination: Path, *settings: str) -> None:
    rst2man = f"RST2MAN={venv_program('rst2man')}"
    run(find_program("make"), "-s", "install", f"DESTDIR={destination}", rst2man, *settings)


def files_below(root: Path) -> set[str]:
    return {f"/{path.relative_to(root)}" for path in root.rglob("*") if path.is_file()}


def spec_files() -> Iterator[tuple[str, str]]:
    """(sub-package, path pattern) for each line of a %files section, without documents and licences."""
    package = ""
    for line in SPEC.read_text().splitlines():
        if header := re.match(r"%files -n (\S+)$", line):
            package = header[1]
        elif line.startswith("%changelog"):
            return
        elif package and line and not line.startswith(("%license", "%doc", "%dir")):
            pattern = re.sub(r"%\{(\w+)\}", lambda macro: MACROS[macro[1]], line.split()[-1])
            yield package, pattern


def claims(pattern: str, path: str) -> bool:
    return fnmatch.fnmatchcase(path, pattern) or path.startswith(f"{pattern}/")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree laid below a destination, as a package builder does it."""
    root = tmp_path_factory.mktemp("destination")
    make_install(root)
    return root


def test_every_installed_file_belongs_to_one_package(installed: Path) -> None:
    listed = list(spec_files())
    claimed = {
        path: [package for package, pattern in listed if claims(pattern, path)] for path in files_below(installed)
    }
    assert {path: packages for path, packages in claimed.items() if len(packages) != 1} == {}


def test_every_line_of_the_spec_matches_an_installed_file(installed: Path) -> None:
    paths = files_below(installed)
    idle = [pattern for _, pattern in spec_files() if not any(claims(pattern, path) for path in paths)]
    assert idle == []


def test_the_spec_has_the_version_of_the_code() -> None:
    version = re.search(r"^Version:\s+(\S+)$", SPEC.read_text(), re.MULTILINE)
    assert version is not None
    assert version[1] == project()["version"]
    assert f'__version__ = "{version[1]}"' in (ROOT / "daemons/cernvm/__init__.py").read_text()


def test_the_spec_requires_what_the_project_depends_on() -> None:
    required = re.findall(r"^Requires:\s+python%\{pyver\}dist\((\S+)\) >= (\S+)$", SPEC.read_text(), re.MULTILINE)
    assert sorted(f"{name}>={version}" for name, version in required) == sorted(project()["dependencies"])


def test_what_is_installed_runs_from_there(tmp_path: Path) -> None:
    prefix = tmp_path / "usr"
    make_install(Path("/"), f"PREFIX={prefix}", f"SYSCONFDIR={tmp_path}/etc", f"PYTHON={sys.executable}")
    marked = prefix / "share/cernvm/cernvm/__init__.py"
    marked.write_text(marked.read_text().replace('"0.', '"installed-0.'))
    programs = [prefix / "sbin" / daemon.name for daemon in daemons()]
    programs += [prefix / "bin" / command for command in commands()]
    for program in programs:
        assert os.access(program, os.X_OK)
        assert "installed-0." in run(program, "--version")
        assert program.name in run(program, "--help")


@pytest.mark.real
def test_make_rpm_packs_the_same_bytes_twice_and_every_installed_file(tmp_path: Path, installed: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        run(ROOT / "packaging/rpm/build.sh", directory)
    packages = sorted(first.rglob("*.rpm"))
    names = {path.name.rpartition("-0.")[0] for path in packages}
    assert names == {daemon.name for daemon in daemons()} | {"cernvm-libs", "cvmfs-server"}
    for path in packages:
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()
    packed = set(run(find_program("rpm"), "-qlp", *packages).splitlines())
    plain = {path.removesuffix(".gz") for path in packed}  # rpm compresses man pages
    assert files_below(installed) <= plain
