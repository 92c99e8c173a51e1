# SPDX-License-Identifier: BSD-3-Clause
"""The systemd generator `cvmfsd-automount`: units that mount configured repositories when somebody first looks.

systemd runs it at its start and at every daemon-reload, as `cvmfsd-automount NORMAL EARLY LATE`; for each repository
of the key `automount` in cvmfsd.conf it writes an automount unit and its mount unit (of type cvmfs, so by mount.cvmfs)
into NORMAL.  systemd.generator(7).  One thread; it must be quick and must not fail the boot.
"""

from __future__ import annotations

import configparser
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cernvm.cvmfs.parameters import check_fqrn
from cernvm.kit.errors import Problem, UserMistake

CONFIG: Final = Path("/etc/cernvm/cvmfsd.conf")
WANTED_BY: Final = "remote-fs.target.wants"
_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.")
_MOUNT: Final = """# Written by cvmfsd-automount from {source}.
[Unit]
Description=CernVM-FS repository {repository}
Documentation=man:cvmfsd(8)
After=cvmfsd.service nss-lookup.target network-online.target
Wants=cvmfsd.service network-online.target

[Mount]
What={repository}
Where={where}
Type=cvmfs
Options=ro,nodev,_netdev
TimeoutSec=200
LazyUnmount=yes
"""
_AUTOMOUNT: Final = """# Written by cvmfsd-automount from {source}.
[Unit]
Description=CernVM-FS repository {repository}, when somebody looks
Documentation=man:cvmfsd(8)

[Automount]
Where={where}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the units into the first directory of `argv`; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        write_units(CONFIG, Path(arguments[0]))
    except (Problem, OSError, IndexError) as error:
        print(f"cvmfsd-automount: {error}", file=sys.stderr)
        return 1
    return 0


def write_units(source: Path, directory: Path) -> list[str]:
    """Write the units for what `source` configures; their names.  Raises Problem, OSError."""
    settings = configparser.RawConfigParser(inline_comment_prefixes=("#",), strict=False)
    try:
        settings.read(source, encoding="utf-8")  # only simple keys are wanted, and cvmfsd itself judges the file
    except configparser.Error as error:
        raise UserMistake(f"{source}: {error}") from error
    directory_of_mounts = settings.get("cvmfsd", "mount_directory", fallback="/cvmfs").strip("'\" ").rstrip("/")
    names = []
    for word in settings.get("cvmfsd", "automount", fallback="").split(","):
        repository = word.strip("'\" ")
        if not repository:
            continue
        check_fqrn(repository)
        where = f"{directory_of_mounts}/{repository}"
        unit = escaped(where)
        fields = {"source": source, "repository": repository, "where": where}
        (directory / f"{unit}.mount").write_text(_MOUNT.format(**fields))
        (directory / f"{unit}.automount").write_text(_AUTOMOUNT.format(**fields))
        wants = directory / WANTED_BY
        wants.mkdir(exist_ok=True)
        link = wants / f"{unit}.automount"
        link.unlink(missing_ok=True)
        link.symlink_to(f"../{unit}.automount")
        names += [f"{unit}.automount", f"{unit}.mount"]
    return names


def escaped(path: str) -> str:
    """A path as the name of its unit: systemd.unit(5)."""
    text = path.strip("/")
    letters = [
        "-" if char == "/" else char if char in _PLAIN and (place or char != ".") else f"\\x{ord(char):02x}"
        for place, char in enumerate(text)
    ]
    return "".join(letters)


if __name__ == "__main__":
    raise SystemExit(main())
