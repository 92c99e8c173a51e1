# SPDX-License-Identifier: BSD-3-Clause
"""A repository on its servers: which revision is current, and may it be believed.

The order of checks is the original's: manifest (its hash, name, age), certificate, manifest signature, whitelist
(signature, name, expiry), certificate listed and not black-listed.  Nothing is used before all of it has passed.
What was believed last stands in a small file beside the cache, so that a server cannot take a machine back in time.
One thread asks for revisions; `current` may be read by all.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cernvm.kit.files import write_atomically

from .errors import CacheFull, Malformed, Unsupported, Untrusted
from .fetch import Buffer
from .hashes import Kind, parse_hash
from .manifest import MAX_ENVELOPE, Envelope, Manifest, parse_manifest, split_envelope
from .objects import ObjectRef, Objects, Source
from .tree import CatalogLoader, Tree
from .trust import (
    Blacklist,
    Known,
    MasterKey,
    check_certificate,
    check_manifest,
    check_manifest_signature,
    check_whitelist,
    load_certificate,
)

MANIFEST: Final = ".cvmfspublished"
WHITELIST: Final = ".cvmfswhitelist"
DEFAULT_TTL: Final = 240
_BREADCRUMB: Final = re.compile(r"([0-9a-z-]{40,49})T(\d{1,18})R(\d{1,18})")


@dataclass(frozen=True)
class Anchor:
    """What the person trusts for one repository."""

    fqrn: str
    master_keys: tuple[MasterKey, ...]
    blacklist: Blacklist


class Repository:
    """One repository, verified."""

    def __init__(
        self, anchor: Anchor, source: Source, objects: Objects, *, now: Callable[[], datetime], max_ttl: int = 0
    ) -> None:
        """`now` gives UTC; `max_ttl` in seconds, 0 for none."""
        self.anchor = anchor
        self.fqrn = anchor.fqrn
        self.objects = objects
        self._source = source
        self._now = now
        self._max_ttl = max_ttl
        self._loader = CatalogLoader(objects)
        self._breadcrumb = objects.cache.directory / f"cvmfschecksum.{anchor.fqrn}"

    def load(self) -> Tree:
        """Return the newest revision.  Raises Untrusted, Unreachable, Malformed, ObjectCorrupt, ..."""
        envelope, manifest = self._manifest()
        check_manifest(manifest, self.fqrn, self._read_breadcrumb())
        return self._verified(envelope, manifest)

    def newer(self, tree: Tree) -> Tree | None:
        """Return a newer revision than `tree`, or None while that is the newest.  Raises like `load`."""
        envelope, manifest = self._manifest()
        if manifest.root_hash == tree.manifest.root_hash and manifest.fqrn == self.fqrn:
            self.anchor.blacklist.check_revision(self.fqrn, manifest.revision)
            return None
        old = tree.manifest
        check_manifest(manifest, self.fqrn, Known(old.root_hash, old.timestamp, old.revision))
        fresh = self._verified(envelope, manifest)
        fresh.preload(tree)
        return fresh

    def ttl(self, tree: Tree) -> int:
        """Seconds until the next question for a newer revision."""
        wanted = tree.root.ttl or DEFAULT_TTL
        return min(wanted, self._max_ttl) if self._max_ttl else wanted

    def _manifest(self) -> tuple[Envelope, Manifest]:
        what = f"the manifest of {self.fqrn}"
        data = self._source.fetch(MANIFEST, lambda: Buffer(MAX_ENVELOPE, what)).data
        envelope = split_envelope(bytes(data), what)
        return envelope, parse_manifest(envelope.text)

    def _verified(self, envelope: Envelope, manifest: Manifest) -> Tree:
        if manifest.certificate is None:
            raise Untrusted(f"{self.fqrn}: the manifest names no certificate")
        self.anchor.blacklist.check_revision(self.fqrn, manifest.revision)
        pem = self.objects.open(ObjectRef(manifest.certificate, Kind.CERTIFICATE)).read_all()
        certificate = load_certificate(pem)
        check_manifest_signature(envelope, certificate, self.fqrn)
        what = f"the whitelist of {self.fqrn}"
        data = self._source.fetch(WHITELIST, lambda: Buffer(MAX_ENVELOPE, what)).data
        signed = split_envelope(bytes(data), what)
        whitelist = check_whitelist(signed, self.anchor.master_keys, self.fqrn, self._now())
        check_certificate(certificate, whitelist, self.anchor.blacklist, self.fqrn)
        tree = Tree(manifest, self._loader)
        if tree.root.properties.get(b"voms_authz"):
            raise Unsupported(
                f"{self.fqrn}: only members of a group may read it, and this client cannot check who is one"
            )
        self._write_breadcrumb(manifest)
        return tree

    def _read_breadcrumb(self) -> Known | None:
        try:
            text = self._breadcrumb.read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            return None
        match = _BREADCRUMB.fullmatch(text.strip())
        with suppress(Malformed):
            if match:
                return Known(parse_hash(match[1]), int(match[2]), int(match[3]))
        return None

    def _write_breadcrumb(self, manifest: Manifest) -> None:
        text = f"{manifest.root_hash}T{manifest.timestamp}R{manifest.revision}"
        try:
            write_atomically(self._breadcrumb, text.encode(), mode=0o600, sync=False)
        except OSError as error:
            raise CacheFull(f"{self._breadcrumb}: cannot be written: {error.strerror}") from error
