# SPDX-License-Identifier: BSD-3-Clause
"""Grants: what one bearer may do with the files of one job, signed by the job manager.

The storage adapter keeps no list of jobs, agents or passwords: a token tells all that it has to know, and only the job
manager can write one (JWS, Ed25519, RFC 7515 and 8037).  The storage adapter holds the public key alone.
Thread-safe: values and keys that never change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cernvm.kit.errors import Problem, UserMistake, sentence
from cernvm.kit.files import write_atomically

from .job import JobId

AUDIENCE: Final = "copilot-storaged"
ALGORITHM: Final = "EdDSA"
LONGEST_TOKEN: Final = 16 * 1024
"""Bytes; what one HTTP header field of the storage adapter may hold."""
LEEWAY: Final = 10
"""Seconds by which the clocks of job manager and storage adapter may differ."""

Direction = Literal["put", "get"]
Scope = Literal["input", "output"]
T = TypeVar("T")


class BadToken(Problem):
    """A token that proves nothing: malformed, forged, expired, or meant for somebody else."""

    bus_name = "AccessDenied"


@dataclass(frozen=True)
class Grant:
    """What the bearer may do.

    `scope` "output" with direction "get" reads the accepted result; `attempt` counts from 1 and is 0 where it
    means nothing (a submitter's inputs, a result).  `names` None allows every name.  `max_bytes` bounds all files of
    the scope together; `expires` is in seconds since the epoch.
    """

    job: JobId
    attempt: int
    agent: str
    direction: Direction
    scope: Scope
    names: tuple[str, ...] | None
    max_bytes: int
    expires: int

    def allows(self, job: str, direction: Direction, scope: Scope, name: str) -> bool:
        """True when the grant covers one file (the attempt of an output is compared by its receiver)."""
        named = self.names is None or name in self.names
        return named and (self.job, self.direction, self.scope) == (job, direction, scope)


@dataclass(frozen=True)
class TokenIssuer:
    """The job manager's side."""

    key: Ed25519PrivateKey
    now: Callable[[], float] = time.time

    @classmethod
    def from_file(cls, path: Path) -> TokenIssuer:
        """Read the private key (PEM, PKCS #8).  Raises UserMistake naming `path`."""
        data = _read(path)
        if path.stat().st_mode & 0o007:
            raise UserMistake(f"{path}: the private token key is open to every user; do 'chmod o= {path}'")
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise UserMistake(f"{path}: not a private token key; {HOW}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise UserMistake(f"{path}: not an Ed25519 key; {HOW}")
        return cls(key)

    def issue(self, grant: Grant) -> str:
        """Sign `grant`.  Raises UserMistake when its names make it longer than a header may be."""
        claims = {
            "aud": AUDIENCE,
            "iat": int(self.now()),
            "exp": grant.expires,
            "job": grant.job,
            "attempt": grant.attempt,
            "agent": grant.agent,
            "direction": grant.direction,
            "scope": grant.scope,
            "names": None if grant.names is None else list(grant.names),
            "max_bytes": grant.max_bytes,
        }
        token = jwt.encode(claims, self.key, algorithm=ALGORITHM)
        if len(token) > LONGEST_TOKEN:
            raise UserMistake(f"job {grant.job}: its file names are too many or too long for one token")
        return token


@dataclass(frozen=True)
class TokenVerifier:
    """The storage adapter's side."""

    key: Ed25519PublicKey
    now: Callable[[], float] = time.time

    @classmethod
    def from_file(cls, path: Path) -> TokenVerifier:
        """Read the public key (PEM, SubjectPublicKeyInfo).  Raises UserMistake naming `path`."""
        try:
            key = serialization.load_pem_public_key(_read(path))
        except (ValueError, UnsupportedAlgorithm) as error:
            raise UserMistake(f"{path}: not a public token key; {HOW}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise UserMistake(f"{path}: not an Ed25519 key; {HOW}")
        return cls(key)

    def verify(self, token: str) -> Grant:
        """Return what `token` grants now.  Raises BadToken."""
        if len(token) > LONGEST_TOKEN:
            raise BadToken(f"the token is longer than {LONGEST_TOKEN} bytes")
        try:
            # The times are compared here, against a clock that tests can set.
            claims = jwt.decode(
                token,
                self.key,
                algorithms=[ALGORITHM],
                options={"verify_aud": False, "verify_exp": False, "verify_iat": False, "verify_nbf": False},
            )
        except jwt.InvalidTokenError as error:
            raise BadToken("the token is malformed or its signature is wrong") from error
        if claims.get("aud") != AUDIENCE:
            raise BadToken("the token is meant for another service")
        grant = _grant(claims)
        now = self.now()
        if now > grant.expires + LEEWAY:
            raise BadToken("the token has expired; ask the job manager for a new one")
        if now < _claim(claims, "iat", int) - LEEWAY:
            raise BadToken("the token comes from the future; compare the clocks of job manager and storage")
        return grant


def generate_keys(directory: Path) -> tuple[Path, Path]:
    """Make a key pair: `token.key` (0600) and `token.pub` (0644) in `directory`, which is made if need be.

    Returns both paths.  Raises UserMistake when one exists already or cannot be written.
    """
    private, public = directory / "token.key", directory / "token.pub"
    for path in (private, public):
        if path.exists():
            raise UserMistake(f"{path}: exists already, and tokens signed with it would lose their worth; move it away")
    key = Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    shown = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(private, secret, mode=0o600)
        write_atomically(public, shown, mode=0o644)
    except OSError as error:
        raise UserMistake(f"the token keys cannot be written: {sentence(error)}") from error
    return private, public


HOW: Final = "make a pair with 'copilotctl make-keys --directory DIR'"


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64 * 1024)
    except FileNotFoundError as error:
        raise UserMistake(f"{path}: no such token key file; {HOW}") from error
    except OSError as error:
        raise UserMistake(f"{path}: the token key cannot be read: {error.strerror}") from error


def _grant(claims: Mapping[str, Any]) -> Grant:
    direction, scope, names = claims.get("direction", ""), claims.get("scope", ""), claims.get("names", "")
    if direction not in get_args(Direction) or scope not in get_args(Scope):
        raise BadToken("the token grants nothing that is known here")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise BadToken("the token has no list of names")
    attempt, max_bytes = _claim(claims, "attempt", int), _claim(claims, "max_bytes", int)
    if attempt < 0 or max_bytes < 0:
        raise BadToken("the token has a negative number")
    return Grant(
        job=JobId(_claim(claims, "job", str)),
        attempt=attempt,
        agent=_claim(claims, "agent", str),
        direction=direction,
        scope=scope,
        names=None if names is None else tuple(names),
        max_bytes=max_bytes,
        expires=_claim(claims, "exp", int),
    )


def _claim(claims: Mapping[str, Any], name: str, kind: type[T]) -> T:
    value = claims.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BadToken(f"the token has no proper '{name}'")
    return value
