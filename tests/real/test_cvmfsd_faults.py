# SPDX-License-Identifier: BSD-3-Clause
"""cvmfsd when things go wrong: bad objects, bad signatures, killed processes, mount points in the way."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import dbus
import pytest

from cernvm.cvmfs.manifest import split_envelope
from cernvm.cvmfsd.mounting import unmount
from tests.support.cvmfs import Site, complaint, copy_of, fixture, mounts_below, site, worker_of
from tests.support.daemon import Daemon
from tests.support.server import ServerFailed, wait_until

pytestmark = pytest.mark.real
FQRN = "small.test.org"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A writable copy of the published repository, in the web server's root."""
    (tmp_path / "web").mkdir()
    return copy_of(fixture("small") / "repo", tmp_path / "web" / FQRN)


@pytest.fixture
def here(tmp_path: Path, storage: Path) -> Iterator[Site]:
    keys = {"CVMFS_KEYS_DIR": str(fixture("small") / "keys")}
    with site(tmp_path / "site", storage.parent, keys) as running:
        yield running


def path_of_readme(storage: Path, here: Site) -> tuple[str, Path]:
    digest = os.getxattr(here.mounts / FQRN / "README.txt", "user.hash").decode()
    return digest, storage / "data" / digest[:2] / digest[2:]


def cached(here: Site, digest: str) -> bool:
    return (here.cache / digest[:2] / digest[2:]).exists()


def test_a_corrupt_object_is_an_error_that_names_it_and_reads_again_once_mended(here: Site, storage: Path) -> None:
    mount = here.call("Mount", FQRN)
    readme = here.mounts / FQRN / "README.txt"
    digest, stored = path_of_readme(storage, here)
    good = stored.read_bytes()
    stored.write_bytes(good[:-6] + bytes(6))
    with pytest.raises(OSError, match="Input/output") as refused:
        readme.read_bytes()
    assert refused.value.errno == errno.EIO
    told = here.properties(mount)["LastError"]
    assert digest in told
    assert "README.txt" in told
    assert not cached(here, digest)
    assert list((here.cache / "txn").iterdir()) == []
    assert here.properties(mount)["Statistics"]["errors"] >= 1  # the kernel may ask once more by itself
    stored.write_bytes(good)
    assert len(readme.read_bytes()) == 41
    assert cached(here, digest)


def test_an_object_that_the_server_lost_is_an_error_and_the_rest_still_reads(here: Site, storage: Path) -> None:
    mount = here.call("Mount", FQRN)
    _, stored = path_of_readme(storage, here)
    stored.unlink()
    with pytest.raises(OSError, match="Input/output"):
        (here.mounts / FQRN / "README.txt").read_bytes()
    assert "no server has data/" in here.properties(mount)["LastError"]
    assert (here.mounts / FQRN / ".cvmfsdirtab").stat().st_size == len(
        (here.mounts / FQRN / ".cvmfsdirtab").read_bytes()
    )


def test_what_is_cached_reads_while_the_server_is_away(here: Site) -> None:
    here.call("Mount", FQRN)
    content = (here.mounts / FQRN / "README.txt").read_bytes()
    found = [Path(top, name) for top, _, names in os.walk(here.mounts / FQRN) for name in names]
    files = [path for path in found if not path.is_symlink() and path.is_file()]
    here.web.stop()
    os.kill(worker_of(here.mounts / FQRN), 0)
    absent = [path for path in files if os.getxattr(path, "user.lhash") == b"Not in cache" and path.stat().st_size]
    with pytest.raises(OSError, match="Input/output"):
        absent[-1].read_bytes()
    assert (here.mounts / FQRN / "README.txt").read_bytes() == content


def test_a_manifest_signed_by_a_wrong_key_is_not_mounted(here: Site, storage: Path) -> None:
    manifest = storage / ".cvmfspublished"
    data = manifest.read_bytes()
    other = (fixture("small-rmd160") / "repo" / ".cvmfspublished").read_bytes()
    good, wrong = (split_envelope(one, "a manifest").signature for one in (data, other))
    manifest.write_bytes(data.removesuffix(good) + wrong)
    with pytest.raises(dbus.DBusException) as refused:
        here.call("Mount", FQRN)
    assert complaint(refused.value) == (
        "Untrusted",
        f"{FQRN}: the manifest's signature does not belong to the repository's certificate",
    )
    assert here.call("ListMounts") == []
    assert list(here.mounts.iterdir()) == []


def test_a_repository_of_another_master_key_is_not_mounted(tmp_path: Path, storage: Path) -> None:
    keys = {"CVMFS_KEYS_DIR": str(fixture("small-rmd160") / "keys")}
    with site(tmp_path / "site", storage.parent, keys) as here:
        with pytest.raises(dbus.DBusException) as refused:
            here.call("Mount", FQRN)
        name, told = complaint(refused.value)
        assert name == "Untrusted"
        assert told.startswith(f"{FQRN}: the whitelist is not signed by any of the master keys (")


def test_an_older_revision_than_the_known_one_is_not_mounted(here: Site, storage: Path) -> None:
    here.call("Mount", FQRN)
    here.call("Unmount", FQRN)
    crumb = here.cache / f"cvmfschecksum.{FQRN}"
    root, _, rest = crumb.read_text().partition("T")
    crumb.write_text(f"{root}T{int(rest.partition('R')[0]) + 60}R99")
    with pytest.raises(dbus.DBusException) as refused:
        here.call("Mount", FQRN)
    assert "older than the known revision 99" in complaint(refused.value)[1]


def test_a_killed_worker_is_replaced(here: Site) -> None:
    mount = here.call("Mount", FQRN)
    mounted = here.mounts / FQRN
    first = worker_of(mounted)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: answers_with_another(mounted, first), seconds=20, what="a new worker")
    assert len((mounted / "README.txt").read_bytes()) == 41
    wait_until(lambda: here.properties(mount)["State"] == "mounted", seconds=10, what="the supervisor's word of it")
    assert here.properties(mount)["Statistics"]["restarts"] == 1


def test_a_worker_that_dies_while_the_server_is_away_comes_back_from_the_cache(here: Site) -> None:
    mount = here.call("Mount", FQRN)
    mounted = here.mounts / FQRN
    content = (mounted / "README.txt").read_bytes()
    first = worker_of(mounted)
    here.web.stop()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: answers_with_another(mounted, first), seconds=30, what="the mount, from the cache alone")
    assert (mounted / "README.txt").read_bytes() == content
    # the path answers a moment before the worker's word of it has reached the supervisor
    wait_until(lambda: here.properties(mount)["State"] == "mounted", seconds=10, what="the supervisor's word of it")


def answers_with_another(mounted: Path, first: int) -> bool:
    try:
        return worker_of(mounted) != first
    except OSError:
        return False


def test_sigterm_leaves_nothing_although_a_file_is_open(here: Site, tmp_path: Path) -> None:
    here.call("Mount", FQRN)
    worker = worker_of(here.mounts / FQRN)
    opened = os.open(here.mounts / FQRN / "README.txt", os.O_RDONLY)
    try:
        assert here.daemon.stop() == 0
        assert mounts_below(tmp_path) == []
        assert not Path(f"/proc/{worker}").exists()
    finally:
        with suppress(OSError):  # the file system behind it is gone
            os.close(opened)
    assert list(here.mounts.iterdir()) == []


def test_a_dead_mount_of_an_earlier_run_is_taken_away(here: Site) -> None:
    here.call("Mount", FQRN)
    worker = worker_of(here.mounts / FQRN)
    os.kill(worker, signal.SIGSTOP)
    here.daemon.kill()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{worker}").exists(), seconds=10, what="the worker's end")
    here.daemon.start()
    here.call("Mount", FQRN)
    assert len((here.mounts / FQRN / "README.txt").read_bytes()) == 41


def test_unmounting_is_refused_while_a_file_is_open(here: Site) -> None:
    here.call("Mount", FQRN)
    with (here.mounts / FQRN / "README.txt").open("rb"):
        with pytest.raises(dbus.DBusException) as refused:
            here.call("Unmount", FQRN)
        assert complaint(refused.value)[0] == "Busy"
        assert "in use" in complaint(refused.value)[1]
    here.call("Unmount", FQRN)
    assert here.call("ListMounts") == []
    assert not (here.mounts / FQRN).exists()


def test_a_mount_taken_away_by_hand_is_gone_and_can_come_back(here: Site) -> None:
    here.call("Mount", FQRN)
    unmount(here.mounts / FQRN, lazy=False)
    wait_until(lambda: here.call("ListMounts") == [], seconds=10, what="the mount's end")
    here.call("Mount", FQRN)
    assert len((here.mounts / FQRN / "README.txt").read_bytes()) == 41


def test_a_mount_point_that_cannot_be_used_is_one_sentence(here: Site) -> None:
    point = here.mounts / FQRN
    point.write_text("in the way")
    with pytest.raises(dbus.DBusException) as refused:
        here.call("Mount", FQRN)
    assert complaint(refused.value) == (
        "InvalidArgument",
        f"{point}: exists and is not a directory, so nothing can be mounted on it",
    )
    point.unlink()
    point.mkdir()
    (point / "file").touch()
    with pytest.raises(dbus.DBusException) as refused:
        here.call("Mount", FQRN)
    assert complaint(refused.value) == (
        "InvalidArgument",
        f"{point}: is not empty; a mount would hide what is in it",
    )
    (point / "file").unlink()
    here.call("Mount", FQRN)
    here.call("Unmount", FQRN)
    assert point.is_dir(), "the directory was there before the mount"


@pytest.mark.parametrize(
    ("fqrn", "name", "told"),
    [
        ("no-such.test.org", "Unreachable", "no server has .cvmfspublished"),
        ("../../etc", "InvalidArgument", "is not a repository name"),
    ],
)
def test_a_repository_that_is_not_there_is_one_sentence(here: Site, fqrn: str, name: str, told: str) -> None:
    with pytest.raises(dbus.DBusException) as refused:
        here.call("Mount", fqrn)
    assert complaint(refused.value)[0] == name
    assert told in complaint(refused.value)[1]
    assert "\n" not in complaint(refused.value)[1]


def test_a_missing_proxy_parameter_is_one_sentence(tmp_path: Path, storage: Path) -> None:
    keys = {"CVMFS_KEYS_DIR": str(fixture("small") / "keys"), "CVMFS_HTTP_PROXY": ""}
    with site(tmp_path / "site", storage.parent, keys) as here:
        with pytest.raises(dbus.DBusException) as refused:
            here.call("Mount", FQRN)
        assert complaint(refused.value) == (
            "InvalidArgument",
            f"{FQRN}: CVMFS_HTTP_PROXY is not set in any file below {here.parameters}",
        )


def test_a_configured_repository_that_cannot_be_mounted_ends_the_start(here: Site, tmp_path: Path) -> None:
    here.daemon.stop()
    (here.mounts / FQRN).write_text("in the way")
    text = here.daemon.config.read_text().replace("[cache]", f"repositories = {FQRN},\n[cache]")
    with pytest.raises(ServerFailed, match=r"ended with status 2: .*exists and is not a directory"):
        Daemon("cvmfsd", tmp_path / "again", text, {"DBUS_SYSTEM_BUS_ADDRESS": here.bus_address}).start()
    assert mounts_below(tmp_path) == []


def test_two_daemons_do_not_share_a_cache(here: Site, tmp_path: Path) -> None:
    second = Daemon(
        "cvmfsd", tmp_path / "second", here.daemon.config.read_text(), {"DBUS_SYSTEM_BUS_ADDRESS": here.bus_address}
    )
    with pytest.raises(ServerFailed, match=r"ended with status 2: .*another cvmfsd uses this cache directory"):
        second.start()
