# SPDX-License-Identifier: BSD-3-Clause
"""Writing repositories: a directory tree becomes a signed revision in a storage directory.

Journey: `scan` (what is there) -> `objects` (content, cut, compressed and hashed in threads) -> `assemble` and
`catalogs` (SQLite) -> `sign` -> `store` (manifest LAST, atomically).  `repository` walks it.  One thread walks and
owns SQLite; worker threads deposit content.
"""

from .archive import Bounds
from .check import Fault, Report, check_repository
from .collect import Collected, collect_garbage
from .compare import Difference, compare_revisions
from .describe import Description, describe
from .ingest import ingest
from .replicate import Replicated, replicate
from .repository import (
    Progress,
    Published,
    create_repository,
    publish_tree,
    remove_repository,
)
from .repository import (
    read_repository as read_manifest,
)
from .scan import measure
from .tags import RolledBack, add_tag, list_tags, remove_tag, roll_back
from .trustees import KeyReport, install_whitelist, make_keys, resign_whitelist, sign_whitelist

__all__ = [
    "Bounds",
    "Collected",
    "Description",
    "Difference",
    "Fault",
    "KeyReport",
    "Progress",
    "Published",
    "Replicated",
    "Report",
    "RolledBack",
    "add_tag",
    "check_repository",
    "collect_garbage",
    "compare_revisions",
    "create_repository",
    "describe",
    "ingest",
    "install_whitelist",
    "list_tags",
    "make_keys",
    "measure",
    "publish_tree",
    "read_manifest",
    "remove_repository",
    "remove_tag",
    "replicate",
    "resign_whitelist",
    "roll_back",
    "sign_whitelist",
]
