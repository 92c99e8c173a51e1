# SPDX-License-Identifier: BSD-3-Clause
"""The real copilot-storaged as a child process, with its configuration in a directory of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cernvm.copilot.tokens import generate_keys
from tests.support.bus import PrivateBus
from tests.support.daemon import Daemon
from tests.support.prosody import Prosody
from tests.support.server import free_port


class Storaged(Daemon):
    """A context manager; `account` is its XMPP account, `managers` the accounts it obeys.

    `more` adds lines to sections of the configuration, as {"http": "stall_seconds = 1"}.
    """

    def __init__(
        self,
        directory: Path,
        bus: PrivateBus,
        prosody: Prosody,
        *,
        account: str = "storage",
        managers: tuple[str, ...] = ("jobmanager",),
        keys: Path | None = None,
        more: Mapping[str, str] | None = None,
    ) -> None:
        self.keys = keys or directory / "keys"
        if not (self.keys / "token.pub").exists():
            generate_keys(self.keys)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.store = directory / "store"
        sections = {
            "http": f"port = {self.port}",
            "store": f"directory = {self.store}\nreserve_mb = 1",
            "tokens": f"public_key = {self.keys / 'token.pub'}",
            "xmpp": "\n".join(
                [
                    f"jid = {prosody.jid(account)}",
                    f"password_file = {prosody.password_file(account)}",
                    f"host = {prosody.address}",
                    f"port = {prosody.port}",
                    f"ca_file = {prosody.ca_file}",
                    f"job_managers = {','.join(prosody.jid(name) for name in managers)},",
                ]
            ),
        }
        text = "".join(f"[{name}]\n{text}\n{(more or {}).get(name, '')}\n" for name, text in sections.items())
        super().__init__("copilot-storaged", directory, text, bus.environment)
