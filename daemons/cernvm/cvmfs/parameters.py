# SPDX-License-Identifier: BSD-3-Clause
"""The parameters of a repository as sites write them: the shell files below /etc/cvmfs.

The files are programs of the POSIX shell and are run by one (clean environment, the file's directory as working
directory, a deadline), since sites use conditions, variables and `.` in them.  Later files win.  Synchronous; each
call starts `sh` once per file that exists.  Order of files: docs/cvmfs-format.md, "Parameters".
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cernvm.kit.proc import find_program

from .errors import Mistake

DEADLINE: Final = 10.0
"""Seconds that one file may take."""
MAX_OUTPUT: Final = 1 << 20
_ASSIGNMENT: Final = re.compile(r"^\s*(?:readonly\s+|export\s+|eval\s+)?([A-Za-z_][A-Za-z0-9_]*)=", re.MULTILINE)
_FQRN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9][A-Za-z0-9_-]*)+")
_END: Final = "END-OF-PARAMETERS"
_SCRIPT: Final = """
exec 3>&1 >/dev/null
. "./$1" || :
shift
for name do
    eval "printf '%s=%s\\\\0' \\"\\$name\\" \\"\\${$name-}\\" >&3"
done
printf '%s' END-OF-PARAMETERS >&3
"""
_YES: Final = frozenset({"YES", "ON", "1", "TRUE"})
_NO: Final = frozenset({"NO", "OFF", "0", "FALSE", ""})

UNSUPPORTED: Final = frozenset(
    {
        "CVMFS_AUTHZ_HELPER",
        "CVMFS_CACHE_BASE",
        "CVMFS_CACHE_PRIMARY",
        "CVMFS_CONFIG_REPOSITORY",
        "CVMFS_EXTERNAL_FALLBACK_PROXY",
        "CVMFS_EXTERNAL_HTTP_PROXY",
        "CVMFS_EXTERNAL_URL",
        "CVMFS_FALLBACK_PROXY",
        "CVMFS_GID_MAP",
        "CVMFS_NFS_SOURCE",
        "CVMFS_PAC_URLS",
        "CVMFS_PROXY_SHARD",
        "CVMFS_QUOTA_LIMIT",
        "CVMFS_REPOSITORY_DATE",
        "CVMFS_REPOSITORY_TAG",
        "CVMFS_ROOT_HASH",
        "CVMFS_SYSTEMD_NOKILL",
        "CVMFS_TRACEFILE",
        "CVMFS_UID_MAP",
        "CVMFS_USE_GEOAPI",
    }
)
"""Parameters of the original client that change what is seen and that this one does not follow yet."""


@dataclass(frozen=True)
class Parameter:
    """A value (with @fqrn@ and @org@ substituted) and the file that set it last."""

    value: str
    origin: Path


@dataclass(frozen=True)
class Parameters:
    """All parameters of one repository."""

    fqrn: str
    directory: Path
    values: Mapping[str, Parameter]

    def get(self, name: str, default: str = "") -> str:
        """The value of `name`, or `default` if it is not set at all."""
        found = self.values.get(name)
        return default if found is None else found.value

    def need(self, name: str) -> str:
        """The value of `name`.  Raises Mistake if it is missing or empty."""
        value = self.get(name)
        if not value:
            raise Mistake(f"{self.fqrn}: {name} is not set in any file below {self.directory}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A yes/no value.  Raises Mistake."""
        if name not in self.values:
            return default
        word = self.get(name).upper()
        if word in _YES:
            return True
        if word in _NO:
            return False
        raise self.mistake(name, "neither yes nor no")

    def number(self, name: str, default: int) -> int:
        """A whole number of at least 0.  Raises Mistake."""
        text = self.get(name)
        if not text:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 12):
            raise self.mistake(name, "not a whole number")
        return int(text)

    def mistake(self, name: str, complaint: str) -> Mistake:
        """The error that names file, parameter and value."""
        found = self.values.get(name)
        origin = self.directory if found is None else found.origin
        return Mistake(f"{origin}: {name}={self.get(name)}: {complaint}")

    def unsupported(self) -> list[str]:
        """Names that are set to something and that this client does not follow."""
        return sorted(name for name in UNSUPPORTED if self.get(name).upper() not in _NO)


def check_fqrn(fqrn: str) -> str:
    """Return `fqrn` if it is a fully qualified repository name.  Raises Mistake."""
    if len(fqrn) > 253 or not _FQRN.fullmatch(fqrn):
        raise Mistake(f"{fqrn[:80]!r} is not a repository name like software.example.org")
    return fqrn


def read_parameters(fqrn: str, directory: Path) -> Parameters:
    """Run the files that concern `fqrn` in their order.  Raises Mistake naming the file that fails."""
    check_fqrn(fqrn)
    organisation = fqrn.split(".", 1)[0]
    raw: dict[str, tuple[str, Path]] = {}
    for file in _files(fqrn, directory):
        given = {name: value for name, (value, _) in raw.items()}
        for name, value in _evaluate(file, fqrn, given).items():
            if name not in raw or raw[name][0] != value:
                raw[name] = (value, file)
    values = {
        name: Parameter(value.replace("@fqrn@", fqrn).replace("@org@", organisation), origin)
        for name, (value, origin) in raw.items()
    }
    return Parameters(fqrn, directory, values)


def _files(fqrn: str, directory: Path) -> Iterator[Path]:
    domain = fqrn.split(".", 1)[1]
    wanted = [
        directory / "default.conf",
        *sorted((directory / "default.d").glob("*.conf")),
        directory / "default.local",
        directory / "domain.d" / f"{domain}.conf",
        directory / "domain.d" / f"{domain}.local",
        directory / "config.d" / f"{fqrn}.conf",
        directory / "config.d" / f"{fqrn}.local",
    ]
    return (file for file in wanted if file.is_file())


def _evaluate(file: Path, fqrn: str, given: Mapping[str, str]) -> dict[str, str]:
    try:
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise Mistake(f"{file}: cannot be read: {error.strerror}") from error
    names = list(dict.fromkeys(_ASSIGNMENT.findall(text)))
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", **given, "CVMFS_FQRN": fqrn}
    try:
        done = subprocess.run(
            [find_program("sh"), "-c", _SCRIPT, "sh", file.name, *names],
            cwd=file.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Mistake(f"{file}: the shell did not finish it within {DEADLINE:.0f} seconds") from None
    *pairs, end = done.stdout[:MAX_OUTPUT].decode("utf-8", "surrogateescape").split("\0")
    if end != _END:
        complaint = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it ends early"]
        raise Mistake(f"{file}: the shell cannot run it: {complaint[0][:200]}")
    return dict(pair.split("=", 1) for pair in pairs)
