# SPDX-License-Identifier: BSD-3-Clause
"""Attacks the targets in turn and tells what breaks: an error that is no `CvmfsProblem`, or no answer in time."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from cernvm.cvmfs.errors import CvmfsProblem
from tests.fuzz.mutate import mutate
from tests.fuzz.targets import TARGETS

SLOW: Final = 5.0
"""Processor seconds for one sample that count as a hang."""
_ROUND: Final = 25


@dataclass(frozen=True)
class Finding:
    """Bytes that a parser does not stand; `error` None: it took too long."""

    target: str
    data: bytes
    error: Exception | None
    seconds: float


def attack(target: str, data: bytes) -> Finding | None:
    """One sample; None if the parser stood it."""
    begun = time.thread_time()
    failure = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TARGETS[target].attack(data)
    except CvmfsProblem:
        pass
    except Exception as error:  # noqa: BLE001  (what a fuzzer is for)
        failure = error
    seconds = time.thread_time() - begun
    return Finding(target, data, failure, seconds) if failure or seconds > SLOW else None


def run(
    seed: int, keep: Callable[[Finding], None], *, seconds: float = float("inf"), rounds: float = float("inf")
) -> dict[str, int]:
    """Attack all targets until time or rounds are over; how many samples each stood or not."""
    random = Random(seed)
    counts: Counter[str] = Counter()
    every = [seed for target in TARGETS.values() for seed in target.seeds]
    until = time.monotonic() + seconds
    done = 0
    while done < rounds and time.monotonic() < until:
        done += 1
        for name, target in TARGETS.items():
            for _ in range(_ROUND):
                finding = attack(name, mutate(random, random.choice(target.seeds), every))
                if finding:
                    keep(finding)
            counts[name] += _ROUND
    return dict(counts)
