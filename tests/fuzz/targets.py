# SPDX-License-Identifier: BSD-3-Clause
"""The parsers under attack: each takes any bytes and may answer or raise `CvmfsProblem`, nothing else.

A parser gets past its own checksum where it has one (the text is hashed anew), so that what stands behind is reached.
"""

from __future__ import annotations

import base64
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.hazmat.primitives.serialization.pkcs7 import PKCS7Options, PKCS7SignatureBuilder
from cryptography.x509.oid import NameOID

from cernvm.cvmfs import flags
from cernvm.cvmfs.authorities import Authorities
from cernvm.cvmfs.cache import OpenObject
from cernvm.cvmfs.catalog import Catalog, Nested
from cernvm.cvmfs.errors import CvmfsProblem, Mistake
from cernvm.cvmfs.hashes import Algorithm, ContentHash, parse_fingerprint, parse_hash, path_hash
from cernvm.cvmfs.history import DatePin, TagPin, parse_date, pinned_tag, read_tags
from cernvm.cvmfs.manifest import Envelope, Manifest, parse_manifest, split_envelope, unsigned_envelope
from cernvm.cvmfs.pkcs7 import verified_content
from cernvm.cvmfs.symlinks import expand
from cernvm.cvmfs.trust import (
    Blacklist,
    check_certificate,
    check_manifest_signature,
    load_certificate,
    parse_blacklist,
    parse_whitelist,
)
from cernvm.cvmfs.xattrs import parse_xattrs

SOME: Final = ContentHash(bytes(range(20)))
MANIFEST: Final = Manifest(SOME, "fuzz.test.org", 7, certificate=SOME, history=SOME, timestamp=1_800_000_000)
WHITELIST: Final = (
    b"20300101000000\nE20400101000000\nNfuzz.test.org\nVpkcs7\n" + SOME.fingerprint().encode() + b" # x\n"
)
_NOW: Final = datetime(2030, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Target:
    """A parser, and samples that it accepts."""

    attack: Callable[[bytes], None]
    seeds: Sequence[bytes]


def manifest(data: bytes) -> None:
    """The letter lines, with a right hash around them."""
    text = b"\n".join(line for line in data.split(b"\n") if line != b"--") + b"\n"
    envelope = split_envelope(unsigned_envelope(text, Algorithm.SHA1).join() + b"signature", "it")
    parse_manifest(parse_manifest(envelope.text).body())


def envelope(data: bytes) -> None:
    """A signed text as it comes from a server."""
    parse_manifest(split_envelope(data, "it").text)


def whitelist(data: bytes) -> None:
    """The lines of a whitelist."""
    read = parse_whitelist(data)
    _ = read.expires <= _NOW


def blacklist(data: bytes) -> None:
    """A black list, and single hashes."""
    text = data.decode("utf-8", "replace")
    parse_blacklist(text).check_revision("fuzz.test.org", 5)
    parse_fingerprint(text)
    parse_hash(data)


def certificate(data: bytes) -> None:
    """A certificate."""
    read = load_certificate(data)
    with suppress(CvmfsProblem):
        check_manifest_signature(Envelope(b"", b"x" * 40, b"x" * 256), read, "fuzz.test.org")
    check_certificate(read, parse_whitelist(WHITELIST), Blacklist(), "fuzz.test.org")


def history(data: bytes) -> None:
    """A data base of tags."""
    tags = read_tags(data)
    for pin in (TagPin("trunk"), DatePin(10**9), parse_date(data[:20].decode("latin-1"))):
        with suppress(Mistake):
            _ = pin and pinned_tag(pin, tags, "fuzz.test.org")


def pkcs7(data: bytes) -> None:
    """A PKCS#7 whitelist: the message with or without its PEM around it."""
    pem = data if b"BEGIN" in data[:40] else _pem(data)
    parse_whitelist(verified_content(pem, Authorities((_CA,)), "cvmfs:fuzz.test.org", _NOW, "it"))


def _pem(data: bytes) -> bytes:
    return b"-----BEGIN PKCS7-----\n" + base64.encodebytes(data) + b"-----END PKCS7-----\n"


def xattrs(data: bytes) -> None:
    """An xattr column, and a link's target."""
    for name, value in parse_xattrs(data).items():
        assert 0 < len(name) < 256 > len(value)
    expand(data, {b"A": b"b"})


def catalog_bytes(data: bytes) -> None:
    """A data base file with broken pages."""
    with _file(data) as fd:
        _use(Catalog(OpenObject(fd), Nested(SOME, None), b""))


def catalog_cells(data: bytes) -> None:
    """A sound data base file with absurd values; the bytes are only where the random numbers begin."""
    random = Random(data)
    with tempfile.NamedTemporaryFile(prefix="fuzz", dir=_scratch()) as file:
        Path(file.name).write_bytes(_CATALOG)
        with sqlite3.connect(file.name) as database:
            for _ in range(random.randint(1, 5)):
                table = random.choice(sorted(_CELLS))
                column = random.choice(_CELLS[table])
                where = f"rowid = 1 + abs(random()) % (SELECT max(rowid) FROM {table})"
                with suppress(sqlite3.Error, OverflowError):
                    database.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (_absurd(random),))
        database.close()
        _use(Catalog(OpenObject(os.open(file.name, os.O_RDONLY)), Nested(SOME, None), b""))


def _absurd(random: Random) -> Any:
    text = random.choice(["", "/", "..", "a/b", "/a", "/sub/", "/sub/x", "\0", "é" * 200, "9" * 40, str(SOME), "2.4"])
    return random.choice(
        [
            *(None, 0, 1, -1, 2**31, 2**32 - 1, 2**63 - 1, -(2**63), 1.5, -1e300, 1e300, float("inf")),
            *(text, text.encode(), random.randbytes(20), random.randbytes(3), random.getrandbits(17)),
            *(random.getrandbits(63), 0o040755, 0o100644, 0o120777, 0o020644),
        ]
    )


def _use(catalog: Catalog) -> None:
    """Ask everything that a mounted repository asks."""
    _ = catalog.ttl
    for path in (b"", b"/dir", b"/sub", *list(catalog.nested)[:5]):
        with suppress(CvmfsProblem):
            catalog.find(path)
        with suppress(CvmfsProblem):
            for entry in catalog.children(path)[:50]:
                _entry(catalog, entry)
    sum(catalog.statistics().values())


def _entry(catalog: Catalog, entry: Any) -> None:
    with suppress(CvmfsProblem):
        parse_xattrs(entry.xattrs)
    expand(entry.target, {})
    with suppress(CvmfsProblem):
        for chunk in catalog.chunks(entry) if entry.flags & flags.CHUNKED else ():
            assert chunk.object.cache_name
    if entry.is_file:
        with suppress(CvmfsProblem):
            assert entry.object.cache_name


@contextmanager
def _file(data: bytes) -> Iterator[int]:
    fd = os.memfd_create("fuzz")
    os.write(fd, data)
    yield fd  # the catalog closes it


def _scratch() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


_COLUMNS: Final = (
    "md5path_1 INTEGER, md5path_2 INTEGER, parent_1 INTEGER, parent_2 INTEGER, hardlinks INTEGER, hash BLOB, "
    "size INTEGER, mode INTEGER, mtime INTEGER, mtimens INTEGER, flags INTEGER, name TEXT, symlink TEXT, "
    "uid INTEGER, gid INTEGER, xattr BLOB, PRIMARY KEY (md5path_1, md5path_2)"
)
_CELLS: Final = {
    "catalog": [column.split()[0] for column in _COLUMNS.split(", ")[:16]],
    "chunks": ["md5path_1", "md5path_2", "offset", "size", "hash"],
    "nested_catalogs": ["path", "sha1", "size"],
    "bind_mountpoints": ["path", "sha1", "size"],
    "properties": ["key", "value"],
    "statistics": ["counter", "value"],
}


def _make_catalog() -> bytes:
    database = sqlite3.connect(":memory:")
    database.execute("PRAGMA page_size = 1024")
    database.execute(f"CREATE TABLE catalog ({_COLUMNS})")
    database.execute("CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2)")
    database.execute("CREATE TABLE properties (key TEXT, value TEXT)")
    database.execute(
        "CREATE TABLE chunks (md5path_1 INTEGER, md5path_2 INTEGER, offset INTEGER, size INTEGER, hash BLOB)"
    )
    for table in ("nested_catalogs", "bind_mountpoints"):
        database.execute(f"CREATE TABLE {table} (path TEXT PRIMARY KEY, sha1 TEXT, size INTEGER)")
    database.execute("CREATE TABLE statistics (counter TEXT, value INTEGER)")
    pairs = [("schema", "2.5"), ("schema_revision", "7"), ("TTL", "300"), ("revision", "3")]
    database.executemany("INSERT INTO properties VALUES (?, ?)", pairs)
    database.executemany("INSERT INTO statistics VALUES (?, ?)", [("self_regular", 3), ("subtree_dir", 9)])
    database.execute("INSERT INTO nested_catalogs VALUES ('/sub', ?, 1000)", (str(SOME),))
    database.execute("INSERT INTO bind_mountpoints VALUES ('/bind', ?, 1000)", (str(SOME),))
    directory, file, link = (0o040755, 1), (0o100644, 4), (0o120777, 12)
    rows: list[tuple[str, tuple[int, int], int, bytes | None, str, bytes | None]] = [
        ("", directory, 4096, None, "", None),
        ("/dir", directory, 4096, None, "", b"\x01\x01\x04\x01user1"),
        ("/sub", (0o040755, 3), 4096, None, "", None),
        ("/bind", (0o040755, 1 | flags.BIND_MOUNTPOINT), 4096, None, "", None),
        ("/dir/file", file, 11, SOME.digest, "", b"\x01\x02\x06\x01user.a1\x06\x00user.b"),
        ("/dir/chunked", (0o100644, 4 | flags.CHUNKED), 30, None, "", None),
        ("/dir/external", (0o100644, 4 | flags.EXTERNAL | 1 << 11), 30, SOME.digest, "", None),
        ("/dir/link", link, 4, None, "$(A:-b)/c", None),
        ("/dir/device", (0o020644, 20), 259, None, "", None),
    ]
    for path, (mode, bits), size, digest, target, attributes in rows:
        own = path_hash(path.encode())
        above = path_hash(path.rpartition("/")[0].encode()) if path else (0, 0)
        name = path.rpartition("/")[2]
        values = (*own, *above, 1 << 32 | 1, digest, size, mode, 5, 6, bits, name, target, 1, 2, attributes)
        database.execute(f"INSERT INTO catalog VALUES ({', '.join('?' * 16)})", values)
    chunked = path_hash(b"/dir/chunked")
    for offset in (0, 10, 20):
        database.execute("INSERT INTO chunks VALUES (?, ?, ?, 10, ?)", (*chunked, offset, SOME.digest))
    database.commit()
    data = database.serialize()
    database.close()
    return data


_CATALOG: Final = _make_catalog()


_KEY: Final = rsa.generate_private_key(65537, 2048)


def _make_certificate() -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fuzz")])
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(_KEY.public_key())
    built = built.serial_number(7).not_valid_before(_NOW).not_valid_after(_NOW + timedelta(days=9))
    uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("cvmfs:fuzz.test.org")])
    return built.add_extension(uri, critical=False).sign(_KEY, hashes.SHA256())


_CA: Final = _make_certificate()


def _make_pkcs7() -> bytes:
    builder = PKCS7SignatureBuilder().set_data(WHITELIST).add_signer(_CA, _KEY, hashes.SHA256())
    return builder.sign(Encoding.DER, [PKCS7Options.Binary])


def _make_history() -> bytes:
    database = sqlite3.connect(":memory:")
    database.execute("PRAGMA page_size = 1024")
    database.execute(
        "CREATE TABLE tags (name TEXT PRIMARY KEY, hash TEXT, revision INTEGER, timestamp INTEGER, size INTEGER)"
    )
    for revision, name in enumerate(("v1", "trunk-previous", "trunk")):
        database.execute("INSERT INTO tags VALUES (?, ?, ?, ?, 9)", (name, str(SOME), revision, 10**9 + revision))
    database.commit()
    data = database.serialize()
    database.close()
    return data


_PKCS7: Final = _make_pkcs7()
TARGETS: Final = {
    "manifest": Target(manifest, [MANIFEST.body(), WHITELIST]),
    "envelope": Target(envelope, [unsigned_envelope(MANIFEST.body(), Algorithm.SHA1).join() + b"\x07" * 256]),
    "whitelist": Target(whitelist, [WHITELIST, MANIFEST.body()]),
    "blacklist": Target(blacklist, [WHITELIST + b"<fuzz.test.org 3\n", str(SOME).encode()]),
    "certificate": Target(certificate, [_CA.public_bytes(Encoding.PEM), _CA.public_bytes(Encoding.DER)]),
    "pkcs7": Target(pkcs7, [_PKCS7, _pem(_PKCS7)]),
    "history": Target(history, [_make_history()]),
    "xattrs": Target(xattrs, [b"\x01\x02\x06\x01user.a1\x06\x00user.b", b"$(A)/$(B:-c)/$("]),
    "catalog_bytes": Target(catalog_bytes, [_CATALOG]),
    "catalog_cells": Target(catalog_cells, [b"0123456789"]),
}
