# SPDX-License-Identifier: BSD-3-Clause
"""Names of objects and of paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cernvm.cvmfs.errors import Malformed
from cernvm.cvmfs.hashes import (
    Algorithm,
    ContentHash,
    Hasher,
    Kind,
    hash_of,
    parse_fingerprint,
    parse_hash,
    path_hash,
)

hashes = st.builds(ContentHash, st.binary(min_size=20, max_size=20), st.sampled_from(Algorithm))


@given(hashes)
def test_text_and_fingerprint_read_back(one: ContentHash) -> None:
    assert parse_hash(str(one)) == one
    assert parse_hash(str(one).encode()) == one
    assert parse_fingerprint(one.fingerprint() + " # release manager") == one


@pytest.mark.parametrize(
    ("algorithm", "text"),
    [
        (Algorithm.SHA1, "e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78"),
        (Algorithm.RMD160, "a5cbe43e4dbf0bd4a0ba9d8ba5d9aedb8c7b4d21-rmd160"),
        (Algorithm.SHAKE128, "7f9c2ba4e88f827d616045507605853ed73b8093-shake128"),
    ],
)
def test_length_tells_the_algorithm(algorithm: Algorithm, text: str) -> None:
    assert parse_hash(text).algorithm is algorithm
    assert str(parse_hash(text)) == text


def test_known_digests() -> None:
    assert str(hash_of(b"abc")) == "a9993e364706816aba3e25717850c26c9cd0d89d"
    assert str(hash_of(b"abc", Algorithm.RMD160)) == "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc-rmd160"
    assert str(hash_of(b"", Algorithm.SHAKE128)) == "7f9c2ba4e88f827d616045507605853ed73b8093-shake128"


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_stream_hashes_like_the_whole(algorithm: Algorithm) -> None:
    hasher = Hasher(algorithm)
    for piece in (b"a", b"", b"bc"):
        hasher.update(piece)
    assert hasher.finish() == hash_of(b"abc", algorithm)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "d41d8cd98f00b204e9800998ecf8427e",
        "E8EC3D88B62EBF526E4E5A4FF6162A3AA48A6B78",
        "e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b7g",
        "e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78-rmd161",
        "e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78C",
        "\N{ARABIC-INDIC DIGIT ONE}" * 40,
    ],
)
def test_what_is_no_hash_is_refused(text: str) -> None:
    with pytest.raises(Malformed, match="not a content hash"):
        parse_hash(text)


@pytest.mark.parametrize("line", ["", "AB:CD", "# comment", "ab" * 20, "AB:" * 20 + "AB", "AB:" * 19 + "AB-MD5"])
def test_whitelist_lines_that_are_no_fingerprint_are_passed_over(line: str) -> None:
    assert parse_fingerprint(line) is None


def test_object_paths_carry_tag_and_kind() -> None:
    one = ContentHash(bytes(range(20)), Algorithm.RMD160)
    assert one.path(Kind.CATALOG) == "data/00/0102030405060708090a0b0c0d0e0f10111213-rmd160C"
    assert ContentHash(bytes(range(20))).path(Kind.FILE) == "data/00/0102030405060708090a0b0c0d0e0f10111213"


def test_path_hashes_are_little_endian_signed_halves() -> None:
    assert path_hash(b"") == (338333539836370388, 9098107892288553193)
    assert path_hash(b"/a") == (-2906336618250618618, -744252105585281751)
