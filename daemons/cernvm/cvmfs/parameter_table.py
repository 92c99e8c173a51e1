# SPDX-License-Identifier: BSD-3-Clause
"""Every parameter of the original client, and what this one makes of it: nothing that a site sets is passed over in
silence.

The same table for people is docs/cvmfs-parameters.md; tests/unit/test_cvmfs_parameter_table.py holds the two, and
what the code asks for, together.  Pure data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Use(Enum):
    """What becomes of a parameter."""

    FOLLOWED = "followed"
    """As the original client does."""
    TOOLS = "tools"
    """It is for commands and shell files; a mounted repository does not depend on it."""
    ALONE = "alone"
    """`cvmfsd-mount` follows it; cvmfsd takes it from its own file, and refuses it here."""
    REFUSED = "refused"
    """It changes nothing here, and a mount says so in a warning."""


@dataclass(frozen=True)
class Known:
    """One parameter."""

    default: str
    use: Use
    what: str
    """What it does; if refused, why, and what to do instead."""
    harmless: tuple[str, ...] = ()
    """Values of a refused one that need no warning, since they ask for what happens anyway."""


def _followed(default: str, what: str) -> Known:
    return Known(default, Use.FOLLOWED, what)


def _tools(default: str, what: str) -> Known:
    return Known(default, Use.TOOLS, what)


def _refused(default: str, why: str, *harmless: str) -> Known:
    return Known(default, Use.REFUSED, why, harmless)


def _alone(default: str, what: str, *harmless: str) -> Known:
    return Known(default, Use.ALONE, what, harmless)


_SERVERS: Final = {
    "CVMFS_SERVER_URL": _followed("", "servers, separated by `;`, as a ring from the one that worked last"),
    "CVMFS_MAX_SERVERS": _followed("0", "only so many of the servers, after ordering; 0: all"),
    "CVMFS_USE_GEOAPI": _followed("no", "ask up to 3 servers which of them are near, at a mount"),
    "CVMFS_HOST_RESET_AFTER": _followed("1800", "seconds until the first server is tried again"),
    "CVMFS_FOLLOW_REDIRECTS": _followed("no", "follow up to 4 redirects of a server"),
    "CVMFS_EXTERNAL_URL": _followed("", "servers of external data, like CVMFS_SERVER_URL"),
    "CVMFS_EXTERNAL_MAX_SERVERS": _followed("0", "like CVMFS_MAX_SERVERS, for external data"),
    "CVMFS_METALINK_URL": _refused("", "lists of servers are not taken from elsewhere; set CVMFS_SERVER_URL"),
    "CVMFS_METALINK_RESET_AFTER": _refused("1800", "it goes with CVMFS_METALINK_URL, which is refused", "1800"),
}
_PROXIES: Final = {
    "CVMFS_HTTP_PROXY": _followed(
        "", "proxies: `|` within a group, `;` between groups, DIRECT for none, `auto` to discover; missing: an error"
    ),
    "CVMFS_FALLBACK_PROXY": _followed("", "groups that come after the others; DIRECT is then taken from those"),
    "CVMFS_PROXY_SHARD": _followed("no", "each object has its own proxy of the group in use"),
    "CVMFS_PROXY_RESET_AFTER": _followed("300", "seconds until the first group, and what failed of it, is tried again"),
    "CVMFS_PAC_URLS": _followed("http://wpad/wpad.dat", "files that answer `auto`, separated by `;`"),
    "CVMFS_CLIENT_PROFILE": _followed("", "`single`: a missing CVMFS_HTTP_PROXY means `auto;DIRECT`"),
    "CVMFS_MAX_IPADDR_PER_PROXY": _followed("0", "only so many addresses of a proxy's name; 0: all"),
    "CVMFS_IPFAMILY_PREFER": _followed("4", "4 or 6: the addresses to try first, of proxies and of servers"),
    "CVMFS_DNS_TIMEOUT": _followed("3", "seconds for one look-up of the proxies' names"),
    "CVMFS_DNS_RETRIES": _followed("1", "so many times CVMFS_DNS_TIMEOUT more"),
    "CVMFS_DNS_MIN_TTL": _followed("60", "seconds (60 or more) until proxies' names are looked up again"),
    "CVMFS_DNS_MAX_TTL": _refused("84600", "names are looked up again after CVMFS_DNS_MIN_TTL already", "84600"),
    "CVMFS_DNS_SERVER": _refused("", "names are looked up as this machine does; set it up in resolv.conf"),
    "CVMFS_DNS_ROAMING": _refused("no", "the system's resolver follows resolv.conf by itself", "no", "yes"),
    "CVMFS_EXTERNAL_HTTP_PROXY": _followed("DIRECT", "like CVMFS_HTTP_PROXY, for external data"),
    "CVMFS_EXTERNAL_FALLBACK_PROXY": _followed("", "like CVMFS_FALLBACK_PROXY, for external data"),
    "CVMFS_PROXY_TEMPLATE": _refused("", "the machine's own name in the servers' order is that of the first proxy"),
}
_PATIENCE: Final = {
    "CVMFS_TIMEOUT": _followed("5", "seconds to connect, and of low speed, through a proxy"),
    "CVMFS_TIMEOUT_DIRECT": _followed("10", "the same without a proxy"),
    "CVMFS_LOW_SPEED_LIMIT": _followed("1024", "bytes per second that count as low speed"),
    "CVMFS_MAX_RETRIES": _followed("1", "further tries of one URL after an error on the way (20 at most)"),
    "CVMFS_BACKOFF_INIT": _followed("2", "seconds of the first pause at most, each later one twice as long"),
    "CVMFS_BACKOFF_MAX": _followed("10", "seconds of any pause at most"),
    "CVMFS_EXTERNAL_TIMEOUT": _followed("5", "like CVMFS_TIMEOUT, for external data"),
    "CVMFS_EXTERNAL_TIMEOUT_DIRECT": _followed("10", "like CVMFS_TIMEOUT_DIRECT, for external data"),
    "X509_CERT_BUNDLE": _followed("", "file of certificate authorities for https; else the system's"),
    "X509_CERT_DIR": _followed("", "directory of certificate authorities for https, hashed; else the system's"),
    "CVMFS_USE_SSL_SYSTEM_CA": _refused(
        "yes", "the system's authorities are used unless X509_CERT_BUNDLE is set", "yes"
    ),
    "CVMFS_SEND_INFO_HEADER": _refused("no", "servers and proxies are not told which files are read", "no"),
    "CVMFS_HTTP_TRACING": _refused("no", "servers and proxies are not told who reads", "no"),
    "CVMFS_HTTP_TRACING_HEADERS": _refused("", "servers and proxies are not told who reads"),
}
_TRUST: Final = {
    "CVMFS_PUBLIC_KEY": _followed("", "files of master keys, separated by `:`"),
    "CVMFS_KEYS_DIR": _followed("keys below the parameters", "directory of master keys, `*.pub`"),
    "CVMFS_BLACKLIST": _followed("blacklist below the parameters", "file of fingerprints and revisions to refuse"),
    "CVMFS_TRUSTED_CERTS": _followed(
        "/etc/grid-security/certificates",
        "directories (`:`) of certificate authorities and revocation lists, for whitelists that ask for them",
    ),
    "CVMFS_ROOT_HASH": _followed("", "show the revision with this root catalog, and no other"),
    "CVMFS_REPOSITORY_TAG": _followed("", "show the revision with this name, and no other"),
    "CVMFS_REPOSITORY_DATE": _followed("", "show what was tagged last at this time, `YYYY-MM-DDTHH:MM:SSZ`"),
    "CVMFS_AUTO_UPDATE": _followed("yes", "look for newer revisions; with `no` only when told to"),
    "CVMFS_MAX_TTL": _followed("0", "minutes after which to look at the latest; 0: as the repository says"),
    "CVMFS_STRICT_MOUNT": _followed("no", "mount only what CVMFS_REPOSITORIES lists"),
    "CVMFS_REPOSITORIES": _followed("", "repositories of this machine, separated by commas"),
    "CVMFS_CONFIG_REPOSITORY": _followed(
        "", "repository whose `etc/cvmfs` brings parameter files; only in default.conf and default.d"
    ),
    "CVMFS_CONFIG_REPO_REQUIRED": _followed("no", "mount nothing while that one is not mounted"),
    "CVMFS_AUTHZ_HELPER": _refused("", "repositories for members only are not mounted"),
    "CVMFS_AUTHZ_SEARCH_PATH": _refused("", "repositories for members only are not mounted"),
}
_VIEW: Final = {
    "CVMFS_CLAIM_OWNERSHIP": _followed("yes", "show everything as owned by the user of the mount"),
    "CVMFS_UID_MAP": _followed("", "file of lines `published shown`, `*` for all others: other numbers for users"),
    "CVMFS_GID_MAP": _followed("", "file of lines `published shown`, `*` for all others: other numbers for groups"),
    "CVMFS_WORLD_READABLE": _followed("no", "show everything as readable by everybody"),
    "CVMFS_CHECK_PERMISSIONS": _followed("yes", "the kernel enforces permissions"),
    "CVMFS_SUID": _followed("no", "set-user-id bits count"),
    "CVMFS_MAGIC_XATTRS_VISIBILITY": _followed("rootonly", "entries whose listing names the computed attributes"),
    "CVMFS_XATTR_PRIVILEGED_GIDS": _followed(
        "", "numbers of the groups that may read protected attributes, besides root's"
    ),
    "CVMFS_XATTR_PROTECTED_XATTRS": _followed("", "computed attributes that only those groups may read"),
    "CVMFS_HIDE_MAGIC_XATTRS": _refused("no", "set CVMFS_MAGIC_XATTRS_VISIBILITY=never", "no"),
    "CVMFS_KCACHE_TIMEOUT": _refused("60", "the kernel is told what changed, and keeps the rest", "60"),
    "CVMFS_CACHE_SYMLINKS": _refused(
        "no", "the kernel may keep symbolic links, since it is told what changed", "no", "yes"
    ),
    "CVMFS_ENFORCE_ACLS": _refused("no", "access lists are not enforced; permissions are", "no"),
    "CVMFS_NFS_SOURCE": _refused("no", "inode numbers are steady, but exporting by NFS is not tested", "no"),
    "CVMFS_NFS_INTERLEAVED_INODES": _refused("", "exporting by NFS is not supported"),
    "CVMFS_NFS_SHARED": _refused("", "exporting by NFS is not supported"),
    "CVMFS_STATFS_CACHE_TIMEOUT": _refused("0", "statfs is answered from memory", "0"),
    "CVMFS_FUSE_NOTIFY_INVALIDATION": _refused("yes", "the kernel is always told what changed", "yes"),
    "CVMFS_FUSE3_MAX_THREADS": _refused("", "set threads in cvmfsd.conf"),
    "CVMFS_FUSE3_IDLE_THREADS": _refused("", "set threads in cvmfsd.conf"),
    "CVMFS_NFILES": _refused("131072", "as many files may be open as the unit allows; set LimitNOFILE there", "131072"),
    "CVMFS_MOUNT_RW": _refused("no", "a mounted repository is read-only", "no"),
    "CVMFS_MEMCACHE_SIZE": _refused("16", "attributes stay in the kernel; catalogs are read from the cache", "16"),
    "CVMFS_STREAMING_CACHE": _refused("no", "content is verified whole before it is read", "no"),
}
_CACHE: Final = {
    "CVMFS_CACHE_BASE": _alone(
        "/var/lib/cvmfs", "in cvmfsd, set directory in [cache] of cvmfsd.conf", "/var/lib/cvmfs"
    ),
    "CVMFS_CACHE_DIR": _alone("", "in cvmfsd, set directory in [cache] of cvmfsd.conf"),
    "CVMFS_QUOTA_LIMIT": _alone("4000", "in cvmfsd, set limit_mb in [cache] of cvmfsd.conf", "4000"),
    "CVMFS_SHARED_CACHE": _alone("yes", "in cvmfsd, all repositories share one cache", "yes"),
    "CVMFS_CACHE_PRIMARY": _refused("default", "there is one kind of cache, on local disk", "default"),
    "CVMFS_ALIEN_CACHE": _refused("", "a cache on a shared file system is not supported"),
    "CVMFS_WORKSPACE": _refused("", "sockets and state stand beside the cache and in the run-time directory"),
    "CVMFS_CACHE_REFCOUNT": _refused("yes", "an object that is open is open once", "yes"),
    "CVMFS_OOM_SCORE_ADJ": _refused("", "set OOMScoreAdjust in the unit"),
}
_OPERATION: Final = {
    "CVMFS_MOUNT_DIR": _tools("/cvmfs", "for shell files; set mount_directory in cvmfsd.conf"),
    "CVMFS_USER": _refused("cvmfs", "set User in the unit", "cvmfs", "root"),
    "CVMFS_RELOAD_SOCKETS": _refused("", "cvmfsctl talks D-Bus"),
    "CVMFS_DEBUGLOG": _refused("", "set log_level in cvmfsd.conf; the journal has the log"),
    "CVMFS_SYSLOG_LEVEL": _refused("", "set log_level in cvmfsd.conf"),
    "CVMFS_SYSLOG_FACILITY": _refused("", "the journal knows the unit"),
    "CVMFS_SYSLOG_PREFIX": _refused("", "log lines name the repository"),
    "CVMFS_USYSLOG": _refused("", "the journal has the log"),
    "CVMFS_LOGFILE": _refused("", "the journal has the log"),
    "CVMFS_TRACEFILE": _refused("", "what is read is not recorded"),
    "CVMFS_TRACEBUFFER": _refused("", "what is read is not recorded"),
    "CVMFS_TELEMETRY_SEND": _refused("no", "numbers are served to Prometheus, not sent", "no"),
    "CVMFS_TELEMETRY_RATE": _refused("", "numbers are served to Prometheus, not sent"),
    "CVMFS_INFLUX_HOST": _refused("", "numbers are served to Prometheus, not sent"),
    "CVMFS_INFLUX_PORT": _refused("", "numbers are served to Prometheus, not sent"),
    "CVMFS_INFLUX_METRIC_NAME": _refused("", "numbers are served to Prometheus, not sent"),
    "CVMFS_INSTRUMENT_FUSE": _refused("no", "requests are counted always", "no", "yes"),
    "CVMFS_SYSTEMD_NOKILL": _refused("no", "systemd starts and ends cvmfsd as its unit says", "no", "yes"),
    "CVMFS_INITIAL_GENERATION": _refused("", "inode numbers stand for one content for ever"),
    "CVMFS_CPU_AFFINITY": _refused("", "set CPUAffinity in the unit"),
    "CVMFS_TALK_OWNER": _refused("", "who may talk to cvmfsd stands in its D-Bus policy"),
    "CVMFS_LIBRARY_PATH": _refused("", "there is no library to load"),
    "CVMFS_USE_CDN": _tools("no", "for shell files: choose other servers"),
    "CVMFS_ARCH": _tools("", "for symbolic links; the machine's kind"),
}
_PUBLISHING: Final = {
    name: _refused("", "it is a publisher's, and means nothing to a client")
    for name in (
        "CVMFS_AUTOCATALOGS",
        "CVMFS_ENFORCE_LIMITS",
        "CVMFS_IGNORE_XDIR_HARDLINKS",
        "CVMFS_INCLUDE_XATTRS",
    )
}
TABLE: Final[Mapping[str, Known]] = {
    **_SERVERS,
    **_PROXIES,
    **_PATIENCE,
    **_TRUST,
    **_VIEW,
    **_CACHE,
    **_OPERATION,
    **_PUBLISHING,
}
"""Name -> what becomes of it."""
