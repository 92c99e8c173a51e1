# SPDX-License-Identifier: BSD-3-Clause
"""Breaking bytes as wires, disks and adversaries do.  Pure but for the random numbers passed in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

_DELICATE: Final = (b"\x00", b"\xff", b"\n", b"\r", b"--\n", b"-", b"A", b"0", b"9" * 30, b"\x80", b"\xc3\xa9", b"'")
_NUMBERS: Final = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
MOST: Final = 6
"""Breaks per sample."""


def mutate(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """`data` with one to six breaks; pieces of `others` may be grafted in."""
    broken = bytearray(data)
    for _ in range(random.randint(1, MOST)):
        random.choice(_BREAKS)(random, broken, others)
    return bytes(broken)


def _place(random: Random, data: bytearray) -> int:
    return random.randrange(len(data) + 1)


def _flip(random: Random, data: bytearray, others: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _replace(random: Random, data: bytearray, others: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] = random.randrange(256)


def _insert(random: Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = _place(random, data)
    data[at:at] = random.choice(_DELICATE)


def _number(random: Random, data: bytearray, others: Sequence[bytes]) -> None:
    size = random.choice((1, 2, 4, 8))
    at = _place(random, data)
    data[at : at + size] = random.choice(_NUMBERS).to_bytes(8, "big")[-size:]


def _cut(random: Random, data: bytearray, others: Sequence[bytes]) -> None:
    del data[_place(random, data) :]


def _remove(random: Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = _place(random, data)
    del data[at : at + random.randint(1, 64)]


def _repeat(random: Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = _place(random, data)
    piece = bytes(data[at : at + random.randint(1, 64)])
    to = _place(random, data)
    data[to:to] = piece * random.randint(1, 8)


def _lines(random: Random, data: bytearray, others: Sequence[bytes]) -> None:
    lines = bytes(data).split(b"\n")
    one, two = random.randrange(len(lines)), random.randrange(len(lines))
    lines[one], lines[two] = lines[two], lines[one]
    data[:] = b"\n".join(lines)


def _graft(random: Random, data: bytearray, others: Sequence[bytes]) -> None:
    other = random.choice(others)
    begin = random.randrange(len(other) + 1)
    at = _place(random, data)
    size = random.randint(1, 200)
    data[at : at + size] = other[begin : begin + size]


_BREAKS: Final[Sequence[Callable[[Random, bytearray, Sequence[bytes]], None]]] = (
    *(_flip, _flip, _replace, _replace, _insert, _number, _cut, _remove, _repeat, _lines, _graft),
)
