"""Random operations of several users on two directories, one a mount, as long as both behave the same.

    python side_by_side.py PLAIN MOUNT SEED STEPS

For root, in a process of its own: it takes on the users' identities, a call at a time. Results and errnos are compared,
and after each step what every name is. Prints the steps and the difference if there is one, and exits with 1.
Times are not compared: two steps may fall into one tick of the kernel's clock.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

USERS = ((0, 0, ()), (12001, 12100, (12001,)), (12002, 12100, (12002,)), (12003, 12003, ()))
NAMES = [directory + name for directory in ("", "d/", "e/", "d/f/") for name in "abcdef"]
MODES = (0o777, 0o755, 0o644, 0o600, 0o1777, 0o2775, 0o4755, 0o6711, 0o444, 0o0, 0o222, 0o111)
KINDS = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR)
FLAGS = (
    os.O_RDONLY,
    os.O_WRONLY,
    os.O_RDWR,
    os.O_RDWR | os.O_TRUNC,
    os.O_WRONLY | os.O_APPEND,
    os.O_RDWR | os.O_NOFOLLOW,
    os.O_RDONLY | os.O_DIRECTORY,
    os.O_RDWR | os.O_CREAT | os.O_EXCL,
    os.O_RDWR | os.O_CREAT,
    os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    os.O_RDONLY | os.O_NOATIME,
)

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def identity(uid: int, gid: int, groups: tuple[int, ...]) -> Iterator[None]:
    """Be this user, as far as file systems are concerned."""
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(())


def _checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "")


def _make(path: str, flags: int, mode: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK, mode)


class Sides:
    """Both directories and what is open in them."""

    def __init__(self, plain: str, mount: str, seed: int) -> None:
        self.roots = (plain, mount)
        self.rng = random.Random(seed)
        self.handles: list[list[int]] = []
        self.steps: list[str] = []

    def step(self) -> str | None:
        """One operation on both sides. What differs, if anything does."""
        rng = self.rng
        user = rng.choice(USERS)
        umask = rng.choice((0, 0o022, 0o077))
        name, call = self._choose()
        self.steps.append(f"{user[0]} {umask:03o} {name}")
        results = []
        for side in (0, 1):
            before = os.umask(umask)
            try:
                with identity(*user):
                    results.append(call(side))
            except OSError as error:
                results.append(errno.errorcode[error.errno or 0])
            finally:
                os.umask(before)
        if name.startswith("open ") and all(isinstance(result, int) for result in results):
            self.handles.append(results)
            if len(self.handles) > 6:
                self._close(0)
        elif results[0] != results[1]:
            return f"the result on the plain directory is {results[0]}, on the mount {results[1]}"
        for path in NAMES:
            plain, mount = (self._look(f"{root}/{path}") for root in self.roots)
            if plain != mount:
                return f"{path} is {plain} on the plain directory, on the mount {mount}"
        return None

    def _look(self, path: str) -> tuple[object, ...] | str:
        try:
            st = os.lstat(path)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        size = 0 if stat.S_ISDIR(st.st_mode) else st.st_size
        mode = st.st_mode if st.st_mode & stat.S_IXGRP else st.st_mode & ~stat.S_ISGID  # see docs/semantics.md
        return stat.filemode(mode), st.st_uid, st.st_gid, st.st_nlink, size, st.st_rdev

    def _choose(self) -> tuple[str, Callable[[int], object]]:
        rng = self.rng
        one = rng.choice(NAMES) + rng.choice(("", "", "", "/"))
        two = rng.choice(NAMES)
        mode, flags = rng.choice(MODES), rng.choice(FLAGS)
        kind, rename_flags = rng.choice(KINDS), rng.choice((0, 1, 2, 4, 3))
        uid, gid = rng.choice((-1, 0, 12001, 12002)), rng.choice((-1, 0, 12001, 12002, 12100))
        size, offset = rng.choice((0, 1, 10, 5000)), rng.choice((0, 5, 4096, 9000))
        target = rng.choice(("a", "../b", "nowhere", "d", ".", "c"))
        follow = rng.random() < 0.5
        opened = rng.randrange(len(self.handles)) if self.handles else None
        paths = [(f"{root}/{one}", f"{root}/{two}") for root in self.roots]

        def at(side: int) -> tuple[str, str]:
            return paths[side]

        def fd(side: int) -> int:
            return -1 if opened is None else self.handles[opened][side]

        def rename2(side: int) -> None:
            old, new = (os.fsencode(path) for path in at(side))
            _checked(_libc.renameat2(-100, old, -100, new, rename_flags))

        def xattr(side: int) -> object:
            path = at(side)[0]
            os.setxattr(path, "user.x", b"%d" % size, follow_symlinks=follow)
            return os.getxattr(path, "user.x", follow_symlinks=follow)

        calls: list[tuple[str, Callable[[int], object]]] = [
            (f"mkdir {one} {mode:o}", lambda side: os.mkdir(at(side)[0], mode)),
            (f"mkdir {two} 777", lambda side: os.mkdir(at(side)[1], 0o777)),
            (f"rmdir {one}", lambda side: os.rmdir(at(side)[0])),
            (f"open {one} {flags:o} {mode:o}", lambda side: _make(at(side)[0], flags, mode)),
            (f"open {two} {flags | os.O_CREAT:o} 666", lambda side: _make(at(side)[1], flags | os.O_CREAT, 0o666)),
            (f"pwrite {opened} {size} {offset}", lambda side: os.pwrite(fd(side), b"x" * size, offset)),
            (f"pread {opened} {offset}", lambda side: os.pread(fd(side), 100, offset)),
            (f"ftruncate {opened} {offset}", lambda side: os.ftruncate(fd(side), offset)),
            (f"fchmod {opened} {mode:o}", lambda side: os.fchmod(fd(side), mode)),
            (f"fchown {opened} {uid} {gid}", lambda side: os.fchown(fd(side), uid, gid)),
            (f"truncate {one} {offset}", lambda side: os.truncate(at(side)[0], offset)),
            (f"chmod {one} {mode:o}", lambda side: os.chmod(at(side)[0], mode)),
            (f"chown {one} {uid} {gid}", lambda side: os.chown(at(side)[0], uid, gid, follow_symlinks=follow)),
            (f"link {one} {two}", lambda side: os.link(*at(side), follow_symlinks=False)),
            (f"symlink {target} {one}", lambda side: os.symlink(target, at(side)[0])),
            (f"rename {one} {two}", lambda side: os.rename(*at(side))),
            (f"renameat2 {one} {two} {rename_flags}", rename2),
            (f"unlink {one}", lambda side: os.unlink(at(side)[0])),
            (f"mknod {one} {kind | mode:o}", lambda side: os.mknod(at(side)[0], kind | mode, os.makedev(1, 3))),
            (f"utime {one}", lambda side: os.utime(at(side)[0], follow_symlinks=follow)),
            (f"utime {one} 1 2", lambda side: os.utime(at(side)[0], ns=(1, 2), follow_symlinks=follow)),
            (f"xattr {one} {follow}", xattr),
            (f"readlink {one}", lambda side: os.readlink(at(side)[0])),
            (f"access {one} {mode & 7}", lambda side: os.access(at(side)[0], mode & 7, effective_ids=True)),
            (f"listdir {one}", lambda side: sorted(os.listdir(at(side)[0]))),
        ]
        return rng.choice(calls)

    def _close(self, index: int) -> None:
        for fd in self.handles.pop(index):
            os.close(fd)

    def close(self) -> None:
        """Close what is still open."""
        while self.handles:
            self._close(0)


def main(plain: str, mount: str, seed: str, steps: str) -> int:
    """Exit code 1 if the sides differ."""
    sides = Sides(plain, mount, int(seed))
    try:
        for _ in range(int(steps)):
            difference = sides.step()
            if difference is not None:
                print("\n".join([f"seed {seed}:", *sides.steps, difference]))
                return 1
    finally:
        with suppress(OSError):
            sides.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
