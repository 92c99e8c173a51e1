# SPDX-License-Identifier: BSD-3-Clause
"""The manifest `.cvmfspublished`, and the signed envelope that it shares with the whitelist.

Envelope: text lines, `--`, the text's hash, a newline, raw signature bytes to the end.  The signature is over
the TEXT of the hash; `trust` checks it.  Parsing is bounded and changes nothing.  Thread-safe: values.
Format: docs/cvmfs-format.md, "Manifest"; enforced by tests/unit/test_cvmfs_manifest.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from .errors import Malformed
from .hashes import Algorithm, ContentHash, hash_of, parse_hash

MAX_ENVELOPE: Final = 1 << 20
"""Bytes; real manifests have some 600, whitelists some 400."""
ROOT_PATH_MD5: Final = "d41d8cd98f00b204e9800998ecf8427e"
DEFAULT_TTL: Final = 240
_SEPARATOR: Final = b"\n--\n"
_NUMBER: Final = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class Envelope:
    """A signed text, taken apart: its hash has been checked, its signature has not."""

    text: bytes
    """Everything before the `--` line, with its last newline."""
    hash_text: bytes
    """The hash line without its newline: what the signature covers."""
    signature: bytes

    def join(self) -> bytes:
        """Serialise."""
        return self.text + b"--\n" + self.hash_text + b"\n" + self.signature


def split_envelope(data: bytes, what: str) -> Envelope:
    """Take a signed text apart and check its hash; `what` names it in errors.  Raises Malformed."""
    if len(data) > MAX_ENVELOPE:
        raise Malformed(f"{what} has more than {MAX_ENVELOPE} bytes")
    head, separator, rest = data.partition(_SEPARATOR)
    hash_text, newline, signature = rest.partition(b"\n")
    if not separator or not newline or not signature:
        raise Malformed(f"{what} carries no signature")
    text = head + b"\n"
    expected = parse_hash(hash_text)
    if hash_of(text, expected.algorithm) != expected:
        raise Malformed(f"{what} does not have the hash that it says ({expected})")
    return Envelope(text, hash_text, signature)


def unsigned_envelope(text: bytes, algorithm: Algorithm) -> Envelope:
    """An envelope not signed yet: sign `.hash_text`, then dataclasses.replace.  Raises ValueError."""
    if not text.endswith(b"\n") or _SEPARATOR in text:
        raise ValueError("a signed text ends with a newline and has no line '--'")
    return Envelope(text, str(hash_of(text, algorithm)).encode(), b"")


@dataclass(frozen=True)
class Manifest:
    """One revision of a repository.  Sizes in bytes, times in Unix seconds, `ttl` in seconds."""

    root_hash: ContentHash
    fqrn: str
    revision: int
    certificate: ContentHash | None = None
    root_size: int | None = None
    """Of the root catalog's database file, uncompressed."""
    ttl: int = DEFAULT_TTL
    timestamp: int = 0
    history: ContentHash | None = None
    metainfo: ContentHash | None = None
    reflog: ContentHash | None = None
    garbage_collectable: bool = False
    alternative_paths: bool = False

    def body(self) -> bytes:
        """The letter lines in the order of the original writer; what `unsigned_envelope` takes."""
        lines: list[tuple[str, object]] = [
            ("C", self.root_hash),
            ("B", self.root_size),
            ("R", ROOT_PATH_MD5),
            ("D", self.ttl),
            ("S", self.revision),
            ("G", "yes" if self.garbage_collectable else "no"),
            ("A", "yes" if self.alternative_paths else "no"),
            ("N", self.fqrn),
            ("X", self.certificate),
            ("H", self.history),
            ("T", self.timestamp),
            ("M", self.metainfo),
            ("Y", self.reflog),
        ]
        return "".join(f"{letter}{value}\n" for letter, value in lines if value is not None).encode()


def parse_manifest(text: bytes) -> Manifest:
    """Read the letter lines (`Envelope.text`).  Unknown letters are passed over.  Raises Malformed."""
    fields: dict[str, str] = {}
    for line in text.decode("utf-8", "replace").split("\n"):
        if line:
            fields[line[0]] = line[1:]
    missing = [letter for letter in "CRDSN" if letter not in fields]
    if missing:
        raise Malformed(f"the manifest has no line {', '.join(missing)}")
    if fields["R"] != ROOT_PATH_MD5:
        raise Malformed("the manifest does not describe the root of a repository (line R)")

    def optional_hash(letter: str) -> ContentHash | None:
        return parse_hash(fields[letter]) if letter in fields else None

    return Manifest(
        root_hash=parse_hash(fields["C"]),
        fqrn=fields["N"],
        revision=_number(fields, "S"),
        certificate=optional_hash("X"),
        root_size=_number(fields, "B") if "B" in fields else None,
        ttl=_number(fields, "D"),
        timestamp=_number(fields, "T") if "T" in fields else 0,
        history=optional_hash("H"),
        metainfo=optional_hash("M"),
        reflog=optional_hash("Y"),
        garbage_collectable=fields.get("G") == "yes",
        alternative_paths=fields.get("A") == "yes",
    )


def _number(fields: dict[str, str], letter: str) -> int:
    if not _NUMBER.fullmatch(fields[letter]):
        raise Malformed(f"the manifest's line {letter} is not a number: {fields[letter][:40]!r}")
    return int(fields[letter])
