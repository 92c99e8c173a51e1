# SPDX-License-Identifier: BSD-3-Clause
"""A real squid for a test, as sites run them in front of their machines: forward proxy with a cache in memory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from cernvm.kit.proc import find_program
from tests.support.server import Server, answers_tcp, free_port

CONFIG: Final = """
http_port 127.0.0.1:{port}
http_access allow all
cache_mem 64 MB
maximum_object_size_in_memory 32 MB
refresh_pattern . 60 100% 60
negative_ttl 0
connect_timeout 1 second
pid_filename none
cache_log /dev/stderr
access_log none
cache_store_log none
coredump_dir /
pinger_enable off
digest_generation off
max_filedescriptors 1024
shutdown_lifetime 0 seconds
"""


NOBODY: Final = "65534"


class Squid(Server):
    """A context manager: `with Squid() as proxy: ... proxy.url`.

    squid gives up root by itself, and with that what ends it with its parent; so it is not started as root.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._place = tempfile.TemporaryDirectory(prefix="squid-")
        directory = Path(self._place.name)
        directory.chmod(0o755)
        config = directory / "squid.conf"
        config.write_text(CONFIG.format(port=self.port), encoding="utf-8")
        command = [find_program("squid"), "-N", "-f", str(config)]
        if os.geteuid() == 0:
            drop = ("--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--pdeathsig", "KILL")
            command = [find_program("setpriv"), *drop, *command]
        super().__init__(command, log=directory / "squid.log", ready=lambda: answers_tcp(self.port))

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        self._place.cleanup()
