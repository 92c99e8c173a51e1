# SPDX-License-Identifier: BSD-3-Clause
"""The bits of a catalog row's `flags` column, and the suffixes that they imply.  Constants only.

Format: docs/cvmfs-format.md, "Flags".
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from .errors import Malformed
from .hashes import Algorithm

DIRECTORY: Final = 1 << 0
NESTED_MOUNTPOINT: Final = 1 << 1
"""Row of the transition directory in the parent's catalog, always with DIRECTORY."""
FILE: Final = 1 << 2
"""Also set beside SYMLINK and SPECIAL."""
SYMLINK: Final = 1 << 3
SPECIAL: Final = 1 << 4
NESTED_ROOT: Final = 1 << 5
"""Row of the transition directory in the child's catalog, always with DIRECTORY."""
CHUNKED: Final = 1 << 6
EXTERNAL: Final = 1 << 7
HASH_SHIFT: Final = 8
HASH_MASK: Final = 0b111 << HASH_SHIFT
COMPRESSION_SHIFT: Final = 11
COMPRESSION_MASK: Final = 0b111 << COMPRESSION_SHIFT
BIND_MOUNTPOINT: Final = 1 << 14
HIDDEN: Final = 1 << 15
DIRECT_IO: Final = 1 << 16


class Compression(IntEnum):
    """How an object is stored: a zlib stream (RFC 1950) or as it is."""

    ZLIB = 0
    NONE = 1


def algorithm_of(flags: int) -> Algorithm:
    """The content hash algorithm in `flags`.  Raises Malformed."""
    number = (flags & HASH_MASK) >> HASH_SHIFT
    try:
        return Algorithm(number)
    except ValueError:
        raise Malformed(f"a catalog entry names the unknown hash algorithm {number}") from None


def compression_of(flags: int) -> Compression:
    """The compression in `flags`.  Raises Malformed."""
    number = (flags & COMPRESSION_MASK) >> COMPRESSION_SHIFT
    try:
        return Compression(number)
    except ValueError:
        raise Malformed(f"a catalog entry names the unknown compression {number}") from None


def storage_bits(algorithm: Algorithm, compression: Compression) -> int:
    """The bits for an entry that has content."""
    return algorithm.value << HASH_SHIFT | compression << COMPRESSION_SHIFT
