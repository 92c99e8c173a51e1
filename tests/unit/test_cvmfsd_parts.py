# SPDX-License-Identifier: BSD-3-Clause
"""cvmfsd's tables and small parts: errors and their numbers, the wire, the configuration."""

from __future__ import annotations

import errno
from pathlib import Path

import llfuse
import pytest

from cernvm.cvmfs import errors
from cernvm.cvmfs.counters import Counter
from cernvm.cvmfsd import wire
from cernvm.cvmfsd.config import SPEC, configure
from cernvm.cvmfsd.control import path_of
from cernvm.cvmfsd.errnos import ERRNO
from cernvm.cvmfsd.llfuse import FileSystem, answering
from cernvm.kit import config
from cernvm.kit.errors import NotFound, Problem, UserMistake
from tests.support.cvmfs import fixture
from tests.support.storage import StorageView


def all_errors() -> list[type[Problem]]:
    found = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Problem)]
    return [one for one in found if one not in (errors.CvmfsProblem, Problem, UserMistake, NotFound)]


def test_every_error_of_the_library_has_a_number() -> None:
    assert set(ERRNO) == set(all_errors())
    assert all(number in errno.errorcode for number in ERRNO.values())


@pytest.mark.parametrize(
    ("error", "number", "told"),
    [
        (errors.NoEntry("x"), errno.ENOENT, False),
        (errors.ObjectCorrupt("object ab is corrupt"), errno.EIO, True),
        (errors.CacheFull("full"), errno.ENOSPC, True),
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC, True),
        (OSError(errno.EBADF, "Bad file descriptor"), errno.EIO, True),
        (KeyError("a bug"), errno.EIO, True),
        (llfuse.FUSEError(errno.ENOSYS), errno.ENOSYS, False),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, Exception) else None,
)
def test_only_fuse_errors_leave_a_handler(tmp_path: Path, error: Exception, number: int, told: bool) -> None:
    shown = StorageView(fixture("small") / "repo", tmp_path / "cache")
    heard: list[str] = []

    class Files(FileSystem):
        @answering
        def handler(self, _inode: int) -> None:
            raise error

    with pytest.raises(llfuse.FUSEError) as refused:
        Files(shown.view, heard.append).handler(shown.walk("README.txt"))
    assert refused.value.errno == number
    assert shown.counters[Counter.ERRORS] == len(heard) == int(told)
    assert all(one.startswith("small.test.org/README.txt: ") for one in heard)


@pytest.mark.parametrize(
    "message",
    [
        wire.Task("a.b", "/cvmfs/a.b", "/etc/cvmfs", "/cache", None, 12, "auto", "info", 16, 60, 5, True, False),
        wire.Hello("a.b", "/cvmfs/a.b", True, 7),
        wire.Ping(),
        wire.Unmount(),
        wire.Refresh(),
        wire.Shows(7, "ab", "kernel"),
        wire.Refreshed("", ""),
        wire.Failed("Untrusted", "a sentence with\na line"),
        wire.Trouble("object \N{SNOWMAN}"),
        wire.Unmounted(),
    ],
)
def test_messages_between_supervisor_and_worker_read_back(message: wire.Message) -> None:
    line = wire.encode(message)
    assert line.count(b"\n") == 1
    assert wire.decode(line) == message


def test_errors_cross_the_wire_with_their_class() -> None:
    for kind in all_errors():
        crossed = wire.error_of(kind.__name__, "a sentence")
        assert (type(crossed), str(crossed)) == (kind, "a sentence")
    for name in ("OSError", "cernvm", "ClassVar", "nothing"):
        assert type(wire.error_of(name, "a sentence")) is Problem


def test_object_paths_of_mounts_are_unique_and_legal() -> None:
    assert path_of("a-b.c") == "/ch/cern/cernvm/Cvmfs1/mounts/a_2db_2ec"
    assert path_of("a.b.c") != path_of("a-b.c")


def test_the_defaults_are_those_of_a_host(tmp_path: Path) -> None:
    found = configure(config.load(SPEC, tmp_path / "absent.conf", required=False))
    assert (found.mount_directory, found.parameters_directory) == (Path("/cvmfs"), Path("/etc/cvmfs"))
    assert (found.repositories, found.cache_limit) == ((), 4_000_000_000)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[cvmfsd]\nrepositories = a.b, nonsense", r"\[cvmfsd\] repositories: 'nonsense' is not a repository name"),
        ("[cvmfsd]\nmount_directory = cvmfs", r"\[cvmfsd\] mount_directory: 'cvmfs' is not an absolute path"),
        ("[cache]\ndirectory = cache", r"\[cache\] directory: 'cache' is not an absolute path"),
        ("[cache]\nlimit_mb = -1", r"\[cache\] limit_mb: "),
        ("[cvmfsd]\nmount_directroy = /x", r"\[cvmfsd\] mount_directroy: unknown key; did you mean mount_directory"),
    ],
)
def test_mistakes_name_section_and_key(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "cvmfsd.conf"
    file.write_text(text)
    with pytest.raises(UserMistake, match=told):
        configure(config.load(SPEC, file, required=True))


def test_a_limit_of_nought_is_none(tmp_path: Path) -> None:
    file = tmp_path / "cvmfsd.conf"
    file.write_text("[cache]\nlimit_mb = 0\n[cvmfsd]\nrepositories = a.b, c.d, a.b")
    found = configure(config.load(SPEC, file, required=True))
    assert (found.cache_limit, found.repositories) == (None, ("a.b", "c.d"))
