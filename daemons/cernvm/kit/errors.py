# SPDX-License-Identifier: BSD-3-Clause
"""The two things that can go wrong, so that every process answers them alike.

A `Problem` is something that the machine, the network or a peer did; a `UserMistake` is something that the person who
typed the command or wrote the file can mend.  Both carry ONE sentence: what, where, what to do.  Libraries derive
their own small trees from them; the boundaries (service main, FUSE request, bus call) translate.  Thread-safe: values.
"""

from __future__ import annotations

from typing import ClassVar, Final

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_MISTAKE: Final = 2


class Problem(Exception):
    """Something failed; `str()` is one sentence for a person."""

    exit_status: ClassVar[int] = EXIT_FAILED
    bus_name: ClassVar[str] = "Failed"
    """Last part of the D-Bus error name, `ch.cern.cernvm.Error.<bus_name>`."""


class UserMistake(Problem):
    """The input is wrong: a key, a file, an argument.  Exit status 2."""

    exit_status: ClassVar[int] = EXIT_MISTAKE
    bus_name: ClassVar[str] = "InvalidArgument"


class NotFound(UserMistake):
    """What was named does not exist."""

    bus_name: ClassVar[str] = "NotFound"


def sentence(error: BaseException) -> str:
    """`error` as one sentence: ours as they are, operating-system errors with their file, others with their type."""
    if isinstance(error, Problem):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}"
    return f"{type(error).__name__}: {error}"
