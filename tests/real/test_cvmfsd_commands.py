# SPDX-License-Identifier: BSD-3-Clause
"""The commands around a mount: cvmfs_talk, cvmfs_config, cvmfsctl, cvmfsd-mount, mount.cvmfs, and what xattrs tell."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.support.cvmfs import Site, copy_of, fixture, gone, site, worker_of
from tests.support.daemon import command_line, project_environment
from tests.support.server import free_port

pytestmark = pytest.mark.real
FQRN = "small.test.org"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "web").mkdir()
    copy_of(fixture("small") / "repo", tmp_path / "web" / FQRN)
    keys = {"CVMFS_KEYS_DIR": str(fixture("small") / "keys"), "CVMFS_REPOSITORIES": FQRN}
    port = free_port()
    with site(tmp_path / "site", tmp_path / "web", keys, f"metrics = {port}") as running:
        (tmp_path / "port").write_text(str(port))
        yield running


def run(here: Site, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = project_environment({"DBUS_SYSTEM_BUS_ADDRESS": here.bus_address})
    return subprocess.run(
        command_line(*command), env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=cwd
    )


def config(here: Site, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return run(here, "cvmfs_config", "-e", str(here.parameters), *words, cwd=cwd)


ALL_NAMES = [
    "fqrn",
    "revision",
    "root_hash",
    "tag",
    "version",
    "pid",
    "host",
    "host_list",
    "proxy",
    "proxy_list",
    "proxy_list_external",
    "external_host",
    "external_timeout",
    "timeout",
    "timeout_direct",
    "nclg",
    "nopen",
    "ndiropen",
    "ndownload",
    "nioerr",
    "timestamp_last_ioerr",
    "hitrate",
    "rx",
    "speed",
    "ncleanup24",
    "usedfd",
    "useddirp",
    "maxfd",
    "expires",
    "uptime",
    "inode_max",
    "catalog_counters",
    "repo_counters",
    "repo_metainfo",
    "pubkeys",
    "logbuffer",
    "hash",
]


def test_every_computed_attribute_is_there_in_its_format(here: Site) -> None:
    here.call("Mount", FQRN)
    root = here.mounts / FQRN
    values = {name: os.getxattr(root, f"user.{name}").decode() for name in ALL_NAMES}
    listed = os.listxattr(root)
    assert [name for name in ALL_NAMES if f"user.{name}" not in listed] == []
    assert len(listed) == len(set(listed))
    assert os.listxattr(root / "README.txt") == [], "rootonly is the default"
    numbers = (
        "revision pid timeout timeout_direct nclg nopen ndiropen ndownload nioerr timestamp_last_ioerr rx "
        "ncleanup24 usedfd useddirp maxfd expires uptime inode_max"
    )
    assert [name for name in numbers.split() if not values[name].isdigit()] == []
    assert values["fqrn"] == FQRN
    assert values["host"] == f"{here.web.url}/{FQRN}"
    assert values["host_list"].split(";")[0] == values["host"]
    assert (values["proxy"], values["proxy_list"]) == ("DIRECT", "DIRECT")
    assert 0 <= float(values["hitrate"]) <= 100
    assert values["pubkeys"].startswith("-----BEGIN PUBLIC KEY-----")
    assert "self_regular," in values["repo_counters"]
    assert values["catalog_counters"].startswith(f"catalog_hash: {values['root_hash']}\ncatalog_mountpoint: /\n")
    assert not any(value.endswith("\n") for value in values.values() if value)


def test_files_and_links_have_attributes_of_their_own(here: Site) -> None:
    here.call("Mount", FQRN)
    readme = here.mounts / FQRN / "README.txt"
    digest = os.getxattr(readme, "user.hash").decode()
    assert os.getxattr(readme, "user.lhash") == b"Not in cache"
    readme.read_bytes()
    assert os.getxattr(readme, "user.lhash").decode() == digest
    assert os.getxattr(readme, "user.chunks") == b"1"
    assert os.getxattr(readme, "user.chunk_list").decode() == f"hash,offset,size\n{digest},0,41"
    assert os.getxattr(readme, "user.compression") in (b"zlib", b"none")
    assert (os.getxattr(readme, "user.direct_io"), os.getxattr(readme, "user.external_file")) == (b"0", b"0")
    link = next(path for path in (here.mounts / FQRN).rglob("*") if path.is_symlink())
    assert os.getxattr(link, "xfsroot.rawlink", follow_symlinks=False), "the kernel keeps user.* from links"
    with pytest.raises(OSError, match="No data"):
        os.getxattr(readme, "user.rawlink")


def test_attributes_are_read_in_pages(here: Site) -> None:
    here.call("Mount", FQRN)
    root = here.mounts / FQRN
    whole = os.getxattr(root, "user.repo_counters")
    assert os.getxattr(root, "user.repo_counters~0") == whole
    header, _, rest = os.getxattr(root, "user.repo_counters@0").partition(b"\n")
    assert header.startswith(b"# ")
    assert rest == whole
    assert os.getxattr(root, "user.repo_counters~?").endswith(b"1")
    assert b"1 pages" in os.getxattr(root, "user.repo_counters@?")
    for absent in ("user.repo_counters~1", "user.nothing~0", "user.repo_counters~"):
        with pytest.raises(OSError, match="No data"):
            os.getxattr(root, absent)


def test_protected_attributes_are_for_privileged_groups(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / FQRN).symlink_to(fixture("small") / "repo")
    given = {
        "CVMFS_KEYS_DIR": str(fixture("small") / "keys"),
        "CVMFS_XATTR_PROTECTED_XATTRS": "user.pubkeys,user.host",
        "CVMFS_XATTR_PRIVILEGED_GIDS": "4711,4712",
        "CVMFS_MAGIC_XATTRS_VISIBILITY": "always",
    }
    tmp_path.chmod(0o755)
    with site(tmp_path / "site", tmp_path / "web", given) as here:
        here.call("Mount", FQRN)
        root = here.mounts / FQRN

        def as_group(group: int, name: str) -> bool:
            script = f"import os; os.setgroups([]); os.setgid({group}); os.getxattr({str(root)!r}, {name!r})"
            done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=20, check=False)
            return done.returncode == 0

        assert as_group(4712, "user.host")
        assert not as_group(100, "user.host")
        assert not as_group(100, "user.pubkeys~0")
        assert as_group(100, "user.fqrn")
        assert "user.fqrn" in os.listxattr(root / "README.txt")


def test_cvmfs_talk_answers_what_site_scripts_ask(here: Site) -> None:
    here.call("Mount", FQRN)
    (here.mounts / FQRN / "README.txt").read_bytes()

    def talk(*words: str) -> str:
        done = run(here, "cvmfs_talk", "-i", FQRN, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    worker = worker_of(here.mounts / FQRN)
    assert talk("pid") == f"{worker}\n"
    assert talk("mountpoint") == f"{here.mounts / FQRN}\n"
    assert talk("revision").strip().isdigit()
    assert talk("remount", "sync") == "Catalog up to date\n"
    assert talk("cache size").startswith("Current cache size is ")
    assert talk("cache limit get") == "4000 MB\n"
    assert (talk("cache limit set 300"), talk("cache limit get")) == ("OK\n", "300 MB\n")
    digest = os.getxattr(here.mounts / FQRN / "README.txt", "user.hash").decode()
    assert digest in talk("cache list").split()
    assert digest not in talk("cache list pinned").split()
    assert talk("evict /README.txt") == "OK\n"
    assert digest not in talk("cache list").split()
    assert talk("evict /nothing") == "No such regular file\n"
    assert talk("cleanup 0").startswith("Not fully cleaned"), "catalogs are pinned"
    assert here.web.url in talk("host info")
    assert "Active proxy: DIRECT" in talk("proxy info")
    assert talk("timeout set 7 9") == "OK\n"
    assert "7s" in talk("timeout info")
    assert talk("host set http://127.0.0.1:9/nothing;" + here.web.url + f"/{FQRN}") == "OK\n"
    assert talk("host switch") == "OK\n"
    assert (talk("proxy rebalance"), talk("proxy group switch")) == ("OK\n", "OK\n")
    assert "CVMFS_SERVER_URL=" in talk("parameters")
    assert "Name|Value" in talk("internal affairs")
    assert talk("reset error counters") == "OK\n"
    assert talk("open catalogs").startswith("/")
    assert talk("max ttl info") == "unset\n"
    assert talk("version").startswith("VERSION: ")
    assert ":" in talk("device id")
    assert talk("nonsense") == "unknown command\n"
    assert talk("latency").endswith(".\n"), "one sentence for what is not followed"
    assert talk("timeout set x").startswith("Usage")
    assert run(here, "cvmfs_talk", "-i", "absent.test.org", "pid").returncode == 2
    assert run(here, "cvmfs_talk", "-p", str(here.cache / f"cvmfs_io.{FQRN}"), "pid").stdout == f"{worker}\n"


def test_cvmfs_config_tells_and_does_what_its_words_say(here: Site, tmp_path: Path) -> None:
    assert config(here, "probe").stdout == f"Probing {here.mounts / FQRN}... OK\n"
    failed = config(here, "probe", "absent.test.org")
    assert (failed.returncode, failed.stdout) == (1, f"Probing {here.mounts / 'absent.test.org'}... Failed!\n")
    worker = worker_of(here.mounts / FQRN)
    assert config(here, "status").stdout == f"{FQRN} mounted on {here.mounts / FQRN} with pid {worker}\n"
    shown = config(here, "stat", FQRN).stdout.splitlines()
    assert shown[0].split()[:4] == ["VERSION", "PID", "UPTIME(M)", "MEM(K)"]
    values = dict(zip(shown[0].split(), shown[1].split(), strict=True))
    assert (values["PID"], values["ONLINE"], values["PROXY"]) == (str(worker), "1", "DIRECT")
    assert int(values["CACHEMAX(K)"]) > int(values["CACHEUSE(K)"]) > 0
    assert "(online)" in config(here, "stat", "-v", FQRN).stdout
    assert f"CVMFS_HTTP_PROXY=DIRECT    # from {here.parameters / 'default.local'}" in config(here, "showconfig").stdout
    assert config(here, "chksetup").returncode == 0
    (here.parameters / "default.local").write_text(
        (here.parameters / "default.local").read_text() + "CVMFS_HTTP_PROXY=\n"
    )
    wrong = config(here, "chksetup")
    assert (wrong.returncode, "CVMFS_HTTP_PROXY is not set" in wrong.stdout) == (1, True)
    (here.parameters / "default.local").write_text(
        (here.parameters / "default.local").read_text().removesuffix("CVMFS_HTTP_PROXY=\n")
    )
    assert config(here, "fsck").stdout.endswith("0 damaged\n")
    with (here.mounts / FQRN / "README.txt").open("rb"):
        assert f"is used by {os.getpid()}" in config(here, "fuser").stdout
        assert config(here, "umount").returncode == 1
    assert config(here, "reload").stdout == f"{FQRN} reloaded\n"
    assert config(here, "wipecache").returncode == 0
    report = Path(config(here, "bugreport", cwd=tmp_path).stdout.strip())
    assert report.stat().st_size > 500
    assert config(here, "umount").stdout == f"Unmounted {here.mounts / FQRN}\n"
    assert config(here, "umount", FQRN).returncode == 2
    assert config(here, "setup").returncode == 0


def test_a_mount_that_does_not_answer_cannot_block_the_commands_that_look_at_it(here: Site, tmp_path: Path) -> None:
    here.call("Mount", FQRN)
    worker = worker_of(here.mounts / FQRN)
    os.kill(worker, signal.SIGSTOP)  # cvmfsd notices after 8 s
    try:
        begun = time.monotonic()
        assert f"with pid {worker}" in config(here, "status").stdout
        assert time.monotonic() - begun < 5
        assert "used by" not in config(here, "fuser").stdout
        assert config(here, "killall").stdout.startswith(f"{FQRN}: process {worker} ended")
        assert time.monotonic() - begun < 12
        assert gone(worker)
        assert Path(config(here, "bugreport", cwd=tmp_path).stdout.strip()).exists()
        assert time.monotonic() - begun < 40
    finally:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def test_cvmfsctl_cares_for_mounts_and_cache(here: Site) -> None:
    here.call("Mount", FQRN)
    assert json.loads(run(here, "cvmfsctl", "probe", "--json").stdout) == {FQRN: True}
    fetched = json.loads(run(here, "cvmfsctl", "prefetch", "--json", FQRN, "/README.txt").stdout)
    assert fetched == {"files": 1, "bytes": 41, "failed": []}
    assert run(here, "cvmfsctl", "prefetch", FQRN, "/nothing").returncode == 2
    digest = os.getxattr(here.mounts / FQRN / "README.txt", "user.hash").decode()
    stored = here.cache / digest[:2] / digest[2:]
    assert run(here, "cvmfsctl", "fsck").returncode == 0
    stored.write_bytes(b"damaged")
    found = run(here, "cvmfsctl", "fsck", "--json")
    assert found.returncode == 1
    assert json.loads(found.stdout)["damaged"] == [digest]
    assert not stored.exists()
    before = worker_of(here.mounts / FQRN)
    assert run(here, "cvmfsctl", "reload").stdout == f"{FQRN}  reloaded\n"
    assert worker_of(here.mounts / FQRN) != before
    assert json.loads(run(here, "cvmfsctl", "wipe", "--json").stdout)["bytes_left"] > 0
    line = json.loads(run(here, "cvmfsctl", "top", "--json", "--count", "1", "--every", "0.2").stdout)
    assert line["repository"] == FQRN


def test_prometheus_finds_the_numbers_on_the_configured_port(here: Site, tmp_path: Path) -> None:
    here.call("Mount", FQRN)
    port = (tmp_path / "port").read_text()
    with closing(urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)) as answer:
        text = answer.read().decode()
    assert f'cernvm_cvmfs_up{{repository="{FQRN}"}} 1' in text
    assert f'cernvm_cvmfs_downloads_total{{repository="{FQRN}"}}' in text
    with socket.create_connection(("127.0.0.1", int(port)), timeout=10) as rude:
        rude.sendall(b"POST / HTTP/1.0\r\n\r\n")
        assert b"405" in rude.recv(100)
