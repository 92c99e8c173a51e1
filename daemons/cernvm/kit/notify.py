# SPDX-License-Identifier: BSD-3-Clause
"""What a daemon tells systemd.  The only import of sdnotify; silent where there is no NOTIFY_SOCKET.

Called from the asyncio thread alone.
"""

from __future__ import annotations

import os

from sdnotify import SystemdNotifier


class Notifier:
    """READY, STATUS, RELOADING, STOPPING and WATCHDOG of sd_notify(3)."""

    def __init__(self) -> None:
        self._systemd = SystemdNotifier()

    def ready(self, status: str) -> None:
        """Say that the daemon serves."""
        self._systemd.notify(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows."""
        self._systemd.notify(f"STATUS={text}")

    def reloading(self) -> None:
        """Say that a reload has begun; `ready` ends it."""
        self._systemd.notify("RELOADING=1")

    def stopping(self) -> None:
        """Say that the daemon is going down."""
        self._systemd.notify("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._systemd.notify("WATCHDOG=1")

    @staticmethod
    def watchdog_period() -> float | None:
        """Seconds between two feeds: half of what systemd asked of this process, or None."""
        usec = os.environ.get("WATCHDOG_USEC", "")
        pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
        if not usec.isdigit() or int(usec) == 0 or pid != str(os.getpid()):
            return None
        return int(usec) / 2_000_000
