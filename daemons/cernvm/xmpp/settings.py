# SPDX-License-Identifier: BSD-3-Clause
"""The [xmpp] section that every process with an XMPP account has: its keys, and how they become an account.

`SPEC` goes into the process's own configspec with its defaults filled in.  Thread-safe: no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cernvm.copilot.messages import Address
from cernvm.kit.config import Settings
from cernvm.kit.errors import UserMistake

from .link import Account, read_account

SPEC: Final = """
[xmpp]
# The account's address, local@domain.
jid = string(default="{local}@localhost")
# File that holds the account's password and nothing else; readable by this service only.
password_file = string(default="/etc/cernvm/{service}.password")
# Host to connect to; empty means the domain of the address.
host = string(default="")
# Its TCP port.
port = integer(min=1, max=65535, default=5222)
# The certificate authority (PEM) that the server's certificate must come from.
ca_file = string(default="/etc/cernvm/copilot-ca.pem")
"""


def spec(service: str, local: str) -> str:
    """The section with the defaults of `service`, whose account is called `local`."""
    return SPEC.format(service=service, local=local)


@dataclass(frozen=True)
class AccountFiles:
    """The section's values; the files are read when the process starts, not when its configuration is checked."""

    jid: Address
    password_file: Path
    host: str
    port: int
    ca_file: Path

    def account(self, resource: str) -> Account:
        """Read the password and the CA.  Raises UserMistake naming the file."""
        return read_account(self.jid, self.password_file, self.host, self.port, self.ca_file, resource)


def account_files(settings: Settings) -> AccountFiles:
    """The section of `settings`.  Raises UserMistake naming the key."""
    section = settings["xmpp"]
    jid = address(settings, "xmpp", "jid")
    return AccountFiles(
        jid=jid,
        password_file=Path(section["password_file"]),
        host=section["host"] or jid.partition("@")[2],
        port=section["port"],
        ca_file=Path(section["ca_file"]),
    )


def address(settings: Settings, section: str, key: str) -> Address:
    """The bare XMPP address under `key`.  Raises UserMistake."""
    text: str = settings[section][key]
    local, at, domain = text.partition("@")
    if not local or not at or not domain or set(text) & set(" /<>\"'&:"):
        raise _wrong(settings, section, key, text)
    return Address(text.lower())


def _wrong(settings: Settings, section: str, key: str, text: str) -> UserMistake:
    return settings.mistake(section, key, f"{text!r} is not an XMPP address of the form local@domain")
