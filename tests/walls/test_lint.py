# SPDX-License-Identifier: BSD-3-Clause
"""Linters are tests, so that they have one definition and run once: `make check` and `make test` both come here."""

from __future__ import annotations

import pytest

from tests.walls.tree import run, venv_program

pytestmark = pytest.mark.walls


def test_ruff_finds_nothing() -> None:
    run(venv_program("ruff"), "check", ".")


def test_every_file_is_formatted() -> None:
    run(venv_program("ruff"), "format", "--check", ".")


@pytest.mark.timeout(400)  # a first run, without its cache, reads the stubs of everything
def test_mypy_strict_finds_nothing() -> None:
    run(venv_program("mypy"), seconds=390)


def test_imports_keep_to_the_walls() -> None:
    run(venv_program("lint-imports"), "--cache-dir", "build/import-linter")
