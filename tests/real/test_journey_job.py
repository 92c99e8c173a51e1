# SPDX-License-Identifier: BSD-3-Clause
"""The main journey through the whole house, and what it survives: agents, managers, objects and keys going wrong.

A job of these tests runs a program that a repository of ours delivers, so that each passes every room.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cernvm.kit.errors import Problem
from tests.support.house import House, Repository, mounted_below, processes_naming
from tests.support.server import wait_until

pytestmark = pytest.mark.real

FQRN = "software.test.example"

PROGRAM = """\
#!/bin/sh
# tool SECONDS TEXT: leaves a file, as software of an experiment does
set -e
sleep "$1"
cat "$(dirname "$0")/../share/constants" > result
echo "$2" >> result
echo "worked on $2"
"""

JOB = """\
name = "{name}"
command = "/bin/sh"
arguments = ["-c", "exec $CVMFS_MOUNT_DIR/{fqrn}/bin/tool {seconds} {name}"]
output_files = ["result"]
packages = [{{ repository = "{fqrn}", path = "bin" }}]
[limits]
wall_seconds = 120
"""


def job(name: str, seconds: float = 0, fqrn: str = FQRN) -> str:
    return JOB.format(name=name, seconds=seconds, fqrn=fqrn)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "share").mkdir()
    (tree / "bin" / "tool").write_text(PROGRAM)
    (tree / "bin" / "tool").chmod(0o755)
    (tree / "share" / "constants").write_text("c = 299792458 m/s\n")
    one = Repository(FQRN, tmp_path / "storage" / FQRN, tmp_path / "keys")
    one.publish(tree)
    return one


@pytest.fixture
def house(tmp_path: Path, repository: Repository) -> Iterator[House]:
    with House(tmp_path / "house", repositories=[repository], lease_seconds=3) as house:
        yield house
    assert mounted_below(tmp_path) == []
    assert processes_naming(str(tmp_path)) == []


def fetch(house: House, job_id: str, directory: Path) -> str:
    house.command("copilotctl", "fetch", job_id, str(directory))
    return (directory / "result").read_text()


def test_a_job_runs_software_from_a_repository_and_its_result_comes_back_verified(house: House, tmp_path: Path) -> None:
    submitted = house.submit(job("first"))
    done = house.await_job(submitted, "done", "failed")
    assert done["state"] == "done", done["reason"]
    assert fetch(house, submitted, tmp_path / "results") == "c = 299792458 m/s\nfirst\n"
    assert (tmp_path / "results" / "_stdout").read_text() == "worked on first\n"
    assert done["usage"]["bytes_fetched"] > 0


def test_the_job_of_a_killed_agent_is_finished_by_another(house: House, tmp_path: Path) -> None:
    submitted = house.submit(job("orphan", seconds=6))
    running = house.await_job(submitted, "running")
    victim = next(name for name in house.agents if name in running["agent"])
    house.agents[victim].kill()
    wait_until(lambda: not processes_naming("/bin/tool 6 orphan"), seconds=5, what="the payload dying with its agent")
    done = house.await_job(submitted, "done", "failed", seconds=60)
    assert done["state"] == "done", done["reason"]
    assert done["attempt"] == 2
    assert victim not in done["agent"]
    assert fetch(house, submitted, tmp_path / "results").endswith("orphan\n")


def test_a_restarted_job_manager_loses_nothing_and_accepts_nothing_twice(house: House, tmp_path: Path) -> None:
    names = [f"job{number}" for number in range(6)]
    ids = {name: house.submit(job(name, seconds=2), name=name) for name in names}
    wait_until(lambda: "running" in [job["state"] for job in house.jobs()], seconds=20, what="a job running")
    house.manager.kill()
    house.manager.start()
    for name, submitted in ids.items():
        done = house.await_job(submitted, "done", "failed", seconds=60)
        assert done["state"] == "done", done["reason"]
        assert done["attempt"] == 1, "nothing runs twice when its agent lives on"
        assert fetch(house, submitted, tmp_path / name).endswith(f"{name}\n")
    assert len(house.jobs()) == len(ids)


def test_a_job_that_meets_a_corrupt_object_fails_with_its_hash_and_the_cache_stays_right(
    house: House, repository: Repository, tmp_path: Path
) -> None:
    path, good = _corrupt_object_of(repository, b"c = 299792458")
    content_hash = path.parent.name + path.name
    submitted = house.submit(job("unlucky"))
    failed = house.await_job(submitted, "done", "failed", seconds=90)
    assert failed["state"] == "failed"
    assert content_hash in failed["reason"]
    cached = [p for p in (house.directory / "cache").rglob("*") if p.is_file() and p.name.startswith(path.name)]
    assert cached == []
    path.write_bytes(good)
    again = house.submit(job("lucky"), name="lucky")
    done = house.await_job(again, "done", "failed", seconds=60)
    assert done["state"] == "done", done["reason"]


def _corrupt_object_of(repository: Repository, beginning: bytes) -> tuple[Path, bytes]:
    """Flip a byte in the stored object whose content begins so; returns its path and its right bytes."""
    for path in (repository.storage / "data").rglob("*"):
        if path.is_file() and path.name[-1] not in "CHXM":
            good = path.read_bytes()
            if zlib.decompress(good).startswith(beginning):
                middle = len(good) // 2
                path.chmod(0o644)
                path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
                return path, good
    raise AssertionError("no such object")


def test_a_manifest_signed_by_the_wrong_key_is_not_mounted(
    house: House, repository: Repository, tmp_path: Path
) -> None:
    stranger = Repository(FQRN, tmp_path / "stranger", tmp_path / "strange-keys")
    stranger.publish(tmp_path / "tree")
    for name in (".cvmfspublished", ".cvmfswhitelist"):
        (repository.storage / name).write_bytes((stranger.storage / name).read_bytes())
    for path in (stranger.storage / "data").rglob("*"):
        place = repository.storage / path.relative_to(stranger.storage)
        if path.is_file() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    with pytest.raises(Problem) as caught:
        house.mount(FQRN)
    sentence = str(caught.value)
    assert FQRN in sentence
    assert "key" in sentence
    assert "\n" not in sentence
    assert mounted_below(house.directory) == []
    failed = house.await_job(house.submit(job("hopeless")), "failed", seconds=60)
    assert sentence in failed["reason"]
