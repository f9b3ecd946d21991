"""What was listed is shown again from memory, and only as long as it is true."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio

from fused.fs import listings
from fused.fs.attrs import NewAttrs
from fused.fs.changes_protocol import NullChangeSink
from fused.fs.filesystem import FileSystem
from fused.fs.listings import Listings
from fused.inline import run_inline
from fused.types import Caller
from tests.support.listed import listed

CALLER = Caller(os.getuid(), os.getgid(), os.getpid(), 0)


@pytest.fixture
def covered(tmp_path: Path) -> Path:
    path = tmp_path / "covered"
    path.mkdir()
    (path / "file").write_bytes(b"content")
    os.link(path / "file", path / "link")
    (path / "other").write_bytes(b"")
    (path / "symlink").symlink_to("file")
    (path / "sub").mkdir()
    (path / "sub" / "below").write_bytes(b"")
    return path


@pytest.fixture
def fs(covered: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileSystem]:
    monkeypatch.setattr(listings, "SETTLED_NS", -(10**18))  # although it was made just now
    fd = os.open(covered, os.O_RDONLY)
    made = FileSystem(fd, NullChangeSink(), private=True, write_through=False, read_only=False)
    yield made
    made.close()
    os.close(fd)


def list_root(fs: FileSystem) -> dict[bytes, os.stat_result]:
    """What is shown of the root; checked to be what is there."""
    fh = fs.tree.opendir(1)
    run_inline(fs.tree.list(fh))
    shown = dict(listed(fs, fh))
    for name, (_, st) in shown.items():
        true = os.stat(name, dir_fd=fs.root_fd, follow_symlinks=False)
        # Opening a directory to list it sets its atime; what is shown was asked for after that or before.
        if name != b"..":
            assert (*st[:7], *st[8:]) == (*true[:7], *true[8:]), f"{name!r} is shown as it was"
            assert (st.st_mtime_ns, st.st_ctime_ns) == (true.st_mtime_ns, true.st_ctime_ns), name
    assert sorted(shown) == sorted([b".", b"..", *map(os.fsencode, os.listdir(fs.root_fd))])
    fs.tree.releasedir(fh)
    return {name: entry.st for name, entry in shown.items()}


def look(fs: FileSystem, name: bytes) -> int:
    entry = fs.tree.lookup(1, name)
    assert entry is not None
    return entry.ino


def test_what_was_shown_is_shown_again_without_a_stat(fs: FileSystem) -> None:
    first = list_root(fs)
    again = list_root(fs)
    assert first[b"other"] is again[b"other"]
    assert first[b"symlink"] is again[b"symlink"]
    # Its attributes change with every name in it.
    assert first[b"sub"] is not again[b"sub"]
    assert fs.inodes.get(look(fs, b"other")).lookups == 3
    assert fs.inodes.get(look(fs, b"file")).lookups == 5, "two names, two listings, one lookup"


async def write(fs: FileSystem) -> None:
    fh = (await fs.files.open(look(fs, b"link"), os.O_WRONLY)).fh
    list_root(fs)
    await fs.files.write(fh, 0, b"more than there was")
    fs.files.release(fh)


async def read(fs: FileSystem) -> None:
    ino = look(fs, b"file")
    os.utime("file", ns=(0, 1), dir_fd=fs.root_fd)
    fs.inodes.get(ino).shown = None
    list_root(fs)
    fh = (await fs.files.open(ino, os.O_RDONLY)).fh
    await fs.files.read(fh, 0, 10)
    fs.files.release(fh)
    shown, true = list_root(fs)[b"file"], os.stat("file", dir_fd=fs.root_fd)
    assert shown.st_atime_ns == true.st_atime_ns


async def truncate_and_list_meanwhile(fs: FileSystem) -> None:
    ino = look(fs, b"other")
    await fs.files.truncate(ino, 8 << 20, None)
    list_root(fs)
    # Cutting so much off is done in a thread.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fs.files.truncate, ino, 5, None)
        while not fs.waiting.busy(ino):
            await trio.lowlevel.checkpoint()
        fh = fs.tree.opendir(1)
        await fs.tree.list(fh)
        listed(fs, fh)
        fs.tree.releasedir(fh)


async def create(fs: FileSystem) -> None:
    opened, _ = await fs.files.create(1, b"new", 0o644, os.O_RDWR, CALLER)
    list_root(fs)
    await fs.files.write(opened.fh, 0, b"x")
    fs.files.release(opened.fh)


async def xattr(fs: FileSystem) -> None:
    fs.attributes.setxattr(look(fs, b"file"), b"user.a", b"1")
    list_root(fs)
    fs.attributes.removexattr(look(fs, b"file"), b"user.a")


async def mode(fs: FileSystem) -> None:
    await fs.attributes.setattr(look(fs, b"file"), NewAttrs(mode=0o600))
    assert stat.S_IMODE(list_root(fs)[b"link"].st_mode) == 0o600


async def times(fs: FileSystem) -> None:
    await fs.attributes.setattr(look(fs, b"symlink"), NewAttrs(mtime_ns=10**18))


async def link(fs: FileSystem) -> None:
    fs.tree.link(look(fs, b"other"), look(fs, b"sub"), b"more")
    list_root(fs)
    fs.tree.unlink(look(fs, b"sub"), b"more")


async def unlink(fs: FileSystem) -> None:
    fs.tree.unlink(1, b"link")
    assert list_root(fs)[b"file"].st_nlink == 1


async def rmdir(fs: FileSystem) -> None:
    fs.tree.unlink(look(fs, b"sub"), b"below")
    list_root(fs)
    fs.tree.rmdir(1, b"sub")


async def rename(fs: FileSystem) -> None:
    fs.tree.rename(1, b"other", 1, b"moved", 0)
    list_root(fs)
    fs.tree.rename(1, b"moved", 1, b"link", 0)
    list_root(fs)
    fs.tree.rename(look(fs, b"sub"), b"below", 1, b"above", 0)
    list_root(fs)
    fs.tree.rename(1, b"above", look(fs, b"sub"), b"below", 0)


async def others(fs: FileSystem) -> None:
    fs.tree.mkdir(1, b"d", 0o755, CALLER)
    list_root(fs)
    fs.tree.symlink(1, b"s", b"target", CALLER)
    list_root(fs)
    fs.tree.mknod(1, b"p", stat.S_IFIFO | 0o644, 0, CALLER)


async def beneath(fs: FileSystem) -> None:
    """By somebody who reaches the covered directory by another way: names are noticed at once."""
    os.mkdir("beneath", dir_fd=fs.root_fd)
    list_root(fs)
    os.rename("other", "beneath/other", src_dir_fd=fs.root_fd, dst_dir_fd=fs.root_fd)


async def forget(fs: FileSystem) -> None:
    """The kernel forgot everything, and the file was another meanwhile."""
    for inode in list(fs.inodes):
        fs.inodes.forget(inode.ino, inode.lookups)
    os.chmod("other", 0o611, dir_fd=fs.root_fd)


@pytest.mark.parametrize(
    "change",
    [
        write,
        read,
        truncate_and_list_meanwhile,
        create,
        xattr,
        mode,
        times,
        link,
        unlink,
        rmdir,
        rename,
        others,
        beneath,
        forget,
    ],
    ids=lambda change: change.__name__,
)
async def test_nothing_is_shown_that_has_changed(
    fs: FileSystem, change: Callable[[FileSystem], Awaitable[None]]
) -> None:
    list_root(fs)
    await change(fs)
    list_root(fs)
    list_root(fs)


def test_an_open_directory_goes_on_with_the_names_that_it_had(fs: FileSystem) -> None:
    list_root(fs)
    fh = fs.tree.opendir(1)
    run_inline(fs.tree.list(fh))
    fs.tree.unlink(1, b"other")
    fs.tree.mkdir(1, b"new", 0o755, CALLER)
    assert {name for name, _ in listed(fs, fh)} == {b".", b"..", b"file", b"link", b"symlink", b"sub"}
    fs.tree.releasedir(fh)
    assert b"new" in list_root(fs)


def test_an_open_directory_shows_no_file_under_a_name_that_another_has_now(fs: FileSystem) -> None:
    list_root(fs)
    fh = fs.tree.opendir(1)
    run_inline(fs.tree.list(fh))
    moved = look(fs, b"other")
    fs.tree.rename(1, b"other", 1, b"elsewhere", 0, None)
    fs.tree.mkdir(1, b"other", 0o755, CALLER)
    list_root(fs)
    assert fs.inodes.get(moved).shown is not None, "under its new name"
    assert dict(listed(fs, fh))[b"other"].ino == look(fs, b"other") != moved
    fs.tree.releasedir(fh)


def test_where_all_names_of_a_reply_have_vanished_the_listing_goes_on(covered: Path, fs: FileSystem) -> None:
    for i in range(300):
        (covered / "sub" / f"f{i}").write_bytes(b"")
    sub = look(fs, b"sub")
    fh = fs.tree.opendir(sub)
    run_inline(fs.tree.list(fh))
    for name in [name for name, _ in listed(fs, fh)][2:-1]:
        fs.tree.unlink(sub, name)
    assert len(listed(fs, fh)) == 3
    fs.tree.releasedir(fh)


def test_names_in_a_directory_that_changed_just_now_are_not_kept(
    fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "SETTLED_NS", 3600 * 10**9)
    list_root(fs)
    assert len(fs.listings) == 0
    assert all(inode.shown is None for inode in fs.inodes)


def test_what_is_kept_is_bounded(covered: Path, fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "MOST_NAMES", 20)
    list_root(fs)
    assert len(fs.listings) == 7
    for d in range(5):
        (covered / f"d{d}").mkdir()
        for i in range(3):
            (covered / f"d{d}" / f"f{i}").write_bytes(b"")
    for d in range(5):
        fh = fs.tree.opendir(look(fs, b"d%d" % d))
        run_inline(fs.tree.list(fh))
        listed(fs, fh)
        fs.tree.releasedir(fh)
    assert len(fs.listings) == 20
    kept = sum(inode.shown is not None for inode in fs.inodes)
    assert kept == 12, "three files in each of the four directories that were listed last"
    for inode in list(fs.inodes):
        fs.inodes.forget(inode.ino, inode.lookups)
    assert len(fs.inodes) == 1
    assert len(fs.listings) == 0, "nothing is kept of what the kernel has forgotten"


def test_a_new_listing_replaces_the_one_before(fs: FileSystem) -> None:
    kept = Listings()
    st = os.fstat(fs.root_fd)
    kept.take(fs.inodes.root, st, [b"a", b"b"])
    last = kept.take(fs.inodes.root, st, [b"c"])
    assert (len(kept), kept.find(fs.inodes.root, st)) == (1, last)
