# SPDX-License-Identifier: BSD-3-Clause
"""A little of the fuzzing at each run of the tests; `python -m tests.fuzz` is the long one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.runner import Finding, attack, run
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_sound_is_read(name: str) -> None:
    for seed in TARGETS[name].seeds[:1]:
        assert attack(name, seed) is None


def test_no_parser_breaks_on_broken_bytes() -> None:
    found: list[Finding] = []
    counts = run(0, found.append, seconds=4, rounds=40)
    assert found == []
    assert sorted(counts) == sorted(TARGETS)


@settings(max_examples=25, deadline=None)
@given(data=st.binary(max_size=300))
@pytest.mark.parametrize("name", TARGETS)
def test_no_parser_breaks_on_any_bytes(name: str, data: bytes) -> None:
    assert attack(name, data) is None
