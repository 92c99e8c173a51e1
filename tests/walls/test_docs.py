# SPDX-License-Identifier: BSD-3-Clause
"""The documents name files that exist, and the man pages tell every option and key of the code."""

from __future__ import annotations

import importlib
import re

import pytest

from tests.walls.tree import ROOT, Daemon, commands, daemons, run, venv_program

pytestmark = pytest.mark.walls

DOCUMENTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "NEWS.md"]
LOOKS_LIKE_A_FILE = re.compile(r"^[\w.-]+(/[\w.-]+)*/?$")
ENDINGS = (".py", ".md", ".toml", ".conf", ".service", ".target", ".list", ".sh", ".rst", ".spec", ".txt", ".in")
BUILT = ("build/", ".venv/")
WITHOUT_SUBCOMMANDS = {"cvmfsd-mount", "cvmfs_talk"}


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


def page_of(name: str) -> str:
    """The source of the man page of `name`, with what it includes."""
    path = next(ROOT.glob(f"docs/man/{name}.[18].rst"))
    return re.sub(
        r"^\.\. include:: (\S+)$", lambda line: (path.parent / line[1]).read_text(), path.read_text(), flags=re.M
    )


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))


def helps(name: str) -> str:
    """What `name --help` says, and what each of its subcommands says."""
    program = venv_program(name)
    own = run(program, "--help")
    subcommands = re.findall(r"^    ([a-z][a-z-]*)\b", own.partition("positional arguments:")[2], re.MULTILINE)
    return own + "".join(run(program, word, "--help") for word in subcommands)


@pytest.mark.parametrize("name", [*(daemon.name for daemon in daemons()), *commands()])
def test_the_man_page_tells_the_options_that_there_are(name: str) -> None:
    assert options(page_of(name)) == options(helps(name))


@pytest.mark.parametrize("name", commands())
def test_the_man_page_tells_every_subcommand(name: str) -> None:
    text = page_of(name)
    own = run(venv_program(name), "--help").partition("positional arguments:")[2]
    subcommands = re.findall(r"^    ([a-z][a-z-]*)\b", own, re.MULTILINE)
    assert subcommands or name in WITHOUT_SUBCOMMANDS
    assert [word for word in subcommands if f"**{word}**" not in text] == []


@pytest.mark.parametrize("daemon", daemons(), ids=lambda daemon: daemon.name)
def test_the_man_page_tells_every_key(daemon: Daemon) -> None:
    spec = importlib.import_module(f"cernvm.{daemon.package}.config").SPEC
    keys = re.findall(r"^([a-z_]+) = ", spec, re.MULTILINE)
    text = page_of(daemon.name)
    assert keys
    assert [key for key in keys if f"**{key}**" not in text] == []
