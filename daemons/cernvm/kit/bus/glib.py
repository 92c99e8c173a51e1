# SPDX-License-Identifier: BSD-3-Clause
"""The thread in which libdbus lives: GLib's main loop, and a way to have something done there.

libdbus locks its connections, but the glue that ties them to GLib changes its watches without a lock: a message sent
from another thread while the loop dispatches can end the process.  So every use of a connection that is attached to
the loop goes through here.  `do` and `call` may be used from any thread.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from dbus.mainloop.glib import DBusGMainLoop, threads_init

T = TypeVar("T")
log: Final = logging.getLogger(__name__)

_PRIORITY_DEFAULT: Final = 0
_GSourceFunc = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_work: Final[deque[Callable[[], object]]] = deque()


@functools.cache
def main_loop() -> Any:
    """Start the thread, once per process; returns what connections are attached with."""
    threads_init()
    glib = _library()
    loop = glib.g_main_loop_new(None, 0)
    threading.Thread(target=glib.g_main_loop_run, args=(loop,), daemon=True, name="glib").start()
    return DBusGMainLoop()


def do(work: Callable[[], object]) -> None:
    """Have `work` done in the loop's thread, in the order of the calls; what it raises is logged."""
    _work.append(work)
    _library().g_idle_add_full(_PRIORITY_DEFAULT, _step, None, None)


def call(work: Callable[[], T]) -> Future[T]:
    """Have `work` done in the loop's thread; the future gets what it returns or raises."""
    future: Future[T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - the future carries it to the one who asked
            future.set_exception(error)
        else:
            future.set_result(result)

    do(run)
    return future


@functools.cache
def _library() -> Any:
    glib = ctypes.CDLL("libglib-2.0.so.0")
    glib.g_main_loop_new.restype = ctypes.c_void_p
    glib.g_main_loop_run.argtypes = [ctypes.c_void_p]
    glib.g_idle_add_full.argtypes = [ctypes.c_int, _GSourceFunc, ctypes.c_void_p, ctypes.c_void_p]
    return glib


def _one_step(_data: object) -> int:
    """Do the oldest piece of work; returning 0 tells GLib that this source is done."""
    try:
        _work.popleft()()
    except Exception:
        log.exception("in the bus thread")
    return 0


_step: Final = _GSourceFunc(_one_step)
