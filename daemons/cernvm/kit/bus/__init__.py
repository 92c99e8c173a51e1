# SPDX-License-Identifier: BSD-3-Clause
"""D-Bus, the wire between daemons of one host.  The only room that imports dbus-python.

Threads: a GLib loop in a thread of its own reads the bus and hands what arrives to the daemon's asyncio loop, where
everything of a daemon (methods, properties, signal callbacks) runs.
"""

from .connection import Bus, BusError, SyncBus
from .objects import BusObject, Caller, escape, method, prop, signal

__all__ = ["Bus", "BusError", "BusObject", "Caller", "SyncBus", "escape", "method", "prop", "signal"]
