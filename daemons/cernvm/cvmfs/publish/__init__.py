# SPDX-License-Identifier: BSD-3-Clause
"""Writing repositories: a directory tree becomes a signed revision in a storage directory.

Journey: `scan` (what is there) -> `objects` (content, cut, compressed and hashed in threads) -> `assemble` and
`catalogs` (SQLite) -> `sign` -> `store` (manifest LAST, atomically).  `repository` walks it.  One thread walks and
owns SQLite; worker threads deposit content.
"""

from .describe import Description, describe
from .repository import (
    Progress,
    Published,
    create_repository,
    publish_tree,
    read_manifest,
    resign_whitelist,
)
from .scan import measure

__all__ = [
    "Description",
    "Progress",
    "Published",
    "create_repository",
    "describe",
    "measure",
    "publish_tree",
    "read_manifest",
    "resign_whitelist",
]
