# SPDX-License-Identifier: BSD-3-Clause
"""The storage adapter's table of statuses is total: nothing that the rooms below raise is left to chance."""

from __future__ import annotations

import pytest

from cernvm.copilot import disk, tokens
from cernvm.copilot_storaged import http
from cernvm.kit.errors import Problem

KINDS = sorted(
    {
        kind
        for module in (disk, tokens, http)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Problem) and kind.__module__ == module.__name__
    },
    key=lambda kind: kind.__name__,
)


def test_there_are_kinds_to_look_at() -> None:
    assert {"BadToken", "Mismatch", "Slow"} <= {kind.__name__ for kind in KINDS}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not disk.Refused])
def test_every_problem_has_a_status_of_its_own(kind: type[Problem]) -> None:
    assert kind in http.STATUS
    assert 400 <= http.status_of(kind("sentence")) < 600
