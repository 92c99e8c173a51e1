# SPDX-License-Identifier: BSD-3-Clause
"""The documents name files that exist, and the man pages tell every option and key of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.walls.tree import ROOT, commands, daemons, run, venv_program

pytestmark = pytest.mark.walls

DOCUMENTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "NEWS.md"]
LOOKS_LIKE_A_FILE = re.compile(r"^[\w.-]+(/[\w.-]+)*/?$")
ENDINGS = (".py", ".md", ".toml", ".conf", ".service", ".target", ".list", ".sh", ".rst", ".spec", ".txt", ".in")
BUILT = ("build/", ".venv/")


def named_files(text: str) -> set[str]:
    """The words in backticks that look like a file or a folder of the tree."""
    words = re.findall(r"`([^`\s]+)`", text)
    return {
        word
        for word in words
        if LOOKS_LIKE_A_FILE.match(word)
        and not word.startswith(BUILT)
        and (word.endswith(ENDINGS) or word.endswith("/") or word.startswith(("daemons/", "tests/", "docs/")))
    }


def exists(word: str) -> bool:
    """A name is taken from the root, from the package, or from one of the package's rooms."""
    package = ROOT / "daemons/cernvm"
    places = [ROOT, package, ROOT / "docs", *(path for path in package.iterdir() if path.is_dir())]
    return any((place / word).exists() for place in places)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_names_exists(document: str) -> None:
    words = named_files((ROOT / document).read_text())
    assert {word for word in words if not exists(word)} == set()


def test_a_missing_file_would_be_noticed() -> None:
    assert named_files("see `kit/nowhere.py` and `x = 1`") == {"kit/nowhere.py"}
    assert not exists("kit/nowhere.py")


def page_of(name: str) -> Path:
    return next(ROOT.glob(f"docs/man/{name}.[18].rst"))


@pytest.mark.parametrize("name", [*(daemon.name for daemon in daemons()), *commands()])
def test_the_man_page_tells_every_option(name: str) -> None:
    text = page_of(name).read_text()
    options = set(re.findall(r"--[a-z][a-z-]+", run(venv_program(name), "--help")))
    assert {option for option in options if option not in text} == set()
    assert set(re.findall(r"--[a-z][a-z-]+", text)) - options_of_subcommands(name) - options == set()


def options_of_subcommands(name: str) -> set[str]:
    """The options of each word that `name` takes first, as argparse shows them: {mkfs,publish,...}."""
    shown = re.search(r"\{([\w,-]+)\}", run(venv_program(name), "--help"))
    if shown is None or name in {daemon.name for daemon in daemons()}:
        return set()
    helps = (run(venv_program(name), word, "--help") for word in shown[1].split(","))
    return {option for text in helps for option in re.findall(r"--[a-z][a-z-]+", text)}


@pytest.mark.parametrize("name", commands())
def test_the_man_page_tells_every_option_of_each_subcommand(name: str) -> None:
    text = page_of(name).read_text()
    assert {option for option in options_of_subcommands(name) if option not in text} == set()
