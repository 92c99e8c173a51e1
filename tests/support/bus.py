# SPDX-License-Identifier: BSD-3-Clause
"""A private dbus-daemon of type `system`, so that services can be tried beside the machine's own bus.

Without `policies` every user that may connect (the one that started it) may own and call everything.  With
`policies` the daemon starts from the closed default of a real system bus and reads the `*.conf` of that
directory: the way to test the policy files that the project ships.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from cernvm.kit.proc import find_program
from tests.support.server import Server, answers_unix

LONGEST_SOCKET_PATH: Final = 100
"""sun_path holds 108 bytes, and D-Bus clients want a little room."""

OPEN: Final = """
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="false"/>
    <allow send_type="signal"/>
    <allow receive_sender="*"/>
  </policy>
"""

CLOSED: Final = """
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Introspectable"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Properties"/>
  </policy>
  <includedir>{policies}</includedir>
"""

CONFIG: Final = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>{address}</listen>
  <auth>EXTERNAL</auth>
{policy}</busconfig>
"""


@dataclass(frozen=True)
class PrivateBus:
    """A running bus: its address, and the environment that points programs to it."""

    address: str
    server: Server

    @property
    def pid(self) -> int:
        """The process id of the daemon."""
        return self.server.pid

    @property
    def environment(self) -> dict[str, str]:
        """To be added to a child's environment; also GLib and dbus-python read it."""
        return {"DBUS_SYSTEM_BUS_ADDRESS": self.address}


@contextmanager
def private_bus(directory: Path, *, policies: Path | None = None) -> Iterator[PrivateBus]:
    """Run a dbus-daemon in `directory` until the block ends.  Raises ServerFailed."""
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        socket = directory / "bus.socket"
        if len(str(socket)) > LONGEST_SOCKET_PATH:
            socket = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bus-"))) / "socket"
        socket.unlink(missing_ok=True)
        address = f"unix:path={socket}"
        policy = OPEN if policies is None else CLOSED.format(policies=escape(str(policies.resolve())))
        config = directory / "bus.conf"
        config.write_text(CONFIG.format(address=escape(address), policy=policy), encoding="utf-8")
        command = [
            find_program("dbus-daemon"),
            f"--config-file={config}",
            "--nofork",
            "--nopidfile",
            "--nosyslog",
        ]
        log = directory / "bus.log"
        server = stack.enter_context(Server(command, log=log, ready=lambda: answers_unix(socket)))
        yield PrivateBus(address, server)
