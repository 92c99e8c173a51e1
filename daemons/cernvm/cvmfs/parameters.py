# SPDX-License-Identifier: BSD-3-Clause
"""The parameters of a repository as sites write them: the shell files below /etc/cvmfs.

Later files win; the order is in docs/cvmfs-format.md, "Parameters".  A configuration repository, itself mounted below
/cvmfs, brings files of its own between those of the site.  Synchronous; a call starts `sh` once per file that exists.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import Mistake
from .parameter_table import TABLE, Use
from .shell import evaluate

log = logging.getLogger(__name__)
MOUNTS: Final = Path("/cvmfs")
"""Where the configuration repository is looked for, unless the caller mounts elsewhere."""
CONFIG_REPOSITORY: Final = "CVMFS_CONFIG_REPOSITORY"
_FQRN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9][A-Za-z0-9_-]*)+")
_YES: Final = frozenset({"YES", "ON", "1", "TRUE"})
_NO: Final = frozenset({"NO", "OFF", "0", "FALSE", ""})


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
    config_files: Path | None = None
    """Where the files of the configuration repository stand, if there is one."""

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

    def refusals(self, *, alone: bool = False) -> Iterator[str]:
        """One sentence per parameter that is set and changes nothing here: the original's that we refuse, and typos.

        `alone`: the mount is not cvmfsd's but of `cvmfsd-mount`, which follows some more.
        """
        refused = {Use.REFUSED} if alone else {Use.REFUSED, Use.ALONE}
        for name, parameter in sorted(self.values.items()):
            known = TABLE.get(name)
            if known is None:
                if name.startswith("CVMFS_"):
                    yield f"{parameter.origin}: {name} is not known here; it serves in symbolic links at most"
            elif known.use in refused and not _harmless(parameter.value, known.harmless):
                yield f"{parameter.origin}: {name}={parameter.value} is not followed: {known.what}"


def _harmless(value: str, allowed: Sequence[str]) -> bool:
    """Whether refusing the value changes nothing: it is what happens anyway."""
    word = value.upper()
    return any(
        word == one or (word in _YES and one in _YES) or (word in _NO and one in _NO)
        for one in map(str.upper, ("", *allowed))
        if word or not one
    )


def check_fqrn(fqrn: str) -> str:
    """Return `fqrn` if it is a fully qualified repository name.  Raises Mistake."""
    if len(fqrn) > 253 or not _FQRN.fullmatch(fqrn):
        raise Mistake(f"{fqrn[:80]!r} is not a repository name like software.example.org")
    return fqrn


def read_parameters(fqrn: str, directory: Path, mounts: Path = MOUNTS) -> Parameters:
    """Run the files that concern `fqrn` in their order.  Raises Mistake naming the file that fails."""
    check_fqrn(fqrn)
    reading = _Reading(fqrn, directory)
    _read_first(reading)
    ours = directory
    theirs = reading.config_files = _config_repository(reading, mounts)
    domain = f"{fqrn.split('.', 1)[1]}.conf"
    reading.take(theirs, "default.conf")
    reading.take(ours, "default.local")
    for place, name in (("domain.d", domain), ("config.d", f"{fqrn}.conf")):
        reading.take(theirs, f"{place}/{name}")
        reading.take(ours, f"{place}/{name}")
        reading.take(ours, f"{place}/{name.removesuffix('.conf')}.local")
    return reading.result()


def read_files(fqrn: str, files: Sequence[Path]) -> Parameters:
    """Run only these files, in their order; each has to be there.  Raises Mistake naming the file that fails."""
    check_fqrn(fqrn)
    reading = _Reading(fqrn, files[0].parent if files else Path())
    for file in files:
        reading.run(file)
    return reading.result()


def config_repository(directory: Path) -> str:
    """The name of the repository that has to be mounted before the others are configured; empty for none."""
    reading = _Reading("", directory)
    _read_first(reading)
    return reading.value(CONFIG_REPOSITORY)


def _read_first(reading: _Reading) -> None:
    """The only files that may name a configuration repository."""
    reading.take(reading.directory, "default.conf")
    for file in sorted((reading.directory / "default.d").glob("*.conf")):
        reading.run(file)
    reading.protect(CONFIG_REPOSITORY)


def _config_repository(reading: _Reading, mounts: Path) -> Path | None:
    """Where the files of the configuration repository stand.  Raises Mistake if it is required and not there."""
    name = reading.value(CONFIG_REPOSITORY)
    if not name or name == reading.fqrn:
        return None
    place = mounts / check_fqrn(name) / "etc/cvmfs"
    if place.is_dir():
        return place
    sentence = f"{reading.fqrn}: the configuration repository {name} has no files at {place}"
    if reading.value("CVMFS_CONFIG_REPO_REQUIRED").upper() in _YES:
        raise Mistake(f"{sentence}, and CVMFS_CONFIG_REPO_REQUIRED says that nothing is mounted without them")
    log.warning("%s; going on without them", sentence)
    return None


class _Reading:
    """The values so far, while file after file is run."""

    def __init__(self, fqrn: str, directory: Path) -> None:
        self.fqrn = fqrn
        self.directory = directory
        self._raw: dict[str, tuple[str, Path]] = {}
        self._protected: set[str] = set()
        self.config_files: Path | None = None

    def value(self, name: str) -> str:
        """The value so far, empty if there is none."""
        return self._raw[name][0] if name in self._raw else ""

    def protect(self, name: str) -> None:
        """From now on no file changes `name`."""
        self._protected.add(name)

    def take(self, place: Path | None, name: str) -> None:
        """Run the file if it is there."""
        if place is not None and (place / name).is_file():
            self.run(place / name)

    def run(self, file: Path) -> None:
        """Run the file.  Raises Mistake naming it."""
        given = {name: value for name, (value, _) in self._raw.items()}
        for name, value in evaluate(file, self.fqrn, given).items():
            if name in self._raw and self._raw[name][0] == value:
                continue
            if name in self._protected:
                log.warning("%s: %s can be set in default.conf and default.d only; left as it was", file, name)
                continue
            self._raw[name] = (value, file)

    def result(self) -> Parameters:
        """What it comes to."""
        organisation = self.fqrn.split(".", 1)[0]
        values = {
            name: Parameter(value.replace("@fqrn@", self.fqrn).replace("@org@", organisation), origin)
            for name, (value, origin) in self._raw.items()
        }
        return Parameters(self.fqrn, self.directory, values, self.config_files)
