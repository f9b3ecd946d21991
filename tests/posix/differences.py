"""Cases of pjdfstest that may end otherwise on a mount than on the plain directory: the only list of them.

Each line of it stands in docs/semantics.md with its reason, and tests/unit/test_posix_differences.py sees to that.
A case belongs here only if the kernel, its C library or pyfuse3 make it impossible for us to answer as the local file
system does; everything else is a bug to be mended.
"""

from __future__ import annotations

from typing import NamedTuple


class Difference(NamedTuple):
    """A case, what it comes to on the mount when it comes to something else below, and the fact that makes it so."""

    case: str
    on_mount: str
    fact: str


ALLOWED = (
    Difference(
        "link::link_count_max",
        "skipped",
        "glibc works out LINK_MAX from the file system's type, and knows none for FUSE",
    ),
)
