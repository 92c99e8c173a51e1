# SPDX-License-Identifier: BSD-3-Clause
"""The files in etc/ say what the code does: every key, with the default that the code has, and nothing else."""

from __future__ import annotations

import importlib
import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from cernvm.kit import config
from cernvm.kit.service import Service
from tests.walls.tree import ROOT, Daemon, daemons

pytestmark = pytest.mark.walls

each_daemon = pytest.mark.parametrize("daemon", daemons(), ids=lambda daemon: daemon.name)


def service(daemon: Daemon) -> Service[Any]:
    found: Service[Any] = importlib.import_module(f"cernvm.{daemon.package}.daemon").SERVICE
    return found


def shipped(daemon: Daemon) -> Path:
    return ROOT / f"etc/cernvm/{daemon.name}.conf"


def with_every_key_set(text: str) -> str:
    """The file with the comment sign taken from each line of the form `#key = value`."""
    return re.sub(r"^# ?(?=[a-z][a-z0-9_]* = |\w+ =$)", "", text, flags=re.MULTILINE)


@each_daemon
def test_the_shipped_file_changes_no_default(daemon: Daemon, tmp_path: Path) -> None:
    spec = service(daemon).spec
    defaults = config.load(spec, tmp_path / "absent.conf", required=False)
    settings = config.load(spec, shipped(daemon), required=True)
    assert settings.values == defaults.values
    assert not settings.given


@each_daemon
def test_the_shipped_file_shows_every_key_with_its_default(daemon: Daemon, tmp_path: Path) -> None:
    spec = service(daemon).spec
    defaults = config.load(spec, tmp_path / "absent.conf", required=False)
    uncommented = tmp_path / shipped(daemon).name
    uncommented.write_text(with_every_key_set(shipped(daemon).read_text()))
    settings = config.load(spec, uncommented, required=True)
    wanted = {(section, key) for section, keys in defaults.values.items() for key in keys}
    assert settings.given == wanted
    assert settings.values == defaults.values


@each_daemon
def test_every_key_is_explained_in_the_configspec(daemon: Daemon) -> None:
    lines = [line.strip() for line in service(daemon).spec.splitlines()]
    for before, line in itertools.pairwise(lines):
        if re.match(r"[a-z_]+ = ", line):
            assert before.startswith("#"), f"{daemon.name}: no comment before {line}"
            assert "default=" in line, f"{daemon.name}: no default in {line}"


@each_daemon
def test_the_service_bears_the_name_of_its_binary(daemon: Daemon) -> None:
    assert service(daemon).name == daemon.name
