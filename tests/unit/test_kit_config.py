# SPDX-License-Identifier: BSD-3-Clause
"""Configuration files: every mistake gets one sentence with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from cernvm.kit.config import load
from cernvm.kit.errors import UserMistake

SPEC = """
[http]
# the port
port = integer(min=0, max=65535, default=8080)
hosts = string_list(default=list())
[repositories]
[[__many__]]
url = string
"""


def write(directory: Path, text: str) -> Path:
    path = directory / "toyd.conf"
    path.write_text(text)
    return path


def test_defaults_serve_without_a_file(tmp_path: Path) -> None:
    settings = load(SPEC, tmp_path / "absent.conf", required=False)
    assert settings["http"] == {"port": 8080, "hosts": []}


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match=r"absent\.conf: no such configuration file"):
        load(SPEC, tmp_path / "absent.conf", required=True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[http]\nprt = 1\n", "[http] prt: unknown key; did you mean port?"),
        ("[htp]\nport = 1\n", "htp: unknown section; did you mean http?"),
        ("port = 1\n", "port: unknown key outside of any section"),
        ("[http]\nport = many\n", '[http] port: the value "many" is of the wrong type'),
        ("[http]\nport = 70000\n", '[http] port: the value "70000" is too big'),
        ("[repositories]\n[[a.b]]\n", "[repositories / a.b] url: missing"),
        ("[repositories]\n[[a.b]]\nurl = u\nulr = v\n", "[repositories / a.b] ulr: unknown key; did you mean url?"),
        ("[http]\nnonsense\n", "line 2: neither a [section] nor a 'key = value' line"),
        ("[http\n", "line 1: neither a [section] nor a 'key = value' line"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place(tmp_path: Path, text: str, sentence: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserMistake) as caught:
        load(SPEC, path, required=True)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).endswith(sentence)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "toyd.conf"
    path.write_bytes(b"[http]\nport = \xff\n")
    with pytest.raises(UserMistake, match="not UTF-8 at byte 14"):
        load(SPEC, path, required=True)


def test_effective_values_are_shown_with_their_origin(tmp_path: Path) -> None:
    path = write(tmp_path, "[http]\nport = 81\n[repositories]\n[[a.b]]\nurl = u\n")
    assert list(load(SPEC, path, required=True).lines()) == [
        "[http]",
        f"port = 81  # {path}",
        "hosts = ,  # default",
        "[repositories]",
        "[[a.b]]",
        f"url = u  # {path}",
    ]
