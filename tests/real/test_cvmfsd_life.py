# SPDX-License-Identifier: BSD-3-Clause
"""cvmfsd over time: revisions that change under a live mount, transfers shared and spared, its command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dbus
import pytest

from cernvm.cvmfs.publish import create_repository, publish_tree
from cernvm.kit.bus import Bus, BusError
from tests.support.cvmfs import MOUNT, NAME, PATH, Site, complaint, site
from tests.support.daemon import command_line, project_environment
from tests.support.server import wait_until

pytestmark = pytest.mark.real
FQRN = "life.test.org"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What is published."""
    top = tmp_path / "tree"
    (top / "sw" / "1.0").mkdir(parents=True)
    (top / "sw" / "1.0" / ".cvmfscatalog").touch()
    (top / "sw" / "1.0" / "program").write_bytes(b"#!/bin/sh\necho one\n")
    (top / "sw" / "1.0" / "program").chmod(0o755)
    (top / "same").write_text("stays\n")
    (top / "vanishes").write_text("old\n")
    (top / "big").write_bytes(os.urandom(3_000_000))
    return top


@pytest.fixture
def here(tmp_path: Path, tree: Path) -> Iterator[Site]:
    """A site with revision 2 published."""
    create_repository(FQRN, tmp_path / "web" / FQRN, tmp_path / "keys")
    publish(tmp_path)
    with site(tmp_path / "site", tmp_path / "web", {"CVMFS_KEYS_DIR": str(tmp_path / "keys")}) as running:
        yield running


def publish(tmp_path: Path) -> int:
    return publish_tree(FQRN, tmp_path / "tree", tmp_path / "web" / FQRN, tmp_path / "keys").revision


def test_a_new_revision_appears_under_a_live_mount(here: Site, tree: Path, tmp_path: Path) -> None:
    mount = here.call("Mount", FQRN)
    mounted = here.mounts / FQRN
    program, appears = mounted / "sw" / "1.0" / "program", mounted / "appears"
    same = (mounted / "same").stat()
    first = program.stat()
    assert subprocess.run([program], capture_output=True, check=True, timeout=20).stdout == b"one\n"
    assert not appears.exists(), "the kernel keeps this answer for a day"
    assert [child.name for child in mounted.iterdir() if child.name == "vanishes"]
    (mounted / "vanishes").stat()
    (tree / "sw" / "1.0" / "program").write_bytes(b"#!/bin/sh\necho two\n")
    (tree / "vanishes").unlink()
    (tree / "appears").write_text("new\n")
    assert publish(tmp_path) == 3
    with program.open("rb") as opened:
        assert here.refresh(mount) == 3
        wait_until(lambda: b"two" in program.read_bytes(), seconds=10, what="the new content")
        assert opened.read() == b"#!/bin/sh\necho one\n", "an open file keeps its content"
    assert program.stat().st_ino != first.st_ino
    assert subprocess.run([program], capture_output=True, check=True, timeout=20).stdout == b"two\n"
    wait_until(appears.exists, seconds=10, what="the new name")
    wait_until(lambda: not (mounted / "vanishes").exists(), seconds=10, what="the end of the old name")
    assert (mounted / "same").stat().st_ino == same.st_ino
    assert here.properties(mount)["Revision"] == 3
    assert os.getxattr(mounted, "user.revision") == b"3"


def test_a_switch_that_cannot_be_verified_keeps_the_old_revision(here: Site, tree: Path, tmp_path: Path) -> None:
    mount = here.call("Mount", FQRN)
    (tree / "same").write_text("changed\n")
    publish(tmp_path)
    manifest = tmp_path / "web" / FQRN / ".cvmfspublished"
    manifest.write_bytes(manifest.read_bytes()[:-1] + b"?")
    with pytest.raises(dbus.DBusException) as refused:
        here.refresh(mount)
    assert complaint(refused.value)[0] == "Untrusted"
    assert (here.mounts / FQRN / "same").read_text() == "stays\n"
    assert here.properties(mount)["Revision"] == 2


def test_many_readers_of_one_file_share_one_transfer(here: Site) -> None:
    here.call("Mount", FQRN)
    big = here.mounts / FQRN / "big"
    digest = os.getxattr(big, "user.hash").decode()
    with ThreadPoolExecutor(16) as readers:
        sizes = [len(data) for data in readers.map(lambda _: big.read_bytes(), range(16))]
    assert sizes == [3_000_000] * 16
    assert here.web.hits(f"/{FQRN}/data/{digest[:2]}/{digest[2:]}") == 1


def test_second_mounting_takes_its_objects_from_the_cache(here: Site) -> None:
    here.call("Mount", FQRN)
    content = (here.mounts / FQRN / "big").read_bytes()
    here.call("Unmount", FQRN)
    before = here.web.hits(f"/{FQRN}/data/")
    mount = here.call("Mount", FQRN)
    assert (here.mounts / FQRN / "big").read_bytes() == content
    assert here.web.hits(f"/{FQRN}/data/") == before
    assert here.properties(mount)["Statistics"]["cache_hits"] >= 1


def test_mounting_twice_is_mounting_once(here: Site) -> None:
    assert here.call("Mount", FQRN) == here.call("Mount", FQRN)
    assert [tuple(map(str, one)) for one in here.call("ListMounts")] == [
        (FQRN, "/ch/cern/cernvm/Cvmfs1/mounts/life_2etest_2eorg", str(here.mounts / FQRN), "mounted")
    ]


def test_the_mount_is_read_only_and_tells_its_usage(here: Site) -> None:
    here.call("Mount", FQRN)
    with pytest.raises(OSError, match="Read-only"):
        (here.mounts / FQRN / "new").touch()
    figures = os.statvfs(here.mounts / FQRN)
    assert figures.f_frsize * figures.f_blocks == pytest.approx(4_000_000_000, abs=4096)
    assert figures.f_files >= 7


def test_the_bus_hears_what_happens(here: Site, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", here.bus_address)

    async def listen() -> list[tuple[object, ...]]:
        heard: asyncio.Queue[tuple[object, ...]] = asyncio.Queue()
        async with Bus.system() as bus:
            for name in ("MountAppeared", "RevisionChanged", "MountGone", "MountFailed"):
                bus.subscribe(NAME, name, lambda _, *values, name=name: heard.put_nowait((name, *values)))
            mount = await bus.call(NAME, PATH, NAME, "Mount", "s", FQRN, timeout=60.0)
            (tree / "same").write_text("changed\n")
            publish(tmp_path)
            assert await bus.call(NAME, mount, MOUNT, "Refresh", timeout=60.0) == 3
            await bus.call(NAME, PATH, NAME, "Unmount", "s", FQRN, timeout=60.0)
            with pytest.raises(BusError):
                await bus.call(NAME, PATH, NAME, "Mount", "s", "absent.test.org", timeout=60.0)
            return [await asyncio.wait_for(heard.get(), 10.0) for _ in range(4)]

    appeared, changed, gone, failed = asyncio.run(listen())
    assert appeared == ("MountAppeared", FQRN, str(here.mounts / FQRN), 2)
    assert changed == ("RevisionChanged", FQRN, 3)
    assert gone == ("MountGone", FQRN)
    assert failed[:2] == ("MountFailed", "absent.test.org")
    assert "no server has .cvmfspublished" in str(failed[2])


def test_configured_repositories_are_mounted_at_the_start_and_added_by_a_reload(here: Site) -> None:
    here.daemon.stop()
    text = here.daemon.config.read_text()
    here.daemon.config.write_text(text.replace("[cache]", f"repositories = {FQRN},\n[cache]"))
    here.daemon.start()
    assert (here.mounts / FQRN / "same").read_text() == "stays\n"
    here.call("Unmount", FQRN)
    os.kill(here.daemon.process.pid, signal.SIGHUP)
    wait_until(lambda: (here.mounts / FQRN / "same").exists(), seconds=20, what="the mount after the reload")


def test_a_configured_repository_whose_server_is_away_is_mounted_when_it_is_back(here: Site) -> None:
    here.daemon.stop()
    here.web.stop()
    text = here.daemon.config.read_text()
    here.daemon.config.write_text(text.replace("[cache]", f"repositories = {FQRN},\n[cache]"))
    here.daemon.start()
    assert here.call("ListMounts") == []
    here.web.start()
    wait_until(lambda: (here.mounts / FQRN / "same").exists(), seconds=20, what="the mount once the server is back")


def test_cvmfsctl_mounts_lists_tells_and_unmounts(here: Site) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = project_environment({"DBUS_SYSTEM_BUS_ADDRESS": here.bus_address})
        command = command_line("cvmfsctl", *arguments)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    point = here.mounts / FQRN
    assert (run("mount", FQRN).stdout, run("list").stdout) == (f"{point}\n", f"{FQRN}  {point}  mounted\n")
    shown = json.loads(run("stat", "--json", FQRN).stdout)
    assert [(one["Fqrn"], one["Revision"]) for one in shown] == [(FQRN, 2)]
    assert shown[0]["Statistics"]["downloads"] > 0
    assert "revision 2, root catalog" in run("stat").stdout
    assert run("unmount", FQRN).returncode == 0
    again = run("unmount", FQRN)
    assert (again.returncode, again.stderr) == (2, f"cvmfsctl: {FQRN} is not mounted\n")
    wrong = run("mount", "nonsense")
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    here.daemon.stop()
    assert run("list").stderr == "cvmfsctl: cvmfsd is not running on this bus\n"
