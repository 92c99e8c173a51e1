# SPDX-License-Identifier: BSD-3-Clause
"""`.cvmfsdirtab`: which directories become nested catalogs without a marker file of their own.

Lines are absolute shell patterns whose wildcards do not cross a slash; `!` excludes (absolute, or relative to any
place); `#` begins a comment.  Pure; a `Dirtab` is a value.
Format: docs/cvmfs-publishing.md, "Nested catalogs"; enforced by tests/unit/test_publish_dirtab.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ..errors import Mistake

MAX_SIZE: Final = 1 << 20
"""Bytes."""


@dataclass(frozen=True)
class Dirtab:
    """The rules; without any, nothing matches."""

    wanted: tuple[re.Pattern[bytes], ...] = ()
    refused: tuple[re.Pattern[bytes], ...] = ()

    def matches(self, path: bytes) -> bool:
        """Whether the directory `path` (`b"/a/b"`) is to have a catalog of its own."""
        return any(rule.fullmatch(path) for rule in self.wanted) and not any(
            rule.fullmatch(path) for rule in self.refused
        )


def parse_dirtab(text: bytes) -> Dirtab:
    """Read the file's content.  Raises Mistake that names the line."""
    if len(text) > MAX_SIZE:
        raise Mistake(f".cvmfsdirtab: has more than {MAX_SIZE} bytes")
    wanted, refused = [], []
    for number, raw in enumerate(text.split(b"\n"), 1):
        line = raw.strip()
        if not line or line.startswith(b"#"):
            continue
        pattern = line.removeprefix(b"!").strip().rstrip(b"/")
        if not pattern:
            raise Mistake(f".cvmfsdirtab: line {number} has no pattern")
        if line.startswith(b"!"):
            anywhere = b"" if pattern.startswith(b"/") else b"(?:.*/)?"
            refused.append(_compiled(anywhere, pattern, number))
        elif pattern.startswith(b"/"):
            wanted.append(_compiled(b"", pattern, number))
        else:
            raise Mistake(f".cvmfsdirtab: line {number} does not begin with '/'")
    return Dirtab(tuple(wanted), tuple(refused))


def _compiled(prefix: bytes, pattern: bytes, number: int) -> re.Pattern[bytes]:
    try:
        return re.compile(prefix + b"".join(_translated(pattern)), re.DOTALL)
    except re.error:
        raise Mistake(f".cvmfsdirtab: line {number} is not a pattern") from None


_TOKEN: Final = re.compile(
    rb"\\(?P<quoted>.)|(?P<stars>\*+)|(?P<any>\?)|\[(?P<not>[!^]?)(?P<set>\]?[^\]/]*)\]|(?P<plain>.)", re.DOTALL
)


def _translated(pattern: bytes) -> list[bytes]:
    parts = []
    for token in _TOKEN.finditer(pattern):
        if token["stars"]:
            parts.append(b"[^/]*")
        elif token["any"]:
            parts.append(b"[^/]")
        elif token["set"] is not None:
            members = token["set"].replace(b"\\", b"\\\\").replace(b"]", b"\\]").replace(b"[", b"\\[")
            members = members.replace(b"^", b"\\^").replace(b"&", b"\\&").replace(b"~", b"\\~").replace(b"|", b"\\|")
            parts.append(b"(?!/)[" + (b"^" if token["not"] else b"") + members + b"]")
        else:
            parts.append(re.escape(token["quoted"] or token["plain"]))
    return parts
