# SPDX-License-Identifier: BSD-3-Clause
"""The table of parameters, the page for people and the code that asks for them say the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

import cernvm
from cernvm.cvmfs.parameter_table import TABLE, Use
from cernvm.cvmfs.parameters import Parameters, read_parameters

PACKAGE: Final = Path(cernvm.__file__).parent
PAGE: Final = Path(__file__).parents[2] / "docs" / "cvmfs-parameters.md"
UNHEARD: Final = (Use.REFUSED, Use.ALONE)
"""What a mount of cvmfsd warns about."""
SET_BY_THE_SHELL: Final = {"CVMFS_FQRN"}


def rows() -> dict[str, tuple[str, str, str]]:
    """Name -> default, use and what it does, as the page says."""
    found = re.findall(r"^\| `(\w+)` \| (.*?) \| (\w+) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    return {name: (default.strip("`"), use, what.replace("\\|", "|")) for name, default, use, what in found}


def asked_for() -> set[str]:
    """Every parameter that the client's code names."""
    files = [*PACKAGE.glob("cvmfs/*.py"), *PACKAGE.glob("cvmfsd/*.py")]
    texts = (file.read_text() for file in files if file.name != "parameter_table.py")
    return {name for text in texts for name in re.findall(r'"((?:CVMFS_|X509_)[A-Z0-9_]+)"', text)} - SET_BY_THE_SHELL


def test_the_page_and_the_table_are_one() -> None:
    assert rows() == {name: (known.default, known.use.value, known.what) for name, known in TABLE.items()}


def test_what_is_followed_is_asked_for_and_what_is_asked_for_is_followed() -> None:
    followed = {name for name, known in TABLE.items() if known.use in (Use.FOLLOWED, Use.ALONE)}
    assert asked_for() == followed


def test_a_default_needs_no_warning() -> None:
    for name, known in TABLE.items():
        if known.use in UNHEARD and known.default:
            assert known.default in known.harmless, name


def test_what_is_followed_has_no_harmless_values() -> None:
    assert [name for name, known in TABLE.items() if known.harmless and known.use not in UNHEARD] == []


def read(etc: Path, text: str) -> Parameters:
    (etc / "default.local").write_text(text)
    return read_parameters("sw.example.org", etc)


@pytest.mark.parametrize("name", [name for name, known in TABLE.items() if known.use in UNHEARD])
def test_each_refused_parameter_is_told_by_name(tmp_path: Path, name: str) -> None:
    (told,) = read(tmp_path, f"{name}=xyz\n").refusals()
    assert told == f"{tmp_path}/default.local: {name}=xyz is not followed: {TABLE[name].what}"
    defaults = "".join(f"{name}='{value}'\n" for value in ("", *TABLE[name].harmless)[-1:])
    assert list(read(tmp_path, defaults).refusals()) == []


def test_followed_ones_and_a_sites_own_variables_are_silent_and_typos_are_not(tmp_path: Path) -> None:
    silent = "".join(f"{name}=1\n" for name, known in TABLE.items() if known.use not in UNHEARD)
    found = read(tmp_path, silent + "OUR_SITE=x\nCVMFS_QUOTA_LIMT=5\nCVMFS_SHARED_CACHE=On\nCVMFS_MOUNT_RW=off\n")
    assert list(found.refusals()) == [
        f"{tmp_path}/default.local: CVMFS_QUOTA_LIMT is not known here; it serves in symbolic links at most"
    ]


def test_a_mount_without_daemon_follows_more(tmp_path: Path) -> None:
    found = read(tmp_path, "CVMFS_QUOTA_LIMIT=77\nCVMFS_CACHE_BASE=/c\nCVMFS_NFILES=5\n")
    assert [refusal.split()[1].partition("=")[0] for refusal in found.refusals(alone=True)] == ["CVMFS_NFILES"]
    assert len(list(found.refusals())) == 3
