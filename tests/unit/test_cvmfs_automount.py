# SPDX-License-Identifier: BSD-3-Clause
"""The units that the generator writes for systemd: named as systemd names them, and accepted by it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cernvm.cli.cvmfs_automount import escaped, main, write_units
from cernvm.cvmfs.errors import Mistake
from cernvm.kit.proc import find_program


def configured(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "cvmfsd.conf"
    file.write_text(f"[cvmfsd]\n{text}\n[cache]\nlimit_mb = 7\n")
    return file


def test_each_repository_gets_a_trigger_and_a_mount(tmp_path: Path) -> None:
    file = configured(tmp_path, "automount = soft-ware.example.org, other.example.org,  # two\n")
    units = tmp_path / "units"
    units.mkdir()
    names = write_units(file, units)
    assert names == [
        *("cvmfs-soft\\x2dware.example.org.automount", "cvmfs-soft\\x2dware.example.org.mount"),
        *("cvmfs-other.example.org.automount", "cvmfs-other.example.org.mount"),
    ]
    assert (
        "What=soft-ware.example.org\nWhere=/cvmfs/soft-ware.example.org\nType=cvmfs\n" in (units / names[1]).read_text()
    )
    wanted = units / "remote-fs.target.wants" / names[0]
    assert wanted.resolve() == (units / names[0]).resolve()
    assert write_units(file, units) == names, "again, as after a daemon-reload"
    said = subprocess.run(
        [find_program("systemd-analyze"), "verify", "--man=no", "--recursive-errors=no", *(units / n for n in names)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert [line for line in said.stderr.splitlines() if "example.org" in line] == []


def test_nothing_configured_is_nothing_written(tmp_path: Path) -> None:
    assert write_units(configured(tmp_path, "repositories = a.example.org"), tmp_path) == []
    assert write_units(tmp_path / "absent.conf", tmp_path) == []
    assert not (tmp_path / "remote-fs.target.wants").exists()


def test_a_name_that_is_none_stops_the_generator_with_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Mistake, match="is not a repository name"):
        write_units(configured(tmp_path, "automount = ../etc,"), tmp_path)
    assert main([]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("path", ["/cvmfs/a-b.example.org", "/cvmfs/x_y.z", "/mnt/.hidden/a.b"])
def test_names_are_escaped_as_systemd_does(path: str) -> None:
    done = subprocess.run(
        [find_program("systemd-escape"), "--path", path], capture_output=True, text=True, timeout=20, check=True
    )
    assert escaped(path) == done.stdout.strip()
