# SPDX-License-Identifier: BSD-3-Clause
"""Values of D-Bus as plain Python and back.  Pure; thread-safe.

Plain Python means str, int, float, bool, bytes, list, tuple and dict; a variant is made from the Python type.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import dbus

_BASIC: Final = {
    "s": dbus.String,
    "o": dbus.ObjectPath,
    "g": dbus.Signature,
    "b": dbus.Boolean,
    "y": dbus.Byte,
    "n": dbus.Int16,
    "q": dbus.UInt16,
    "i": dbus.Int32,
    "u": dbus.UInt32,
    "x": dbus.Int64,
    "t": dbus.UInt64,
    "d": dbus.Double,
}


@dataclass(frozen=True)
class Declared:
    """A value on its way into a variant with a signature that its owner declared."""

    value: Any
    signature: str


def plain(value: Any) -> Any:
    """Return a received D-Bus value as plain Python (byte arrays as bytes)."""
    if isinstance(value, dbus.Boolean):
        return bool(value)
    if isinstance(value, dbus.ByteArray):
        return bytes(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, dbus.Array) and value.signature == "y":
        return bytes(value)
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, dbus.Struct | tuple):
        return tuple(plain(v) for v in value)
    return [plain(v) for v in value]


def signature_of(value: object) -> str:
    """Return the D-Bus signature by which a plain Python value travels inside a variant.  Raises TypeError."""
    match value:
        case bool():
            return "b"
        case int():
            return "x" if value < 1 << 63 else "t"
        case float():
            return "d"
        case str():
            return "s"
        case bytes():
            return "ay"
        case dict():
            return "a{sv}"
        case list() | tuple():
            kinds = {signature_of(v) for v in value}
            return "a" + (kinds.pop() if len(kinds) == 1 else "v" if kinds else "s")
    raise TypeError(f"{type(value).__name__} does not travel over D-Bus")


def typed(value: Any, signature: str, level: int = 0) -> Any:
    """Return `value` as the D-Bus type of the complete type `signature`, inside `level` variants."""
    if signature == "v":
        if isinstance(value, Declared):
            return typed(value.value, value.signature, level + 1)
        return typed(value, signature_of(value), level + 1)
    if signature in _BASIC:
        return _BASIC[signature](value, variant_level=level)
    if signature == "ay" and isinstance(value, bytes):
        return dbus.ByteArray(value, variant_level=level)
    if signature.startswith("a{"):
        key, item = dbus.Signature(signature[2:-1])
        pairs = {typed(k, key): typed(v, item) for k, v in value.items()}
        return dbus.Dictionary(pairs, signature=signature[2:-1], variant_level=level)
    if signature.startswith("a"):
        items = [typed(v, signature[1:]) for v in value]
        return dbus.Array(items, signature=signature[1:], variant_level=level)
    kinds = list(dbus.Signature(signature[1:-1]))
    return dbus.Struct(
        [typed(v, str(s)) for v, s in zip(value, kinds, strict=True)],
        signature=signature[1:-1],
        variant_level=level,
    )


def arguments(signature: str, values: Iterable[Any]) -> list[Any]:
    """Return `values` typed for the message signature `signature`.  Raises ValueError when the counts differ."""
    return [typed(v, str(s)) for v, s in zip(values, dbus.Signature(signature), strict=True)]
