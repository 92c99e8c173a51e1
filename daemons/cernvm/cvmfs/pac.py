# SPDX-License-Identifier: BSD-3-Clause
"""Proxies that the site's network announces: `auto` in CVMFS_HTTP_PROXY, by proxy auto-configuration (PAC, WPAD).

The files are tried in order; the first that names proxies is used, and its answer kept for a start without network.
Synchronous; everything together ends within a deadline.  Scripts run in a child process, `pac_script`.
Enforced by tests/unit/test_cvmfs_pac.py.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cernvm.kit.files import write_atomically
from cernvm.kit.proc import die_with_parent

from .errors import CvmfsProblem, Mistake, NoProxy, ObjectCorrupt
from .http import Failed
from .routes import DIRECT

log = logging.getLogger(__name__)
DEADLINE: Final = 60.0
"""Seconds for all files together."""
MAX_SCRIPT: Final = 1 << 20
RUN: Final = 10.0
"""Seconds for one script, with its look-ups of names."""
_CHILD: Final = "cernvm.cvmfs.pac_script"
_SCHEMES: Final = {"PROXY": "http", "HTTP": "http", "HTTPS": "https"}

Download = Callable[[str, float], str]
"""The text at a URL, asked for without a proxy, within seconds.  Raises Failed, ObjectCorrupt."""


def discover(
    urls: Sequence[str], server: str, download: Download, remembered: Path, clock: Callable[[], float] = time.monotonic
) -> str:
    """The proxies for `server` in the words of CVMFS_HTTP_PROXY.

    Raises NoProxy if no file names any and nothing is remembered in the file `remembered`.
    """
    end = clock() + DEADLINE
    reasons = []
    for url in urls:
        left = end - clock()
        if left <= 0:
            reasons.append(f"{url}: no time left")
            continue
        try:
            found = translate(run_script(download(url, left), server, min(RUN, left)))
        except (Failed, ObjectCorrupt, BadScript) as error:
            reasons.append(f"{url}: {error}")
            continue
        if found:
            _remember(remembered, found)
            return found
        reasons.append(f"{url}: it names no proxy")
    told = "; ".join(reasons)
    known = _remembered(remembered)
    if not known:
        raise NoProxy(f"no proxy was discovered for {server} ({told})")
    log.warning("no proxy was discovered (%s); those of last time are used: %s", told, known)
    return known


class BadScript(CvmfsProblem):
    """A proxy auto-configuration file cannot be run to an answer."""


def run_script(script: str, url: str, seconds: float = RUN) -> str:
    """What FindProxyForURL of the script returns for `url`.  Raises BadScript; Mistake without an engine."""
    question = json.dumps({"script": script, "url": url, "host": urlsplit(url).hostname or ""})
    home = str(Path(__file__).parents[2])
    begin = f"import sys; sys.path.insert(0, {home!r}); import runpy; runpy.run_module({_CHILD!r}, run_name='__main__')"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", begin],
            input=question.encode("utf-8", "replace"),
            capture_output=True,
            timeout=seconds,
            check=False,
            env={"LC_ALL": "C"},
            preexec_fn=die_with_parent,
        )
    except subprocess.TimeoutExpired:
        raise BadScript(f"it did not end within {seconds:.0f} seconds") from None
    if b"No module named 'quickjs'" in done.stderr:
        raise Mistake("CVMFS_HTTP_PROXY=auto needs the Python package quickjs; install it or name the proxies")
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise BadScript("it took too much time or memory") from None
    if "complaint" in answer:
        raise BadScript(str(answer["complaint"]))
    return str(answer["proxies"])


def translate(answer: str) -> str:
    """Proxies as a script names them ("PROXY a:1; DIRECT") as a fail-over list; kinds that we cannot use are left out.

    A list that ends with DIRECT alone says that no proxy is needed.
    """
    found = []
    for part in answer.split(";"):
        words = part.split()
        if words == [DIRECT]:
            found.append(DIRECT)
        elif len(words) == 2 and words[0] in _SCHEMES and not set(words[1]) & set("|;@/"):
            found.append(f"{_SCHEMES[words[0]]}://{words[1]}")
        elif words:
            log.info("a proxy of this kind is not used: %s", part.strip()[:80])
    return ";".join(dict.fromkeys(found))


def _remember(file: Path, found: str) -> None:
    try:
        write_atomically(file, f"{found}\n".encode(), mode=0o600, sync=False)
    except OSError as error:
        log.warning("%s: the proxies cannot be kept for the next start: %s", file, error.strerror)


def _remembered(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")[:65536].strip()
    except OSError:
        return ""
