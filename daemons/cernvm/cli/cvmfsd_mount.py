# SPDX-License-Identifier: BSD-3-Clause
"""The command `cvmfsd-mount`: mount one repository without daemon or bus, by the words of the original's `cvmfs2`.

A leaf: it reads the command line and starts `cernvm.cvmfsd.alone`.  `-o config=FILE:FILE` names the only parameter
files that are read; without it, those below /etc/cvmfs are.  One thread.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import cernvm
from cernvm import __version__

OPTIONS: Final = 2
"""Exit status for options that make no sense, as the original's."""
PLAIN: Final = frozenset(
    [
        "allow_other",
        "allow_root",
        "ro",
        "nodev",
        "dev",
        "suid",
        "nosuid",
        "exec",
        "noexec",
        "auto",
        "noauto",
        "user",
        "nouser",
        "users",
        "async",
        "_netdev",
        "nofail",
        "defaults",
        "default_permissions",
        "cvmfs_suid",
        "disable_watchdog",
        "system_mount",
        "grab_mountpoint",
        "noatime",
        "relatime",
        "nodiratime",
        "x-systemd.automount",
        "debug",
    ]
)
"""Options that are accepted without effect: what they ask for is so anyway, or is for mount(8)."""
NAMED: Final = frozenset({"fsname", "uid", "gid", "subtype", "comment", "context", "max_read"})
ADAPTERS: Final = ("auto", "kernel", "llfuse")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        settings = settings_of(",".join(arguments.options))
    except ValueError as error:
        print(f"cvmfsd-mount: {error}", file=sys.stderr)
        return OPTIONS
    return start(arguments.repository, arguments.directory, {**settings, "foreground": arguments.foreground})


def settings_of(options: str) -> dict[str, object]:
    """What the words after -o mean.  Raises ValueError naming the one that means nothing."""
    settings: dict[str, object] = {"files": [], "parameters_directory": "/etc/cvmfs", "fuse": "auto"}
    for option in filter(None, options.split(",")):
        name, given, value = option.partition("=")
        if name == "config" and given:
            settings["files"] = [str(Path(file).absolute()) for file in value.split(":") if file]
        elif name == "parameters" and given:
            settings["parameters_directory"] = str(Path(value).absolute())
        elif name == "fuse" and value in ADAPTERS:
            settings["fuse"] = value
        elif not (option in PLAIN or (given and (name in NAMED or name.startswith("x-")))):
            raise ValueError(f"the option {option} is not known")
    return settings


def start(repository: str, directory: Path, settings: dict[str, object]) -> int:
    """Replace this process by the one that mounts; does not return."""
    home = str(Path(cernvm.__file__).parents[1])
    others = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": f"{home}:{others}" if others else home}
    command = [sys.executable, "-m", "cernvm.cvmfsd.alone", repository, str(directory), json.dumps(settings)]
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cvmfsd-mount", description="Mount one repository without cvmfsd.")
    parser.add_argument("--version", "-V", action="version", version=f"cvmfsd-mount {__version__}")
    parser.add_argument("-f", dest="foreground", action="store_true", help="stay, until the mount is taken away")
    parser.add_argument(
        "-o", dest="options", action="append", default=[], metavar="OPTIONS", help="config=FILE:FILE, fuse=..., ..."
    )
    parser.add_argument("repository", metavar="REPOSITORY", help="name, as in software.example.org")
    parser.add_argument("directory", type=Path, metavar="DIRECTORY", help="where it is to appear")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
