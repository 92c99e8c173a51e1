# SPDX-License-Identifier: BSD-3-Clause
"""Where large files are cut into chunks: at places that their content decides, as the original server does.

A 32-bit checksum runs over the bytes, `h = (h << 1) ^ byte`, so that it depends on the last 32 bytes only.  A chunk
ends before the first byte, at least `minimum` after its start, where `h` comes closer than `(2^32 - 1) / average` to
0x7fffffff (distance modulo 2^32), and at `maximum` at the latest.  Inserting bytes into a file therefore moves a cut
or two and leaves the other chunks alone.

A loop over single bytes would be slower than the compression.  Here one big integer carries 16 bits per byte
of input, and a handful of shifts and exclusive-ors computes the upper half of `h` for a whole block; the few places
where it fits are then looked at one by one.  A `Cutter` belongs to one thread.
Format: docs/cvmfs-publishing.md, "Chunks"; enforced by tests/unit/test_publish_cutter.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_WINDOW: Final = 32
"""Bytes that the checksum depends on."""
_CENTRE: Final = 0x7FFFFFFF
_BLOCK: Final = 1 << 14
"""Bytes that are looked at together; small enough for the processor's cache."""
_NEAR: Final = (b"\xff\x7f", b"\x00\x80")
"""Upper 16 bits (little-endian) of every value within 2^16 of the centre."""
_LOW_BYTES: Final = int.from_bytes(b"\xff\0" * (_BLOCK + 2 * _WINDOW), "little")


@dataclass(frozen=True)
class Sizes:
    """Bounds of chunks in bytes: 32 <= minimum <= average <= maximum, average at least 2^16."""

    minimum: int = 4 << 20
    average: int = 8 << 20
    maximum: int = 16 << 20

    def __post_init__(self) -> None:
        if not _WINDOW <= self.minimum <= self.average <= self.maximum or self.average < 1 << 16:
            raise ValueError("chunk sizes: 32 <= minimum <= average <= maximum, average >= 65536")


class Cutter:
    """Finds the cuts of one stream."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._threshold = 0xFFFFFFFF // sizes.average
        self._start = 0
        self._seen = 0
        self._tail = b""

    def feed(self, block: bytes) -> list[int]:
        """Take the next bytes; return the offsets in the stream, rising, at which new chunks begin."""
        window = self._tail + block
        origin = self._seen - len(self._tail)
        self._seen += len(block)
        cuts = []
        while (cut := self._next(window, origin)) is not None:
            cuts.append(cut)
            self._start = cut
        self._tail = window[-(_WINDOW - 1) :]
        return cuts

    def _next(self, window: bytes, origin: int) -> int | None:
        first = max(self._start + self._sizes.minimum, origin + len(self._tail))
        forced = self._start + self._sizes.maximum
        end = min(forced, self._seen)
        for begin in range(first - origin, end - origin, _BLOCK):
            mark = self._mark(window, begin, min(begin + _BLOCK, end - origin))
            if mark is not None:
                return mark + origin
        return forced if forced < self._seen else None

    def _mark(self, window: bytes, begin: int, end: int) -> int | None:
        base = begin - _WINDOW + 1
        halves = _upper_halves(window[base:end])
        for place in sorted(place for pattern in _NEAR for place in _places(halves, pattern)):
            at = base + place
            distance = (checksum(window[at - _WINDOW + 1 : at + 1]) - _CENTRE) & 0xFFFFFFFF
            if min(distance, 0x100000000 - distance) < self._threshold:
                return at
        return None


def _places(halves: bytes, pattern: bytes) -> Iterator[int]:
    place = halves.find(pattern, 2 * (_WINDOW - 1))
    while place >= 0:
        if place % 2 == 0:
            yield place // 2
        place = halves.find(pattern, place + 1)


def checksum(data: bytes) -> int:
    """The checksum after `data`: the definition, byte by byte."""
    value = 0
    for byte in data:
        value = ((value << 1) ^ byte) & 0xFFFFFFFF
    return value


def _upper_halves(data: bytes) -> bytes:
    """The upper 16 bits of the checksum at each byte of `data` (right from the 32nd on), little-endian pairs.

    With 8 bytes summed in a lane of 16 bits (they need 15), h is the sum at i, plus that at i-8 shifted by 8,
    at i-16 by 16 and at i-24 by 24; only what reaches the upper half is kept.
    """
    lanes = bytearray(2 * len(data))
    lanes[::2] = data
    eight = int.from_bytes(lanes, "little")
    eight ^= eight << (1 * 16 + 1)
    eight ^= eight << (2 * 16 + 2)
    eight ^= eight << (4 * 16 + 4)
    half = eight << (16 * 16)
    half ^= (eight & _LOW_BYTES) << (24 * 16 + 8)
    half ^= ((eight >> 8) & _LOW_BYTES) << (8 * 16)
    return half.to_bytes(2 * len(data) + 2 * _WINDOW, "little")[: 2 * len(data)]
