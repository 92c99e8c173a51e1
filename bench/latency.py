# SPDX-License-Identifier: BSD-3-Clause
"""A link with a constant delay between two network namespaces of our own, for kernels without netem.

Each namespace gets a TUN device; a child process carries every packet from one to the other after the delay.  Nothing
of the machine's own network is touched.  Needs root.  Inside a program that runs in the namespace (`Namespace.enter`)
the other end has its `address`.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import fcntl
import os
import secrets
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cernvm.kit.errors import Problem
from cernvm.kit.proc import die_with_parent, end, find_program

_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x0001 | 0x1000
_CLONE_NEWNET: Final = 0x40000000
_DEVICE: Final = "delayed"
_MTU: Final = 9000
"""Large packets: the delay matters here, not the number of packets that Python can carry."""
_LONGEST_QUEUE: Final = 20_000

_ADDRESSES: Final = ("192.0.2.1", "192.0.2.2")
"""Of the block for documentation (RFC 5737), so that no real network can be meant."""


@dataclass(frozen=True)
class Namespace:
    """One end of the link."""

    name: str
    address: str

    def enter(self, *command: str) -> list[str]:
        """The command line that runs `command` in this network namespace (and in the mount namespace of the caller)."""
        return [find_program("nsenter"), f"--net=/run/netns/{self.name}", *command]


@contextlib.contextmanager
def delayed_link(round_trip: float) -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces whose packets take `round_trip` seconds there and back.  Raises Problem."""
    tag = secrets.token_hex(3)
    ends = tuple(Namespace(f"bench-{tag}-{n}", a) for n, a in enumerate(_ADDRESSES))
    with contextlib.ExitStack() as stack:
        for one in ends:
            _ip("netns", "add", one.name)
            stack.callback(_ip, "netns", "delete", one.name)
        command = [sys.executable, "-m", "bench.latency", str(round_trip / 2), *(one.name for one in ends)]
        carrier = subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=die_with_parent)
        stack.callback(_stop, carrier)
        assert carrier.stdout is not None
        if carrier.stdout.readline() != b"ready\n":
            raise Problem("the delayed link could not be set up; it needs root and /dev/net/tun")
        for one in ends:
            _ip("-n", one.name, "link", "set", "lo", "up")
            _ip("-n", one.name, "addr", "add", f"{one.address}/30", "dev", _DEVICE)
            _ip("-n", one.name, "link", "set", _DEVICE, "mtu", str(_MTU), "up")
        yield ends[0], ends[1]


def _ip(*arguments: str) -> None:
    done = subprocess.run([find_program("ip"), *arguments], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise Problem(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    end(process)
    if process.stdout is not None:
        process.stdout.close()


# --- the child process that carries the packets


def _device(namespace: str) -> int:
    """Make the TUN device in `namespace`; returns its descriptor, which works from any namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    place = os.open(Path("/run/netns") / namespace, os.O_RDONLY)
    try:
        if libc.setns(place, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), namespace)
    finally:
        os.close(place)
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", _DEVICE.encode(), _IFF_TUN_NO_PI))
    return device


def _carry(source: int, target: int, delay: float) -> None:
    """Move packets one way, each `delay` seconds after it came; two threads, which end with the process."""
    waiting: collections.deque[tuple[float, bytes]] = collections.deque()
    arrived = threading.Semaphore(0)

    def receive() -> None:
        while True:
            packet = os.read(source, 65536)
            if len(waiting) < _LONGEST_QUEUE:  # beyond it packets are lost, as in any full queue
                waiting.append((time.monotonic() + delay, packet))
                arrived.release()

    def send() -> None:
        while True:
            arrived.acquire()
            due, packet = waiting.popleft()
            rest = due - time.monotonic()
            if rest > 0:
                time.sleep(rest)
            with contextlib.suppress(OSError):  # the device may not be up yet
                os.write(target, packet)

    for work in (receive, send):
        threading.Thread(target=work, daemon=True).start()


def main(argv: list[str]) -> int:
    """Carry packets between two namespaces until ended: DELAY_SECONDS NAMESPACE NAMESPACE."""
    delay, one, other = float(argv[0]), _device(argv[1]), _device(argv[2])
    _carry(one, other, delay)
    _carry(other, one, delay)
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
