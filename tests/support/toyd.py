# SPDX-License-Identifier: BSD-3-Clause
"""The smallest daemon that the life cycle can carry; tests run it as a process of its own.  No threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cernvm.kit.bus import Bus, BusObject, Caller, method, prop, signal
from cernvm.kit.config import Settings
from cernvm.kit.errors import Problem, UserMistake
from cernvm.kit.service import Life, Service, entry_point

NAME: Final = "ch.cern.cernvm.Toy1"
PATH: Final = "/ch/cern/cernvm/Toy1"

SPEC: Final = """
[toy]
# what goes wrong: nothing, a mistake, a problem, a bug, or an end that never comes
fault = option(none, mistake, problem, bug, late, hang, default=none)
# whether to stand on the system bus
bus = boolean(default=False)
"""


@dataclass(frozen=True)
class Config:
    """What the toy reads."""

    fault: str
    bus: bool


def configure(settings: Settings) -> Config:
    """Turn settings into the toy's configuration."""
    if settings["toy"]["fault"] == "late" and not settings["toy"]["bus"]:
        raise settings.mistake("toy", "fault", "a late fault needs the bus")
    return Config(settings["toy"]["fault"], settings["toy"]["bus"])


class Control(BusObject):
    """A method of each kind, a property of each kind, a signal."""

    interface = NAME

    def __init__(self, life: Life[Config]) -> None:
        self._life = life
        self._count = 0

    @method("si", "sa{sv}")
    async def Echo(self, text: str, number: int) -> tuple[str, dict[str, object]]:
        self._count += 1
        self.changed("Count")
        self.Echoed(text, number)
        return text, {"number": number, "list": ["a"], "inner": {"x": 1.5}}

    @method("s", "")
    async def Fail(self, kind: str) -> None:
        if kind == "mistake":
            raise UserMistake("the toy cannot do that; ask for less")
        if kind == "late":
            self._life.fail(Problem("the toy lost its head"))
            return
        raise RuntimeError("a bug")

    @method("", "u", caller=True)
    async def Who(self, caller: Caller) -> int:
        return caller.uid

    @prop("u")
    def Count(self) -> int:
        return self._count

    @prop("a{sv}")
    def Facts(self) -> dict[str, object]:
        return {"big": 1 << 40}

    @signal("si")
    def Echoed(self, text: str, number: int) -> None: ...


async def run(config: Config, life: Life[Config]) -> None:
    """Serve until told to stop, or fail as configured."""
    match config.fault:
        case "mistake":
            raise UserMistake("port 99: in use; choose another")
        case "problem":
            raise Problem("the disk went away")
        case "bug":
            raise RuntimeError("a bug")

    async def reload(new: Config) -> None:
        life.status(f"reloaded, bus {new.bus}")

    life.on_reload(reload)
    if not config.bus:
        life.ready("playing")
        await life.stopping.wait()
        return
    async with Bus.system() as bus:
        bus.export(PATH, Control(life))
        await bus.own(NAME)
        life.ready("playing on the bus")
        await life.stopping.wait()


if __name__ == "__main__":
    raise SystemExit(entry_point(Service("toyd", "A toy.", SPEC, configure, run))())
