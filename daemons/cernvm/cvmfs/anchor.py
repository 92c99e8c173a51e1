# SPDX-License-Identifier: BSD-3-Clause
"""From a repository's parameters to what the person trusts: keys, authorities, black lists, and a fixed revision.

Synchronous; reads files.  What a site changes while a repository is mounted (black lists, authorities) is read anew
at each question for a newer revision.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from .authorities import Authorities, load_authorities
from .errors import Malformed, Mistake
from .hashes import ContentHash, parse_hash
from .history import Pin, RootPin, TagPin, parse_date
from .parameters import Parameters
from .repository import Anchor
from .trust import Blacklist, load_master_keys, parse_blacklist

log = logging.getLogger(__name__)
KEYS: Final = "keys"
"""Directory of master keys below the parameters' directory."""
BLACKLIST: Final = "blacklist"
AUTHORITIES: Final = "/etc/grid-security/certificates"


def anchor_of(parameters: Parameters) -> Anchor:
    """Master keys, black lists and authorities.  Raises Mistake naming the file."""
    text = parameters.get("CVMFS_PUBLIC_KEY")
    if text:
        files = [Path(name) for name in text.split(":") if name]
    else:
        directory = Path(parameters.get("CVMFS_KEYS_DIR") or parameters.directory / KEYS)
        files = sorted(directory.glob("*.pub"))
        if not files:
            raise Mistake(f"{parameters.fqrn}: there is no public master key (*.pub) in {directory}")
    blacklists = _Blacklists(parameters)
    blacklists.read()
    return Anchor(parameters.fqrn, load_master_keys(files), blacklists, lambda: authorities_of(parameters))


def authorities_of(parameters: Parameters) -> Authorities:
    """The certificate authorities of the site.  Raises Mistake."""
    text = parameters.get("CVMFS_TRUSTED_CERTS", AUTHORITIES)
    return load_authorities([Path(name) for name in text.split(":") if name])


class _Blacklists:
    """The black list of the site and the one of the configuration repository, together."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._given = parameters.get("CVMFS_BLACKLIST")
        self._last = Blacklist()

    def __call__(self) -> Blacklist:
        """As they are now; while one cannot be read, as they were."""
        try:
            return self.read()
        except Mistake as mistake:
            log.warning("%s; going on with what it said before", mistake)
            return self._last

    def read(self) -> Blacklist:
        """As they are now.  Raises Mistake naming the file."""
        lists = [self._one(Path(self._given or self._parameters.directory / BLACKLIST), needed=bool(self._given))]
        if self._parameters.config_files is not None:
            lists.append(self._one(self._parameters.config_files / BLACKLIST, needed=False))
        certificates = frozenset[ContentHash]().union(*(one.certificates for one in lists))
        self._last = Blacklist(certificates, tuple(pair for one in lists for pair in one.least_revisions))
        return self._last

    def _one(self, file: Path, *, needed: bool) -> Blacklist:
        try:
            return parse_blacklist(file.read_text(encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            if needed:
                raise self._parameters.mistake("CVMFS_BLACKLIST", "no such file") from None
            return Blacklist()
        except OSError as error:
            raise Mistake(f"{file}: the black list cannot be read: {error.strerror}") from error


def pin_of(parameters: Parameters) -> Pin | None:
    """The revision that the site fixes: by root hash, else by tag, else by date.  Raises Mistake."""
    text = parameters.get("CVMFS_ROOT_HASH")
    if text:
        try:
            return RootPin(parse_hash(text))
        except Malformed:
            raise parameters.mistake("CVMFS_ROOT_HASH", "not a root hash of 40 digits, with its tag if any") from None
    if parameters.get("CVMFS_REPOSITORY_TAG"):
        return TagPin(parameters.get("CVMFS_REPOSITORY_TAG"))
    text = parameters.get("CVMFS_REPOSITORY_DATE")
    if not text:
        return None
    pin = parse_date(text)
    if pin is None:
        raise parameters.mistake("CVMFS_REPOSITORY_DATE", "not a date in UTC like 2026-01-31T23:59:59Z")
    return pin
