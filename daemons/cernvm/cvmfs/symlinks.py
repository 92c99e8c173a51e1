# SPDX-License-Identifier: BSD-3-Clause
"""Variables in the targets of symbolic links: one link, another platform.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_VARIABLE: Final = re.compile(rb"\$\(([^()]*)\)")


def expand(target: bytes, variables: Mapping[bytes, bytes]) -> bytes:
    """Replace `$(NAME)` and `$(NAME:-default)`; an unset name is empty or its default, `$(` without end stays."""
    if b"$(" not in target:
        return target

    def substitute(match: re.Match[bytes]) -> bytes:
        name, _, default = match[1].partition(b":-")
        return variables.get(name, default)

    return _VARIABLE.sub(substitute, target)
