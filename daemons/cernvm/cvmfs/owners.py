# SPDX-License-Identifier: BSD-3-Clause
"""Other numbers for users and groups than those that were published: the files of CVMFS_UID_MAP and CVMFS_GID_MAP.

A line is the published number (`*`: any other) and the one that is shown; `#` begins a comment.  Pure but for reading
the file; thread-safe: values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .errors import Mistake

MAX_FILE: Final = 16 << 20
_LINE: Final = re.compile(r"(\d{1,10}|\*)\s+(\d{1,10})")
_MOST: Final = 2**32 - 2


@dataclass(frozen=True)
class OwnerMap:
    """Published numbers and what is shown for them."""

    numbers: Mapping[int, int] = field(default_factory=dict)
    others: int | None = None
    """For all numbers that are not listed; None: themselves."""

    def shown(self, number: int) -> int:
        """What stands for the published `number`."""
        return self.numbers.get(number, number if self.others is None else self.others)


def read_owner_map(file: Path) -> OwnerMap:
    """The map in `file`.  Raises Mistake naming file and line."""
    try:
        with file.open(encoding="utf-8", errors="replace") as opened:
            text = opened.read(MAX_FILE)
    except OSError as error:
        raise Mistake(f"{file}: cannot be read: {error.strerror}") from error
    numbers: dict[int, int] = {}
    others = None
    for place, line in enumerate(text.splitlines(), 1):
        bare = line.partition("#")[0].strip()
        match = _LINE.fullmatch(bare)
        if match is None or int(match[2]) > _MOST:
            if bare:
                raise Mistake(f"{file}: line {place} is not a number (or *) and the number to show: {bare[:80]!r}")
        elif match[1] == "*":
            others = int(match[2])
        else:
            numbers[int(match[1])] = int(match[2])
    return OwnerMap(numbers, others)
