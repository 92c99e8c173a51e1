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
OF_ONE_MACHINE = re.compile(r"(?<![\w.)}])/" + r"(?:work|root|home/\w+|Users/\w+)/")


def ours_to_read(path: Path) -> bool:
    """The files in etc/ are the admin's: they begin with what they are for."""
    return path.suffix in HAS_COMMENTS and not path.is_relative_to(ROOT / "etc")


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def has_docstring(path: Path) -> bool:
    return bool(ast.get_docstring(ast.parse(path.read_bytes())))


def test_the_licence_stands_at_the_top() -> None:
    readable = [path for path in files() if ours_to_read(path)]
    assert len(readable) > 50
    assert names([path for path in readable if SPDX not in "\n".join(path.read_text().splitlines()[:5])]) == []
    assert names([path for path in python_files() if not path.read_text().startswith(f"# {SPDX}\n")]) == []


def test_every_module_says_why_it_exists() -> None:
    assert names([path for path in python_files() if not has_docstring(path)]) == []


def test_every_module_can_be_read_in_one_sitting() -> None:
    assert names([path for path in python_files() if len(path.read_text().splitlines()) > LONGEST]) == []


def test_nothing_names_a_place_of_one_machine() -> None:
    texts = [path for path in files() if path.suffix not in {".png", ".gz"}]
    assert names([path for path in texts if OF_ONE_MACHINE.search(path.read_text())]) == []
