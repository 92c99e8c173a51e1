# SPDX-License-Identifier: BSD-3-Clause
"""What the admin sets in copilot-jobmanagerd.conf.  Values only; thread-safe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cernvm.copilot.broker import Rules
from cernvm.kit.config import Settings
from cernvm.xmpp import settings as xmpp

SPEC: Final = (
    xmpp.spec("copilot-jobmanagerd", "copilot-jobmanager")
    + """
# This instance's name; agents that hold its jobs talk to it, so it stays the same over restarts.
resource = string(default="main")
# Who may take jobs: accounts (local@domain) and domains (all their accounts); empty means the domain of this account.
agents = list(default=list())

[queue]
# The SQLite file that holds all jobs; its directory must be writable for this service.
file = string(default="/var/lib/copilot-jobmanagerd/queue.sqlite")

[jobs]
# Seconds after which a job goes back to the queue when its agent has not been heard of.
lease_seconds = integer(min=3, max=86400, default=60)
# Attempts after which a job fails when machines or the network fail it; a job that fails by itself is not tried again.
max_attempts = integer(min=1, max=50, default=3)

[storage]
# The storage adapter's XMPP address, local@domain.
jid = string(default="copilot-storage@localhost")
# The base of the storage adapter's URLs, as agents and submitters reach it.
url = string(default="http://localhost:8082")
# The private key that signs the tokens for the storage adapter; 'copilotctl make-keys' makes it.
token_key = string(default="/etc/cernvm/token.key")
# Seconds for which a token is good: the longest upload or download.
token_seconds = integer(min=60, max=604800, default=86400)
# Seconds after which a finished attempt is given up when the storage adapter does not answer.
answer_seconds = integer(min=10, max=604800, default=21600)
"""
)


@dataclass(frozen=True)
class Config:
    """The configuration of one job manager."""

    account: xmpp.AccountFiles
    resource: str
    queue_file: Path
    token_key: Path
    rules: Rules


def configure(settings: Settings) -> Config:
    """The configuration in `settings`.  Raises UserMistake naming file, section and key."""
    jobs, storage = settings["jobs"], settings["storage"]
    url = urlsplit(storage["url"])
    if url.scheme not in ("http", "https") or not url.netloc or url.query or url.fragment:
        raise settings.mistake("storage", "url", f"{storage['url']!r} is not the URL of an HTTP server")
    resource = settings["xmpp"]["resource"]
    if not resource or len(resource) > 64 or not resource.isprintable():
        raise settings.mistake("xmpp", "resource", "it must be a name of 1 to 64 characters")
    account = xmpp.account_files(settings)
    return Config(
        account=account,
        resource=resource,
        queue_file=Path(settings["queue"]["file"]),
        token_key=Path(storage["token_key"]),
        rules=Rules(
            storage=xmpp.address(settings, "storage", "jid"),
            storage_url=storage["url"].rstrip("/"),
            agents=_agents(settings) or frozenset({account.jid.partition("@")[2]}),
            lease_seconds=jobs["lease_seconds"],
            max_attempts=jobs["max_attempts"],
            storing_seconds=storage["answer_seconds"],
            token_seconds=storage["token_seconds"],
        ),
    )


def _agents(settings: Settings) -> frozenset[str]:
    names: list[str] = settings["xmpp"]["agents"]
    for name in names:
        if name.count("@") > 1 or name.startswith("@") or not name.rpartition("@")[2] or set(name) & set(" /"):
            raise settings.mistake("xmpp", "agents", f"{name!r} is neither local@domain nor a domain")
    return frozenset(name.lower() for name in names)
