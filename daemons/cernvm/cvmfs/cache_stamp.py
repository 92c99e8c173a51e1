# SPDX-License-Identifier: BSD-3-Clause
"""A checksum beside the content of every cached object: what tells a whole object from one that something damaged.

The hash that names an object is that of its compressed bytes, which the cache does not have; so each file carries the
CRC-32 of its content as an extended attribute, written before the object gets its name.  Torn by a power cut, flipped
by a disk or changed by somebody's hand: the two do not agree any more, and the object is fetched again.  It is no
protection against somebody who may write to the cache on purpose.  Pure functions on descriptors; thread-safe.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from typing import Final

_NAME: Final = "user.cernvm.crc32"
_STAMP: Final = struct.Struct("<I")
_PIECE: Final = 1 << 20
_LACKING: Final = frozenset({errno.ENOTSUP, errno.EPERM, errno.EROFS, errno.EACCES})


def supported(fd: int) -> bool:
    """Whether the file system of the writable file `fd` keeps such attributes."""
    try:
        os.setxattr(fd, _NAME, _STAMP.pack(0))
    except OSError as error:
        if error.errno in _LACKING:
            return False
        raise
    return True


def stamp(fd: int) -> None:
    """Write the checksum of the content.  Raises OSError."""
    os.setxattr(fd, _NAME, _STAMP.pack(checksum(fd)))


def intact(fd: int) -> bool:
    """Whether the content is what `stamp` saw; False also when it cannot be read or has no stamp."""
    try:
        return _STAMP.pack(checksum(fd)) == os.getxattr(fd, _NAME)
    except OSError:
        return False


def checksum(fd: int) -> int:
    """CRC-32 of the whole content.  Raises OSError."""
    value, offset = 0, 0
    while piece := os.pread(fd, _PIECE, offset):
        value = zlib.crc32(piece, value)
        offset += len(piece)
    return value
