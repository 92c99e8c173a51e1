# SPDX-License-Identifier: BSD-3-Clause
"""Waiting times for retries: doubled, capped, jittered, and with an end.  Pure; the caller sleeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Backoff:
    """Exponential back-off with equal jitter.

    `first` and `cap` are seconds; `tries` bounds the count (None: for ever, for reconnecting daemons only).
    """

    first: float
    cap: float
    tries: int | None = None

    def delays(self, random: Random) -> Iterator[float]:
        """Yield the seconds to wait before each retry, each uniform in [half, whole] of the doubled step."""
        step = self.first
        done = 0
        while self.tries is None or done < self.tries:
            yield step * (0.5 + random.random() / 2)
            step = min(step * 2, self.cap)
            done += 1
