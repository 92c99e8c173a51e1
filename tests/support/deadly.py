# SPDX-License-Identifier: BSD-3-Clause
"""Crash tests: something that writes is done in a process that kills itself before its n-th change of the disk."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Final

_CHANGES: Final = (
    *((Path, name) for name in ("rename", "replace", "unlink", "mkdir", "rmdir")),
    *((os, name) for name in ("fsync", "fchmod")),
)


def killed_at(write: int, work: Callable[[], object]) -> bool:
    """Do `work` in a child that dies before its `write`-th change; whether it came so far."""
    process = multiprocessing.get_context("fork").Process(target=_work_and_die, args=(write, work))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _work_and_die(write: int, work: Callable[[], object]) -> None:
    done = 0

    def deadly(change: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(change)
        def changed(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == write:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **options)

        return changed

    for owner, name in _CHANGES:
        setattr(owner, name, deadly(getattr(owner, name)))
    work()
