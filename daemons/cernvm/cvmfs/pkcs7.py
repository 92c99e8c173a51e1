# SPDX-License-Identifier: BSD-3-Clause
"""A text inside a signed PKCS#7 message (RFC 2315, RFC 5652): the other form of a whitelist.

Just enough of BER is read to get at the content, the certificates and the signer; everything is bounded by the message
itself.  Thread-safe: pure.  Enforced by tests/unit/test_cvmfs_pkcs7.py.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509

from .authorities import Authorities, check_readable, signature_fits
from .errors import Malformed, Untrusted

MAX_DEPTH: Final = 30
MAX_NODES: Final = 5000
_PEM: Final = re.compile(rb"-----BEGIN (PKCS7|CMS)-----\s(.*?)-----END \1-----", re.DOTALL)
_SIGNED_DATA: Final = bytes.fromhex("2a864886f70d010702")
_MESSAGE_DIGEST: Final = bytes.fromhex("2a864886f70d010904")
_DIGESTS: Final = {
    bytes.fromhex("2b0e03021a"): "sha1",
    bytes.fromhex("608648016503040201"): "sha256",
    bytes.fromhex("608648016503040202"): "sha384",
    bytes.fromhex("608648016503040203"): "sha512",
}
_SEQUENCE, _SET, _OID, _OCTETS, _INTEGER = 0x30, 0x31, 0x06, 0x04, 0x02
_CHOICE_0: Final = 0xA0


@dataclass(frozen=True)
class _Node:
    """One element of BER: its tag, its parts if it has any, else its bytes; `raw` is all of it."""

    tag: int
    parts: tuple[_Node, ...]
    body: bytes
    raw: bytes

    def octets(self) -> bytes:
        """The bytes of an OCTET STRING, also of one in pieces."""
        return b"".join(part.octets() for part in self.parts) if self.parts else self.body


class _Reader:
    """Reads elements, at most MAX_NODES of them."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._left = MAX_NODES

    def read(self, at: int, end: int, depth: int = 0) -> tuple[_Node, int]:
        """The element at `at`, and where it ends.  Raises Malformed."""
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0 or at + 2 > end:
            raise _broken()
        data, begin = self._data, at
        tag, length = data[at], data[at + 1]
        at += 2
        if tag & 0x1F == 0x1F:
            raise _broken()
        if length == 0x80:
            return self._until_mark(tag, begin, at, end, depth)
        if length > 0x80:
            count = length & 0x7F
            if count > 4 or at + count > end:
                raise _broken()
            length = int.from_bytes(data[at : at + count], "big")
            at += count
        stop = at + length
        if stop > end:
            raise _broken()
        parts = []
        if tag & 0x20:
            while at < stop:
                part, at = self.read(at, stop, depth + 1)
                parts.append(part)
            return _Node(tag, tuple(parts), b"", data[begin:stop]), stop
        return _Node(tag, (), data[at:stop], data[begin:stop]), stop

    def _until_mark(self, tag: int, begin: int, at: int, end: int, depth: int) -> tuple[_Node, int]:
        """An element of indefinite length, as streaming writers make them."""
        parts = []
        while self._data[at : at + 2] != b"\0\0":
            part, at = self.read(at, end, depth + 1)
            parts.append(part)
        return _Node(tag, tuple(parts), b"", self._data[begin : at + 2]), at + 2


@dataclass(frozen=True)
class _Signer:
    issuer: bytes
    serial: int
    digest: str
    attributes: _Node | None
    signature: bytes


@dataclass(frozen=True)
class _Message:
    content: bytes
    certificates: tuple[x509.Certificate, ...]
    signers: tuple[_Signer, ...]


def verified_content(data: bytes, authorities: Authorities, uri: str, now: datetime, what: str) -> bytes:
    """Return the text in the PEM message if somebody signed it who may speak for `uri`.

    That is: whose certificate has `uri` as a subjectAltName and is issued by one of the authorities.  `what` names
    the message in errors.  Raises Malformed, Untrusted.
    """
    message = _parse(data, what)
    refusal = Untrusted(f"{what} is not signed by anybody")
    for signer in message.signers:
        try:
            certificate = _certificate_of(signer, message.certificates, what)
            _check_signature(signer, certificate, message.content, what)
            if uri not in _uris(certificate):
                raise Untrusted(f"{what} is signed by a certificate that is not for {uri}")
            authorities.check(certificate, message.certificates, now, f"{what}, its signer's certificate")
        except Untrusted as error:
            refusal = error
            continue
        return message.content
    raise refusal


def _parse(data: bytes, what: str) -> _Message:
    match = _PEM.search(data)
    if match is None:
        raise Malformed(f"{what} is not a PEM PKCS#7 message")
    try:
        der = base64.b64decode(match[2], validate=False)
        node, _ = _Reader(der).read(0, len(der))
        return _message(node)
    except (Malformed, binascii.Error, ValueError, IndexError, x509.InvalidVersion) as error:
        raise Malformed(f"{what} is not a signed PKCS#7 message") from error


def _message(node: _Node) -> _Message:
    kind, wrapped = _parts(node, _SEQUENCE)[:2]
    if (kind.tag, kind.body) != (_OID, _SIGNED_DATA):
        raise _broken()
    signed = _parts(_parts(wrapped, _CHOICE_0)[0], _SEQUENCE)
    content = _parts(_parts(signed[2], _SEQUENCE)[1], _CHOICE_0)[0].octets()
    certificates = [
        check_readable(x509.load_der_x509_certificate(one.raw))
        for part in signed[3:-1]
        if part.tag == _CHOICE_0
        for one in part.parts
    ]
    return _Message(content, tuple(certificates), tuple(_signer(one) for one in _parts(signed[-1], _SET)))


def _signer(node: _Node) -> _Signer:
    parts = _parts(node, _SEQUENCE)
    issuer, serial = _parts(parts[1], _SEQUENCE)
    digest = _DIGESTS.get(_parts(parts[2], _SEQUENCE)[0].body, "")
    attributes = parts[3] if parts[3].tag == _CHOICE_0 else None
    signature = parts[5 if attributes else 4]
    if signature.tag != _OCTETS or serial.tag != _INTEGER:
        raise _broken()
    return _Signer(issuer.raw, int.from_bytes(serial.body, "big", signed=True), digest, attributes, signature.body)


def _certificate_of(signer: _Signer, certificates: Sequence[x509.Certificate], what: str) -> x509.Certificate:
    for certificate in certificates:
        if certificate.issuer.public_bytes() == signer.issuer and certificate.serial_number == signer.serial:
            return certificate
    raise Untrusted(f"{what} does not bring its signer's certificate")


def _check_signature(signer: _Signer, certificate: x509.Certificate, content: bytes, what: str) -> None:
    if not signer.digest:
        raise Untrusted(f"{what} is signed with a digest that is not known")
    signed = content
    if signer.attributes is not None:
        digest = hashlib.new(signer.digest, content, usedforsecurity=False).digest()
        if _attribute(signer.attributes, _MESSAGE_DIGEST) != digest:
            raise Untrusted(f"{what} does not have the digest that its signer says")
        signed = bytes((_SET,)) + signer.attributes.raw[1:]
    if not signature_fits(certificate, signer.signature, signed, signer.digest):
        raise Untrusted(f"{what} has a signature that is not its signer's")


def _attribute(attributes: _Node, oid: bytes) -> bytes:
    for attribute in attributes.parts:
        if len(attribute.parts) == 2 and attribute.parts[0].body == oid and attribute.parts[1].parts:
            return attribute.parts[1].parts[0].body
    return b""


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _parts(node: _Node, tag: int) -> tuple[_Node, ...]:
    if node.tag != tag or not node.parts:
        raise _broken()
    return node.parts


def _broken() -> Malformed:
    return Malformed("broken BER")
