# SPDX-License-Identifier: BSD-3-Clause
"""Jobs without software of a repository: from copilotctl over job manager, Prosody, agent and storage and back.

Real daemons, a private bus, a real Prosody; no cvmfsd.  tests/real/test_journey_job.py has the whole house.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cernvm.copilot_jobmanagerd.control import NAME, PATH
from cernvm.kit.bus import SyncBus
from tests.support.bus import private_bus
from tests.support.daemon import Daemon, command_line, project_environment
from tests.support.prosody import Prosody
from tests.support.server import free_port, wait_until

pytestmark = pytest.mark.real

ACCOUNTS = {name: f"{name}-secret" for name in ("manager", "storage", "agent1", "agent2")}
LEASE = 3


@dataclass
class Site:
    """Job manager, storage adapter and agents over one Prosody and one bus, in `directory`."""

    directory: Path
    prosody: Prosody
    environment: dict[str, str]
    stack: ExitStack
    port: int = field(default_factory=free_port)
    agents: dict[str, Daemon] = field(default_factory=dict)

    def start(self) -> None:
        self.ctl("make-keys", "--directory", str(self.directory / "keys"))
        self.storage = self.enter(
            "copilot-storaged",
            "storage",
            f"{self.xmpp('storage')}job_managers = {self.prosody.jid('manager')},\n[http]\nport = {self.port}\n"
            f"[store]\ndirectory = {self.directory}/store\nreserve_mb = 1\n"
            f"[tokens]\npublic_key = {self.directory}/keys/token.pub\n",
        )
        self.manager = self.enter(
            "copilot-jobmanagerd",
            "manager",
            f"{self.xmpp('manager')}[queue]\nfile = {self.directory}/manager/queue.sqlite\n"
            f"[jobs]\nlease_seconds = {LEASE}\n"
            f"[storage]\njid = {self.prosody.jid('storage')}\nurl = http://127.0.0.1:{self.port}\n"
            f"token_key = {self.directory}/keys/token.key\n",
        )

    def agent(self, name: str, account: str = "") -> Daemon:
        self.agents[name] = self.enter(
            "copilot-agentd",
            name,
            f"{self.xmpp(account or name)}manager = {self.prosody.jid('manager')}\n"
            f"[agent]\nname = {name}\ndirectory = {self.directory}/{name}/spool\nask_seconds = 2\n"
            f"bus_name = ch.cern.cernvm.CopilotAgent1.{name}\n",
        )
        return self.agents[name]

    def enter(self, name: str, directory: str, config: str) -> Daemon:
        return self.stack.enter_context(Daemon(name, self.directory / directory, config, self.environment))

    def xmpp(self, account: str) -> str:
        return (
            f"[xmpp]\njid = {self.prosody.jid(account)}\npassword_file = {self.prosody.password_file(account)}\n"
            f"host = 127.0.0.1\nport = {self.prosody.port}\nca_file = {self.prosody.ca_file}\n"
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command_line("copilotctl", *arguments),
            env=project_environment(self.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def ctl(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, text: str, *arguments: str) -> str:
        file = self.directory / "job.toml"
        file.write_text(text)
        return self.ctl("submit", str(file), *arguments).strip()

    def shell(self, script: str, outputs: str = "[]", name: str = "job") -> str:
        """Submit a shell script; its id."""
        arguments = json.dumps(["-c", script])
        return self.submit(f'name = "{name}"\ncommand = "/bin/sh"\narguments = {arguments}\noutput_files = {outputs}\n')

    def job(self, job: str) -> dict[str, Any]:
        with SyncBus.system() as bus:
            found: dict[str, Any] = json.loads(bus.call(NAME, PATH, NAME, "Get", "s", job))
        return found

    def until(self, job: str, *states: str, seconds: float = 60.0) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while (found := self.job(job))["state"] not in states:
            time.sleep(0.05)
            assert time.monotonic() < deadline, f"not {states} after {seconds} s: {found}"
        return found

    def fetch(self, job: str) -> Path:
        place = self.directory / "results" / job
        self.ctl("fetch", job, str(place))
        return place


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with ExitStack() as stack:
        bus = stack.enter_context(private_bus(tmp_path / "bus"))
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
        prosody = stack.enter_context(Prosody(tmp_path / "prosody", accounts=ACCOUNTS))
        site = Site(tmp_path, prosody, bus.environment, stack)
        site.start()
        yield site
    assert _processes_naming(str(tmp_path)) == []


def _processes_naming(text: str) -> list[str]:
    found = []
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdigit() and int(place.name) != os.getpid():
                line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found += [line] if text in line else []
        except OSError:
            continue
    return found


def test_a_job_with_inputs_comes_back_with_verified_outputs(site: Site, tmp_path: Path) -> None:
    site.agent("agent1")
    (tmp_path / "run.sh").write_text(
        '#!/bin/sh\necho "$JOB_ID $GREETING $1"\ncat data.txt more.txt > "out file"\necho oops >&2\n'
    )
    (tmp_path / "data.txt").write_text("data\n")
    (tmp_path / "more.txt").write_text("more\n")
    job = site.submit(
        'command = "run.sh"\narguments = ["one"]\ninput_files = ["run.sh", "data.txt"]\noutput_files = ["out file"]\n'
        'environment = { GREETING = "hello" }\n',
        "--input",
        str(tmp_path / "more.txt"),
    )
    done = site.until(job, "done", "failed")
    assert (done["state"], done["exit_code"], done["attempt"]) == ("done", 0, 1), done
    assert done["agent"] == "agent1@copilot.test/agent1"
    assert done["usage"]["wall_seconds"] > 0
    place = site.fetch(job)
    assert (place / "out file").read_text() == "data\nmore\n"
    assert (place / "_stdout").read_text() == f"{job} hello one\n"
    assert (place / "_stderr").read_text() == "oops\n"
    wait_until(lambda: not list((tmp_path / "agent1/spool/jobs").iterdir()), seconds=10, what="the agent forgetting it")


def test_a_job_that_fails_by_itself_is_not_tried_again_and_its_logs_come_back(site: Site) -> None:
    site.agent("agent1")
    job = site.shell("echo because >&2; exit 3")
    failed = site.until(job, "failed")
    assert (failed["exit_code"], failed["attempt"]) == (3, 1)
    assert "exit code 3" in failed["reason"]
    assert (site.fetch(job) / "_stderr").read_text() == "because\n"


def test_a_job_that_leaves_no_output_fails_naming_it(site: Site) -> None:
    site.agent("agent1")
    failed = site.until(site.shell("true", outputs='["histograms.json"]'), "failed")
    assert failed["reason"] == "the job left no output file histograms.json"


def test_when_an_agent_is_killed_another_finishes_its_job(site: Site) -> None:
    site.agent("agent1")
    site.agent("agent2")
    job = site.shell("sleep 4; echo $JOB_ID > out", outputs='["out"]')
    running = site.until(job, "running")
    victim = running["agent"].rpartition("/")[2]
    site.agents[victim].kill()
    done = site.until(job, "done", "failed")
    assert done["state"] == "done", done
    assert done["attempt"] == 2
    assert done["agent"].rpartition("/")[2] != victim
    assert "was not heard of for 3 s" in done["history"][0]["reason"]
    assert (site.fetch(job) / "out").read_text() == f"{job}\n"


def test_two_agents_may_share_an_account(site: Site) -> None:
    site.agent("agent1")
    site.agent("twin", account="agent1")
    jobs = [site.shell("sleep 2") for _ in range(2)]
    done = [site.until(job, "done", "failed") for job in jobs]
    assert [one["state"] for one in done] == ["done", "done"]
    assert {one["agent"] for one in done} == {"agent1@copilot.test/agent1", "agent1@copilot.test/twin"}


def test_an_agent_that_is_stopped_gives_its_job_back_at_once(site: Site) -> None:
    agent = site.agent("agent1")
    job = site.shell(f"echo {site.directory} > /dev/null; sleep 60")
    site.until(job, "running")
    assert agent.stop() == 0
    back = site.until(job, "queued", seconds=2)
    assert back["reason"] == "the agent was stopped"
    assert _processes_naming(f"echo {site.directory}") == []


def test_when_the_job_manager_is_killed_nothing_is_lost_or_run_twice(site: Site, tmp_path: Path) -> None:
    site.agent("agent1")
    site.agent("agent2")
    runs = tmp_path / "runs"
    jobs = [
        site.shell(f"echo $JOB_ID >> {runs}; sleep 1; echo $JOB_ID > out", outputs='["out"]', name=f"job {n}")
        for n in range(6)
    ]
    site.until(jobs[0], "running", "storing", "done")
    site.manager.kill()
    time.sleep(LEASE + 1.0)  # agents end their jobs, and every lease runs out, while nobody is there
    site.manager.start()
    for job in jobs:
        done = site.until(job, "done", "failed")
        assert done["state"] == "done", done
        assert (site.fetch(job) / "out").read_text() == f"{job}\n"
    assert sorted(runs.read_text().split()) == sorted(jobs)


def test_a_result_waits_on_the_agents_disk_while_everybody_is_away(site: Site, tmp_path: Path) -> None:
    agent = site.agent("agent1")
    job = site.shell("sleep 1; echo result > out", outputs='["out"]')
    site.until(job, "running")
    site.manager.kill()
    report = f"{job}.1/report.json"
    wait_until(lambda: (tmp_path / "agent1/spool/jobs" / report).exists(), seconds=10, what="the job's end")
    agent.kill()
    site.manager.start()
    agent.start()
    done = site.until(job, "done", "failed")
    assert (done["state"], done["attempt"]) == ("done", 1), done
    assert (site.fetch(job) / "out").read_text() == "result\n"


def test_a_cancelled_job_ends_everywhere(site: Site, tmp_path: Path) -> None:
    site.agent("agent1")
    job = site.shell(f"echo {site.directory} > /dev/null; sleep 60")
    site.until(job, "running")
    site.ctl("cancel", job)
    assert site.job(job)["state"] == "cancelled"
    wait_until(lambda: not _processes_naming(f"echo {site.directory}"), seconds=10, what="the program being ended")
    again = site.run("cancel", job)
    assert again.returncode == 2
    assert again.stderr == f"copilotctl: job {job} is cancelled already; there is nothing to cancel\n"


def test_agents_and_manager_find_each_other_again_after_the_server_was_away(site: Site) -> None:
    site.agent("agent1")
    job = site.shell("sleep 2; echo yes > out", outputs='["out"]')
    site.until(job, "running")
    site.prosody.restart()
    done = site.until(job, "done", "failed")
    assert done["state"] == "done", done


def test_watching_jobs_tells_each_change_and_the_status_tells_the_end(site: Site) -> None:
    site.agent("agent1")
    good, bad = site.shell("true", name="good"), site.shell("exit 1", name="bad")
    watched = site.run("watch", good, bad)
    assert watched.returncode == 1
    assert f"{good}  done" in watched.stdout
    assert f"{bad}  failed" in watched.stdout
    assert site.run("watch", good).returncode == 0
    assert "good" in site.ctl("list")
    assert len(json.loads(site.ctl("list", "--json", "--state", "failed"))) == 1


def test_a_wrong_job_file_is_one_sentence_and_status_2(site: Site) -> None:
    file = site.directory / "job.toml"
    for text, words in (
        ('comand = "x"', "unknown field 'comand'; did you mean command?"),
        ('command = "x"\ninput_files = ["absent"]', "there is no file"),
        ("command = 7", "field command must be text"),
    ):
        file.write_text(text)
        answer = site.run("submit", str(file))
        assert answer.returncode == 2
        assert answer.stderr.startswith(f"copilotctl: {file}: ")
        assert words in answer.stderr
        assert answer.stderr.count("\n") == 1
    assert json.loads(site.ctl("list", "--json")) == []


def test_an_unknown_job_and_a_missing_manager_are_told_in_one_sentence(site: Site) -> None:
    unknown = site.run("show", "00000000-0000-4000-8000-000000000000")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "there is no job" in unknown.stderr
    site.manager.stop()
    missing = site.run("list")
    assert missing.returncode == 1
    assert missing.stderr == ("copilotctl: the job manager is not running on this host; start copilot-jobmanagerd\n")
