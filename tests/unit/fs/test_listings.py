"""What a listing tells, and when the kernel may show again what it was told."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fused.fs import listings
from fused.fs.changes_protocol import NullChangeSink
from fused.fs.filesystem import FileSystem
from fused.fs.inodes import SYNTHETIC_START
from fused.inline import run_inline
from fused.types import Caller
from tests.support.listed import Shown, listed

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
    return path


@pytest.fixture
def fs(covered: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileSystem]:
    monkeypatch.setattr(listings, "SETTLED_NS", -(10**18))  # although it was made just now
    fd = os.open(covered, os.O_RDONLY)
    made = FileSystem(fd, NullChangeSink(), private=True, write_through=False, read_only=False)
    yield made
    made.close()
    os.close(fd)


def list_directory(fs: FileSystem, ino: int = 1, *, plus: bool = True) -> dict[bytes, Shown]:
    fh, _ = fs.tree.opendir(ino)
    run_inline(fs.tree.list(fh))
    shown = listed(fs, fh, plus=plus)
    fs.tree.releasedir(fh)
    assert [name for name, _ in shown[:2]] == [b".", b".."]
    assert len(dict(shown)) == len(shown)
    return dict(shown[2:])


def may_be_shown_again(fs: FileSystem, ino: int = 1) -> bool:
    """What is said to the kernel when it opens the directory."""
    fh, as_told = fs.tree.opendir(ino)
    fs.tree.releasedir(fh)
    return as_told


def look(fs: FileSystem, name: bytes) -> int:
    entry = fs.tree.lookup(1, name)
    assert entry is not None
    return entry.ino


def test_names_are_told_with_what_a_lookup_says(fs: FileSystem, covered: Path) -> None:
    shown = list_directory(fs)
    assert sorted(shown) == sorted(os.listdir(os.fsencode(covered)))
    for name, (ino, kind, st) in shown.items():
        assert st is not None
        true = os.stat(name, dir_fd=fs.root_fd, follow_symlinks=False)
        assert (*st[:7], *st[8:]) == (*true[:7], *true[8:])  # opening a directory sets its atime
        assert kind == st.st_mode
        assert ino == look(fs, name)
    assert fs.inodes.get(look(fs, b"file")).lookups == 5, "two names, and looked up three times"


@pytest.mark.parametrize("plus", [True, False])
def test_names_alone_have_number_and_type_and_count_for_nothing(
    fs: FileSystem, covered: Path, monkeypatch: pytest.MonkeyPatch, plus: bool
) -> None:
    monkeypatch.setattr(listings, "FIRST", 0)
    shown = list_directory(fs, plus=plus)
    assert len(fs.inodes) == 1
    for name, (ino, kind, st) in shown.items():
        true = os.lstat(os.path.join(os.fsencode(covered), name))
        assert (ino, kind, st) == (true.st_ino, stat.S_IFMT(true.st_mode), None)


def test_a_file_with_another_number_on_the_mount_is_listed_with_that(fs: FileSystem) -> None:
    st = os.stat("other", dir_fd=fs.root_fd)
    elsewhere = os.stat_result((*st[:2], st.st_dev + 1, *st[3:]))
    inode = fs.inodes.remember(elsewhere, fs.inodes.root, b"elsewhere")
    inode.lookups = 1
    assert inode.ino >= SYNTHETIC_START
    assert fs.inodes.number_of(elsewhere.st_dev, st.st_ino) == inode.ino
    assert fs.inodes.number_of(st.st_dev, st.st_ino) == st.st_ino


def test_of_many_names_the_first_have_attributes_and_more_while_somebody_looks(
    fs: FileSystem, covered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(500):
        (covered / f"f{n}").touch()
    monkeypatch.setattr(listings, "FIRST", 100)
    shown = list_directory(fs)
    assert len(shown) == 505
    assert sum(entry.st is not None for entry in shown.values()) == 100
    # As `ls -l` does: looks at each file while it lists.
    fh, _ = fs.tree.opendir(1)
    run_inline(fs.tree.list(fh))

    class Looking:
        plus = True
        with_stat = position = count = 0

        def add(self, name: bytes, ino: int, kind: int, st: os.stat_result | None, position: int) -> bool:
            self.position, self.count = position, self.count + 1
            self.with_stat += st is not None
            return True

    reply = Looking()
    while True:
        before = reply.count
        fs.tree.show(fh, reply.position, reply)
        if reply.count == before:
            break
        assert fs.tree.lookup(1, b"f0") is not None
    fs.tree.releasedir(fh)
    assert (reply.count, reply.with_stat) == (507, 505)


def test_a_directory_that_may_be_listed_but_not_searched_shows_its_names(
    fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    fh, _ = fs.tree.opendir(1)
    run_inline(fs.tree.list(fh))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refuse)
        shown = dict(listed(fs, fh)[2:])
    fs.tree.releasedir(fh)
    assert (shown[b"sub"].kind, shown[b"sub"].st) == (stat.S_IFDIR, None)
    assert len(fs.inodes) == 1


def test_what_was_told_may_be_shown_again_until_the_directory_changes(fs: FileSystem, covered: Path) -> None:
    assert not may_be_shown_again(fs), "nothing was told"
    list_directory(fs)
    assert may_be_shown_again(fs)
    fs.tree.mkdir(1, b"new", 0o755, CALLER)
    assert not may_be_shown_again(fs)
    list_directory(fs)
    assert may_be_shown_again(fs)
    (covered / "beneath").touch()  # by somebody who reaches the covered directory by another way
    assert not may_be_shown_again(fs)


def test_names_in_a_directory_that_changed_just_now_are_not_trusted(
    fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_directory(fs)
    monkeypatch.setattr(listings, "SETTLED_NS", 3600 * 10**9)
    list_directory(fs)
    assert not may_be_shown_again(fs)


def test_of_a_directory_that_is_forgotten_nothing_is_remembered(fs: FileSystem) -> None:
    sub = look(fs, b"sub")
    list_directory(fs, sub)
    fs.tree.lookup(sub, b"none")
    assert len(fs.listings) == 1
    fs.inodes.forget(sub, 1)
    assert len(fs.listings) == 0


def test_an_open_directory_goes_on_with_the_names_that_it_had(fs: FileSystem) -> None:
    fh, _ = fs.tree.opendir(1)
    run_inline(fs.tree.list(fh))
    fs.tree.unlink(1, b"other")
    fs.tree.mkdir(1, b"new", 0o755, CALLER)
    assert {name for name, _ in listed(fs, fh)} == {b".", b"..", b"file", b"link", b"symlink", b"sub"}
    fs.tree.releasedir(fh)
    assert b"new" in list_directory(fs)


def test_an_open_directory_shows_no_file_under_a_name_that_another_has_now(fs: FileSystem) -> None:
    fh, _ = fs.tree.opendir(1)
    run_inline(fs.tree.list(fh))
    moved = look(fs, b"other")
    fs.tree.rename(1, b"other", 1, b"elsewhere", 0, None)
    fs.tree.mkdir(1, b"other", 0o755, CALLER)
    assert dict(listed(fs, fh))[b"other"].ino == look(fs, b"other") != moved
    fs.tree.releasedir(fh)


def test_where_all_names_of_a_reply_have_vanished_the_listing_goes_on(covered: Path, fs: FileSystem) -> None:
    for i in range(300):
        (covered / "sub" / f"f{i}").write_bytes(b"")
    sub = look(fs, b"sub")
    fh, _ = fs.tree.opendir(sub)
    run_inline(fs.tree.list(fh))
    for name in [name for name, _ in listed(fs, fh)][2:-1]:
        fs.tree.unlink(sub, name)
    assert len(listed(fs, fh)) == 3
    fs.tree.releasedir(fh)
