# SPDX-License-Identifier: BSD-3-Clause
"""Stored extended attributes: the blob in a catalog's row.  Pure; bounded by the blob's own length.

Format: docs/cvmfs-format.md, "Extended attributes"; enforced by tests/unit/test_cvmfs_catalog.py.
"""

from __future__ import annotations

from .errors import Malformed


def parse_xattrs(blob: bytes | None) -> dict[bytes, bytes]:
    """Read an xattr column: version 1, count, then per attribute two lengths, key and value.  Raises Malformed."""
    if not blob:
        return {}
    if len(blob) < 2 or blob[0] != 1:
        raise Malformed("a catalog entry's extended attributes have an unknown version")
    found = {}
    at = 2
    for _ in range(blob[1]):
        if at + 2 > len(blob):
            raise Malformed("a catalog entry's extended attributes end early")
        key_end = at + 2 + blob[at]
        value_end = key_end + blob[at + 1]
        if value_end > len(blob) or key_end == at + 2:
            raise Malformed("a catalog entry's extended attributes end early")
        found[blob[at + 2 : key_end]] = blob[key_end:value_end]
        at = value_end
    return found
