# SPDX-License-Identifier: BSD-3-Clause
"""What every file owes its reader: a licence, a reason, a length that can be read, and no trace of one machine."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.walls.tree import ROOT, files, python_files

pytestmark = pytest.mark.walls

LONGEST = 400
SPDX = "SPDX-License-Identifier: BSD-3-Clause"
HAS_COMMENTS = {".py", ".sh", ".conf", ".service", ".target", ".list", ".spec", ".rst", ".mk"}
OF_ONE_MACHINE = re.compile(r"(?<![\w.])/" + r"(?:work|root|home/\w+|Users/\w+)/")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_python_file = pytest.mark.parametrize("path", python_files(), ids=name)


def ours_to_read(path: Path) -> bool:
    """The files in etc/ are the admin's: they begin with what they are for."""
    return path.suffix in HAS_COMMENTS and not path.is_relative_to(ROOT / "etc")


@pytest.mark.parametrize("path", [path for path in files() if ours_to_read(path)], ids=name)
def test_the_licence_stands_at_the_top(path: Path) -> None:
    assert SPDX in "\n".join(path.read_text().splitlines()[:5])


@each_python_file
def test_the_module_says_why_it_exists(path: Path) -> None:
    assert path.read_text().startswith(f"# {SPDX}\n")
    assert ast.get_docstring(ast.parse(path.read_bytes()))


@each_python_file
def test_the_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("path", files(), ids=name)
def test_nothing_names_a_place_of_one_machine(path: Path) -> None:
    if path.suffix in {".png", ".gz"}:
        return
    assert not OF_ONE_MACHINE.search(path.read_text())
