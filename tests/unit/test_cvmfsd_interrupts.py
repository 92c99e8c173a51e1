# SPDX-License-Identifier: BSD-3-Clause
"""Requests whose process a signal reaches: given up for the dying, never for the living."""

from __future__ import annotations

import os
import subprocess
import threading

from cernvm.cvmfsd.interrupts import UnderWay, is_dying
from cernvm.kit.proc import find_program


def test_the_request_of_a_dying_process_is_given_up_once() -> None:
    given_up: list[int] = []
    under_way = UnderWay(given_up.append, dying=lambda _: True)
    under_way.begin(8, 100)
    assert under_way.interrupt(8)
    assert given_up == [8]
    assert not under_way.finish(8), "who worked on it is told that nobody waits"


def test_a_process_that_lives_on_gets_its_answer() -> None:
    given_up: list[int] = []
    under_way = UnderWay(given_up.append, dying=lambda _: False)
    under_way.begin(8, 100)
    assert under_way.interrupt(8)
    assert under_way.finish(8)
    assert given_up == []


def test_a_process_killed_after_a_harmless_signal_is_noticed() -> None:
    gone = threading.Event()
    killed = threading.Event()
    under_way = UnderWay(lambda _: gone.set(), dying=lambda _: killed.is_set())
    under_way.begin(8, 100)
    under_way.interrupt(8)
    assert not gone.is_set()
    killed.set()
    assert gone.wait(10)


def test_a_request_that_nobody_has_noted_is_unknown() -> None:
    assert not UnderWay(lambda _: None, dying=lambda _: True).interrupt(8)


def test_who_lives_is_not_dying_and_who_is_gone_is() -> None:
    assert not is_dying(os.getpid())
    assert not is_dying(0), "a process that cannot be seen from here is left alone"
    with subprocess.Popen([find_program("python3"), "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert not is_dying(child.pid)
        child.kill()
        child.wait(10)
    assert is_dying(child.pid)
