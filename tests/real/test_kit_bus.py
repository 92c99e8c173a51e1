# SPDX-License-Identifier: BSD-3-Clause
"""Daemon and caller over a real, private dbus-daemon."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cernvm.kit.bus import Bus, BusError, SyncBus
from cernvm.kit.errors import Problem
from cernvm.kit.proc import end
from tests.support.bus import PrivateBus, private_bus
from tests.support.toyd import NAME, PATH

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateBus]:
    with private_bus(tmp_path) as bus:
        for name, value in bus.environment.items():
            monkeypatch.setenv(name, value)
        yield bus


@pytest.fixture
def toy(bus: PrivateBus, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    (tmp_path / "toyd.conf").write_text("[toy]\nbus = yes\n")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'daemons'}:{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.toyd", "--config", str(tmp_path / "toyd.conf")],
        env=environment,
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )
    try:
        _await_name()
        yield process
    finally:
        end(process)
        assert process.stderr is not None
        process.stderr.close()


def _await_name() -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        with SyncBus.system() as bus:
            if bus.call(
                "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "NameHasOwner", "s", NAME
            ):
                return
        time.sleep(0.05)
    raise AssertionError("the toy never took its name")


def test_methods_properties_and_signals_cross_as_plain_python(toy: subprocess.Popen[bytes]) -> None:
    async def converse() -> None:
        async with Bus.system() as bus:
            heard: asyncio.Queue[tuple[object, ...]] = asyncio.Queue()
            bus.subscribe(NAME, "Echoed", lambda *args: heard.put_nowait(args))
            bus.subscribe("org.freedesktop.DBus.Properties", "PropertiesChanged", lambda *a: heard.put_nowait(a))
            await bus.get(NAME, PATH, NAME, "Count")  # the match rules went before it
            answer = await bus.call(NAME, PATH, NAME, "Echo", "si", "hello", -5)
            assert answer == ("hello", {"number": -5, "list": ["a"], "inner": {"x": 1.5}})
            assert await asyncio.wait_for(heard.get(), 5) == (PATH, NAME, {"Count": 1}, [])
            assert await asyncio.wait_for(heard.get(), 5) == (PATH, "hello", -5)
            assert await bus.get(NAME, PATH, NAME, "Facts") == {"big": 1 << 40}
            assert await bus.call(NAME, PATH, NAME, "Who") == os.getuid()

    asyncio.run(converse())


@pytest.mark.parametrize(
    ("member", "signature", "args", "name", "text"),
    [
        ("Fail", "s", ("mistake",), "ch.cern.cernvm.Error.InvalidArgument", "the toy cannot do that; ask for less"),
        ("Fail", "s", ("bug",), "ch.cern.cernvm.Error.Internal", "RuntimeError: a bug"),
        ("Nothing", "", (), "org.freedesktop.DBus.Error.UnknownMethod", "has no method"),
        ("Fail", "i", (1,), "org.freedesktop.DBus.Error.InvalidArgs", "Fail takes 's', not 'i'"),
    ],
)
def test_errors_have_names_and_sentences(
    toy: subprocess.Popen[bytes], member: str, signature: str, args: tuple[object, ...], name: str, text: str
) -> None:
    with SyncBus.system() as bus, pytest.raises(BusError) as caught:
        bus.call(NAME, PATH, NAME, member, signature, *args)
    assert caught.value.name == name
    assert text in str(caught.value)


def test_an_absent_service_and_object_are_said_at_once(toy: subprocess.Popen[bytes]) -> None:
    with SyncBus.system() as bus:
        with pytest.raises(BusError, match=r"ch\.cern\.cernvm\.Nobody1"):
            bus.call("ch.cern.cernvm.Nobody1", PATH, NAME, "Echo")
        with pytest.raises(BusError, match="no object at /nowhere"):
            bus.call(NAME, "/nowhere", NAME, "Who")


def test_introspection_shows_what_is_declared(toy: subprocess.Popen[bytes]) -> None:
    with SyncBus.system() as bus:
        parent = bus.call(NAME, "/ch/cern", "org.freedesktop.DBus.Introspectable", "Introspect")
        assert '<node name="cernvm"/>' in parent
        text = bus.call(NAME, PATH, "org.freedesktop.DBus.Introspectable", "Introspect")
    for part in ('<method name="Echo">', '<property name="Count" type="u" access="read"/>', '<signal name="Echoed">'):
        assert part in text


def test_a_bus_name_has_one_owner(toy: subprocess.Popen[bytes]) -> None:
    async def take() -> None:
        async with Bus.system() as bus:
            await bus.own(NAME)

    with pytest.raises(Problem, match="another process owns this bus name"):
        asyncio.run(take())


def test_a_failure_in_mid_life_ends_the_daemon_with_its_sentence(toy: subprocess.Popen[bytes]) -> None:
    with SyncBus.system() as bus:
        bus.call(NAME, PATH, NAME, "Fail", "s", "late")
    assert toy.wait(10) == 1
    assert toy.stderr is not None
    assert toy.stderr.read().endswith(b"toyd: the toy lost its head\n")


def test_a_restarted_bus_finds_daemon_and_listener_again(bus: PrivateBus, toy: subprocess.Popen[bytes]) -> None:
    async def converse() -> None:
        async with Bus.system() as mine:
            heard: asyncio.Queue[tuple[object, ...]] = asyncio.Queue()
            mine.subscribe(NAME, "Echoed", lambda *args: heard.put_nowait(args))
            assert await mine.call(NAME, PATH, NAME, "Who") == os.getuid()
            await asyncio.to_thread(bus.server.restart)
            await asyncio.to_thread(_await_name)
            async with asyncio.timeout(20):
                while True:
                    try:
                        await mine.call(NAME, PATH, NAME, "Echo", "si", "again", 1)
                    except BusError:
                        await asyncio.sleep(0.05)
                    else:
                        break
                assert await heard.get() == (PATH, "again", 1)

    asyncio.run(converse())
    assert toy.poll() is None
