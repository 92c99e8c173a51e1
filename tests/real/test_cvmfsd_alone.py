# SPDX-License-Identifier: BSD-3-Clause
"""Mounts without a daemon: cvmfsd-mount and mount.cvmfs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cernvm.cvmfsd.mounting import is_mounted, unmount
from tests.support.cvmfs import copy_of, fixture, gone, site, worker_of
from tests.support.daemon import command_line, project_environment
from tests.support.nginx import Nginx
from tests.support.server import wait_until

pytestmark = pytest.mark.real
FQRN = "small.test.org"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Nginx]:
    (tmp_path / "web").mkdir()
    copy_of(fixture("small") / "repo", tmp_path / "web" / FQRN)
    with Nginx(tmp_path / "nginx", tmp_path / "web") as running:
        yield running


def parameter_file(tmp_path: Path, url: str, *more: str) -> Path:
    file = tmp_path / "parameters.conf"
    lines = [
        f"CVMFS_SERVER_URL={url}/@fqrn@",
        "CVMFS_HTTP_PROXY=DIRECT",
        f"CVMFS_KEYS_DIR={fixture('small') / 'keys'}",
        f"CVMFS_CACHE_BASE={tmp_path / 'cache'}",
        "CVMFS_MAX_RETRIES=0",
        *more,
    ]
    file.write_text("\n".join(lines) + "\n")
    return file


def alone(command: str, *words: str | Path, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    nowhere = project_environment({"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"})
    line = command_line(command, *map(str, words))
    return subprocess.run(line, env=nowhere, capture_output=True, text=True, timeout=seconds, check=False)


def test_cvmfsd_mount_mounts_without_a_daemon_and_two_share_one_cache(tmp_path: Path, web: Nginx) -> None:
    config = parameter_file(tmp_path, web.url)
    points = [tmp_path / "one", tmp_path / "two"]
    for point in points:
        point.mkdir()
    try:
        for point in points:
            done = alone("cvmfsd-mount", "-o", f"config={config},allow_other,ro", FQRN, point)
            assert (done.returncode, done.stderr) == (0, "")
        assert len({worker_of(point) for point in points}) == 2
        digest = os.getxattr(points[0] / "README.txt", "user.hash").decode()
        for point in points:
            assert len((point / "README.txt").read_bytes()) == 41
        assert web.hits(f"/{FQRN}/data/{digest[:2]}/{digest[2:]}") == 1
        assert (tmp_path / "cache" / "shared" / digest[:2] / digest[2:]).exists()
        assert alone("cvmfsd-mount", "-o", f"config={config}", FQRN, points[0]).returncode == 21
    finally:
        workers = [worker_of(point) for point in points if is_mounted(point)]
        for point in points:
            unmount(point, lazy=True)
    wait_until(lambda: all(map(gone, workers)), seconds=10, what="the workers' end")


def test_cvmfsd_mount_in_the_foreground_ends_with_the_mount(tmp_path: Path, web: Nginx) -> None:
    config = parameter_file(tmp_path, web.url)
    point = tmp_path / "point"
    point.mkdir()
    command = command_line("cvmfsd-mount", "-f", "-o", f"config={config}", FQRN, str(point))
    process = subprocess.Popen(command, env=project_environment({}))
    try:
        wait_until(lambda: is_mounted(point), seconds=20, what="the mount")
        assert len((point / "README.txt").read_bytes()) == 41
        process.terminate()
        assert process.wait(15) == 0
        assert not is_mounted(point)
    finally:
        process.kill()
        unmount(point, lazy=True)


def test_cvmfsd_mount_ends_with_the_statuses_of_the_original(tmp_path: Path, web: Nginx) -> None:
    point = tmp_path / "point"
    point.mkdir()
    good = parameter_file(tmp_path, web.url)
    assert alone("cvmfsd-mount", "-o", "nonsense", FQRN, point).returncode == 2
    assert alone("cvmfsd-mount", "-o", f"config={tmp_path / 'absent'}", FQRN, point).returncode == 2
    assert alone("cvmfsd-mount", "-o", f"config={good}", FQRN, tmp_path / "absent").returncode == 4
    other = parameter_file(tmp_path, web.url, f"CVMFS_KEYS_DIR={fixture('small-rmd160') / 'keys'}")
    refused = alone("cvmfsd-mount", "-o", f"config={other}", FQRN, point)
    assert (refused.returncode, refused.stderr.count("\n")) == (15, 1)
    nowhere = parameter_file(tmp_path, "http://127.0.0.1:9")
    assert alone("cvmfsd-mount", "-o", f"config={nowhere}", FQRN, point).returncode == 16
    lost = parameter_file(tmp_path, web.url, "CVMFS_HTTP_PROXY=auto", "CVMFS_PAC_URLS=http://127.0.0.1:9/wpad.dat")
    assert alone("cvmfsd-mount", "-o", f"config={lost}", FQRN, point).returncode == 23
    (tmp_path / "file").touch()
    full = parameter_file(tmp_path, web.url, f"CVMFS_CACHE_BASE={tmp_path / 'file'}")
    assert alone("cvmfsd-mount", "-o", f"config={full}", FQRN, point).returncode == 9
    assert not is_mounted(point)


def test_mount_cvmfs_asks_the_daemon_below_its_directory_and_mounts_elsewhere_by_itself(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / FQRN).symlink_to(fixture("small") / "repo")
    with site(tmp_path / "site", tmp_path / "web", {"CVMFS_KEYS_DIR": str(fixture("small") / "keys")}) as here:

        def mount(*words: str | Path) -> int:
            environment = project_environment({"DBUS_SYSTEM_BUS_ADDRESS": here.bus_address})
            command = command_line("mount_cvmfs", *map(str, words))
            return subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False).returncode

        assert mount(FQRN, here.mounts / FQRN, "-o", "ro") == 0
        assert [str(one[0]) for one in here.call("ListMounts")] == [FQRN]
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        file = parameter_file(tmp_path, here.web.url)
        try:
            assert mount(FQRN, elsewhere, "-n", "-o", f"ro,config={file}") == 0
            assert len((elsewhere / "README.txt").read_bytes()) == 41
        finally:
            unmount(elsewhere, lazy=True)
        assert mount("absent.test.org", here.mounts / "absent.test.org") == 32
        assert mount(FQRN, elsewhere, "-o", "nonsense") == 1
