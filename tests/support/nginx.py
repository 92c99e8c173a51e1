# SPDX-License-Identifier: BSD-3-Clause
"""nginx serving one directory tree over HTTP on loopback, as a Stratum 1 does; its access log can be counted.

One process (no master), as the user who starts it, with every path inside a directory of its own.  Needs no
module.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cernvm.kit.proc import find_program
from tests.support.server import Server, answers_tcp, free_port

CONFIG: Final = """
daemon off;
master_process off;
worker_processes 1;
pid "{dir}/nginx.pid";
error_log "{dir}/error.log" warn;
events {{ worker_connections 512; }}
http {{
    log_format plain "$status $body_bytes_sent $request_method $uri";
    access_log "{dir}/access.log" plain;
    client_body_temp_path "{dir}/tmp-body";
    proxy_temp_path "{dir}/tmp-proxy";
    fastcgi_temp_path "{dir}/tmp-fastcgi";
    uwsgi_temp_path "{dir}/tmp-uwsgi";
    scgi_temp_path "{dir}/tmp-scgi";
    types {{ }}
    default_type application/octet-stream;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 100000;
    server {{
        listen {address}:{port};
        root "{root}";
        location = /.settled {{ access_log off; return 204; }}
    }}
}}
"""


@dataclass(frozen=True)
class Hit:
    """One answered request: `size` is the number of body bytes sent."""

    status: int
    size: int
    method: str
    path: str


class Nginx:
    """A context manager: `with Nginx(scratch, tree) as web: fetch(web.url + "/file")`."""

    def __init__(
        self,
        directory: Path,
        root: Path,
        *,
        port: int | None = None,
        address: str = "127.0.0.1",
        inside: Callable[..., list[str]] | None = None,
    ) -> None:
        """`inside` wraps the command line so that it runs elsewhere, in a network namespace that has `address`."""
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port() if port is None else port
        self.url = f"http://{address}:{self.port}"
        self._here = inside is None
        self._access_log = directory / "access.log"
        config = directory / "nginx.conf"
        text = CONFIG.format(dir=directory.resolve(), root=root.resolve(), port=self.port, address=address)
        config.write_text(text, encoding="utf-8")
        command = [
            find_program("nginx"),
            "-p",
            str(directory),
            "-e",
            str(directory / "error.log"),
            "-c",
            str(config),
        ]
        pid_file = directory / "nginx.pid"
        self._server = Server(
            command if inside is None else inside(*command),
            log=directory / "output.log",
            ready=(lambda: answers_tcp(self.port)) if self._here else pid_file.exists,
        )

    def __enter__(self) -> Nginx:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._server.pid

    def stop(self) -> None:
        """Take the server away; `start` brings it back on the same port."""
        self._server.stop()

    def start(self) -> None:
        """Bring a stopped server back."""
        self._server.start()

    def log(self) -> list[Hit]:
        """Every request answered so far, oldest first."""
        # A client may have its answer a moment before nginx logs it; a further request is served after that.
        if self._here:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"{self.url}/.settled", timeout=10):
                pass
        hits = []
        for line in self._access_log.read_text(encoding="utf-8", errors="replace").splitlines():
            status, size, method, path = line.split(" ", 3)
            hits.append(Hit(int(status), int(size), method, path))
        return hits

    def hits(self, prefix: str) -> int:
        """How many requests for paths that start with `prefix` were answered so far, errors included."""
        return sum(hit.path.startswith(prefix) for hit in self.log())
