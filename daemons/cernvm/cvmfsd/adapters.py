# SPDX-License-Identifier: BSD-3-Clause
"""Which adapter carries a view to the kernel: its own protocol, or llfuse.

No threads; `mount_view` talks to the kernel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cernvm.cvmfs.client import MountOptions
from cernvm.cvmfs.view import Changes, View

from . import kernel, llfuse
from .wire import Choice

log = logging.getLogger(__name__)


class Session(Protocol):
    """One mount."""

    @property
    def name(self) -> str:
        """Of the adapter."""

    def serve(self, threads: int) -> None:
        """Answer the kernel until the mount is gone, with at most `threads` requests at the same time."""

    def close(self) -> None:
        """Let the kernel go, after `serve`."""

    def invalidate(self, changes: Changes) -> None:
        """Have the kernel forget what a switch of revisions changed; from a thread that serves no request."""


def mount_view(
    choice: Choice, view: View, trouble: Callable[[str], None], point: Path, options: MountOptions
) -> Session:
    """Mount `view` at `point`; `trouble` is told of requests answered with an error.  Raises Problem."""
    if choice is not Choice.LLFUSE:
        try:
            return kernel.mount(view, trouble, point, options)
        except kernel.KernelLacks as error:
            if choice is Choice.KERNEL:
                raise
            log.warning("%s is mounted with llfuse: %s", point, error)
    return llfuse.Session(view, trouble, point, options)
