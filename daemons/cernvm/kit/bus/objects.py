# SPDX-License-Identifier: BSD-3-Clause
"""What a daemon shows on the bus: objects whose methods, properties and signals are declared in place.

Objects live on the asyncio loop; the connection calls into them there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar
from xml.sax.saxutils import quoteattr

import dbus

from .values import Declared

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Caller:
    """Who called a method: unique bus name and the user id that the bus vouches for."""

    name: str
    uid: int


@dataclass(frozen=True)
class MethodSpec:
    """A method as declared: signatures, and whether it wants to know its caller."""

    takes: str
    gives: str
    caller: bool


class Emitter(Protocol):
    """Where an exported object's signals go."""

    def emit(self, path: str, interface: str, name: str, signature: str, values: tuple[Any, ...]) -> None: ...


def method(takes: str = "", gives: str = "", *, caller: bool = False) -> Callable[[F], F]:
    """Declare a coroutine as a bus method with argument and result signatures.

    With two or more results it returns a tuple.  With `caller` its last parameter is a `Caller`.
    """

    def declare(function: F) -> F:
        function.__bus_method__ = MethodSpec(takes, gives, caller)  # type: ignore[attr-defined]  # a marker
        return function

    return declare


def prop(signature: str) -> Callable[[F], F]:
    """Declare a function without arguments as a read-only property."""

    def declare(function: F) -> F:
        function.__bus_property__ = signature  # type: ignore[attr-defined]  # a marker
        return function

    return declare


def signal(signature: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declare a function (its body is never run) as a signal: calling it emits."""

    def declare(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def emit(self: BusObject, *values: Any) -> None:
            self.emit(function.__name__, signature, values)

        emit.__bus_signal__ = signature  # type: ignore[attr-defined]  # a marker
        return emit

    return declare


class BusObject:
    """Base of exported objects: declares one interface."""

    interface: ClassVar[str]
    _methods: ClassVar[dict[str, MethodSpec]]
    _properties: ClassVar[dict[str, str]]
    _signals: ClassVar[dict[str, str]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        members = {name: getattr(cls, name) for name in dir(cls)}
        cls._methods = {n: m.__bus_method__ for n, m in members.items() if hasattr(m, "__bus_method__")}
        cls._properties = {n: m.__bus_property__ for n, m in members.items() if hasattr(m, "__bus_property__")}
        cls._signals = {n: m.__bus_signal__ for n, m in members.items() if hasattr(m, "__bus_signal__")}

    _emitter: Emitter | None = None
    _path: str = ""

    def attach(self, emitter: Emitter, path: str) -> None:
        """Tie this object to a connection (done by `Bus.export`)."""
        self._emitter, self._path = emitter, path

    def emit(self, name: str, signature: str, values: tuple[Any, ...]) -> None:
        """Send a signal; silent while the object is on no bus."""
        if self._emitter is not None:
            self._emitter.emit(self._path, self.interface, name, signature, values)

    def changed(self, *names: str) -> None:
        """Tell the bus the new values of the properties `names` (PropertiesChanged)."""
        if self._emitter is None:
            return
        values = {name: getattr(self, name)() for name in names}
        signature = "sa{sv}as"
        self._emitter.emit(
            self._path,
            dbus.PROPERTIES_IFACE,
            "PropertiesChanged",
            signature,
            (self.interface, {n: Declared(v, self._properties[n]) for n, v in values.items()}, []),
        )

    def find_method(self, interface: str | None, name: str) -> tuple[MethodSpec, Callable[..., Awaitable[Any]]] | None:
        """Return the declaration and the coroutine function of a method, or None."""
        if interface in (None, self.interface) and name in self._methods:
            return self._methods[name], getattr(self, name)
        return None

    def property_signature(self, name: str) -> str | None:
        """Return the signature of the property `name`, or None."""
        return self._properties.get(name)

    def properties(self) -> dict[str, tuple[str, Any]]:
        """Return all properties: name -> (signature, value)."""
        return {name: (signature, getattr(self, name)()) for name, signature in self._properties.items()}

    def introspection(self) -> str:
        """Return this object's interface as introspection XML (D-Bus specification, Introspection Data Format)."""
        lines = [f"<interface name={quoteattr(self.interface)}>"]
        for name, spec in sorted(self._methods.items()):
            args = "".join(f'<arg type="{s}" direction="in"/>' for s in dbus.Signature(spec.takes))
            args += "".join(f'<arg type="{s}" direction="out"/>' for s in dbus.Signature(spec.gives))
            lines.append(f'<method name="{name}">{args}</method>')
        for name, signature in sorted(self._properties.items()):
            lines.append(f'<property name="{name}" type="{signature}" access="read"/>')
        for name, signature in sorted(self._signals.items()):
            args = "".join(f'<arg type="{s}"/>' for s in dbus.Signature(signature))
            lines.append(f'<signal name="{name}">{args}</signal>')
        return "\n".join([*lines, "</interface>"])


def escape(text: str) -> str:
    """Return `text` as one element of an object path: other bytes than A-Z a-z 0-9 become _hh (as systemd does)."""
    return re.sub(rb"[^A-Za-z0-9]", lambda m: b"_%02x" % m.group()[0], text.encode()).decode() or "_"
