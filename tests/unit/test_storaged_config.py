# SPDX-License-Identifier: BSD-3-Clause
"""copilot-storaged's configuration: what a configspec cannot judge is told with file, section and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from cernvm.copilot_storaged.config import SPEC, Config, configure
from cernvm.kit.config import load
from cernvm.kit.errors import UserMistake
from tests.support.prosody import certificates


def read(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "copilot-storaged.conf"
    file.write_text(text)
    return configure(load(SPEC, file, required=True))


def test_defaults_are_a_whole_configuration(tmp_path: Path) -> None:
    config = read(tmp_path, "")
    assert (config.address, config.port, config.tls) == ("127.0.0.1", 8082, None)
    assert config.reserve == 1024 * 1024 * 1024
    assert config.job_managers == {"copilot-jobmanager@localhost"}


def test_job_managers_are_compared_as_servers_compare_addresses(tmp_path: Path) -> None:
    config = read(tmp_path, "[xmpp]\njob_managers = One@Example.org, two@example.org")
    assert config.job_managers == {"one@example.org", "two@example.org"}


def test_a_certificate_and_its_key_make_https(tmp_path: Path) -> None:
    certificates(tmp_path, "copilot.test")
    lines = f"[http]\ncertificate = {tmp_path}/server.pem\nprivate_key = {tmp_path}/server.key"
    assert read(tmp_path, lines).tls is not None


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[xmpp]\njob_managers = ,", r"\[xmpp\] job_managers: name at least one"),
        ("[xmpp]\njob_managers = somebody,", r"\[xmpp\] job_managers: 'somebody' is not"),
        ("[xmpp]\njob_managers = a@b/resource,", r"\[xmpp\] job_managers: "),
        ("[xmpp]\njid = nobody", r"\[xmpp\] jid: "),
        ("[http]\ncertificate = /absent.pem", r"\[http\] private_key: "),
        ("[http]\nprivate_key = /absent.key", r"\[http\] certificate: "),
        ("[http]\ncertificate = /absent.pem\nprivate_key = /absent.key", r"\[http\] certificate: /absent.pem"),
        ("[http]\nport = 70000", r"\[http\] port: "),
        ("[http]\nprot = 80", r"\[http\] prot: .*did you mean port"),
    ],
)
def test_a_mistake_names_its_place(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(UserMistake, match=place) as told:
        read(tmp_path, text)
    assert str(told.value).startswith(str(tmp_path / "copilot-storaged.conf"))
