"""Say how two directory trees differ, in everything that a snapshot is to bring back.

Knows nothing of ipfsfs: it looks at both sides through the kernel, as any program would.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def walk(root: bytes, skip: Callable[[bytes], bool] = lambda path: False) -> Iterator[tuple[bytes, os.stat_result]]:
    """Every path below `root`, relative to it, with its lstat; the root itself comes first as b""."""
    todo = [b""]
    yield b"", os.stat(root)  # `root` may be a symbolic link, such as those in /proc/PID/fd
    while todo:
        directory = todo.pop()
        for name in sorted(os.listdir(os.path.join(root, directory))):
            path = os.path.join(directory, name)
            if skip(path):
                continue
            st = os.lstat(os.path.join(root, path))
            yield path, st
            if stat.S_ISDIR(st.st_mode):
                todo.append(path)


def content_hash(path: bytes) -> str:
    """The sha256 of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _xattrs(path: bytes) -> dict[str, bytes]:
    names = sorted(name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user."))
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def _describe(path: bytes, st: os.stat_result, mtimes: bool) -> dict[str, Any]:
    kind = _KINDS[stat.S_IFMT(st.st_mode)]
    seen: dict[str, Any] = {"kind": kind, "uid": st.st_uid, "gid": st.st_gid}
    if kind != "link":
        seen["mode"] = oct(stat.S_IMODE(st.st_mode))
    if mtimes:
        seen["mtime_ns"] = st.st_mtime_ns
    if kind == "file":
        seen |= {"size": st.st_size, "sha256": content_hash(path), "xattrs": _xattrs(path)}
    elif kind == "directory":
        seen["xattrs"] = _xattrs(path)
    elif kind == "link":
        seen["target"] = os.readlink(path)
    elif kind.endswith("device"):
        seen["rdev"] = st.st_rdev
    return seen


def describe_tree(
    root: Path | str | bytes, *, mtimes: bool = True, skip: Callable[[bytes], bool] = lambda path: False
) -> dict[bytes, dict[str, Any]]:
    """What there is below `root`, by relative path. Hard links of one file name each other under `links`."""
    base = os.fsencode(root)
    tree: dict[bytes, dict[str, Any]] = {}
    groups: dict[tuple[int, int], list[bytes]] = {}
    for path, st in walk(base, skip):
        tree[path] = _describe(os.path.join(base, path), st, mtimes)
        if st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode):
            groups.setdefault((st.st_dev, st.st_ino), []).append(path)
    for names in groups.values():
        if len(names) > 1:
            for path in names:
                tree[path]["links"] = sorted(names)
    return tree


def differences(
    expected: Path | str | bytes,
    actual: Path | str | bytes,
    *,
    mtimes: bool = True,
    skip: Callable[[bytes], bool] = lambda path: False,
) -> list[str]:
    """One line for each difference; empty if the trees are the same."""
    left = describe_tree(expected, mtimes=mtimes, skip=skip)
    return differences_of(left, describe_tree(actual, mtimes=mtimes, skip=skip))


def differences_of(left: dict[bytes, dict[str, Any]], right: dict[bytes, dict[str, Any]]) -> list[str]:
    """The same for trees that were described before. `left` is what was expected."""
    lines = [f"{path!r} is missing" for path in sorted(left.keys() - right.keys())]
    lines += [f"{path!r} is too much" for path in sorted(right.keys() - left.keys())]
    for path in sorted(left.keys() & right.keys()):
        for field in sorted(left[path].keys() | right[path].keys()):
            before, after = left[path].get(field), right[path].get(field)
            if before != after:
                lines.append(f"{path!r}: {field} is {after!r}, not {before!r}")
    return lines


def assert_same_tree(
    expected: Path | str | bytes,
    actual: Path | str | bytes,
    *,
    mtimes: bool = True,
    skip: Callable[[bytes], bool] = lambda path: False,
) -> None:
    """Fail with the first differences, if there are any."""
    lines = differences(expected, actual, mtimes=mtimes, skip=skip)
    assert not lines, f"{len(lines)} differences:\n" + "\n".join(lines[:20])
