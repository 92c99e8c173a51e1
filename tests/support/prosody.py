# SPDX-License-Identifier: BSD-3-Clause
"""A real Prosody on loopback: TLS required (own CA), SCRAM, no in-band registration, no federation, no
off-line store.

The accounts are made through prosodyctl.  The client rate limit of distributions (10 kB/s, which throttles
a job manager to some 17 round trips a second) is not there, since mod_limits is not loaded.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
from collections.abc import Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cernvm.kit.proc import find_program
from tests.support.server import Server, ServerFailed, answers_tcp, free_port

CONFIG: Final = """
run_as_root = {as_root}
daemonize = false
pidfile = {pid}
data_path = {data}
certificates = {certificates}
log = {{ info = {log} }}
interfaces = {{ "127.0.0.1" }}
c2s_ports = {{ {port} }}
c2s_direct_tls_ports = {{ }}
s2s_ports = {{ }}
http_ports = {{ }}
https_ports = {{ }}
modules_enabled = {{ "roster", "saslauth", "tls", "disco", "ping", "smacks" }}
modules_disabled = {{ "s2s", "offline" }}
allow_registration = false
authentication = "internal_hashed"
c2s_require_encryption = true
c2s_stanza_size_limit = 262144
smacks_hibernation_time = 600
VirtualHost {host}
    ssl = {{ key = {key}, certificate = {certificate} }}
"""


class Prosody:
    """A context manager; `accounts` maps names to passwords, `host` is the XMPP domain."""

    def __init__(self, directory: Path, host: str = "copilot.test", accounts: Mapping[str, str] | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory.resolve()
        self.host = host
        self.port = free_port()
        self.address = "127.0.0.1"
        self._accounts = dict(accounts or {})
        self._config = self._directory / "prosody.cfg.lua"
        command = [find_program("prosody"), "-F", "--config", str(self._config)]
        log = self._directory / "output.log"
        self._server = Server(command, log=log, ready=lambda: answers_tcp(self.port))

    def __enter__(self) -> Prosody:
        self._write()
        for name, password in self._accounts.items():
            self.register(name, password)
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    @property
    def ca_file(self) -> Path:
        """The certificate authority (PEM) that clients have to trust."""
        return self._directory / "ca.pem"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._server.pid

    @property
    def log(self) -> str:
        """What Prosody wrote so far at level info and above."""
        file = self._directory / "prosody.log"
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

    def jid(self, name: str) -> str:
        """The bare JID of an account."""
        return f"{name}@{self.host}"

    def password_file(self, name: str) -> Path:
        """A file of mode 0600 with the password of an account and a newline."""
        return self._directory / f"{name}.password"

    def stop(self) -> None:
        """Take the server away; `start` brings it back on the same port with the same accounts."""
        self._server.stop()

    def start(self) -> None:
        """Bring a stopped server back."""
        self._server.start()

    def restart(self) -> None:
        """Stop and start again: every client loses its connection."""
        self._server.restart()

    def register(self, name: str, password: str) -> None:
        """Make an account (the server may be running).  The password goes through standard input."""
        command = [find_program("prosodyctl"), "--config", str(self._config), "adduser", self.jid(name)]
        answer = subprocess.run(
            command, input=f"{password}\n{password}\n".encode(), capture_output=True, timeout=60, check=False
        )
        if answer.returncode != 0:
            output = (answer.stdout + answer.stderr).decode(errors="replace")
            raise ServerFailed(f"prosodyctl could not make the account {self.jid(name)}: {output}")
        _write_private(self.password_file(name), f"{password}\n".encode())

    def _write(self) -> None:
        here = self._directory
        (here / "data").mkdir(mode=0o700, exist_ok=True)
        (here / "certs").mkdir(exist_ok=True)
        certificates(here, self.host)
        self._config.write_text(
            CONFIG.format(
                as_root="true" if os.geteuid() == 0 else "false",
                pid=_lua(here / "prosody.pid"),
                data=_lua(here / "data"),
                certificates=_lua(here / "certs"),
                log=_lua(here / "prosody.log"),
                port=self.port,
                host=_lua(self.host),
                key=_lua(here / "server.key"),
                certificate=_lua(here / "server.pem"),
            ),
            encoding="utf-8",
        )


def certificates(directory: Path, host: str) -> None:
    """Write `ca.pem`, `server.pem` and `server.key` (0600) for `host` and 127.0.0.1 into `directory`, valid
    for a week.
    """
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name, name = _name("test authority"), _name(host)
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    authority = (
        _builder(authority_name, authority_name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([x509.DNSName(host), x509.IPAddress(IPv4Address("127.0.0.1"))])
    server = (
        _builder(name, authority_name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / "ca.pem").write_bytes(authority.public_bytes(pem))
    (directory / "server.pem").write_bytes(server.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write_private(directory / "server.key", private)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=7))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write_private(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def _lua(value: Path | str) -> str:
    """A Lua string literal; JSON's escapes are Lua's for what paths and host names hold."""
    return json.dumps(str(value), ensure_ascii=False)
