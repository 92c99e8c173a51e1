# SPDX-License-Identifier: BSD-3-Clause
"""The units under a real systemd: this machine's own files, below a throw-away overlay, booted by systemd-nspawn.

One boot serves all tests: a script inside walks through the life of the units and writes down what it sees, a line
`name=value` each; the tests read that.  Nothing outside the overlay changes, and everything ends with the container.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from cernvm.kit.proc import find_program
from tests.support.cvmfs import missing
from tests.support.daemon import command_line, project_environment
from tests.support.prosody import certificates
from tests.walls.tree import ROOT, daemons, run, venv_program

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]

UNITS: Final = [daemon.name for daemon in daemons()]
OURS: Final = ["copilot-agentd", "copilot-jobmanagerd", "copilot-storaged"]
FQRN: Final = "units.example.org"
VENV: Final = "/opt/cernvm-venv"
"""Where the container has this interpreter's environment: units with ProtectHome= do not see /root and /home."""

OUTSIDE: Final = """
set -eu
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs "$SCRATCH"
mkdir "$SCRATCH/up" "$SCRATCH/work" "$SCRATCH/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$SCRATCH/up,workdir=$SCRATCH/work" "$SCRATCH/root"
cd "$SCRATCH/root"
rm -rf etc/systemd/system etc/fstab
mkdir -p etc/systemd/system opt/cernvm-venv
cp -a "$TREE/." .
"$SYSUSERS" --root="$PWD"
"$NSPAWN" -q -D "$PWD" --register=no --keep-unit --console=pipe --private-network --bind=/dev/fuse --bind=/dev/autofs \\
    --bind="$SHARED:/mnt" --bind-ro="$ENVIRONMENT:/opt/cernvm-venv" -b
find /sys/fs/cgroup/*/payload /sys/fs/cgroup/*/supervisor -depth -type d -exec rmdir {} + 2>/dev/null || true
"""

TARGET: Final = "[Unit]\nRequires=sysinit.target probe.service\nAfter=sysinit.target\nAllowIsolate=yes\n"

SERVICE: Final = """[Unit]
After=sysinit.target
[Service]
Type=oneshot
TimeoutStartSec=150
ExecStart=/bin/sh /mnt/inside.sh
ExecStopPost=/bin/sh -c 'journalctl --no-pager -o cat > /mnt/journal'
ExecStopPost=/bin/systemctl --no-block poweroff
StandardOutput=file:/mnt/seen
StandardError=file:/mnt/errors
"""

INSIDE: Final = """
PATH=/usr/sbin:/usr/bin:/sbin:/bin
say() { printf '%s=%s\\n' "$1" "$(echo $2)"; }
show() { systemctl show -P $2 $1; }
states() { for unit in $UNITS; do say "$1 $unit" "$(show $unit ActiveState)"; done; }
property() { busctl --timeout=20 get-property $1 /$(echo $1 | tr . /) $1 $2 2>&1; }
CVMFS="ch.cern.cernvm.Cvmfs1 /ch/cern/cernvm/Cvmfs1 ch.cern.cernvm.Cvmfs1"
mounted() { busctl --timeout=60 call $CVMFS Mount s $FQRN 2>&1; }
within() { n=0; until "$@" || [ $n -ge 100 ]; do n=$((n+1)); sleep 0.2; done; }
again() { [ "$(show $1 NRestarts)" = $2 ] && systemctl is-active -q $1; }

systemd-tmpfiles --create cvmfsd.conf
for unit in $OURS; do install -o $unit -m 400 /mnt/password /etc/cernvm/$unit.password; done
install -m 644 /mnt/ca.pem /etc/cernvm/copilot-ca.pem
install -m 644 /mnt/token.pub /etc/cernvm/token.pub
install -o copilot-jobmanagerd -m 400 /mnt/token.key /etc/cernvm/token.key
cp /mnt/keys/$FQRN.pub /etc/cvmfs/keys/
printf 'CVMFS_SERVER_URL=http://127.0.0.1:8000\\nCVMFS_HTTP_PROXY=DIRECT\\n' > /etc/cvmfs/config.d/$FQRN.conf
mkdir -p /run/systemd/system/copilot-storaged.service.d
printf '[Service]\\nWatchdogSec=2\\n' > /run/systemd/system/copilot-storaged.service.d/soon.conf
systemctl daemon-reload
systemd-run -q --unit=web /opt/cernvm-venv/bin/python -m http.server -d /mnt/storage -b 127.0.0.1 8000

systemctl enable -q $UNITS
systemctl start cernvm.target
for unit in $UNITS; do within systemctl is-active -q $unit; done; states started
for unit in $UNITS; do systemctl is-active -q $unit || exit 1; done
for unit in $UNITS; do say "status $unit" "$(show $unit StatusText)"; done
say mount "$(mounted)"
say content "$(cat /cvmfs/$FQRN/hello)"
say content-for-agent "$(cat /proc/$(show copilot-agentd MainPID)/root/cvmfs/$FQRN/hello)"
say capabilities "$(grep CapBnd /proc/$(show cvmfsd MainPID)/status)"

worker() { /opt/cernvm-venv/bin/python -c "import os; print(os.getxattr('/cvmfs/$FQRN', 'user.pid').decode())"; }
before=$(worker)
systemctl restart cvmfsd
say restarted "$(show cvmfsd ActiveState) $([ "$before" = "$(worker)" ] && echo same) $(cat /cvmfs/$FQRN/hello)"

systemctl reload $UNITS; states reloaded

for unit in $UNITS; do systemctl kill -s KILL --kill-whom=main $unit; done
for unit in $UNITS; do within again $unit 1; done; states killed
say mount-after-kill "$(mounted)"
say content-after-kill "$(cat /cvmfs/$FQRN/hello)"

systemctl kill -s STOP --kill-whom=main copilot-storaged
within again copilot-storaged 2
say watchdog "$(show copilot-storaged ActiveState) $(show copilot-storaged NRestarts)"

systemctl stop cernvm.target
gone() { [ -z "$(for unit in $UNITS; do show $unit ActiveState; done | grep -v inactive)" ]; }
within gone; states stopped
for unit in $UNITS; do say "result $unit" "$(show $unit Result)"; done
say mounts-left "$(grep -c /cvmfs/ /proc/self/mountinfo)"

printf '[cvmfsd]\\nautomount = %s,\\n' $FQRN > /etc/cernvm/cvmfsd.conf
systemctl daemon-reload
trigger=$(systemd-escape --path --suffix=automount /cvmfs/$FQRN)
systemctl start $trigger
say automount-waits "$(show $trigger ActiveState) $(show ${trigger%.automount}.mount ActiveState)"
say automount-content "$(timeout 60 cat /cvmfs/$FQRN/hello 2>&1)"
say automount-mounted "$(show ${trigger%.automount}.mount ActiveState)"
systemctl stop $trigger ${trigger%.automount}.mount
say automount-left "$(grep -c /cvmfs/ /proc/self/mountinfo)"

say activated "$(property ch.cern.cernvm.CopilotStorage1 ResultsAccepted)"
say activated-state "$(show copilot-storaged ActiveState)"

systemctl stop copilot-agentd
echo 'slots = none' > /etc/cernvm/copilot-agentd.conf
systemctl start copilot-agentd
say mistaken "$(for what in ActiveState ExecMainStatus NRestarts; do show copilot-agentd $what; done)"
echo end=yes
"""


def text_of(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else f"no {path.name}"


def publish(directory: Path) -> None:
    """A repository with one file, its keys, and the daemons' secrets: what the container finds in /mnt."""
    tree = directory / "tree"
    tree.mkdir()
    (tree / "hello").write_text("hello from the repository\n")
    places = [FQRN, "--storage", str(directory / "storage"), "--keys", str(directory / "keys")]
    environment = project_environment({})
    for arguments in (["mkfs", *places], ["publish", places[0], str(tree), *places[1:]]):
        subprocess.run(command_line("cvmfs-server", *arguments), env=environment, check=True, timeout=60)
    make_keys = command_line("copilotctl", "make-keys", "--directory", str(directory))
    subprocess.run(make_keys, env=environment, check=True, timeout=60)
    certificates(directory, "localhost")
    (directory / "password").write_text("secret\n")


def install(tree: Path) -> None:
    """Lay the installed files and the probe's units, to be copied over the container's root."""
    rst2man, python = f"RST2MAN={venv_program('rst2man')}", f"PYTHON={VENV}/bin/python"
    run(find_program("make"), "-s", "install", f"DESTDIR={tree}", rst2man, python)
    units = tree / "etc/systemd/system"
    units.mkdir(parents=True)
    (units / "default.target").write_text(TARGET)
    (units / "probe.service").write_text(SERVICE)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the script inside saw, by name."""
    if os.geteuid() != 0:
        missing("only root can boot a container")
    for device in ("/dev/fuse", "/dev/autofs"):
        if not Path(device).exists():
            missing(f"{device} is not here")
    directory = tmp_path_factory.mktemp("units")
    shared, tree, scratch = directory / "shared", directory / "tree", directory / "scratch"
    for path in (shared, tree, scratch):
        path.mkdir()
    publish(shared)
    install(tree)
    words = {"UNITS": " ".join(UNITS), "OURS": " ".join(OURS), "FQRN": FQRN}
    settings = "".join(f"{name}={shlex.quote(value)}\n" for name, value in words.items())
    (shared / "inside.sh").write_text(settings + INSIDE)
    environment = {
        "PATH": os.defpath,
        "SCRATCH": str(scratch),
        "SHARED": str(shared),
        "TREE": str(tree),
        "ENVIRONMENT": sys.prefix,
        "SYSUSERS": find_program("systemd-sysusers"),
        "NSPAWN": find_program("systemd-nspawn"),
    }
    # Everything inside ends with unshare's child, and its mounts with it.
    own = [find_program("unshare"), "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with (directory / "boot.log").open("wb") as log:
        boot = [*own, find_program("sh"), "-c", OUTSIDE]
        subprocess.run(
            boot, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=200, check=False
        )
    found = dict(line.split("=", 1) for line in text_of(shared / "seen").splitlines() if "=" in line)
    if found.get("end") != "yes":
        told = [
            text_of(path) for path in (directory / "boot.log", shared / "seen", shared / "errors", shared / "journal")
        ]
        pytest.fail("the walk through the units did not come to its end:\n" + "\n".join(told))
    return found


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_starts_and_tells_its_status(seen: dict[str, str], unit: str) -> None:
    assert seen[f"started {unit}"] == "active"
    assert seen[f"status {unit}"]


def test_a_mount_is_seen_outside_its_unit_and_inside_the_agents(seen: dict[str, str]) -> None:
    assert seen["mount"].startswith('o "/ch/cern/cernvm/Cvmfs1/mounts/')
    assert seen["content"] == "hello from the repository"
    assert seen["content-for-agent"] == "hello from the repository"


def test_cvmfsd_may_mount_and_read_and_nothing_else_of_root(seen: dict[str, str]) -> None:
    admin, read_search = 1 << 21, 1 << 2
    assert int(seen["capabilities"].split()[-1], 16) == admin | read_search


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_survives_a_reload_and_is_started_again_after_a_kill(seen: dict[str, str], unit: str) -> None:
    assert seen[f"reloaded {unit}"] == "active"
    assert seen[f"killed {unit}"] == "active"


def test_a_restart_of_cvmfsd_leaves_the_mounts_with_their_workers(seen: dict[str, str]) -> None:
    assert seen["restarted"] == "active same hello from the repository"


def test_a_configured_repository_is_mounted_when_somebody_first_looks(seen: dict[str, str]) -> None:
    assert seen["automount-waits"] == "active inactive"
    assert seen["automount-content"] == "hello from the repository"
    assert seen["automount-mounted"] == "active"
    assert seen["automount-left"] == "0"


def test_a_repository_can_be_mounted_again_after_cvmfsd_was_killed(seen: dict[str, str]) -> None:
    assert seen["mount-after-kill"].startswith('o "')
    assert seen["content-after-kill"] == "hello from the repository"


def test_a_daemon_that_hangs_is_replaced_by_the_watchdog(seen: dict[str, str]) -> None:
    assert seen["watchdog"] == "active 2"


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_stops_in_order(seen: dict[str, str], unit: str) -> None:
    assert seen[f"stopped {unit}"] == "inactive"
    assert seen[f"result {unit}"] == "success"
    assert seen["mounts-left"] == "0"


def test_a_call_on_the_bus_starts_the_service(seen: dict[str, str]) -> None:
    assert seen["activated"] == "u 0"
    assert seen["activated-state"] == "active"


def test_a_mistake_in_the_configuration_is_not_tried_again(seen: dict[str, str]) -> None:
    assert seen["mistaken"] == "failed 2 0"
