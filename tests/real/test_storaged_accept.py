# SPDX-License-Identifier: BSD-3-Clause
"""copilot-storaged under a job manager's command over a real Prosody, and its face on a real bus."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from cernvm.copilot.job import JobId
from cernvm.copilot.messages import Address, Command, Json, Message
from cernvm.copilot.tokens import Grant, TokenIssuer
from cernvm.copilot.transfer import TransferFailed, download, upload
from cernvm.kit.backoff import Backoff
from cernvm.kit.bus import Bus
from cernvm.xmpp.link import read_account
from cernvm.xmpp.mailbox import Mailbox
from tests.support.bus import PrivateBus, private_bus
from tests.support.daemon import command_line, project_environment
from tests.support.prosody import Prosody, certificates
from tests.support.storaged import Storaged

pytestmark = pytest.mark.real

NAME = "ch.cern.cernvm.CopilotStorage1"
PATH = "/ch/cern/cernvm/CopilotStorage1"
ONCE = Backoff(0.01, 0.01, 1)


@pytest.fixture(scope="module")
def prosody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prosody]:
    accounts = {"storage": "s", "jobmanager": "m", "stranger": "x"}
    with Prosody(tmp_path_factory.mktemp("xmpp"), accounts=accounts) as server:
        yield server


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBus]:
    with private_bus(tmp_path_factory.mktemp("bus")) as running:
        yield running


@pytest.fixture
def server(prosody: Prosody, bus: PrivateBus, tmp_path: Path) -> Iterator[Storaged]:
    with Storaged(tmp_path / "daemon", bus, prosody) as running:
        yield running


class Manager:
    """A job manager's account: sends a command and waits for the answer to it."""

    def __init__(self, mailbox: Mailbox, storage: Address, answers: asyncio.Queue[Message]) -> None:
        self._mailbox = mailbox
        self._storage = storage
        self._answers = answers

    def send(self, command: str, **fields: Json) -> None:
        self._mailbox.send(self._storage, Message(command, fields))

    async def ask(self, command: str, **fields: Json) -> Message:
        self.send(command, **fields)
        return await asyncio.wait_for(self._answers.get(), 20)

    async def answered_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._answers.get(), seconds)
        except TimeoutError:
            return False
        return True


@asynccontextmanager
async def manager(prosody: Prosody, name: str = "jobmanager") -> AsyncIterator[Manager]:
    account = read_account(
        prosody.jid(name), prosody.password_file(name), prosody.address, prosody.port, prosody.ca_file, "test"
    )
    answers: asyncio.Queue[Message] = asyncio.Queue()
    up = asyncio.Event()

    def changed(connected: bool, reason: str) -> None:
        if connected:
            up.set()

    async with Mailbox(account, lambda sender, message: answers.put_nowait(message), changed) as mailbox:
        await asyncio.wait_for(up.wait(), 20)
        yield Manager(mailbox, Address(prosody.jid("storage")), answers)


def token(server: Storaged, job: str, attempt: int, direction: str = "put") -> str:
    grant = Grant(
        JobId(job),
        attempt,
        "agent1@copilot.test",
        "put" if direction == "put" else "get",
        "output",
        None,
        10_000_000,
        int(time.time()) + 600,
    )
    return TokenIssuer.from_file(server.keys / "token.key").issue(grant)


async def store(server: Storaged, scratch: Path, job: str, attempt: int, data: bytes) -> dict[str, Json]:
    """Upload `data` as the output out/a of the attempt; how jobDone names it."""
    source = scratch / f"{job}-{attempt}"
    source.write_bytes(data)
    async with aiohttp.ClientSession() as session:
        url = f"{server.url}/jobs/{job}/{attempt}/output/out/a"
        stored = await upload(session, url, token(server, job, attempt), source, deadline=20, name="out/a")
    assert stored.sha256 == hashlib.sha256(data).hexdigest()
    return {"name": stored.name, "size": stored.size, "sha256": stored.sha256}


async def fetch(server: Storaged, scratch: Path, job: str, file: dict[str, Json]) -> bytes:
    to = scratch / f"{job}-fetched"
    async with aiohttp.ClientSession() as session:
        url = f"{server.url}/jobs/{job}/result/out/a"
        size, sha256 = file["size"], file["sha256"]
        assert isinstance(size, int)
        assert isinstance(sha256, str)
        reader = token(server, job, 0, "get")
        await download(session, url, reader, to, size, sha256, deadline=20, retry=ONCE)
    return to.read_bytes()


JOB = "7f3c9a52-5d0e-4a6b-9c3d-0b6f6f1f2a10"


def test_an_attempt_is_accepted_once_and_read_back(prosody: Prosody, server: Storaged, tmp_path: Path) -> None:
    async def scenario() -> None:
        first = await store(server, tmp_path, JOB, 1, b"first" * 300_000)
        second = await store(server, tmp_path, JOB, 2, b"second")
        async with manager(prosody) as jm:
            for _ in range(2):
                answer = await jm.ask(Command.ACCEPT_OUTPUT, jobID=JOB, attempt=1, outputs=[first])
                assert answer == Message(Command.OUTPUT_ACCEPTED, {"jobID": JOB, "attempt": 1})
            answer = await jm.ask(Command.ACCEPT_OUTPUT, jobID=JOB, attempt=2, outputs=[second])
            assert answer.command == Command.OUTPUT_REFUSED
            assert "another result" in answer.text("reason")
        assert await fetch(server, tmp_path, JOB, first) == b"first" * 300_000
        with pytest.raises(TransferFailed, match="409"):
            await store(server, tmp_path, JOB, 3, b"late")

    asyncio.run(scenario())


def test_outputs_that_do_not_match_are_refused_with_the_reason(
    prosody: Prosody, server: Storaged, tmp_path: Path
) -> None:
    async def scenario() -> None:
        good = await store(server, tmp_path, JOB, 1, b"data")
        cases: list[tuple[list[Json], str]] = [
            ([], "not named"),
            ([good, {**good, "name": "b"}], "'b' was not uploaded"),
            ([{**good, "sha256": "0" * 64}], "not the one"),
            ([{**good, "name": "../x"}], "relative path"),
        ]
        async with manager(prosody) as jm:
            for outputs, reason in cases:
                answer = await jm.ask(Command.ACCEPT_OUTPUT, jobID=JOB, attempt=1, outputs=outputs)
                assert answer.command == Command.OUTPUT_REFUSED
                assert reason in answer.text("reason")
            answer = await jm.ask(Command.ACCEPT_OUTPUT, jobID="../../etc", attempt=1, outputs=[])
            assert "is not the id of a job" in answer.text("reason")
            answer = await jm.ask(Command.ACCEPT_OUTPUT, jobID=JOB, attempt=1, outputs=[good])
            assert answer.command == Command.OUTPUT_ACCEPTED

    asyncio.run(scenario())


def test_nobody_but_a_job_manager_commands(prosody: Prosody, server: Storaged, tmp_path: Path) -> None:
    async def scenario() -> None:
        good = await store(server, tmp_path, JOB, 1, b"data")
        async with manager(prosody, "stranger") as stranger:
            stranger.send(Command.ACCEPT_OUTPUT, jobID=JOB, attempt=1, outputs=[good])
            stranger.send(Command.CLEAN_JOB, jobID=JOB)
            assert not await stranger.answered_within(1.0)
        with pytest.raises(TransferFailed, match="404"):
            await fetch(server, tmp_path, JOB, good)
        async with manager(prosody) as jm:
            answer = await jm.ask(Command.ACCEPT_OUTPUT, jobID=JOB, attempt=1, outputs=[good])
            assert answer.command == Command.OUTPUT_ACCEPTED

    asyncio.run(scenario())


def test_a_malformed_command_is_dropped_and_the_next_one_answered(prosody: Prosody, server: Storaged) -> None:
    async def scenario() -> None:
        async with manager(prosody) as jm:
            jm.send(Command.ACCEPT_OUTPUT, jobID=7, attempt=1, outputs=[])
            jm.send(Command.ACCEPT_OUTPUT, jobID=JOB, attempt=True, outputs=[])
            jm.send(Command.ACCEPT_OUTPUT, jobID=JOB, attempt=1, outputs=[{"name": "a"}])
            jm.send("selfDestruct")
            answer = await jm.ask(Command.ACCEPT_OUTPUT, jobID=JOB, attempt=1, outputs=[])
            assert answer.command == Command.OUTPUT_ACCEPTED

    asyncio.run(scenario())
    assert "Traceback" not in server.log.read_text()


def test_a_closed_job_keeps_its_result_and_takes_nothing_more(
    prosody: Prosody, server: Storaged, tmp_path: Path
) -> None:
    lost = "00000000-0000-4000-8000-000000000001"

    async def scenario() -> None:
        good = await store(server, tmp_path, JOB, 1, b"data")
        await store(server, tmp_path, lost, 1, b"data")
        async with manager(prosody) as jm:
            await jm.ask(Command.ACCEPT_OUTPUT, jobID=JOB, attempt=1, outputs=[good])
            jm.send(Command.CLEAN_JOB, jobID=lost)
            jm.send(Command.CLEAN_JOB, jobID=JOB)
            answer = await jm.ask(Command.ACCEPT_OUTPUT, jobID=lost, attempt=1, outputs=[good])
            assert answer.command == Command.OUTPUT_REFUSED
            assert "ended" in answer.text("reason")
        assert await fetch(server, tmp_path, JOB, good) == b"data"
        with pytest.raises(TransferFailed, match="409"):
            await store(server, tmp_path, lost, 2, b"data")

    asyncio.run(scenario())


def test_what_was_accepted_is_there_after_a_kill_and_a_restart(
    prosody: Prosody, server: Storaged, tmp_path: Path
) -> None:
    async def scenario() -> None:
        good = await store(server, tmp_path, JOB, 1, b"data")
        async with manager(prosody) as jm:
            await jm.ask(Command.ACCEPT_OUTPUT, jobID=JOB, attempt=1, outputs=[good])
            server.kill()
            server.start()
            answer = await jm.ask(Command.ACCEPT_OUTPUT, jobID=JOB, attempt=1, outputs=[good])
            assert answer.command == Command.OUTPUT_ACCEPTED
        assert await fetch(server, tmp_path, JOB, good) == b"data"

    asyncio.run(scenario())


def test_the_bus_shows_what_is_stored(
    prosody: Prosody,
    bus: PrivateBus,
    server: Storaged,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)

    async def scenario() -> None:
        good = await store(server, tmp_path, JOB, 1, b"data")
        async with manager(prosody) as jm, Bus.system() as connection:
            await jm.ask(Command.ACCEPT_OUTPUT, jobID=JOB, attempt=1, outputs=[good])
            shown = {
                name: await connection.get(NAME, PATH, NAME, name)
                for name in ("BytesStored", "ResultsAccepted", "BytesFree", "Url", "Connected")
            }
        assert shown.pop("BytesFree") > 0
        assert shown == {"BytesStored": 4, "ResultsAccepted": 1, "Url": server.url, "Connected": True}

    asyncio.run(scenario())


def test_with_a_certificate_files_travel_over_https(prosody: Prosody, bus: PrivateBus, tmp_path: Path) -> None:
    certificates(tmp_path, "copilot.test")
    more = {"http": f"certificate = {tmp_path / 'server.pem'}\nprivate_key = {tmp_path / 'server.key'}"}
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(b"data")
    trust = ssl.create_default_context(cafile=tmp_path / "ca.pem")

    async def scenario(server: Storaged) -> None:
        url = f"https://127.0.0.1:{server.port}/jobs/{JOB}/1/output/a"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as session:
            await upload(session, url, token(server, JOB, 1), source, deadline=20)
        async with aiohttp.ClientSession() as session:
            with pytest.raises(TransferFailed, match=r"the certificate of 127.0.0.1:\d+ does not hold") as told:
                await download(session, url, "t", back, 4, "0" * 64, deadline=20)
            assert told.value.final

    with Storaged(tmp_path / "daemon", bus, prosody, more=more) as server:
        asyncio.run(scenario(server))


def start(server: Storaged, bus: PrivateBus) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command_line("copilot-storaged", "--config", str(server.config)),
        env=project_environment(bus.environment),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_port_in_use_is_one_sentence_and_exit_status_2(prosody: Prosody, server: Storaged, tmp_path: Path) -> None:
    with private_bus(tmp_path / "other") as other:
        second = start(server, other)
    assert second.returncode == 2
    assert f"127.0.0.1:{server.port}" in second.stderr.splitlines()[-1]
    assert "Traceback" not in second.stderr


@pytest.mark.parametrize("missing", ["key", "password", "ca"])
def test_a_missing_file_is_one_sentence_with_its_path_and_exit_status_2(
    prosody: Prosody, bus: PrivateBus, tmp_path: Path, missing: str
) -> None:
    server = Storaged(tmp_path, bus, prosody)
    files = {
        "key": server.keys / "token.pub",
        "password": prosody.password_file("storage"),
        "ca": prosody.ca_file,
    }
    text = server.config.read_text().replace(str(files[missing]), "/nonexistent/file")
    server.config.write_text(text)
    answer = start(server, bus)
    assert answer.returncode == 2
    assert answer.stderr.splitlines()[-1].startswith("copilot-storaged: /nonexistent/file: ")
    assert "Traceback" not in answer.stderr
    assert not server.store.exists()
