# SPDX-License-Identifier: BSD-3-Clause
"""Every external program and C header that code, tests, build and scripts use belongs to a listed package.

A machine that happens to have a program hides a missing step of `make setup`; these readings do not.
"""

from __future__ import annotations

import ast
import functools
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Final

import pytest

from cernvm.kit.proc import find_program
from tests.walls.tree import ROOT, SystemPackage, files, python_files, system_packages

pytestmark = pytest.mark.walls

SOURCE_BUILDS: Final = {
    "llfuse": ("fuse.h", "Python.h"),
    "dbus-python": ("dbus/dbus.h", "glib.h", "Python.h"),
}
"""The Python packages that pip compiles here, with the headers that they include from system packages."""

BUILD_TOOLS: Final = frozenset({"gcc", "pkg-config", "python3"})
"""What pip and the virtual environment start, beyond what our own files name."""

STARTS_A_PROGRAM: Final = re.compile(
    r"^(subprocess\.(run|Popen|call|check_call|check_output)|(asyncio\.)?create_subprocess_(exec|shell)"
    r"|os\.(system|popen|exec\w+|spawn\w+|posix_spawnp?))$"
)

on_debian = pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="reads Debian's package database")
each_list = pytest.mark.parametrize("distribution", ["debian", "el"])


# --- reading the sources


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute chain, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}".lstrip(".")
    return ""


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def programs_found_in(tree: ast.AST) -> tuple[set[str], list[int]]:
    """The names given to find_program, and the lines where what is given is not a literal."""
    names: set[str] = set()
    wrong: list[int] = []
    for call in calls(tree):
        if dotted(call.func).split(".")[-1] == "find_program":
            match call.args:
                case [ast.Constant(value=str(name))]:
                    names.add(name)  # "no-such-program" is what tests call a program that nobody has
                case _:
                    wrong.append(call.lineno)
    return names - {"no-such-program"}, wrong


def literal_starts(tree: ast.AST) -> list[int]:
    """Lines that start a program by a literal name instead of one that find_program looked up."""
    lists = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    wrong = []
    for call in calls(tree):
        if not STARTS_A_PROGRAM.match(dotted(call.func)) or not call.args:
            continue
        first: ast.expr = call.args[0]
        if isinstance(first, ast.Name):
            first = lists.get(first.id, first)
        if isinstance(first, ast.List | ast.Tuple) and first.elts:
            first = first.elts[0]
        if isinstance(first, ast.Constant | ast.JoinedStr) or dotted(call.func) in {"os.system", "os.popen"}:
            wrong.append(call.lineno)
    return wrong


def programs_of_the_code() -> set[str]:
    return set().union(*(programs_found_in(ast.parse(path.read_bytes()))[0] for path in python_files()))


def programs_of_script(text: str) -> set[str]:
    """Every word of a shell script or Makefile that names a program of this machine, unless it asks first.

    More than it starts (a word of a message may be the name of a program), never less.
    """
    text = re.sub(r"(^|\s)#.*", "", text)
    words = set(re.findall(r"(?<![\w./$-])(?<!-m )[a-z][a-z0-9-]*(?![\w./=-])", text))
    asked_for = set(re.findall(r"command -v ([a-z][a-z0-9-]*)", text))
    return {word for word in words - asked_for if found_as_system_program(word)}


def found_as_system_program(name: str) -> Path | None:
    found = shutil.which(name, path="/usr/bin:/usr/sbin:/bin:/sbin")
    return Path(found) if found else None


def scripts() -> list[Path]:
    found = [path for path in files() if path.suffix == ".sh" or path in {ROOT / ".ci/run", ROOT / "Makefile"}]
    assert len(found) >= 4
    return found


def programs_of_the_scripts() -> set[str]:
    return set().union(*(programs_of_script(script.read_text()) for script in scripts()))


# --- reading the package database


def query(*arguments: str) -> str:
    done = subprocess.run([find_program("dpkg-query"), *arguments], capture_output=True, timeout=60, check=False)
    return done.stdout.decode()


@functools.cache
def installed() -> dict[str, tuple[bool, set[str]]]:
    """Package -> whether every Debian has it, and what its dependencies (first choices) name."""
    table = {}
    pattern = "${Package}\t${Essential}\t${Priority}\t${Depends}, ${Pre-Depends}\n"
    for line in query("-W", "-f", pattern).splitlines():
        name, essential, priority, depends = line.split("\t")
        needed = {re.sub(r"[\s(:|].*", "", part.strip()) for part in depends.split(",")} - {""}
        table[name] = (essential == "yes" or priority == "required", needed)
    return table


@functools.cache
def closure(package: str) -> frozenset[str]:
    """`package` and all that comes with it."""
    found: set[str] = set()
    waiting = [package]
    while waiting:
        name = waiting.pop()
        if name not in found and name in installed():
            found.add(name)
            waiting.extend(installed()[name][1])
    return frozenset(found)


@functools.cache
def owners(path: Path) -> set[str]:
    """The packages that bring `path`, under any of the names that a merged /usr gives it."""
    names = {str(path), str(path).removeprefix("/usr"), str(path.resolve())}
    lines = query("-S", *names).splitlines()
    return {owner.split(":")[0].strip() for line in lines for owner in line.rpartition(": ")[0].split(",")}


def every_debian_has(program: str) -> bool:
    found = found_as_system_program(program)
    return found is not None and any(installed()[owner][0] for owner in owners(found) if owner in installed())


# --- the walls


def test_programs_are_started_only_by_names_that_can_be_read() -> None:
    wrong = {}
    for path in python_files():
        tree = ast.parse(path.read_bytes())
        if lines := programs_found_in(tree)[1] + literal_starts(tree):
            wrong[str(path.relative_to(ROOT))] = lines
    assert wrong == {}


def test_a_literal_name_would_be_noticed() -> None:
    assert literal_starts(ast.parse('subprocess.run(["nginx"])')) == [1]
    assert literal_starts(ast.parse('command = ["nginx"]\nsubprocess.Popen(command)')) == [2]
    assert literal_starts(ast.parse('asyncio.create_subprocess_exec("sh", "-c")')) == [1]
    assert literal_starts(ast.parse('subprocess.run([find_program("nginx")])')) == []
    assert programs_found_in(ast.parse("find_program(name)"))[1] == [1]
    assert programs_of_script("x && make $(awk y); # sed") == {"make", "awk"}
    assert programs_of_script("if command -v make; then make; fi") == set()


@each_list
def test_every_program_that_the_code_starts_is_listed(distribution: str) -> None:
    listed = {program for package in system_packages(distribution) for program in package.programs}
    unlisted = programs_of_the_code() - listed
    assert {program for program in unlisted if not every_debian_has(program)} == set()


@on_debian
def test_every_program_of_the_scripts_is_listed_or_on_every_debian() -> None:
    listed = {program for package in system_packages("debian") for program in package.programs}
    assert {name for name in programs_of_the_scripts() - listed if not every_debian_has(name)} == set()


@each_list
def test_every_listed_program_is_started_by_something(distribution: str) -> None:
    listed = {program for package in system_packages(distribution) for program in package.programs}
    asked_for = {word for script in scripts() for word in re.findall(r"command -v (\S+)", script.read_text())}
    assert listed - programs_of_the_code() - programs_of_the_scripts() - asked_for - BUILD_TOOLS == set()


@on_debian
@pytest.mark.parametrize("package", system_packages("debian"), ids=lambda package: package.name)
def test_the_debian_list_says_which_package_brings_a_program(package: SystemPackage) -> None:
    for program in package.programs:
        found = found_as_system_program(program)
        assert found is not None, f"{program} is not installed"
        assert owners(found) & closure(package.name), f"{package.name} does not bring {found}"


@on_debian
def test_the_debian_list_says_which_package_brings_a_header() -> None:
    for package in system_packages("debian"):
        for header in package.headers:
            paths = [path for path in map(Path, query("-S", f"*/{header}").split()) if path.is_absolute()]
            found = set().union(*(owners(path) for path in paths if str(path).startswith("/usr/include/")))
            assert found & closure(package.name), f"{package.name} does not bring {header}"


@each_list
def test_the_headers_are_those_of_the_packages_that_pip_compiles(distribution: str) -> None:
    listed = {header for package in system_packages(distribution) for header in package.headers}
    assert listed == {header for headers in SOURCE_BUILDS.values() for header in headers}


def test_pip_compiled_nothing_else() -> None:
    compiled = set()
    for distribution in metadata.distributions():
        tags = re.findall(r"^Tag: (\S+)$", distribution.read_text("WHEEL") or "", re.MULTILINE)
        if any(re.search(r"-linux_\w+$", tag) for tag in tags):  # published wheels say manylinux or musllinux
            compiled.add(distribution.metadata["Name"])
    assert compiled <= set(SOURCE_BUILDS)


def test_both_lists_bring_the_same() -> None:
    brought = [
        {word for package in system_packages(distribution) for word in package.programs + package.headers}
        for distribution in ("debian", "el")
    ]
    assert brought[0] == brought[1]
