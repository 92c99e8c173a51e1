# SPDX-License-Identifier: BSD-3-Clause
"""Compression of file content: zlib streams by ISA-L where it is installed, else by zlib.

Both write the same format.  The streams, and so the names of objects, differ; what was published before is known by
its content (`seen`), not by its name.  ISA-L at level 3 takes a fifth to a tenth of zlib's time for streams 6 to 13 %
longer: docs/performance.md, "Compression".  Both give up the interpreter lock.  Thread-safe: no state.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final, Protocol

_ISAL_LEVEL: Final = 3


class Compressor(Protocol):
    """One stream on its way."""

    def compress(self, data: bytes | memoryview, /) -> bytes:
        """Take the next bytes; return what is ready."""

    def flush(self) -> bytes:
        """End the stream; return the rest."""


def zlib_stream() -> Compressor:
    """As the original server does: zlib at its default level."""
    return zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION)


def _fastest() -> Callable[[], Compressor]:
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib_stream
    return lambda: isal_zlib.compressobj(_ISAL_LEVEL)


fast_stream: Final[Callable[[], Compressor]] = _fastest()
"""Begin a stream with the fastest engine of this machine."""
