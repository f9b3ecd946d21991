"""Small value types shared by several layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, NewType

if TYPE_CHECKING:
    import os

    from fused.cid import CID

Ino = NewType("Ino", int)
"""An inode number as the kernel knows it on our mount. The root is 1."""

Fh = NewType("Fh", int)
"""A handle of an open file or directory, ours to choose, never reused while open."""

FileKey = tuple[int, int]
"""(st_dev, st_ino) of a file in the local layer: its identity while it exists."""


class Block(NamedTuple):
    """A block's name and bytes. Whoever makes one guarantees that they belong together."""

    cid: CID
    data: bytes


class Caller(NamedTuple):
    """Who makes a request. `uid` and `gid` are the file-system ids that the kernel reported."""

    uid: int
    gid: int
    pid: int
    umask: int


class Stat(NamedTuple):
    """The part of a `stat` result that tells whether a file's content may have changed."""

    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, st: os.stat_result) -> Stat:
        """Take the three fields from a stat result."""
        return cls(st.st_size, st.st_mtime_ns, st.st_ctime_ns)


def key_of(st: os.stat_result) -> FileKey:
    """The identity of the file that `st` describes."""
    return (st.st_dev, st.st_ino)
