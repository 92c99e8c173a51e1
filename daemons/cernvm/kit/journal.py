# SPDX-License-Identifier: BSD-3-Clause
"""Where log lines go: the journal's own priorities under systemd, plain stderr elsewhere, syslog when detached.

Set up once, before any thread starts; `logging` itself is thread-safe.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from pathlib import Path
from typing import Final

LEVELS: Final = ("debug", "info", "warning", "error")

# sd-daemon(3): a line may begin with its syslog priority in angle brackets
_PRIORITY: Final = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


class _JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        priority = _PRIORITY.get(record.levelno, 6)
        return "\n".join(f"<{priority}>{line}" for line in text.splitlines())


def set_up(name: str, level: str, *, detached: bool) -> None:
    """Send the log of this process where its surroundings want it; `level` is one of LEVELS."""
    handler: logging.Handler
    if detached and Path("/dev/log").exists():
        handler = logging.handlers.SysLogHandler("/dev/log")
        handler.setFormatter(logging.Formatter(f"{name}[%(process)d]: %(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        if "JOURNAL_STREAM" in os.environ:
            handler.setFormatter(_JournalFormatter("%(message)s"))
        else:
            handler.setFormatter(logging.Formatter(f"%(asctime)s {name}[%(process)d] %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
