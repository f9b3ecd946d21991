"""What the model test draws its operations from: few names, few numbers, so that operations meet.

A step is a tuple of a method's name (of `Side`, or of `Model` for what happens to the mount) and its arguments.
Many arguments are drawn as a `Pick` from what there is at that moment, as most operations would fail otherwise.
"""

from __future__ import annotations

import fcntl
import os
import stat
from dataclasses import dataclass
from typing import Literal

from hypothesis import strategies as st

from tests.model.side import UTIME_NOW, UTIME_OMIT

CHUNK = 1 << 20
NOREPLACE, EXCHANGE = 1, 2
USERS = (0, 0, 1234)

Kind = Literal["path", "file", "directory", "link", "slot", "writer", "map"]


@dataclass(frozen=True)
class Pick:
    """One of the things of a kind that exist in the plain directory, or are open. `then` is added to a path."""

    kind: Kind
    number: int
    then: str = ""


def _pick(kind: Kind) -> st.SearchStrategy[Pick]:
    return st.builds(Pick, st.just(kind), st.integers(0, 7))


_names = st.sampled_from("abcd")
# The directory itself comes up as "." and "".
_literal = st.one_of(
    _names,
    st.tuples(_names, _names).map("/".join),
    st.tuples(_names, _names, _names).map("/".join),
    st.sampled_from([".", "a/", "a/.", "b/./a", "d/a"]),
)
_in_directory = st.builds(lambda at, name: Pick("directory", at, "/" + name), st.integers(0, 7), _names)
paths = st.one_of(_pick("path"), _pick("path"), _in_directory, _literal)
_new = st.one_of(*[_in_directory] * 4, _literal)
_files = st.one_of(*[_pick("file")] * 5, _literal)
_directories = st.one_of(_pick("directory"), _pick("directory"), paths)
# None leads out of the directory, whatever is moved where.
_targets = st.sampled_from(["a", "b", "c", "a/b", "b/a", "./c", "gone", ".", "c/"])
_free = st.integers(0, 3)
_slots = st.one_of(*[_pick("slot")] * 5, _free)
_writers = st.one_of(*[_pick("writer")] * 5, _free)
_free_map = st.integers(0, 1)
_maps = st.one_of(*[_pick("map")] * 5, _free_map)
_follow = st.booleans()
_offsets = st.sampled_from([0, 1, 7, 4095, 4096, 5000, CHUNK - 3, CHUNK - 1, CHUNK, CHUNK + 2, 2 * CHUNK - 1])
_lengths = st.sampled_from([0, 1, 2, 5, 100, 4096, 4097, 20_000, CHUNK + 1])
_sizes = st.sampled_from([0, 1, 100, 4095, 4096, 4097, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 1])
_seeds = st.integers(0, 5)
_modes = st.sampled_from([0o644, 0o600, 0o755, 0o777, 0o000, 0o444, 0o4755, 0o2770, 0o1777])
_file_modes = st.sampled_from([0o644, 0o600, 0o666, 0o400])
_ids = st.sampled_from([-1, 0, 1234, 4321])
_times = st.sampled_from(
    [UTIME_NOW, UTIME_OMIT, 1, 10**9 - 1, 1_234_567_890_123_456_789, 86_400 * 10**9, 1_111_111_111 * 10**9]
)
_xattr_names = st.sampled_from(["user.a", "user.\xe9"])
_xattr_lengths = st.sampled_from([0, 1, 10, 1000])
_xattr_flags = st.sampled_from([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE])
_rename_flags = st.sampled_from([0, 0, 0, NOREPLACE, EXCHANGE, NOREPLACE | EXCHANGE])
_kinds = st.sampled_from([stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR])

_access = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR])
_more_flags = st.sampled_from(
    [
        0,
        os.O_CREAT,
        os.O_CREAT,
        os.O_CREAT | os.O_EXCL,
        os.O_CREAT | os.O_TRUNC,
        os.O_CREAT | os.O_APPEND,
        os.O_CREAT | os.O_SYNC,
        os.O_CREAT | os.O_NOFOLLOW,
        os.O_CREAT | os.O_DIRECTORY,
        os.O_TRUNC,
        os.O_APPEND,
        os.O_DSYNC,
        os.O_NOFOLLOW,
        os.O_DIRECTORY,
        os.O_PATH,
        os.O_PATH | os.O_NOFOLLOW,
        os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW,
    ]
)
_flags = st.builds(lambda a, b: b if b & os.O_PATH else a | b, _access, _more_flags)


def _op(name: str, *arguments: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.tuples(st.just(name), *arguments)


_lock_kinds = st.sampled_from([fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK])
_opening = st.one_of(
    _op("open", _free, _files, _flags, _file_modes),
    _op("open", _free, _files, st.sampled_from([os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_APPEND]), st.just(0)),
    _op("open", _free, _new, st.just(os.O_RDWR | os.O_CREAT), _file_modes),
    _op("open", _free, paths, _flags, _file_modes),
)
_making = st.one_of(_op("write_file", st.one_of(_new, _files), _lengths, _seeds), _op("mkdir", _new, st.just(0o755)))

names = st.one_of(
    _op("mkdir", _new, _modes),
    _op("mkdir", _new, st.just(0o755)),
    _op("rmdir", _directories),
    _op("unlink", paths),
    _op("rename", paths, paths, _rename_flags),
    _op("rename", paths, _new, _rename_flags),
    _op("rename", _files, _files, _rename_flags),
    _op("link", paths, paths, _follow),
    _op("link", _files, _new, _follow),
    _op("symlink", _targets, _new),
    _op("symlink", _targets, _new),
    _op("readlink", st.one_of(_pick("link"), _pick("link"), paths)),
    _op("mknod", _new, _kinds, _modes),
    _op("listdir", _directories),
    _op("scandir", _directories),
    _op("lstat", paths),
    _op("stat", paths),
    _op("openat", _slots, _names, _free, _flags),
    _op("flistdir", _slots),
    _op("linkat", _slots, _new),
    _op("open", _free, _directories, st.just(os.O_DIRECTORY), st.just(0)),
    _making,
    _making,
    _opening,
)

attributes = st.one_of(
    _op("access", paths, st.sampled_from([os.F_OK, os.R_OK, os.W_OK, os.X_OK, os.R_OK | os.W_OK])),
    _op("chmod", paths, _modes),
    _op("chown", paths, _ids, _ids, _follow),
    _op("utime", paths, _times, _times, _follow),
    _op("utime", _files, _times, _times, _follow),
    _op("setxattr", paths, _xattr_names, _xattr_lengths, _xattr_flags, _follow),
    _op("setxattr", _files, _xattr_names, _xattr_lengths, st.just(0), st.just(True)),
    _op("getxattr", _files, _xattr_names),
    _op("listxattr", paths, _follow),
    _op("removexattr", _files, _xattr_names),
    _op("lstat", paths),
    _op("fchmod", _slots, _modes),
    _op("fchown", _slots, _ids, _ids),
    _op("futime", _slots, _times, _times),
    _op("fsetxattr", _slots, _xattr_names, _xattr_lengths, _xattr_flags),
    _op("fgetxattr", _slots, _xattr_names),
    _op("scandir", _directories),
    _op("become", st.sampled_from(USERS)),
    _making,
    _making,
    _opening,
    _op("rename", paths, _new, st.just(0)),
    _op("unlink", paths),
)

open_first = st.tuples(
    _op("open", st.just(0), st.builds(Pick, st.just("file"), st.integers(0, 7)), st.just(os.O_RDWR), st.just(0)),
    _op("open", st.just(1), _in_directory, st.just(os.O_RDWR | os.O_CREAT), st.just(0o644)),
).map(list)
"""Before operations on what is open: with a bare list of those, most would come while nothing is."""

first = (
    ("mkdir", "a", 0o755),
    ("mkdir", "b", 0o777),
    ("mkdir", "a/b", 0o755),
    ("write_file", "c", 5000, 1),
    ("write_file", "a/a", CHUNK + 1, 2),
    ("write_file", "b/c", 20, 3),
    ("link", "c", "b/a", False),
    ("symlink", "a", "d"),
    ("setxattr", "c", "user.a", 10, 0, True),
    ("setxattr", "b/c", "user.\xe9", 10, 0, True),
)
"""So that there is something to work on."""

contents = st.one_of(
    _opening,
    _opening,
    _op("close", _slots),
    _op("reopen", _slots, _free, _flags),
    _op("write", _writers, _lengths, _seeds),
    _op("pwrite", _writers, _offsets, _lengths, _seeds),
    _op("pwrite", _writers, _offsets, _lengths, _seeds),
    _op("read", _slots, _lengths),
    _op("pread", _slots, _offsets, _lengths),
    _op("lseek", _slots, _offsets, st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END])),
    _op("seek_hole", _slots, _offsets, st.sampled_from([os.SEEK_DATA, os.SEEK_HOLE])),
    _op("ftruncate", _writers, _sizes),
    _op("truncate", _files, _sizes),
    _op("copy", _slots, _offsets, _writers, _offsets, _lengths),
    _op("fallocate", _writers, _sizes),
    _op("posix_fallocate", _writers, _sizes),
    _op("fsync", _slots),
    _op("fdatasync", _slots),
    _op("fstat", _slots),
    _op("futime", _slots, _times, _times),
    _op("map", _writers, _free_map),
    _op("map", _writers, _free_map),
    _op("map_write", _maps, _offsets, _lengths, _seeds),
    _op("map_write", _maps, _offsets, _lengths, _seeds),
    _op("map_read", _maps, _offsets, _lengths),
    _op("msync", _maps),
    _op("unmap", _maps),
    _op("flock", _slots, st.sampled_from([fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN])),
    _op("lock_range", _slots, _lock_kinds, st.integers(0, 3), st.integers(0, 3)),
    _op("read_file", _files),
    _op("unlink", _files),
    _op("rename", _files, _files, st.just(0)),
    _op("write_file", _new, _lengths, _seeds),
)

mixed = st.one_of(names, attributes, contents)

mount_flags = st.builds(
    lambda *chosen: tuple(flag for flag in chosen if flag),
    st.sampled_from(["", "--write-through"]),
    st.sampled_from(["", "--allow-other"]),
    # As good as never, or all the time: snapshots in the background while the operations run.
    st.sampled_from(["--quiet-seconds=600", "--quiet-seconds=0.05"]),
    st.sampled_from(["--interval-seconds=600", "--interval-seconds=0.2"]),
    st.sampled_from(["", "--on-crash=error"]),
)
_between = st.sampled_from(["nothing", "nothing", "index gone", "index damaged", "state gone"])

happenings = st.one_of(
    _op("mount", mount_flags),
    _op("mount", mount_flags),
    _op("umount", st.booleans(), _between),
    _op("crash", st.sampled_from(["daemon", "daemon", "daemon and supervisor"])),
    _op("crash", st.sampled_from(["daemon", "daemon", "daemon and supervisor"])),
    _op("sync"),
    _op("sync"),
    _op("drop_caches"),
    _op("compare"),
)
