# SPDX-License-Identifier: BSD-3-Clause
"""The verbs of `cvmfsctl` that look after mounts and cache: probe, reload, wipe, fsck, prefetch, top.  One thread."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from cernvm.kit.bus import SyncBus
from cernvm.kit.errors import NotFound, Problem

from . import cvmfs_looking as looking
from .cvmfs_looking import NAME, PATH

MOUNT: Final = "ch.cern.cernvm.Cvmfs1.Mount"
LONG: Final = 3600.0
"""Seconds for a look through a large cache."""
READERS: Final = 8
PIECE: Final = 1 << 20


class Unwell(Problem):
    """What was asked for was done, and what it found has been told."""


def add_care(commands: Any) -> None:
    """Add the verbs to the parser's commands."""

    def verb(name: str, run: Any, about: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(name, help=about)
        parser.add_argument("--json", action="store_true", help="print JSON for machines")
        parser.set_defaults(command=run)
        return parser

    verb("probe", _probe, "look whether mounts answer").add_argument("repository", metavar="REPOSITORY", nargs="?")
    verb("reload", _reload, "take new parameters; readers go on").add_argument(
        "repository", metavar="REPOSITORY", nargs="?"
    )
    verb("wipe", _wipe, "empty the cache")
    verb("fsck", _fsck, "look the cache through; damaged objects go")
    fetching = verb("prefetch", _prefetch, "have a path's files in the cache")
    fetching.add_argument("repository", metavar="REPOSITORY")
    fetching.add_argument("path", metavar="PATH", nargs="?", default="/")
    top = verb("top", _top, "show what mounts do, again and again")
    top.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="between two lines (default: 2)")
    top.add_argument("--count", type=int, default=0, metavar="N", help="end after so many (default: go on)")


def _mounts(bus: SyncBus, repository: str | None) -> list[tuple[str, str, str, str]]:
    found = [one for one in bus.call(NAME, PATH, NAME, "ListMounts") if repository in (None, one[0])]
    if repository is not None and not found:
        raise NotFound(f"{repository} is not mounted")
    return found


def _say(arguments: argparse.Namespace, value: object, text: str) -> None:
    print(json.dumps(value, indent=2) if arguments.json else text)


def _probe(bus: SyncBus, arguments: argparse.Namespace) -> None:
    found = {name: looking.answers(Path(point)) for name, _, point, _ in _mounts(bus, arguments.repository)}
    _say(
        arguments,
        found,
        "\n".join(f"{name}  {'answers' if well else 'does not answer'}" for name, well in found.items()),
    )
    if not all(found.values()):
        raise Unwell("some mounts do not answer")


def _reload(bus: SyncBus, arguments: argparse.Namespace) -> None:
    names = [one[0] for one in _mounts(bus, arguments.repository)]
    for name in names:
        bus.call(NAME, PATH, NAME, "Reload", "s", name, timeout=200.0)
    _say(arguments, names, "\n".join(f"{name}  reloaded" for name in names))


def _wipe(bus: SyncBus, arguments: argparse.Namespace) -> None:
    left = bus.call(NAME, PATH, NAME, "Wipe", timeout=LONG)
    _say(arguments, {"bytes_left": left}, f"{left:,} bytes are left, in catalogs that are in use")


def _fsck(bus: SyncBus, arguments: argparse.Namespace) -> None:
    checked, damaged = bus.call(NAME, PATH, NAME, "Check", timeout=LONG)
    lines = [f"{name}  was damaged and is gone" for name in damaged]
    lines.append(f"{checked:,} objects checked, {len(damaged)} damaged")
    _say(arguments, {"checked": checked, "damaged": list(damaged)}, "\n".join(lines))
    if damaged:
        raise Unwell("damaged objects were found")


def _prefetch(bus: SyncBus, arguments: argparse.Namespace) -> None:
    mount = bus.call(NAME, PATH, NAME, "Mount", "s", arguments.repository, timeout=200.0)
    root = Path(bus.get(NAME, mount, MOUNT, "MountPoint"))
    top = root / arguments.path.lstrip("/")
    if ".." in Path(arguments.path).parts or not os.path.lexists(top):
        raise NotFound(f"{arguments.repository} has no {arguments.path}")
    failed = []
    files = done = 0
    with ThreadPoolExecutor(READERS) as readers:
        for path, size, complaint in readers.map(_read, _files(top)):
            files, done = files + 1, done + size
            if complaint:
                failed.append(f"{path.relative_to(root)}: {complaint}")
    value = {"files": files, "bytes": done, "failed": failed}
    _say(arguments, value, "\n".join([*failed, f"{files:,} files with {done:,} bytes are in the cache"]))
    if failed:
        raise Unwell("some files cannot be read")


def _files(top: Path) -> Iterator[Path]:
    if stat.S_ISREG(top.lstat().st_mode):
        yield top
        return
    for directory, _, names in os.walk(top):
        for name in names:
            path = Path(directory, name)
            if stat.S_ISREG(path.lstat().st_mode):
                yield path


def _read(path: Path) -> tuple[Path, int, str]:
    """Read a file through the mount, which leaves it in the cache; path, bytes, complaint."""
    done = 0
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(PIECE):
                done += len(piece)
    except OSError as error:
        return path, done, error.strerror or str(error)
    return path, done, ""


def _top(bus: SyncBus, arguments: argparse.Namespace) -> None:
    before = _numbers(bus)
    shown = 0
    while not arguments.count or shown < arguments.count:
        time.sleep(max(0.1, arguments.every))
        now = _numbers(bus)
        for name, numbers in now.items():
            changes = {key: value - before.get(name, numbers)[key] for key, value in numbers.items()}
            if arguments.json:
                print(json.dumps({"repository": name, "seconds": arguments.every, **changes}))
            else:
                print(f"{name}  {_line(changes, arguments.every)}")
        sys.stdout.flush()
        before, shown = now, shown + 1


def _numbers(bus: SyncBus) -> dict[str, Mapping[str, int]]:
    return {name: bus.get(NAME, path, MOUNT, "Statistics") for name, path, _, _ in _mounts(bus, None)}


def _line(changes: Mapping[str, int], seconds: float) -> str:
    megabytes = changes["bytes_received"] / seconds / 1e6
    return (
        f"{changes['lookups'] / seconds:8.0f} lookups/s {changes['reads'] / seconds:8.0f} reads/s "
        f"{changes['downloads'] / seconds:6.0f} fetches/s {megabytes:8.2f} MB/s {changes['errors']:4} errors"
    )
