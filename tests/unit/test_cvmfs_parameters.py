# SPDX-License-Identifier: BSD-3-Clause
"""The files below /etc/cvmfs, and what their parameters become."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cernvm.cvmfs import anchor, client, parameters, shell
from cernvm.cvmfs.errors import Mistake
from cernvm.cvmfs.magic import Visibility
from cernvm.cvmfs.parameters import Parameters, read_parameters
from tests.support.server import wait_until

FQRN = "sw.example.org"


def write(etc: Path, name: str, text: str) -> Path:
    file = etc / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def read(etc: Path, text: str) -> Parameters:
    write(etc, "default.local", text)
    return read_parameters(FQRN, etc)


def test_later_files_win(tmp_path: Path) -> None:
    files = [
        "default.conf",
        "default.d/10-a.conf",
        "default.d/20-b.conf",
        "default.local",
        "domain.d/example.org.conf",
        "domain.d/example.org.local",
        f"config.d/{FQRN}.conf",
        f"config.d/{FQRN}.local",
    ]
    for number, name in enumerate(files):
        write(tmp_path, name, f"LAST={number}\nONLY_{number}=$LAST\n")
        found = read_parameters(FQRN, tmp_path)
        assert found.values["LAST"] == parameters.Parameter(str(number), tmp_path / name)
    assert [found.get(f"ONLY_{number}") for number in range(len(files))] == [str(n) for n in range(len(files))]


def test_files_are_programs_of_the_shell(tmp_path: Path) -> None:
    write(tmp_path, "common.sh", "SHARED=from-common\n")
    text = """
        . ./common.sh
        if [ "$CVMFS_FQRN" = sw.example.org ]; then
            export CVMFS_SERVER_URL="http://a/cvmfs/@fqrn@;http://b/@org@"
        fi
        readonly QUOTED='it'"'"'s "here" \\ and
a second line'
        # COMMENTED=no
        echo this goes nowhere
        SHARED=$SHARED-and-here
        EMPTY=
        false
    """
    found = read(tmp_path, text)
    assert found.get("CVMFS_SERVER_URL") == "http://a/cvmfs/sw.example.org;http://b/sw"
    assert found.get("QUOTED") == 'it\'s "here" \\ and\na second line'
    assert found.get("SHARED") == "from-common-and-here"
    assert found.get("EMPTY", "unset") == ""
    assert "COMMENTED" not in found.values


def test_the_environment_of_the_daemon_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    assert read(tmp_path, "SEEN=${SECRET-nothing}").get("SEEN") == "nothing"


@pytest.mark.parametrize("text", ["A='unterminated\n", "exit 3\nA=1\n", "A=(1 2\n"])
def test_a_file_that_the_shell_cannot_run_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(Mistake, match=r"default\.local: the shell cannot run it: ") as refused:
        read(tmp_path, text)
    assert "\n" not in str(refused.value)


def test_a_file_that_does_not_end_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "DEADLINE", 0.05)
    with pytest.raises(Mistake, match=r"default\.local: the shell did not finish it"):
        read(tmp_path, "while :; do :; done\n")


@pytest.mark.parametrize("name", ["", "nodot", "../x.y", "a..b", ".a.b", "a b.c", "a.b\n", "x" * 300 + ".org"])
def test_what_is_no_repository_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Mistake, match="is not a repository name"):
        read_parameters(name, tmp_path)


def test_values_of_the_wrong_kind_name_file_and_parameter(tmp_path: Path) -> None:
    found = read(tmp_path, "FLAG=maybe\nNUMBER=ten\nON=On\nOFF=0\n")
    file = tmp_path / "default.local"
    with pytest.raises(Mistake, match=f"{file}: FLAG=maybe: neither yes nor no"):
        found.flag("FLAG", True)
    with pytest.raises(Mistake, match=f"{file}: NUMBER=ten: not a whole number"):
        found.number("NUMBER", 1)
    with pytest.raises(Mistake, match=f"{FQRN}: ABSENT is not set in any file below {tmp_path}"):
        found.need("ABSENT")
    assert (found.flag("ON", False), found.flag("OFF", True), found.flag("ABSENT", True)) == (True, False, True)
    assert found.number("ABSENT", 7) == 7


def test_the_configuration_repository_stands_between_the_sites_files(tmp_path: Path) -> None:
    etc, mounts = tmp_path / "etc", tmp_path / "cvmfs"
    theirs = mounts / "config.example.org/etc/cvmfs"
    order = [
        etc / "default.conf",
        etc / "default.d/10-a.conf",
        theirs / "default.conf",
        etc / "default.local",
        theirs / "domain.d/example.org.conf",
        etc / "domain.d/example.org.conf",
        etc / "domain.d/example.org.local",
        theirs / f"config.d/{FQRN}.conf",
        etc / f"config.d/{FQRN}.conf",
        etc / f"config.d/{FQRN}.local",
    ]
    for number, file in enumerate(order):
        first = "CVMFS_CONFIG_REPOSITORY=config.example.org\n" if number == 0 else ""
        write(file.parent, file.name, f"{first}LAST={number}\nSEEN=$SEEN,{number}\n")
        if number == 0:
            theirs.mkdir(parents=True)
        found = read_parameters(FQRN, etc, mounts)
        assert found.values["LAST"] == parameters.Parameter(str(number), file)
    assert found.get("SEEN") == "," + ",".join(str(number) for number in range(len(order)))
    alone = read_parameters("config.example.org", etc, mounts)
    assert alone.get("SEEN") == ",0,1,3,5,6", "it does not configure itself"


@pytest.mark.parametrize("late", ["default.local", "domain.d/example.org.conf", f"config.d/{FQRN}.local"])
def test_only_the_first_files_name_the_configuration_repository(
    tmp_path: Path, late: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cvmfs/one.example.org/etc/cvmfs").mkdir(parents=True)
    write(tmp_path, "default.conf", "CVMFS_CONFIG_REPOSITORY=none.example.org\n")
    write(tmp_path, "default.d/60-site.conf", "CVMFS_CONFIG_REPOSITORY=one.example.org\n")
    file = write(tmp_path, late, "CVMFS_CONFIG_REPOSITORY=two.example.org\n")
    found = read_parameters(FQRN, tmp_path, tmp_path / "cvmfs")
    assert found.get("CVMFS_CONFIG_REPOSITORY") == "one.example.org"
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"{file}: CVMFS_CONFIG_REPOSITORY can be set in default.conf and default.d only; left as it was"]
    assert parameters.config_repository(tmp_path) == "one.example.org"


def test_a_configuration_repository_that_is_away_is_told_or_required(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "default.conf", "CVMFS_CONFIG_REPOSITORY=config.example.org\nA=1\n")
    assert read_parameters(FQRN, tmp_path, tmp_path / "cvmfs").get("A") == "1"
    assert f"{FQRN}: the configuration repository config.example.org has no files at" in caplog.text
    write(tmp_path, "default.d/1.conf", "CVMFS_CONFIG_REPO_REQUIRED=yes\n")
    with pytest.raises(Mistake, match="CVMFS_CONFIG_REPO_REQUIRED says that nothing is mounted without them"):
        read_parameters(FQRN, tmp_path, tmp_path / "cvmfs")
    write(tmp_path, "default.conf", "CVMFS_CONFIG_REPOSITORY=../../etc\n")
    with pytest.raises(Mistake, match="is not a repository name"):
        read_parameters(FQRN, tmp_path, tmp_path / "cvmfs")


def test_only_the_given_files_are_read(tmp_path: Path) -> None:
    write(tmp_path, "default.local", "A=site\n")
    one = write(tmp_path, "one", "A=@fqrn@\nB=$A\n")
    two = write(tmp_path, "elsewhere/two", "B=$B-two\n")
    found = parameters.read_files(FQRN, [one, two])
    assert (found.get("A"), found.get("B")) == (FQRN, f"{FQRN}-two")
    with pytest.raises(Mistake, match=r"elsewhere/three: cannot be read: No such file"):
        parameters.read_files(FQRN, [one, two.with_name("three")])


def test_the_shell_is_confined(tmp_path: Path) -> None:
    left = tmp_path / "left"
    text = f"""
        FILES=$(ulimit -n)
        CORES=$(ulimit -c)
        GAINS=$(grep NoNewPrivs /proc/self/status)
        (sleep 300; : > {left}) &
        BACK=$!
        HOME_SEEN=${{HOME-none}}
    """
    found = read(tmp_path, text)
    assert (found.get("FILES"), found.get("CORES"), found.get("HOME_SEEN")) == ("64", "0", "none")
    assert found.get("GAINS").split() == ["NoNewPrivs:", "1"]
    status = Path(f"/proc/{found.get('BACK')}/stat")
    wait_until(lambda: not status.exists() or " Z " in status.read_text(), seconds=20, what="the end of what it left")
    assert not left.exists()


def test_a_file_that_says_too_much_is_named(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"default\.local: the shell cannot run it: "):
        read(tmp_path, "A=1\nB=$(head -c 3000000 /dev/zero | tr '\\0' x)\n")


def test_what_entries_look_like_follows_the_parameters(tmp_path: Path) -> None:
    plain = client.policy_of(read(tmp_path, "CVMFS_ARCH=x86_64\n"))
    assert plain.owner == (os.geteuid(), os.getegid())
    assert plain.variables[b"CVMFS_ARCH"] == b"x86_64"
    assert plain.variables[b"CVMFS_FQRN"] == FQRN.encode()
    other = client.policy_of(read(tmp_path, "CVMFS_CLAIM_OWNERSHIP=no\nCVMFS_MAGIC_XATTRS_VISIBILITY=Always\n"))
    assert (other.owner, other.list_magic) == (None, Visibility.ALWAYS)
    with pytest.raises(Mistake, match="CVMFS_MAGIC_XATTRS_VISIBILITY=some: none of rootonly, always, never"):
        client.policy_of(read(tmp_path, "CVMFS_MAGIC_XATTRS_VISIBILITY=some\n"))


def test_keys_and_black_list_come_from_where_the_parameters_say(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=rf"no public master key \(\*\.pub\) in {tmp_path / 'keys'}"):
        anchor.anchor_of(read(tmp_path, "A=1\n"))
    with pytest.raises(Mistake, match=r"/absent\.pub: the public master key cannot be read"):
        anchor.anchor_of(read(tmp_path, "CVMFS_PUBLIC_KEY=/absent.pub:/other.pub\n"))


def test_users_and_groups_are_shown_by_the_maps(tmp_path: Path) -> None:
    users = write(tmp_path, "users", "# site\n1000 2000 # somebody\n\n0\t5\n* 99\n")
    groups = write(tmp_path, "groups", "7 8\n")
    given = f"CVMFS_UID_MAP={users}\nCVMFS_GID_MAP={groups}\nCVMFS_CLAIM_OWNERSHIP=no\n"
    policy = client.policy_of(read(tmp_path, given))
    assert [policy.users.shown(number) for number in (1000, 0, 3)] == [2000, 5, 99]
    assert [policy.groups.shown(number) for number in (7, 3)] == [8, 3]
    write(tmp_path, "groups", "7 8\n7\n")
    with pytest.raises(Mistake, match=rf"{groups}: line 2 is not a number \(or \*\) and the number to show: '7'"):
        client.policy_of(read(tmp_path, given))
    groups.unlink()
    with pytest.raises(Mistake, match=rf"{groups}: cannot be read: No such file"):
        client.policy_of(read(tmp_path, given))
