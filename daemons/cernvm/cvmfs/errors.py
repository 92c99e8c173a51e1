# SPDX-License-Identifier: BSD-3-Clause
"""What can go wrong with a repository, each as one class with one sentence.

The trees follow who has to act: `Untrusted` (do not use what the server sent), `Unreachable` (the network or
the server), `Malformed` (foreign bytes that break the format), `Mistake` (the person who configured it),
`NoEntry` and its siblings (ordinary answers of a file system).  Adapters own the table from these to errno or
D-Bus names.  Thread-safe: values.
"""

from __future__ import annotations

from typing import ClassVar

from cernvm.kit.errors import NotFound, Problem, UserMistake


class CvmfsProblem(Problem):
    """Root of what the repository library raises, apart from mistakes of the person."""

    bus_name: ClassVar[str] = "Cvmfs"


class Malformed(CvmfsProblem):
    """Foreign bytes do not follow the format; nothing of them was used."""

    bus_name: ClassVar[str] = "Malformed"


class Untrusted(CvmfsProblem):
    """A signature, a name, a date or a revision does not allow to use what the server sent."""

    bus_name: ClassVar[str] = "Untrusted"


class Revoked(Untrusted):
    """What was believed before must not be believed any more: the black list says so."""


class RolledBack(Untrusted):
    """The server offers an older state than the one already known."""


class ObjectCorrupt(CvmfsProblem):
    """The bytes of an object do not have the hash that names it."""

    bus_name: ClassVar[str] = "ObjectCorrupt"


class Unreachable(CvmfsProblem):
    """No server gave an answer that could be used."""

    bus_name: ClassVar[str] = "Unreachable"


class TimedOut(Unreachable):
    """It takes longer than a program may be kept waiting."""


class NoProxy(Unreachable):
    """Proxies were to be discovered, and none was found."""


class ObjectMissing(Unreachable):
    """Every server that answered says that it does not have it."""


class CacheFull(CvmfsProblem):
    """The cache cannot take the object: the disk is full or the limit is smaller than the object allows."""

    bus_name: ClassVar[str] = "CacheFull"


class DiskFull(CacheFull):
    """The disk of the cache has no space left, whatever the limit."""


class Unsupported(CvmfsProblem):
    """The repository uses a part of the format that this client does not read."""

    bus_name: ClassVar[str] = "Unsupported"


class Mistake(UserMistake):
    """A parameter, a key file or a name that the person can mend."""


class NoRepository(NotFound):
    """No such repository is configured or mounted."""


class NoEntry(CvmfsProblem):
    """The name does not exist in its directory, or the inode number stands for nothing."""


class NameTooLong(CvmfsProblem):
    """No repository has names that long."""


class NotDirectory(CvmfsProblem):
    """The entry is not a directory."""


class IsDirectory(CvmfsProblem):
    """The entry is a directory, so that it cannot be read."""


class NotReadable(CvmfsProblem):
    """The entry has no content to read: a symbolic link or a device."""


class NoAttribute(CvmfsProblem):
    """The entry does not have that extended attribute."""
