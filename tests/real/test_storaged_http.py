# SPDX-License-Identifier: BSD-3-Clause
"""copilot-storaged over HTTP: docs/storage.md, word by word, against the real process."""

from __future__ import annotations

import base64
import hashlib
import http.client
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cernvm.copilot.job import JobId
from cernvm.copilot.tokens import Grant, TokenIssuer
from tests.support.bus import private_bus
from tests.support.prosody import Prosody
from tests.support.server import wait_until
from tests.support.storaged import Storaged

pytestmark = pytest.mark.real

JOB = JobId("7f3c9a52-5d0e-4a6b-9c3d-0b6f6f1f2a10")
OTHER = JobId("00000000-0000-4000-8000-000000000001")


@dataclass(frozen=True)
class Answer:
    status: int
    text: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Client:
    """A plain HTTP client with a token; every request on a connection of its own."""

    server: Storaged
    token: str

    def ask(self, method: str, path: str, body: bytes | Iterator[bytes] = b"", **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        send = {name.replace("_", "-"): value for name, value in headers.items() if value}
        if self.token:
            send["Authorization"] = f"Bearer {self.token}"
        try:
            connection.request(method, path, body, send)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read().decode(), dict(answer.getheaders()))
        finally:
            connection.close()

    def put(self, path: str, data: bytes) -> Answer:
        return self.ask("PUT", path, data, Content_Digest=digest(data))


def digest(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


@pytest.fixture(scope="module")
def prosody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prosody]:
    with Prosody(tmp_path_factory.mktemp("xmpp"), accounts={"storage": "s", "jobmanager": "m"}) as server:
        yield server


@pytest.fixture(scope="module")
def server(prosody: Prosody, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storaged]:
    base = tmp_path_factory.mktemp("storaged")
    with private_bus(base / "bus") as bus:
        more = {"http": "stall_seconds = 1.0\ntransfer_seconds = 3.0"}
        with Storaged(base / "daemon", bus, prosody, more=more) as running:
            yield running


@pytest.fixture
def issuer(server: Storaged) -> TokenIssuer:
    return TokenIssuer.from_file(server.keys / "token.key")


@pytest.fixture
def job(request: pytest.FixtureRequest) -> JobId:
    """A job of its own for every test."""
    name = hashlib.sha256(request.node.name.encode()).hexdigest()
    return JobId(f"{name[:8]}-{name[8:12]}-4{name[13:16]}-8{name[17:20]}-{name[20:32]}")


def grant(job: JobId) -> Grant:
    return Grant(job, 1, "agent1@copilot.test", "put", "output", None, 100_000, int(time.time()) + 600)


@pytest.fixture
def agent(server: Storaged, issuer: TokenIssuer, job: JobId) -> Client:
    return Client(server, issuer.issue(grant(job)))


def stored(server: Storaged, job: JobId) -> list[str]:
    where = server.store / "jobs" / job
    return sorted(str(p.relative_to(where)) for p in where.rglob("*") if p.is_file())


def test_an_output_is_stored_under_its_attempt(agent: Client, server: Storaged, job: JobId) -> None:
    answer = agent.put(f"/jobs/{job}/1/output/out/hist.json", b"{}")
    assert (answer.status, answer.text) == (201, "out/hist.json: 2 bytes stored\n")
    assert stored(server, job) == ["attempt-1/out%2Fhist.json"]
    again = agent.put(f"/jobs/{job}/1/output/out%2Fhist.json", b"{}")
    assert again.status == 200


def test_stored_content_stays(agent: Client, job: JobId) -> None:
    path = f"/jobs/{job}/1/output/a"
    agent.put(path, b"x")
    answer = agent.put(path, b"y")
    assert answer.status == 409
    assert "another content" in answer.text


def test_inputs_go_in_and_come_out_with_tokens_of_their_own(server: Storaged, issuer: TokenIssuer, job: JobId) -> None:
    path, data = f"/jobs/{job}/input/run.sh", bytes(range(256)) * 200
    submit = replace(grant(job), attempt=0, scope="input", names=("run.sh",))
    fetch = replace(submit, attempt=3, direction="get", max_bytes=0)
    assert Client(server, issuer.issue(submit)).put(path, data).status == 201
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("GET", path, headers={"Authorization": f"Bearer {issuer.issue(fetch)}"})
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.getheader("Content-Length") == str(len(data))
    assert answer.read() == data
    connection.close()
    assert Client(server, issuer.issue(submit)).ask("GET", path).status == 403
    assert Client(server, issuer.issue(fetch)).put(path, b"x").status == 403


def test_what_is_not_there_is_404_and_results_are_not_readable_before_acceptance(
    server: Storaged, issuer: TokenIssuer, agent: Client, job: JobId
) -> None:
    agent.put(f"/jobs/{job}/1/output/a", b"x")
    reader = Client(server, issuer.issue(replace(grant(job), attempt=0, direction="get")))
    answer = reader.ask("GET", f"/jobs/{job}/result/a")
    assert answer.status == 404
    assert answer.text.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({"job": OTHER}, 403, "does not allow"),
        ({"attempt": 2}, 403, "attempt 2"),
        ({"names": ("b",)}, 403, "does not allow"),
        ({"direction": "get"}, 403, "does not allow"),
        ({"scope": "input"}, 403, "does not allow"),
        ({"expires": 1_000_000_000}, 401, "expired"),
        ({"max_bytes": 4}, 413, "grant"),
    ],
)
def test_a_token_allows_what_it_says_and_nothing_else(
    server: Storaged, issuer: TokenIssuer, job: JobId, change: dict[str, object], status: int, word: str
) -> None:
    token = issuer.issue(replace(grant(job), **change))  # type: ignore[arg-type]  # fields by name
    answer = Client(server, token).put(f"/jobs/{job}/1/output/a", b"12345")
    assert answer.status == status
    assert word in answer.text
    assert stored(server, job) == []


def test_no_token_and_a_forged_token_are_401(server: Storaged, job: JobId) -> None:
    forged = TokenIssuer(Ed25519PrivateKey.generate()).issue(grant(job))
    for token in ("", "nonsense", forged):
        answer = Client(server, token).put(f"/jobs/{job}/1/output/a", b"x")
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert stored(server, job) == []


def test_a_wrong_checksum_is_422_and_an_absent_one_400(agent: Client, server: Storaged, job: JobId) -> None:
    path = f"/jobs/{job}/1/output/a"
    answer = agent.ask("PUT", path, b"x", Content_Digest=digest(b"y"))
    assert (answer.status, "SHA-256" in answer.text) == (422, True)
    for header in ("", "sha-256=:AAAA:", "md5=:1B2M2Y8AsgTpgAmY7PhCfg==:", "sha-256=x"):
        assert agent.ask("PUT", path, b"x", Content_Digest=header).status == 400
    assert stored(server, job) == []


@pytest.mark.parametrize(
    "name", ["..", "../x", "../../../etc/x", "%2e%2e/x", "..%2Fx", "a/../../x", "%2Fetc/x", "a%00b", "a//b", "a%5Cb"]
)
def test_names_that_lead_out_are_refused(agent: Client, server: Storaged, job: JobId, name: str) -> None:
    assert agent.put(f"/jobs/{job}/1/output/{name}", b"x").status in (400, 404)
    assert stored(server, job) == []


@pytest.mark.parametrize(
    "path", ["/", "/jobs", "/jobs/", "/jobs/{job}", "/jobs/{job}/result/", "/jobs/{job}/1/output/a"]
)
def test_nothing_is_listed(agent: Client, job: JobId, path: str) -> None:
    answer = agent.ask("GET", path.format(job=job))
    assert answer.status in (404, 405)
    assert answer.text.count("\n") == 1


def test_an_endless_upload_ends_at_the_grant(agent: Client, server: Storaged, job: JobId) -> None:
    until = time.monotonic() + 30

    def endless() -> Iterator[bytes]:
        while time.monotonic() < until:
            yield b"x" * 65536

    with suppress(ConnectionError):  # the server may close while we still send
        assert agent.ask("PUT", f"/jobs/{job}/1/output/a", endless(), Content_Digest=digest(b"")).status == 413
    assert time.monotonic() < until
    assert stored(server, job) == []
    wait_until(lambda: not list((server.store / "incoming").iterdir()), seconds=10, what="leftovers gone")


def test_a_length_over_the_grant_is_refused_before_the_bytes_are_sent(agent: Client, job: JobId) -> None:
    with socket.create_connection(("127.0.0.1", agent.server.port), timeout=10) as raw:
        raw.sendall(head(agent, job, 10**12, b"x"))
        assert raw.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_asks_first_hears_the_refusal_first(server: Storaged, agent: Client, job: JobId) -> None:
    expect = b"Expect: 100-continue\r\n"
    for client, start in ((Client(server, "bad"), b"HTTP/1.1 401 "), (agent, b"HTTP/1.1 100 ")):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(head(client, job, 1, b"x", expect))
            assert raw.recv(65536).startswith(start)


def head(client: Client, job: JobId, length: int, data: bytes, more: bytes = b"") -> bytes:
    lines = [
        f"PUT /jobs/{job}/1/output/a HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {client.token}",
        f"Content-Length: {length}",
        f"Content-Digest: {digest(data)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n" + more + b"\r\n"


def test_a_client_that_stops_sending_is_dropped_and_leaves_nothing(agent: Client, server: Storaged, job: JobId) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(head(agent, job, 10, b"0123456789") + b"0123")
        assert raw.recv(65536).startswith(b"HTTP/1.1 408 ")
    assert stored(server, job) == []
    assert list((server.store / "incoming").iterdir()) == []


def test_a_client_that_trickles_is_dropped_at_the_deadline_of_the_transfer(agent: Client, job: JobId) -> None:
    with socket.create_connection(("127.0.0.1", agent.server.port), timeout=0.3) as raw:
        raw.sendall(head(agent, job, 1000, b"x"))
        answer, deadline = b"", time.monotonic() + 15
        while not answer and time.monotonic() < deadline:
            raw.sendall(b"x")
            try:
                answer = raw.recv(65536)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_client_that_sends_no_request_is_dropped(server: Storaged) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=15) as raw:
        raw.sendall(b"PUT /jobs/")
        assert raw.recv(65536) == b""


def test_an_upload_that_breaks_off_leaves_nothing(agent: Client, server: Storaged, job: JobId) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(head(agent, job, 10, b"0123456789") + b"0123")
        wait_until(lambda: list((server.store / "incoming").iterdir()) != [], seconds=10, what="upload begun")
    wait_until(lambda: not list((server.store / "incoming").iterdir()), seconds=10, what="upload dropped")
    assert stored(server, job) == []


def test_compressed_bodies_are_refused(agent: Client, job: JobId) -> None:
    answer = agent.ask("PUT", f"/jobs/{job}/1/output/a", b"x", Content_Digest=digest(b"x"), Content_Encoding="gzip")
    assert answer.status == 400


def test_no_token_is_written_to_the_log(agent: Client, server: Storaged, job: JobId) -> None:
    agent.put(f"/jobs/{job}/1/output/a", b"x")
    wait_until(lambda: f"job {job}" in server.log.read_text(), seconds=10, what="the log line")
    assert agent.token not in server.log.read_text()
    assert agent.token.split(".")[2] not in server.log.read_text()
    assert "Traceback" not in server.log.read_text()
