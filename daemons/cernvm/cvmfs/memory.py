# SPDX-License-Identifier: BSD-3-Clause
"""What this machine has believed of a repository last, kept beside the cache over restarts.

`cvmfschecksum.FQRN` has the root hash, time and revision: no server can take the machine back in time.
`cvmfspublished.FQRN` has the whole manifest, so that a mount can begin without any server.  Both are written after
everything was verified and readable by their owner only.  One thread per repository writes.
"""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

from cernvm.kit.files import write_atomically

from .errors import Malformed
from .hashes import parse_hash
from .manifest import MAX_ENVELOPE, Manifest, parse_manifest
from .trust import Known

log = logging.getLogger(__name__)
_PRIVATE: Final = 0o600
_BREADCRUMB: Final = re.compile(r"([0-9a-z-]{40,49})T(\d{1,18})R(\d{1,18})")


class Memory:
    """The two files of one repository."""

    def __init__(self, directory: Path, fqrn: str) -> None:
        self._fqrn = fqrn
        self._breadcrumb = directory / f"cvmfschecksum.{fqrn}"
        self._manifest = directory / f"cvmfspublished.{fqrn}"

    def known(self) -> Known | None:
        """The newest state that was believed."""
        with suppress(FileNotFoundError, Malformed):
            text = self._breadcrumb.read_text(encoding="ascii", errors="replace")
            match = _BREADCRUMB.fullmatch(text.strip())
            if match:
                return Known(parse_hash(match[1]), int(match[2]), int(match[3]))
        return None

    def manifest(self) -> Manifest | None:
        """The manifest of that state; if it is lost, one made from what the other file says."""
        known = self.known()
        if known is None:
            return None
        with suppress(OSError, Malformed):
            with self._manifest.open("rb") as file:
                kept = parse_manifest(file.read(MAX_ENVELOPE))
            if kept.root_hash == known.root_hash and kept.fqrn == self._fqrn:
                return kept
        return Manifest(known.root_hash, self._fqrn, known.revision, timestamp=known.timestamp)

    def believe(self, manifest: Manifest) -> None:
        """Remember; a disk that does not take it is told to the log."""
        text = f"{manifest.root_hash}T{manifest.timestamp}R{manifest.revision}"
        try:
            write_atomically(self._manifest, manifest.body(), mode=_PRIVATE, sync=False)
            write_atomically(self._breadcrumb, text.encode(), mode=_PRIVATE, sync=False)
        except OSError as error:
            log.warning("%s: what was believed cannot be remembered: %s", self._breadcrumb, error.strerror)
