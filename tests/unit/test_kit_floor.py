# SPDX-License-Identifier: BSD-3-Clause
"""The floor's small stones: back-off, atomic files, sentences, bus values."""

from __future__ import annotations

import itertools
from pathlib import Path
from random import Random

import pytest

from cernvm.kit.backoff import Backoff
from cernvm.kit.bus import escape
from cernvm.kit.bus.values import arguments, plain, signature_of
from cernvm.kit.errors import Problem, UserMistake, sentence
from cernvm.kit.files import replacing, write_atomically
from cernvm.kit.proc import find_program


def test_backoff_doubles_up_to_its_cap_with_jitter_and_ends() -> None:
    delays = list(Backoff(first=1.0, cap=4.0, tries=5).delays(Random(1)))
    for delay, step in zip(delays, [1, 2, 4, 4, 4], strict=True):
        assert step / 2 <= delay <= step
    assert len(set(delays)) == 5


def test_backoff_without_tries_never_ends() -> None:
    assert len(list(itertools.islice(Backoff(1.0, 2.0).delays(Random(1)), 1000))) == 1000


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomically(path, b"old", mode=0o600)

    def killed_between_two_writes() -> None:
        with replacing(path) as file:
            file.write(b"half of the new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        killed_between_two_writes()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600


def test_errors_read_as_sentences() -> None:
    assert sentence(UserMistake("a: b")) == "a: b"
    assert sentence(FileNotFoundError(2, "No such file or directory", "/x")) == "/x: No such file or directory"
    assert sentence(KeyError("k")) == "KeyError: 'k'"
    assert (Problem.exit_status, UserMistake.exit_status) == (1, 2)


def test_a_missing_program_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(UserMistake, match="nginx: program not found; install"):
        find_program("nginx")


@pytest.mark.parametrize(
    ("value", "signature"),
    [
        ("text", "s"),
        (7, "x"),
        (2**63, "t"),
        (True, "b"),
        (1.5, "d"),
        (b"ab", "ay"),
        ([], "as"),
        (["a"], "as"),
        ([1, "a"], "av"),
        ({"a": 1}, "a{sv}"),
    ],
)
def test_plain_values_survive_a_variant(value: object, signature: str) -> None:
    assert signature_of(value) == signature
    (travelled,) = arguments("v", (value,))
    assert plain(travelled) == value
    assert type(plain(travelled)) is type(value)


def test_structures_keep_their_declared_signature() -> None:
    values = ([("r", 1, {"k": 2})], ["a"])
    assert [plain(v) for v in arguments("a(sua{sv})as", values)] == [[("r", 1, {"k": 2})], ["a"]]
    with pytest.raises(ValueError, match="zip"):
        arguments("ss", ("one",))
    with pytest.raises(TypeError):
        arguments("v", (object(),))


def test_names_become_path_elements() -> None:
    assert escape("small.test.org") == "small_2etest_2eorg"
