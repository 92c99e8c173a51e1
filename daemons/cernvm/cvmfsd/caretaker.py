# SPDX-License-Identifier: BSD-3-Clause
"""What a person wants done to the whole cache: wiped, or looked through.  On the asyncio loop; the work in threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cernvm.cvmfs.cache import Cache
from cernvm.cvmfs.cache_check import Finding, check_cache

T = TypeVar("T")


class Caretaker:
    """Looks after the cache that the workers share."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stopped = threading.Event()

    async def wipe(self) -> int:
        """Remove everything but the catalogs in use; bytes left.  What a worker has open takes space until closed."""
        return await self._do(lambda cache: cache.cleanup(0))

    async def check(self) -> Finding:
        """Read every object; damaged ones go."""
        return await self._do(lambda cache: check_cache(cache, keep_on=lambda: not self._stopped.is_set()))

    def stop(self) -> None:
        """End what is under way."""
        self._stopped.set()

    async def _do(self, work: Callable[[Cache], T]) -> T:
        def task() -> T:
            cache = Cache(self.directory, None)
            try:
                return work(cache)
            finally:
                cache.close()

        return await asyncio.to_thread(task)
