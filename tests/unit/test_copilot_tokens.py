# SPDX-License-Identifier: BSD-3-Clause
"""Tokens: what was granted comes back, and nothing else does."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from cernvm.copilot.job import JobId
from cernvm.copilot.tokens import (
    LONGEST_TOKEN,
    BadToken,
    Grant,
    TokenIssuer,
    TokenVerifier,
    generate_keys,
)
from cernvm.kit.errors import UserMistake

JOB = JobId("7f3c9a52-5d0e-4a6b-9c3d-0b6f6f1f2a10")
NOW = 1_800_000_000
GRANT = Grant(JOB, 1, "agent1@copilot.test/x", "put", "output", ("hist.json", "_stdout"), 1000, NOW + 60)
KEY = Ed25519PrivateKey.generate()
ISSUER = TokenIssuer(KEY, now=lambda: NOW)


def verifier(at: float = NOW) -> TokenVerifier:
    return TokenVerifier(KEY.public_key(), now=lambda: at)


def claims(**changes: object) -> dict[str, object]:
    plain = json.loads(base64.urlsafe_b64decode(ISSUER.issue(GRANT).split(".")[1] + "=="))
    return {name: value for name, value in (plain | changes).items() if value is not ...}


def test_a_grant_comes_back_as_it_was_given() -> None:
    assert verifier().verify(ISSUER.issue(GRANT)) == GRANT
    anything = replace(GRANT, names=None, direction="get", scope="input", attempt=0)
    assert verifier().verify(ISSUER.issue(anything)) == anything


def test_a_grant_covers_its_own_job_direction_scope_and_names_only() -> None:
    assert GRANT.allows(JOB, "put", "output", "hist.json")
    assert not GRANT.allows("another", "put", "output", "hist.json")
    assert not GRANT.allows(JOB, "get", "output", "hist.json")
    assert not GRANT.allows(JOB, "put", "input", "hist.json")
    assert not GRANT.allows(JOB, "put", "output", "other")
    assert replace(GRANT, names=None).allows(JOB, "put", "output", "other")


@pytest.mark.parametrize("seconds", [71, 3600])
def test_an_expired_token_is_refused(seconds: int) -> None:
    with pytest.raises(BadToken, match="expired"):
        verifier(NOW + seconds).verify(ISSUER.issue(GRANT))


def test_clocks_may_differ_by_seconds_but_not_by_minutes() -> None:
    token = ISSUER.issue(GRANT)
    assert verifier(NOW + 69).verify(token) == GRANT
    assert verifier(NOW - 9).verify(token) == GRANT
    with pytest.raises(BadToken, match="future"):
        verifier(NOW - 60).verify(token)


def test_a_token_of_another_key_is_refused() -> None:
    forged = TokenIssuer(Ed25519PrivateKey.generate(), now=lambda: NOW).issue(GRANT)
    with pytest.raises(BadToken, match="signature"):
        verifier().verify(forged)


def test_a_changed_claim_breaks_the_signature() -> None:
    header, _, signature = ISSUER.issue(GRANT).split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims(max_bytes=10**9)).encode()).rstrip(b"=").decode()
    with pytest.raises(BadToken, match="signature"):
        verifier().verify(f"{header}.{body}.{signature}")


def test_other_algorithms_are_refused_even_when_they_fit() -> None:
    unsigned = jwt.encode(claims(), "", algorithm="none")
    shared = jwt.encode(claims(), "k" * 32, algorithm="HS256")
    for token in (unsigned, shared):
        with pytest.raises(BadToken):
            verifier().verify(token)


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "another"},
        {"aud": ["copilot-storaged"]},
        {"aud": ...},
        {"exp": ...},
        {"exp": "tomorrow"},
        {"exp": True},
        {"iat": ...},
        {"job": ...},
        {"job": 7},
        {"attempt": -1},
        {"attempt": "1"},
        {"agent": ...},
        {"direction": "delete"},
        {"direction": ["put"]},
        {"scope": ...},
        {"names": ...},
        {"names": "hist.json"},
        {"names": [1]},
        {"max_bytes": -1},
        {"max_bytes": ...},
    ],
)
def test_a_claim_that_is_absent_or_odd_is_refused(changes: dict[str, object]) -> None:
    token = jwt.encode(claims(**changes), KEY, algorithm="EdDSA")
    with pytest.raises(BadToken):
        verifier().verify(token)


@given(st.text(max_size=200))
def test_arbitrary_text_is_no_token(text: str) -> None:
    with pytest.raises(BadToken):
        verifier().verify(text)


def test_a_token_is_bounded_on_both_sides() -> None:
    with pytest.raises(BadToken, match="longer"):
        verifier().verify("a" * (LONGEST_TOKEN + 1))
    with pytest.raises(UserMistake, match=JOB):
        ISSUER.issue(replace(GRANT, names=tuple(f"{n:0200}" for n in range(100))))


def test_generated_keys_work_and_the_private_one_is_private(tmp_path: Path) -> None:
    private, public = generate_keys(tmp_path / "keys")
    assert (private.name, public.name) == ("token.key", "token.pub")
    assert private.stat().st_mode & 0o777 == 0o600
    assert public.stat().st_mode & 0o777 == 0o644
    issuer = replace(TokenIssuer.from_file(private), now=lambda: NOW)
    assert replace(TokenVerifier.from_file(public), now=lambda: NOW).verify(issuer.issue(GRANT)) == GRANT


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    private, _ = generate_keys(tmp_path)
    before = private.read_bytes()
    with pytest.raises(UserMistake, match=str(private)):
        generate_keys(tmp_path)
    assert private.read_bytes() == before


def test_a_key_file_that_is_absent_wrong_or_open_is_told_in_one_sentence(tmp_path: Path) -> None:
    private, public = generate_keys(tmp_path)
    absent = tmp_path / "absent.pub"
    with pytest.raises(UserMistake, match=f"{absent}: no such token key file"):
        TokenVerifier.from_file(absent)
    with pytest.raises(UserMistake, match=f"{private}: not a public"):
        TokenVerifier.from_file(private)
    with pytest.raises(UserMistake, match=f"{public}: .*open to every user"):
        TokenIssuer.from_file(public)
    public.chmod(0o600)
    with pytest.raises(UserMistake, match=f"{public}: not a private"):
        TokenIssuer.from_file(public)
