# SPDX-License-Identifier: BSD-3-Clause
"""Connections to the system bus: one for daemons (asyncio), one for commands (blocking).

`Bus` belongs to the asyncio thread; its connection to the GLib thread (`glib`), which hands over what arrives.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from random import Random
from typing import Any, Final, Self, TypeVar

import dbus
import dbus.bus
import dbus.lowlevel

from ..backoff import Backoff
from ..errors import Problem, sentence
from . import glib, values
from .objects import BusObject
from .serving import Serving

T = TypeVar("T")
log = logging.getLogger(__name__)

ERROR_PREFIX: Final = "ch.cern.cernvm.Error."
CALL_TIMEOUT: Final = 25.0
"""Seconds that a call waits for its answer unless told otherwise."""

RECONNECT: Final = Backoff(first=0.5, cap=15.0)

_BUS: Final = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")


class BusError(Problem):
    """A bus call failed; `name` is the D-Bus error name, `str()` the sentence that came with it."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name

    @property
    def ours(self) -> bool:
        """Whether a CernVM daemon said this (otherwise the bus itself: no such service, no answer)."""
        return self.name.startswith(ERROR_PREFIX)


def _open(mainloop: Any) -> Any:
    # by address, since libdbus reads the variable once per process and tests run several buses in one
    address = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/dbus/system_bus_socket")
    try:
        connection = dbus.bus.BusConnection(address, mainloop=mainloop)
    except dbus.DBusException as error:
        raise Problem(f"the system bus cannot be reached: {error.get_dbus_message()}") from error
    connection.set_exit_on_disconnect(False)
    return connection


def _request(address: tuple[str, str, str], member: str, signature: str, args: tuple[Any, ...]) -> Any:
    message = dbus.lowlevel.MethodCallMessage(*address, member)
    if signature:
        message.append(*values.arguments(signature, args), signature=signature)
    return message


def _result(reply: Any) -> Any:
    """Return the value of a reply (None, one value, or a tuple).  Raises BusError for an error reply."""
    args = [values.plain(a) for a in reply.get_args_list()]
    if reply.get_type() == dbus.lowlevel.MESSAGE_TYPE_ERROR:
        name = str(reply.get_error_name())
        raise BusError(name, _said(name, str(args[0]) if args else name))
    return None if not args else args[0] if len(args) == 1 else tuple(args)


def _said(name: str, text: str) -> str:
    """The sentence for a person; the bus's own refusal names rules where it should name a way."""
    if name == "org.freedesktop.DBus.Error.AccessDenied":
        return "the system bus does not allow this to you; be root or a member of the group cernvm"
    return text


class Bus:
    """A daemon's connection to the system bus (DBUS_SYSTEM_BUS_ADDRESS is honoured).

    When the bus goes away it comes back as soon as the bus does, with its names, objects and subscriptions.
    """

    def __init__(self) -> None:
        self._connection: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._serving: Serving | None = None
        self._names: list[str] = []
        self._subscriptions: list[tuple[str, str, Callable[..., None]]] = []
        self._reconnecting: asyncio.Task[None] | None = None
        self._closing = False

    @classmethod
    def system(cls) -> Self:
        """Return a connection to the system bus; enter it to connect.  Entering raises Problem."""
        return cls()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        if self._serving is not None:
            await self._serving.finish()
        await _there(self._connection.close)

    async def _connect(self) -> None:
        assert self._loop is not None
        loop = glib.main_loop()
        self._connection = connection = await _there(lambda: _open(loop))
        if self._serving is None:
            self._serving = Serving(connection, self._loop, self._uid_of)
        self._serving.connection = connection
        glib.do(lambda: connection.add_message_filter(self._filter))

    async def _reconnect(self) -> None:
        """Stand on the bus again when it is back: a restarted bus must not end mounts and jobs."""
        for delay in RECONNECT.delays(Random()):
            await asyncio.sleep(delay)
            try:
                await self._connect()
                for interface, member, _ in self._subscriptions:
                    self._match(interface, member)
                for name in self._names:
                    await self._own(name)
            except (Problem, dbus.DBusException) as error:
                log.info("the system bus is not back yet: %s", sentence(error))
                await _there(self._connection.close)  # may be closed already, which is no error
            else:
                log.info("the system bus is back")
                return

    async def own(self, name: str) -> None:
        """Take the well-known `name`.  Raises Problem when another process has it or the policy forbids it."""
        await self._own(name)
        self._names.append(name)

    async def _own(self, name: str) -> None:
        try:
            connection = self._connection
            answer = await _there(lambda: connection.request_name(name, dbus.bus.NAME_FLAG_DO_NOT_QUEUE))
        except dbus.DBusException as error:
            raise Problem(f"{name}: the bus refuses this name: {error.get_dbus_message()}") from error
        if answer not in (
            dbus.bus.REQUEST_NAME_REPLY_PRIMARY_OWNER,
            dbus.bus.REQUEST_NAME_REPLY_ALREADY_OWNER,
        ):
            raise Problem(f"{name}: another process owns this bus name; stop it first")

    def export(self, path: str, obj: BusObject) -> None:
        """Show `obj` at the object path `path`."""
        assert self._serving is not None
        self._serving.add(path, obj)

    def unexport(self, path: str) -> None:
        """Take away the object at `path`."""
        assert self._serving is not None
        self._serving.remove(path)

    async def call(
        self,
        name: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *args: Any,
        timeout: float = CALL_TIMEOUT,
    ) -> Any:
        """Call a method; returns plain Python (a tuple for several results).

        `timeout` in seconds.  Raises BusError.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def answered(reply: Any) -> None:  # in the GLib thread
            loop.call_soon_threadsafe(_settle, future, reply)

        message = _request((name, path, interface), member, signature, args)
        connection = self._connection
        try:
            await _there(lambda: connection.send_message_with_reply(message, answered, timeout))
        except dbus.DBusException as error:
            raise BusError(str(error.get_dbus_name()), f"{name}: {error.get_dbus_message()}") from error
        return _result(await asyncio.wait_for(future, timeout + 5.0))

    async def get(self, name: str, path: str, interface: str, prop: str, *, timeout: float = CALL_TIMEOUT) -> Any:
        """Return the value of a property as plain Python.  Raises BusError."""
        return await self.call(name, path, dbus.PROPERTIES_IFACE, "Get", "ss", interface, prop, timeout=timeout)

    def subscribe(self, interface: str, member: str, callback: Callable[..., None]) -> None:
        """Call `callback(path, *values)` on the asyncio loop at each such signal from anybody."""
        self._subscriptions.append((interface, member, callback))
        self._match(interface, member)

    def _match(self, interface: str, member: str) -> None:
        rule = f"type='signal',interface='{interface}',member='{member}'"
        connection = self._connection
        glib.do(lambda: connection.add_match_string_non_blocking(rule))

    async def _uid_of(self, sender: str) -> int:
        return int(await self.call(*_BUS, "GetConnectionUnixUser", "s", sender))

    def _filter(self, _connection: Any, message: Any) -> int:
        """Sort an incoming message; runs in the GLib thread, hands everything over, never raises."""
        kind = message.get_type()
        assert self._loop is not None
        if self._loop.is_closed():
            return int(dbus.lowlevel.HANDLER_RESULT_NOT_YET_HANDLED)
        if kind == dbus.lowlevel.MESSAGE_TYPE_METHOD_CALL and self._serving is not None:
            self._loop.call_soon_threadsafe(self._serving.accept, message)
            return int(dbus.lowlevel.HANDLER_RESULT_HANDLED)
        if kind == dbus.lowlevel.MESSAGE_TYPE_SIGNAL:
            self._loop.call_soon_threadsafe(self._signal, message)
        return int(dbus.lowlevel.HANDLER_RESULT_NOT_YET_HANDLED)

    def _signal(self, message: Any) -> None:
        interface, member = message.get_interface(), message.get_member()
        if interface == "org.freedesktop.DBus.Local" and member == "Disconnected":
            if not self._closing and self._loop is not None:
                log.warning("the system bus went away; trying to come back to it")
                glib.do(self._connection.close)
                self._reconnecting = self._loop.create_task(self._reconnect())
            return
        args = [values.plain(a) for a in message.get_args_list()]
        for wanted_interface, wanted_member, callback in self._subscriptions:
            if (interface, member) == (wanted_interface, wanted_member):
                try:
                    callback(str(message.get_path()), *args)
                except Exception as error:
                    log.error("handling signal %s.%s: %s", interface, member, sentence(error), exc_info=True)


def _there(work: Callable[[], T]) -> asyncio.Future[T]:
    """Have `work` done in the thread of libdbus."""
    return asyncio.wrap_future(glib.call(work))


def _settle(future: asyncio.Future[Any], reply: Any) -> None:
    if not future.done():
        future.set_result(reply)


class SyncBus:
    """A command's blocking connection to the system bus; for one thread."""

    def __init__(self) -> None:
        self._connection: Any = None

    @classmethod
    def system(cls) -> Self:
        """Return a connection to the system bus; enter it to connect.  Entering raises Problem."""
        return cls()

    def __enter__(self) -> Self:
        self._connection = _open(None)
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def call(
        self,
        name: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *args: Any,
        timeout: float = CALL_TIMEOUT,
    ) -> Any:
        """Call a method; returns plain Python (a tuple for several results).

        `timeout` in seconds.  Raises BusError.
        """
        message = _request((name, path, interface), member, signature, args)
        try:
            reply = self._connection.send_message_with_reply_and_block(message, timeout)
        except dbus.DBusException as error:
            text = error.get_dbus_message() or str(error)
            refused = str(error.get_dbus_name())
            raise BusError(refused, _said(refused, text)) from error
        return _result(reply)

    def get(self, name: str, path: str, interface: str, prop: str) -> Any:
        """Return the value of a property as plain Python.  Raises BusError."""
        return self.call(name, path, dbus.PROPERTIES_IFACE, "Get", "ss", interface, prop)

    def get_all(self, name: str, path: str, interface: str) -> dict[str, Any]:
        """Return all properties of an interface as plain Python.  Raises BusError."""
        result: dict[str, Any] = self.call(name, path, dbus.PROPERTIES_IFACE, "GetAll", "s", interface)
        return result
