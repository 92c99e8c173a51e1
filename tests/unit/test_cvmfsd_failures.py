# SPDX-License-Identifier: BSD-3-Clause
"""What is remembered of failed reads: for one question, soon, about the same bytes."""

from __future__ import annotations

import errno

from cernvm.cvmfs.inodes import Inode
from cernvm.cvmfsd.failures import MOST, SOON, Failures

FILE, OTHER = Inode(7), Inode(8)


def test_a_failure_answers_one_question_about_its_bytes() -> None:
    failures = Failures()
    failures.note(FILE, 4096, 8192, errno.EIO)
    failures.note(FILE, 100_000, 10, errno.ENOSPC)
    assert failures.recall(FILE, 0) == 0
    assert failures.recall(OTHER, 4096) == 0
    assert failures.recall(FILE, 8192) == errno.EIO
    assert failures.recall(FILE, 8192) == 0
    assert failures.recall(FILE, 100_005) == errno.ENOSPC


def test_a_failure_is_forgotten_soon() -> None:
    now = [0.0]
    failures = Failures(lambda: now[0])
    failures.note(FILE, 0, 10, errno.EIO)
    now[0] = SOON
    assert failures.recall(FILE, 0) == 0


def test_failures_that_nobody_asks_about_do_not_pile_up() -> None:
    failures = Failures(lambda: 0.0)
    for number in range(2 * MOST):
        failures.note(Inode(number), 0, 1, errno.EIO)
    assert sum(bool(failures.recall(Inode(number), 0)) for number in range(2 * MOST)) <= MOST
