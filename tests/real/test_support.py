# SPDX-License-Identifier: BSD-3-Clause
"""The harness itself: each server really serves, refuses what it must refuse, and leaves nothing."""

from __future__ import annotations

import asyncio
import ssl
import urllib.request
from pathlib import Path

import pytest
import slixmpp

from cernvm.kit.proc import find_program
from tests.support.bus import private_bus
from tests.support.nginx import Nginx
from tests.support.prosody import Prosody
from tests.support.server import Server, ServerFailed

pytestmark = pytest.mark.real


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_private_bus_is_there_and_then_gone(tmp_path: Path) -> None:
    with private_bus(tmp_path) as bus:
        assert bus.environment["DBUS_SYSTEM_BUS_ADDRESS"] == bus.address
        pid = bus.pid
        assert alive(pid)
    assert not alive(pid)


def test_nginx_serves_a_tree_and_counts(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a b").write_bytes(b"hello")
    with Nginx(tmp_path / "web", root) as web:
        for _ in range(2):
            with urllib.request.urlopen(f"{web.url}/a%20b", timeout=10) as answer:
                assert answer.read() == b"hello"
        assert web.hits("/a b") == 2
        assert web.hits("/other") == 0
        pid = web.pid
    assert not alive(pid)


def test_a_server_that_ends_at_once_is_told_with_its_log(tmp_path: Path) -> None:
    command = [find_program("sh"), "-c", "echo no such luck >&2; exit 3"]
    with pytest.raises(ServerFailed, match=r"ended with 3.*no such luck"):
        Server(command, log=tmp_path / "log", ready=lambda: False).start()


def mechanism(client: slixmpp.ClientXMPP) -> str:
    chosen = client.plugin["feature_mechanisms"].mech
    assert chosen is not None
    return str(chosen.name)


def login(server: Prosody, name: str, password: str) -> str:
    """Log in over TLS with the test authority; answers the mechanism used, or 'refused'."""

    async def attempt() -> str:
        client = slixmpp.ClientXMPP(server.jid(name), password)
        client.ca_certs = server.ca_file
        client.ssl_context = ssl.create_default_context(cafile=server.ca_file)
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def settle(text: str) -> None:
            if not done.done():
                done.set_result(text)

        client.add_event_handler("session_start", lambda _: settle(mechanism(client)))
        client.add_event_handler("failed_all_auth", lambda _: settle("refused"))
        connecting = client.connect(server.address, server.port)
        try:
            return await asyncio.wait_for(done, 20)
        finally:
            await client.disconnect()
            await connecting

    return asyncio.run(attempt())


def test_prosody_takes_its_accounts_and_no_other(tmp_path: Path) -> None:
    with Prosody(tmp_path, accounts={"agent1": "p w1"}) as server:
        assert login(server, "agent1", "p w1").startswith("SCRAM-")
        assert login(server, "agent1", "wrong") == "refused"
        assert login(server, "agent2", "p w1") == "refused"
        assert server.password_file("agent1").stat().st_mode & 0o777 == 0o600
        assert server.password_file("agent1").read_text() == "p w1\n"
        server.restart()
        assert login(server, "agent1", "p w1").startswith("SCRAM-")
        pid = server.pid
    assert not alive(pid)
    assert not ((tmp_path / "data").stat().st_mode & 0o077)
