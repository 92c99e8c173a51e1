# SPDX-License-Identifier: BSD-3-Clause
"""Writing repositories: a directory tree becomes a signed revision in a storage directory.

Journey: `scan` (what is there) -> `objects` (content, cut, compressed and hashed in threads) -> `assemble` and
`catalogs` (SQLite) -> `sign` -> `store` (manifest LAST, atomically).  `repository` walks it.  One thread walks and
owns SQLite; worker threads deposit content.
"""

from .check import Fault, Report, check_repository
from .describe import Description, describe
from .repository import (
    Progress,
    Published,
    create_repository,
    publish_tree,
)
from .repository import (
    read_repository as read_manifest,
)
from .scan import measure
from .trustees import KeyReport, install_whitelist, make_keys, resign_whitelist, sign_whitelist

__all__ = [
    "Description",
    "Fault",
    "KeyReport",
    "Progress",
    "Published",
    "Report",
    "check_repository",
    "create_repository",
    "describe",
    "install_whitelist",
    "make_keys",
    "measure",
    "publish_tree",
    "read_manifest",
    "resign_whitelist",
    "sign_whitelist",
]
