# SPDX-License-Identifier: BSD-3-Clause
"""Which error number a program sees for which error of the library: the one table of the file system's adapters.

Thread-safe: values, and counters that are so.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping
from typing import Final

from cernvm.cvmfs import errors
from cernvm.cvmfs.counters import Counter
from cernvm.cvmfs.inodes import Inode
from cernvm.cvmfs.view import View
from cernvm.kit.errors import Problem, sentence

log = logging.getLogger(__name__)
ERRNO: Final[Mapping[type[Problem], int]] = {
    errors.NoEntry: errno.ENOENT,
    errors.NameTooLong: errno.ENAMETOOLONG,
    errors.NotDirectory: errno.ENOTDIR,
    errors.IsDirectory: errno.EISDIR,
    errors.NotReadable: errno.EINVAL,
    errors.NoAttribute: errno.ENODATA,
    errors.CacheFull: errno.ENOSPC,
    errors.DiskFull: errno.ENOSPC,
    errors.Unsupported: errno.EOPNOTSUPP,
    errors.Malformed: errno.EIO,
    errors.Untrusted: errno.EIO,
    errors.RolledBack: errno.EIO,
    errors.Revoked: errno.EIO,
    errors.ObjectCorrupt: errno.EIO,
    errors.Unreachable: errno.EIO,
    errors.NoProxy: errno.EIO,
    errors.ObjectMissing: errno.EIO,
    errors.TimedOut: errno.EIO,
    errors.Mistake: errno.EIO,
    errors.NoRepository: errno.EIO,
}
"""Every error of the repository library by its own class; a test proves that none is missing."""
ORDINARY: Final = frozenset(
    {errno.ENOENT, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENODATA}
)
"""Answers that tell no trouble."""


def errno_of(error: Exception) -> int:
    """The error number that stands for `error`."""
    if isinstance(error, Problem):
        return ERRNO.get(type(error), errno.EIO)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errno.ENOSPC
    return errno.EIO


class Refusals:
    """Turns what a request met into the number for the kernel; counts and tells what is not an ordinary answer."""

    def __init__(self, view: View, trouble: Callable[[str], None]) -> None:
        self._view = view
        self._trouble = trouble

    def number(self, error: Exception, inode: Inode) -> int:
        """The number for `error`, met while `inode` was asked about; an error of ours is logged with its traceback."""
        number = errno_of(error)
        if not isinstance(error, Problem | OSError):
            log.error("answering for %s", self._view.name_of(inode), exc_info=error)
        if number not in ORDINARY:
            self._view.counters.add(Counter.ERRORS)
            self._trouble(f"{self._view.name_of(inode)}: {sentence(error)}")
        return number
