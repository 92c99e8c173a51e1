# SPDX-License-Identifier: BSD-3-Clause
"""Proxy auto-configuration: scripts run to an answer within bounds, and what becomes of the answer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from cernvm.cvmfs.errors import NoProxy
from cernvm.cvmfs.http import ServerFailed
from cernvm.cvmfs.pac import BadScript, discover, run_script, translate
from cernvm.cvmfs.pac_script import Functions, evaluate, shell_match

ADDRESSES = {"www.example.org": "192.0.2.7", "s1.cern.ch": "128.142.1.1"}
NOON = datetime(2026, 11, 18, 12, 30, 15, tzinfo=timezone(timedelta(hours=1)))
"""A Wednesday."""


def value(expression: str, now: datetime = NOON) -> str:
    functions = Functions(ADDRESSES.get, lambda: "10.1.2.3", now)
    script = f"function FindProxyForURL(url, host) {{ return String({expression}); }}"
    return evaluate(script, "http://www.example.org/cvmfs", "www.example.org", functions)


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("url + host", "http://www.example.org/cvmfswww.example.org"),
        ("isPlainHostName('www')", "true"),
        ("isPlainHostName(host)", "false"),
        ("dnsDomainIs(host, '.Example.org')", "true"),
        ("dnsDomainIs(host, '.example.com')", "false"),
        ("localHostOrDomainIs('www', 'www.example.org')", "true"),
        ("localHostOrDomainIs('home.example.org', 'www.example.org')", "false"),
        ("isResolvable(host)", "true"),
        ("isResolvable('nowhere.example.org')", "false"),
        ("isInNet(host, '192.0.2.0', '255.255.255.0')", "true"),
        ("isInNet('192.0.3.1', '192.0.2.0', '255.255.255.0')", "false"),
        ("isInNet('nowhere', '0.0.0.0', '0.0.0.0')", "false"),
        ("isInNet(myIpAddress(), '10.0.0.0', '255.0.0.0')", "true"),
        ("dnsResolve('s1.cern.ch')", "128.142.1.1"),
        ("dnsResolve('nowhere')", "null"),
        ("dnsDomainLevels(host)", "2"),
        ("shExpMatch(url, 'http://*/cvmfs')", "true"),
        ("shExpMatch(host, 'w?w.example.???')", "true"),
        ("shExpMatch(host, 'www.example')", "false"),
        ("alert('x')", "null"),
        ("weekdayRange('WED')", "true"),
        ("weekdayRange('THU', 'TUE')", "false"),
        ("weekdayRange('FRI', 'WED')", "true"),
        ("weekdayRange('MON', 'FRI', 'GMT')", "true"),
        ("timeRange(12)", "true"),
        ("timeRange(12, 'GMT')", "false"),
        ("timeRange(9, 17)", "true"),
        ("timeRange(22, 6)", "false"),
        ("timeRange(12, 30, 12, 45)", "true"),
        ("timeRange(12, 30, 16, 12, 45, 0)", "false"),
        ("dateRange(18)", "true"),
        ("dateRange('NOV')", "true"),
        ("dateRange(2026)", "true"),
        ("dateRange(1, 17)", "false"),
        ("dateRange('OCT', 'FEB')", "true"),
        ("dateRange(2025, 2027)", "true"),
        ("dateRange(20, 'NOV', 5, 'JAN')", "false"),
        ("dateRange(15, 'NOV', 5, 'JAN')", "true"),
        ("dateRange('JAN', 2026, 'OCT', 2026)", "false"),
        ("dateRange(1, 'JAN', 2026, 18, 'NOV', 2026)", "true"),
    ],
)
def test_scripts_have_the_functions_that_browsers_gave_them(expression: str, result: str) -> None:
    assert value(expression) == result


def test_a_pattern_cannot_take_for_ever() -> None:
    assert not shell_match("a" * 5000, "*" * 5000 + "b")


def test_midnight_elsewhere() -> None:
    assert value("dateRange(19, 'GMT')", datetime(2026, 11, 18, 23, 30, tzinfo=UTC) + timedelta(hours=1)) == "true"


def test_a_script_runs_in_a_process_of_its_own() -> None:
    script = 'function FindProxyForURL(u, h) { return h == "a.b" ? "PROXY " + dnsResolve("127.0.0.1") + ":1" : "X"; }'
    assert run_script(script, "http://a.b:8000/cvmfs/x") == "PROXY 127.0.0.1:1"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("while (true);", "did not end within"),
        ("function FindProxyForURL() { var a = []; while (true) a.push('x'.repeat(1e6)); }", "out of memory"),
        ("function f() { f(); } function FindProxyForURL() { f(); }", "stack overflow"),
        ("function FindProxyForURL() { return 3; }", "returns no text"),
        ("function FindProxyForURL() { throw 'no'; }", "no"),
        ("function FindProxyForURL() { return weekdayRange('x'); }", "."),
        ("FindProxyForURL = 3", "no function FindProxyForURL"),
        ("var x =", "SyntaxError"),
        ("<html>", "SyntaxError"),
        ("", "no function FindProxyForURL"),
    ],
)
def test_a_script_that_comes_to_nothing_is_told(script: str, told: str) -> None:
    with pytest.raises(BadScript, match=told):
        run_script(script, "http://a/", 2.0)


@pytest.mark.parametrize(
    ("answer", "proxies"),
    [
        ("PROXY a:3128; PROXY b:3128; DIRECT", "http://a:3128;http://b:3128;DIRECT"),
        ("DIRECT", "DIRECT"),
        (" HTTPS c:1 ;SOCKS d:1;; HTTP e:2;PROXY a:1;PROXY a:1", "https://c:1;http://e:2;http://a:1"),
        ("", ""),
        ("PROXY", ""),
        ("PROXY a|b:1; PROXY u@c:1", ""),
    ],
)
def test_an_answer_becomes_a_list_of_proxies(answer: str, proxies: str) -> None:
    assert translate(answer) == proxies


def script(answer: str) -> str:
    return f"function FindProxyForURL() {{ return {answer!r}; }}"


def test_the_first_file_that_names_a_proxy_counts_and_is_remembered(tmp_path: Path) -> None:
    files = {"http://b/": script(""), "http://c/": "junk(", "http://d/": script("PROXY p:1")}

    def download(url: str, seconds: float) -> str:
        assert 0 < seconds <= 60
        if url not in files:
            raise ServerFailed("HTTP status 404")
        return files[url]

    kept = tmp_path / "proxies.x"
    assert discover(["http://a/", *files], "http://s/", download, kept) == "http://p:1"
    assert kept.read_text() == "http://p:1\n"
    files.clear()
    assert discover(["http://d/"], "http://s/", download, kept) == "http://p:1", "that of last time"
    kept.unlink()
    with pytest.raises(NoProxy, match=r"no proxy was discovered for http://s/ \(http://d/: HTTP status 404\)"):
        discover(["http://d/"], "http://s/", download, kept)


def test_discovery_ends_in_time(tmp_path: Path) -> None:
    now = iter(range(0, 1000, 50))

    def download(url: str, seconds: float) -> str:
        raise ServerFailed("too slow")

    with pytest.raises(NoProxy, match=r"1/: too slow; http://2/: no time left"):
        discover(["http://1/", "http://2/"], "http://s/", download, tmp_path / "x", lambda: float(next(now)))
