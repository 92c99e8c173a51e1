# SPDX-License-Identifier: BSD-3-Clause
"""The manifest and its envelope."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cernvm.cvmfs.errors import Malformed
from cernvm.cvmfs.hashes import Algorithm, ContentHash
from cernvm.cvmfs.manifest import MAX_ENVELOPE, Manifest, parse_manifest, split_envelope, unsigned_envelope
from tests.support.cvmfs import fixture

hashes = st.builds(ContentHash, st.binary(min_size=20, max_size=20), st.sampled_from(Algorithm))
numbers = st.integers(0, 10**18 - 1)
manifests = st.builds(
    Manifest,
    root_hash=hashes,
    fqrn=st.from_regex(r"[a-z]{1,9}\.[a-z]{1,9}", fullmatch=True),
    revision=numbers,
    certificate=st.none() | hashes,
    root_size=st.none() | numbers,
    ttl=numbers,
    timestamp=numbers,
    history=st.none() | hashes,
    metainfo=st.none() | hashes,
    reflog=st.none() | hashes,
    garbage_collectable=st.booleans(),
    alternative_paths=st.booleans(),
)
BASE = Manifest(ContentHash(bytes(20)), "a.b", 7)


@given(manifests)
def test_a_manifest_reads_back(manifest: Manifest) -> None:
    assert parse_manifest(manifest.body()) == manifest


@pytest.mark.parametrize("name", ["small", "small-rmd160"])
def test_the_original_servers_manifest_is_written_as_it_was(name: str) -> None:
    data = (fixture(name) / "repo" / ".cvmfspublished").read_bytes()
    envelope = split_envelope(data, "the manifest")
    assert parse_manifest(envelope.text).body() == envelope.text
    assert envelope.join() == data


def test_unknown_letters_and_another_order_are_fine() -> None:
    lines = sorted(BASE.body().splitlines(keepends=True), reverse=True)
    assert parse_manifest(b"Qwhatever\n" + b"".join(lines) + b"\n") == BASE


@pytest.mark.parametrize("letter", "CRDSN")
def test_a_missing_line_is_named(letter: str) -> None:
    lines = [line for line in BASE.body().splitlines(keepends=True) if line[:1] != letter.encode()]
    with pytest.raises(Malformed, match=f"the manifest has no line {letter}"):
        parse_manifest(b"".join(lines))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b"S7\n", b"S-7\n", "line S is not a number"),
        (b"S7\n", b"S" + b"9" * 30 + b"\n", "line S is not a number"),
        (b"Rd41d", b"Rd41e", "does not describe the root"),
        (b"C0000", b"Cxxxx", "not a content hash"),
    ],
)
def test_wrong_values_are_refused(old: bytes, new: bytes, told: str) -> None:
    with pytest.raises(Malformed, match=told):
        parse_manifest(BASE.body().replace(old, new))


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for parse in (lambda: split_envelope(data, "it"), lambda: parse_manifest(data)):
        with suppress(Malformed):
            parse()


def test_an_envelope_with_changed_text_is_refused() -> None:
    good = replace(unsigned_envelope(BASE.body(), Algorithm.SHAKE128), signature=b"s" * 256).join()
    assert split_envelope(good, "the manifest").text == BASE.body()
    with pytest.raises(Malformed, match="the manifest does not have the hash that it says"):
        split_envelope(good.replace(b"S7", b"S8"), "the manifest")
    with pytest.raises(Malformed, match="carries no signature"):
        split_envelope(BASE.body(), "the manifest")
    with pytest.raises(Malformed, match="more than"):
        split_envelope(good + bytes(MAX_ENVELOPE), "the manifest")
