# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of copilot-storaged: its configspec, and what it becomes."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cernvm.copilot.messages import Address, bare
from cernvm.kit.config import Settings
from cernvm.kit.errors import sentence
from cernvm.xmpp import settings as xmpp

SPEC: Final = (
    """\
[http]
# Address on which agents and submitters reach the storage adapter.
address = string(default="127.0.0.1")
# TCP port.
port = integer(min=0, max=65535, default=8082)
# Certificate chain (PEM) for HTTPS; without it tokens and files travel in the clear.
certificate = string(default="")
# Private key (PEM) of the certificate.
private_key = string(default="")
# A client that sends or takes no byte for so many seconds is dropped.
stall_seconds = float(min=0.1, default=60.0)
# No single file may take longer than this to come or go, in seconds.
transfer_seconds = float(min=1.0, default=21600.0)
# Transfers that may run at once; more are asked to come again.
transfers = integer(min=1, max=10000, default=64)

[store]
# Directory that holds the files of all jobs, on one file system.
directory = string(default="/var/lib/copilot-storaged")
# Megabytes of that file system which stay free.
reserve_mb = integer(min=0, default=1024)

[tokens]
# Public key that tokens are checked against; copilotctl make-keys makes the pair.
public_key = string(default="/etc/cernvm/token.pub")
"""
    + xmpp.spec("copilot-storaged", "copilot-storage")
    + """
# Accounts (bare addresses) that may have results accepted and jobs closed.
job_managers = list(default=list("copilot-jobmanager@localhost"))
"""
)


@dataclass(frozen=True)
class Config:
    """What copilot-storaged needs to know; bytes and seconds."""

    address: str
    port: int
    tls: ssl.SSLContext | None
    stall_seconds: float
    transfer_seconds: float
    transfers: int
    directory: Path
    reserve: int
    public_key: Path
    account: xmpp.AccountFiles
    job_managers: frozenset[Address]


def configure(settings: Settings) -> Config:
    """Judge what a configspec cannot.  Raises UserMistake."""
    http, store, names = settings["http"], settings["store"], settings["xmpp"]["job_managers"]
    if not names:
        raise settings.mistake("xmpp", "job_managers", "name at least one account")
    for name in names:
        local, _, domain = name.partition("@")
        if not local or not domain or set(name) & set(" /"):
            raise settings.mistake("xmpp", "job_managers", f"{name!r} is not an XMPP address local@domain")
    return Config(
        address=http["address"],
        port=http["port"],
        tls=_tls(settings),
        stall_seconds=http["stall_seconds"],
        transfer_seconds=http["transfer_seconds"],
        transfers=http["transfers"],
        directory=Path(store["directory"]),
        reserve=store["reserve_mb"] * 1024 * 1024,
        public_key=Path(settings["tokens"]["public_key"]),
        account=xmpp.account_files(settings),
        job_managers=frozenset(bare(Address(name)) for name in names),
    )


def _tls(settings: Settings) -> ssl.SSLContext | None:
    certificate, key = settings["http"]["certificate"], settings["http"]["private_key"]
    if not certificate and not key:
        return None
    if not certificate or not key:
        lacking = "private_key" if certificate else "certificate"
        raise settings.mistake("http", lacking, "HTTPS needs both certificate and private_key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise settings.mistake("http", "certificate", f"{certificate} with {key}: {sentence(error)}") from error
    return context
