# SPDX-License-Identifier: BSD-3-Clause
"""Other programs: found by name in one place, and never left behind.

Every external program is named by a literal string given to `find_program`; a wall test reads those names and checks
that the package lists carry them.  Thread-safe: no state.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess

from .errors import UserMistake

_PR_SET_PDEATHSIG = 1


def find_program(name: str) -> str:
    """Return the full path of the program `name`.  Raises UserMistake that says what is missing."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        raise UserMistake(f"{name}: program not found; install the package that brings it ('make setup' does)")
    return found


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel for the signal `number` when this process's parent dies; as `preexec_fn`, or first in main.

    The signal comes when the parent *thread* that forked ends, so fork from a thread that lives.  prctl(2).
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)


def end(process: subprocess.Popen[bytes], grace: float = 5.0) -> int:
    """Stop `process`: SIGTERM, `grace` seconds, SIGKILL.  Returns its exit status."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait(10.0)
