# SPDX-License-Identifier: BSD-3-Clause
"""A look through the whole cache: every object is read and compared with its checksum; damaged ones go.

Synchronous and slow (it reads the disk); may run beside workers that use the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .cache import Cache


@dataclass(frozen=True)
class Finding:
    """What a look through the cache found."""

    checked: int
    damaged: tuple[str, ...]
    """Names of objects; they are gone, and are fetched again when somebody wants them."""


def check_cache(cache: Cache, *, keep_on: Callable[[], bool] = lambda: True) -> Finding:
    """Read all objects; ends early, with what it found, once `keep_on` says so.  Raises OSError."""
    checked, damaged = 0, []
    for name in cache.names():
        if not keep_on():
            break
        checked += 1
        if not cache.check(name):
            damaged.append(name)
    return Finding(checked, tuple(damaged))
