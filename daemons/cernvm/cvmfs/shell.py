# SPDX-License-Identifier: BSD-3-Clause
"""One parameter file, which is a program of the POSIX shell, run to the values that it sets.

The shell gets a clean environment, the file's directory as working directory, a deadline and bounds on processor time,
memory, open files and what it may write; it cannot gain privileges, and what it leaves running is killed with it.
Synchronous; starts one `sh` per call.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from cernvm.kit.proc import die_with_parent, find_program

from .errors import Mistake

DEADLINE: Final = 10.0
"""Seconds that one file may take."""
MAX_OUTPUT: Final = 1 << 20
MEMORY: Final = 1 << 30
OPEN_FILES: Final = 64
_PR_SET_NO_NEW_PRIVS: Final = 38
_ASSIGNMENT: Final = re.compile(r"^\s*(?:readonly\s+|export\s+|eval\s+)?([A-Za-z_][A-Za-z0-9_]*)=", re.MULTILINE)
_END: Final = "END-OF-PARAMETERS"
_SCRIPT: Final = """
exec 3>&1 >/dev/null
. "./$1" || :
shift
for name do
    eval "printf '%s=%s\\\\0' \\"\\$name\\" \\"\\${$name-}\\" >&3"
done
printf '%s' END-OF-PARAMETERS >&3
"""


def evaluate(file: Path, fqrn: str, given: Mapping[str, str]) -> dict[str, str]:
    """The variables that `file` assigns, after it has run with the values `given`.  Raises Mistake naming the file."""
    try:
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise Mistake(f"{file}: cannot be read: {error.strerror}") from error
    names = list(dict.fromkeys(_ASSIGNMENT.findall(text)))
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", **given, "CVMFS_FQRN": fqrn}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            [find_program("sh"), "-c", _SCRIPT, "sh", file.name, *names],
            cwd=file.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=complaints,
            start_new_session=True,
            preexec_fn=_confine,
        )
        try:
            process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise Mistake(f"{file}: the shell did not finish it within {DEADLINE:g} seconds") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        complaints.seek(0)
        *pairs, end = out.read(MAX_OUTPUT).decode("utf-8", "surrogateescape").split("\0")
        if end != _END:
            said = complaints.read(4096).decode("utf-8", "replace").strip().splitlines() or ["it ends early"]
            raise Mistake(f"{file}: the shell cannot run it: {said[0][:200]}")
    return dict(pair.split("=", 1) for pair in pairs)


def _confine() -> None:
    """In the child, before the shell: dies with us, gains nothing, takes little."""
    die_with_parent()
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for what, most in (
        (resource.RLIMIT_CPU, int(DEADLINE) + 1),
        (resource.RLIMIT_FSIZE, MAX_OUTPUT),
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))
