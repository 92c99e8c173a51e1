# SPDX-License-Identifier: BSD-3-Clause
"""A repository on its servers: which revision is to be shown, and may it be believed.

The order of checks is the original's: manifest (its hash, name, age), certificate, manifest signature, whitelist
(signature, name, expiry), certificate listed and not black-listed.  Nothing is used before all of it has passed.  A
server whose manifest or whitelist does not pass is left for the next one.  What was believed last is remembered
(`memory`): a server cannot take a machine back in time, and a mount can begin without any server.

One thread asks for revisions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Generic, TypeVar

from cryptography import x509

from .authorities import Authorities
from .errors import CvmfsProblem, Malformed, ObjectCorrupt, Unreachable, Unsupported, Untrusted
from .fetch import Buffer
from .hashes import Kind
from .history import Pin, RootPin, pinned_tag, read_tags
from .manifest import MAX_ENVELOPE, Envelope, Manifest, parse_manifest, split_envelope
from .memory import Memory
from .objects import ObjectRef, Objects, Source
from .tree import CatalogLoader, Tree
from .trust import (
    Blacklist,
    Known,
    MasterKey,
    Whitelist,
    check_certificate,
    check_manifest,
    check_manifest_signature,
    check_pkcs7_whitelist,
    check_whitelist,
    load_certificate,
    parse_whitelist,
)

log = logging.getLogger(__name__)
MANIFEST: Final = ".cvmfspublished"
WHITELIST: Final = ".cvmfswhitelist"
PKCS7_WHITELIST: Final = ".cvmfswhitelist.pkcs7"
DEFAULT_TTL: Final = 240
RETRY_AFTER: Final = 180
"""Seconds, at most, until the next question after one that failed."""
T = TypeVar("T")


@dataclass(frozen=True)
class Anchor:
    """What the person trusts for one repository; what can change under a mount is read anew at each question."""

    fqrn: str
    master_keys: tuple[MasterKey, ...]
    blacklist: Callable[[], Blacklist] = Blacklist
    authorities: Callable[[], Authorities] = Authorities


class _Refused(ObjectCorrupt):
    """Makes a fetcher ask again past the caches, then the next server."""

    def __init__(self, reason: CvmfsProblem) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Judged(Buffer, Generic[T]):
    """A receiver of bytes of which `judge` makes something, or refuses."""

    result: T

    def __init__(self, what: str, judge: Callable[[bytes], T]) -> None:
        super().__init__(MAX_ENVELOPE, what)
        self._judge = judge

    def finish(self) -> None:
        """Judge."""
        try:
            self.result = self._judge(bytes(self.data))
        except CvmfsProblem as reason:
            raise _Refused(reason) from reason


class Repository:
    """One repository, verified."""

    def __init__(
        self,
        anchor: Anchor,
        source: Source,
        objects: Objects,
        *,
        now: Callable[[], datetime],
        max_ttl: int = 0,
        pin: Pin | None = None,
    ) -> None:
        """`now` gives UTC; `max_ttl` in seconds, 0 for none; `pin` fixes the revision that is shown."""
        self.anchor = anchor
        self.fqrn = anchor.fqrn
        self.objects = objects
        self.pin = pin
        self.offline = False
        """Whether the last question found no server."""
        self._source = source
        self._now = now
        self._max_ttl = max_ttl
        self._loader = CatalogLoader(objects)
        self._memory = Memory(objects.cache.directory, anchor.fqrn)
        self._certificate: x509.Certificate | None = None

    def load(self) -> Tree:
        """Return the newest revision, or the pinned one; without any server, what was believed last.

        Raises Untrusted, Unreachable, Malformed, ObjectCorrupt, Mistake (no such tag), ...
        """
        if isinstance(self.pin, RootPin):
            return self._fixed(self.pin)
        try:
            envelope, manifest = self._manifest(self._memory.known())
            self._verify(envelope, manifest)
            tree = self._shown(manifest)
        except (Unreachable, Malformed, ObjectCorrupt) as failure:  # none that is worth the name of a server
            return self._remembered(failure)
        self._memory.believe(manifest)
        return tree

    def newer(self, tree: Tree) -> Tree | None:
        """Return a newer revision than `tree`, or None while that is the newest.

        Raises like `load`, and Revoked if `tree` itself may not be shown any longer.
        """
        try:
            fresh = None if self.pin else self._newer(tree)
        except CvmfsProblem as failure:
            self.offline = isinstance(failure, Unreachable | Malformed | ObjectCorrupt)
            self._check_not_revoked(tree.manifest)
            raise
        if fresh is None:
            self._check_not_revoked(tree.manifest)
        return fresh

    def ttl(self, tree: Tree) -> int:
        """Seconds until the next question for a newer revision."""
        wanted = tree.root.ttl or DEFAULT_TTL
        wanted = min(wanted, self._max_ttl) if self._max_ttl else wanted
        return min(wanted, RETRY_AFTER) if self.offline else wanted

    def retry_after(self, tree: Tree) -> int:
        """Seconds until the next question after one that failed."""
        return min(RETRY_AFTER, self.ttl(tree))

    def _newer(self, tree: Tree) -> Tree | None:
        old = tree.manifest
        envelope, manifest = self._manifest(Known(old.root_hash, old.timestamp, old.revision))
        if manifest.root_hash == old.root_hash:
            self.offline = False
            return None
        self._verify(envelope, manifest)
        fresh = self._shown(manifest)
        fresh.preload(tree)
        self._memory.believe(manifest)
        return fresh

    def _shown(self, manifest: Manifest) -> Tree:
        """The tree for a verified manifest."""
        tree = Tree(self._resolved(manifest), self._loader)
        if tree.root.properties.get(b"voms_authz"):
            raise Unsupported(
                f"{self.fqrn}: only members of a group may read it, and this client cannot check who is one"
            )
        self.offline = False
        return tree

    def _resolved(self, manifest: Manifest) -> Manifest:
        """The manifest of the revision that is wanted: `manifest` itself, or that of a tag in its history."""
        if self.pin is None or isinstance(self.pin, RootPin):
            return manifest
        if manifest.history is None:
            raise Untrusted(f"{self.fqrn}: a tag is wanted, and the manifest names no data base of tags")
        data = self.objects.open(ObjectRef(manifest.history, Kind.HISTORY)).read_all()
        tag = pinned_tag(self.pin, read_tags(data), self.fqrn)
        self.anchor.blacklist().check_revision(self.fqrn, tag.revision)
        return replace(
            manifest, root_hash=tag.root_hash, root_size=tag.size, revision=tag.revision, timestamp=tag.timestamp
        )

    def _fixed(self, pin: RootPin) -> Tree:
        """The revision with a known root hash, which nobody has to vouch for; its number stands in its catalog."""
        tree = Tree(Manifest(pin.root_hash, self.fqrn, 0), self._loader)
        number, modified = (tree.root.properties.get(name, b"") for name in (b"revision", b"last_modified"))
        revision = int(number) if number.isdigit() and len(number) < 19 else 0
        timestamp = int(modified) if modified.isdigit() and len(modified) < 19 else 0
        self.anchor.blacklist().check_revision(self.fqrn, revision)
        return Tree(replace(tree.manifest, revision=revision, timestamp=timestamp), self._loader)

    def _remembered(self, failure: CvmfsProblem) -> Tree:
        """The revision that was believed last, if its root catalog is in the cache.  Raises `failure` otherwise."""
        manifest = self._memory.manifest()
        if manifest is None:
            raise failure
        self.anchor.blacklist().check_revision(self.fqrn, manifest.revision)
        wanted = self._resolved(manifest)
        if self.objects.cache.open(ObjectRef(wanted.root_hash, Kind.CATALOG).cache_name) is None:
            raise failure
        tree = self._shown(manifest)
        self.offline = True
        log.warning(
            "%s: no server answers as it should; shows revision %d from the cache (%s)",
            self.fqrn,
            wanted.revision,
            failure,
        )
        return tree

    def _check_not_revoked(self, manifest: Manifest) -> None:
        blacklist = self.anchor.blacklist()
        blacklist.check_revision(self.fqrn, manifest.revision)
        if self._certificate is not None:
            blacklist.check_certificate(self._certificate, self.fqrn)

    def _manifest(self, known: Known | None) -> tuple[Envelope, Manifest]:
        what = f"the manifest of {self.fqrn}"

        def judge(data: bytes) -> tuple[Envelope, Manifest]:
            envelope = split_envelope(data, what)
            manifest = parse_manifest(envelope.text)
            check_manifest(manifest, self.fqrn, known)
            return envelope, manifest

        return self._ask(MANIFEST, what, judge)

    def _verify(self, envelope: Envelope, manifest: Manifest) -> None:
        """Raise Untrusted unless the manifest may be believed."""
        if manifest.certificate is None:
            raise Untrusted(f"{self.fqrn}: the manifest names no certificate")
        blacklist = self.anchor.blacklist()
        blacklist.check_revision(self.fqrn, manifest.revision)
        pem = self.objects.open(ObjectRef(manifest.certificate, Kind.CERTIFICATE)).read_all()
        certificate = load_certificate(pem)
        check_manifest_signature(envelope, certificate, self.fqrn)
        whitelist = self._whitelist()
        check_certificate(certificate, whitelist, blacklist, self.fqrn)
        if "Wcachain" in whitelist.flags:
            what = f"{self.fqrn}: the repository's certificate"
            self.anchor.authorities().check(certificate, (), self._now(), what)
        self._certificate = certificate

    def _whitelist(self) -> Whitelist:
        what = f"the whitelist of {self.fqrn}"

        def judge(data: bytes) -> Whitelist | None:
            if "Vpkcs7" in parse_whitelist(data.partition(b"\n--\n")[0]).flags:
                return None
            return check_whitelist(split_envelope(data, what), self.anchor.master_keys, self.fqrn, self._now())

        plain = self._ask(WHITELIST, what, judge)
        if plain is not None:
            return plain
        return self._ask(
            PKCS7_WHITELIST,
            f"the PKCS#7 whitelist of {self.fqrn}",
            lambda data: check_pkcs7_whitelist(data, self.anchor.authorities(), self.fqrn, self._now()),
        )

    def _ask(self, path: str, what: str, judge: Callable[[bytes], T]) -> T:
        """Fetch and judge; raises what the judge raises once no server is left to ask."""
        try:
            return self._source.fetch(path, lambda: _Judged(what, judge)).result
        except _Refused as refused:
            raise refused.reason from refused
