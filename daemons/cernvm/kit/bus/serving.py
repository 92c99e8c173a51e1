# SPDX-License-Identifier: BSD-3-Clause
"""Answering calls: exported objects by path, the standard interfaces, errors as D-Bus names.

Runs on the asyncio loop; what is sent goes through the thread of libdbus (`glib`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import dbus
import dbus.lowlevel

from ..errors import Problem, sentence
from . import glib, values
from .objects import BusObject, Caller

log = logging.getLogger(__name__)

_DOCTYPE: Final = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN" '
    '"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">'
)
_STANDARD: Final = """
<interface name="org.freedesktop.DBus.Introspectable"><method name="Introspect"><arg type="s" direction="out"/></method>
</interface><interface name="org.freedesktop.DBus.Properties">
<method name="Get"><arg type="s" direction="in"/><arg type="s" direction="in"/><arg type="v" direction="out"/></method>
<method name="GetAll"><arg type="s" direction="in"/><arg type="a{sv}" direction="out"/></method>
<method name="Set"><arg type="s" direction="in"/><arg type="s" direction="in"/><arg type="v" direction="in"/></method>
<signal name="PropertiesChanged"><arg type="s"/><arg type="a{sv}"/><arg type="as"/></signal></interface>"""

_ERROR: Final = "ch.cern.cernvm.Error."
_DBUS_ERROR: Final = "org.freedesktop.DBus.Error."
_FINISH: Final = 5.0


class Refused(Exception):
    """A call that no object answers; carries the standard D-Bus error name."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = _DBUS_ERROR + name


class Serving:
    """The exported objects of one connection."""

    def __init__(
        self, connection: Any, loop: asyncio.AbstractEventLoop, uid_of: Callable[[str], Awaitable[int]]
    ) -> None:
        self.connection = connection
        """Where answers and signals go; replaced when the bus was away."""
        self._loop = loop
        self._uid_of = uid_of
        self._objects: dict[str, BusObject] = {}
        self._calls: set[asyncio.Task[None]] = set()

    def add(self, path: str, obj: BusObject) -> None:
        """Show `obj` at `path`."""
        self._objects[path] = obj
        obj.attach(self, path)

    def remove(self, path: str) -> None:
        """Take the object at `path` away, if there is one."""
        self._objects.pop(path, None)

    def emit(self, path: str, interface: str, name: str, signature: str, args: tuple[Any, ...]) -> None:
        """Send a signal."""
        message = dbus.lowlevel.SignalMessage(path, interface, name)
        if signature:
            message.append(*values.arguments(signature, args), signature=signature)
        self._send(message)

    def accept(self, message: Any) -> None:
        """Start answering a method call."""
        task = self._loop.create_task(self._answer(message))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def finish(self) -> None:
        """Give calls under way a moment, then drop them; what was answered is on the wire afterwards."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=_FINISH)
        for task in self._calls:
            task.cancel()
        await asyncio.wrap_future(glib.call(self.connection.flush))

    async def _answer(self, message: Any) -> None:
        try:
            signature, result = await self._dispatch(message)
            reply = dbus.lowlevel.MethodReturnMessage(message)
            if signature:
                several = len(list(dbus.Signature(signature))) > 1
                reply.append(*values.arguments(signature, result if several else (result,)), signature=signature)
        except Refused as error:
            reply = dbus.lowlevel.ErrorMessage(message, error.name, str(error))
        except Problem as error:
            reply = dbus.lowlevel.ErrorMessage(message, _ERROR + error.bus_name, str(error))
        except Exception as error:
            log.error("answering %s: %s", message.get_member(), sentence(error), exc_info=True)
            reply = dbus.lowlevel.ErrorMessage(message, _ERROR + "Internal", sentence(error))
        if not message.get_no_reply():
            self._send(reply)

    def _send(self, message: Any) -> None:
        connection = self.connection
        glib.do(lambda: connection.send_message(message))

    async def _dispatch(self, message: Any) -> tuple[str, Any]:
        """Return the result signature and value of a call.  Raises Refused, Problem."""
        path, interface, member = message.get_path(), message.get_interface(), message.get_member()
        args = tuple(values.plain(a) for a in message.get_args_list())
        if interface == dbus.INTROSPECTABLE_IFACE and member == "Introspect":
            return "s", self._introspect(path)
        obj = self._objects.get(path)
        if obj is None:
            raise Refused("UnknownObject", f"no object at {path}")
        if interface == dbus.PROPERTIES_IFACE:
            return _properties(obj, member, args)
        found = obj.find_method(interface, member)
        if found is None:
            raise Refused("UnknownMethod", f"{path} has no method {interface}.{member}")
        spec, function = found
        if message.get_signature() != spec.takes:
            raise Refused("InvalidArgs", f"{member} takes '{spec.takes}', not '{message.get_signature()}'")
        if spec.caller:
            sender = str(message.get_sender())
            args = (*args, Caller(sender, await self._uid_of(sender)))
        return spec.gives, await function(*args)

    def _introspect(self, path: str) -> str:
        prefix = path.rstrip("/") + "/"
        children = {p[len(prefix) :].split("/")[0] for p in self._objects if p.startswith(prefix)}
        obj = self._objects.get(path)
        if obj is None and not children:
            raise Refused("UnknownObject", f"no object at {path}")
        body = _STANDARD + "\n" + obj.introspection() if obj else ""
        nodes = "".join(f'<node name="{child}"/>' for child in sorted(children))
        return f"{_DOCTYPE}\n<node>{body}{nodes}</node>"


def _properties(obj: BusObject, member: str, args: tuple[Any, ...]) -> tuple[str, Any]:
    """Answer org.freedesktop.DBus.Properties."""
    known = obj.properties() if args and args[0] in (obj.interface, "") else {}
    if member == "GetAll" and len(args) == 1:
        return "a{sv}", {name: values.Declared(value, sig) for name, (sig, value) in known.items()}
    if member == "Get" and len(args) == 2:
        if args[1] not in known:
            raise Refused("UnknownProperty", f"no property {args[0]}.{args[1]}")
        signature, value = known[args[1]]
        return "v", values.Declared(value, signature)
    if member == "Set":
        raise Refused("PropertyReadOnly", "all properties are read-only")
    raise Refused("UnknownMethod", f"no method org.freedesktop.DBus.Properties.{member} with these arguments")
