# SPDX-License-Identifier: BSD-3-Clause
"""Content hashes and path hashes: how everything in a repository is named.

A content hash is taken over the bytes as stored (compressed, if the object is compressed).  The text form
tells its algorithm by length: 40 hexadecimal digits SHA-1, 47 with `-rmd160`, 49 with `-shake128` (160 bits).
Thread-safe: values; a `Hasher` belongs to one thread.  Format: docs/cvmfs-format.md, "Hashes".
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum
from functools import partial
from typing import Final, NamedTuple

from .errors import Malformed, Mistake

DIGEST_SIZE: Final = 20


class Algorithm(Enum):
    """Content hash algorithms; the value is the number in bits 8-10 of an entry's flags."""

    SHA1 = 0
    RMD160 = 1
    SHAKE128 = 2

    @property
    def tag(self) -> str:
        """What follows the digits in text: nothing, `-rmd160` or `-shake128`."""
        return _TAGS[self]


_TAGS: Final = {Algorithm.SHA1: "", Algorithm.RMD160: "-rmd160", Algorithm.SHAKE128: "-shake128"}
_BY_LENGTH: Final = {2 * DIGEST_SIZE + len(tag): algorithm for algorithm, tag in _TAGS.items()}
_DIGITS: Final = re.compile(r"[0-9a-f]{40}")
_PAIRS: Final = re.compile(r"(?:[0-9A-F]{2}:){19}[0-9A-F]{2}")


class Kind(StrEnum):
    """What an object is: the letter at the end of its path, never part of the hash."""

    FILE = ""
    CATALOG = "C"
    HISTORY = "H"
    CERTIFICATE = "X"
    METAINFO = "M"
    CHUNK = "P"


@dataclass(frozen=True, slots=True, order=True)
class ContentHash:
    """The name of an object: 20 bytes of digest and the algorithm that made them."""

    digest: bytes
    algorithm: Algorithm = Algorithm.SHA1

    def __post_init__(self) -> None:
        if len(self.digest) != DIGEST_SIZE:
            raise Malformed(f"a content hash has {len(self.digest)} bytes where {DIGEST_SIZE} are needed")

    def __str__(self) -> str:
        return self.digest.hex() + self.algorithm.tag

    def path(self, kind: Kind) -> str:
        """Where it is stored below the repository's root: `data/ab/cdef...-rmd160C`."""
        text = str(self)
        return f"data/{text[:2]}/{text[2:]}{kind.value}"

    def fingerprint(self) -> str:
        """The form of whitelists: `AB:CD:...`, with `-RMD160` or `-SHAKE128` where it is not SHA-1."""
        return self.digest.hex(":").upper() + self.algorithm.tag.upper()


def parse_hash(text: str | bytes) -> ContentHash:
    """Read the text form, told apart by length.  Raises Malformed."""
    plain = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    algorithm = _BY_LENGTH.get(len(plain))
    if algorithm is None or not _DIGITS.match(plain) or plain[2 * DIGEST_SIZE :] != algorithm.tag:
        raise Malformed(f"not a content hash: {plain[:60]!r}")
    return ContentHash(bytes.fromhex(plain[: 2 * DIGEST_SIZE]), algorithm)


def parse_fingerprint(line: str) -> ContentHash | None:
    """Read a whitelist line `AB:CD:...[-RMD160] [# comment]`; None if it is none."""
    word = line.split("#", 1)[0].strip()
    pairs = _PAIRS.match(word)
    if pairs is None:
        return None
    for algorithm, tag in _TAGS.items():
        if word[pairs.end() :] == tag.upper():
            return ContentHash(bytes.fromhex(pairs.group().replace(":", "")), algorithm)
    return None


class Hasher:
    """Hash a stream piece by piece.  hashlib gives up the interpreter lock for pieces above 2 KiB."""

    def __init__(self, algorithm: Algorithm = Algorithm.SHA1) -> None:
        """Start.  Raises Mistake if this machine's OpenSSL does not offer the algorithm (RIPEMD-160 only)."""
        self.algorithm = algorithm
        self._digest: Callable[[], bytes]
        if algorithm is Algorithm.SHAKE128:
            shake = hashlib.shake_128(usedforsecurity=False)
            self.update, self._digest = shake.update, partial(shake.digest, DIGEST_SIZE)
        else:
            plain = _openssl(algorithm)
            self.update, self._digest = plain.update, plain.digest

    update: Callable[[bytes | bytearray | memoryview], None]
    """Take the next piece."""

    def finish(self) -> ContentHash:
        """Give the hash of everything so far."""
        return ContentHash(self._digest(), self.algorithm)


def _openssl(algorithm: Algorithm) -> hashlib._Hash:
    if algorithm is Algorithm.SHA1:
        return hashlib.sha1(usedforsecurity=False)
    try:
        return hashlib.new("ripemd160", usedforsecurity=False)
    except ValueError:
        raise Mistake(
            "this machine's OpenSSL does not offer RIPEMD-160, which the repository uses: "
            "enable OpenSSL's legacy provider or use OpenSSL 3.0.7 or later"
        ) from None


def hash_of(data: bytes | memoryview, algorithm: Algorithm = Algorithm.SHA1) -> ContentHash:
    """Hash bytes at once."""
    hasher = Hasher(algorithm)
    hasher.update(data)
    return hasher.finish()


class PathHash(NamedTuple):
    """MD5 of a path inside the repository as catalogs store it: two little-endian signed 64-bit halves."""

    first: int
    second: int


NO_PARENT: Final = PathHash(0, 0)
"""The parent of the repository's root."""

_HALVES: Final = struct.Struct("<qq")


def path_hash(path: bytes) -> PathHash:
    """Hash an absolute path inside the repository: `b""` for the root, else `b"/a/b"` with no last slash."""
    return PathHash(*_HALVES.unpack(hashlib.md5(path, usedforsecurity=False).digest()))
