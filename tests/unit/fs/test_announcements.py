"""What the change sink hears: every change, before it happens, with descriptors that work."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fused.fs import pace
from fused.fs.attrs import NewAttrs
from fused.fs.changes_protocol import ChangeSink, Dirs
from fused.fs.filesystem import FileSystem
from fused.inline import run_inline
from fused.local.layer import RENAME_EXCHANGE, RENAME_NOREPLACE
from fused.types import Caller, FileKey
from tests.support.listed import listed

CALLER = Caller(0, 0, 1, 0)


class Recorder:
    """Writes down what it hears, and checks that it hears it in time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.heard: list[tuple[object, ...]] = []

    def name(self, key: FileKey) -> str:
        """The path of a key, as long as it has one."""
        if key == (os.stat(self.root).st_dev, os.stat(self.root).st_ino):
            return "."
        for top, directories, others in os.walk(self.root):
            for entry in (*directories, *others):
                st = os.lstat(os.path.join(top, entry))
                if (st.st_dev, st.st_ino) == key:
                    return os.path.relpath(os.path.join(top, entry), self.root)
        return "gone"

    def above(self, dirs: Dirs) -> list[str]:
        return [self.name(key) for key in dirs()]

    def held(self, key: FileKey) -> bool:
        return False

    async def wait_to_begin(self, key: FileKey) -> None:
        raise AssertionError("nothing is held")

    @contextmanager
    def change(self, key: FileKey) -> Iterator[None]:
        self.heard.append(("begins", self.name(key)))
        yield
        self.heard.append(("ends", self.name(key)))

    def before_write(self, key: FileKey, fd: int, offset: int, length: int, dirs: Dirs) -> None:
        self.heard.append(("write", os.pread(fd, 100, 0), offset, length, self.above(dirs)))

    def before_truncate(self, key: FileKey, fd: int, size: int, dirs: Dirs) -> None:
        self.heard.append(("truncate", os.pread(fd, 100, 0), size, self.above(dirs)))

    def before_add(self, dir_key: FileKey, dir_fd: int, dirs: Dirs) -> None:
        self.heard.append(("add", sorted(os.listdir(dir_fd)), self.above(dirs)))
        assert next(iter(dirs())) == dir_key

    def before_remove(self, dir_key: FileKey, dir_fd: int, name: bytes, dirs: Dirs) -> None:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        self.heard.append(("remove", name.decode(), self.above(dirs)))
        assert next(iter(dirs())) == dir_key

    def created(self, key: FileKey) -> None:
        self.heard.append(("created", self.name(key)))

    def gone(self, key: FileKey) -> None:
        self.heard.append(("gone", self.name(key)))

    def metadata(self, key: FileKey, before: os.stat_result, after: os.stat_result, dirs: Dirs) -> None:
        assert before.st_ino == after.st_ino == key[1]
        changed = [
            field
            for field in ("st_mode", "st_nlink", "st_uid", "st_mtime_ns")
            if getattr(before, field) != getattr(after, field)
        ]
        self.heard.append(("metadata", self.name(key), changed, self.above(dirs)))

    def take(self) -> list[tuple[object, ...]]:
        heard, self.heard = self.heard, []
        return heard


class Setup:
    """A file system without a mount over a/b/file (content "content") and a/other."""

    def __init__(self, root: Path) -> None:
        (root / "a" / "b").mkdir(parents=True)
        (root / "a" / "b" / "file").write_text("content")
        (root / "a" / "other").write_text("other")
        self.root = root
        self.fd = os.open(root, os.O_RDONLY)
        self.sink = Recorder(root)
        sink: ChangeSink = self.sink
        self.fs = FileSystem(self.fd, sink, private=True, write_through=False, read_only=False)
        self.a = self.look(1, b"a")
        self.b = self.look(self.a, b"b")
        self.file = self.look(self.b, b"file")
        self.other = self.look(self.a, b"other")

    def look(self, parent: int, name: bytes) -> int:
        entry = self.fs.tree.lookup(parent, name)
        assert entry is not None
        return entry.ino

    def close(self) -> None:
        self.fs.inodes.check_invariants()
        self.fs.close()
        os.close(self.fd)


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
    monkeypatch.setattr(pace, "SLOW_SECONDS", float("inf"))  # also on a busy machine small writes are inline here
    made = Setup(tmp_path)
    yield made
    made.close()


ABOVE = ["a/b", "a", "."]


def test_writing_and_truncating(setup: Setup) -> None:
    fh = run_inline(setup.fs.files.open(setup.file, os.O_WRONLY)).fh
    run_inline(setup.fs.files.write(fh, 3, b"XYZ"))
    run_inline(setup.fs.files.truncate(setup.file, 4, None))
    run_inline(setup.fs.files.truncate(setup.file, 5, fh))
    assert setup.sink.take() == [
        ("write", b"content", 3, 3, ABOVE),
        ("truncate", b"conXYZt", 4, ABOVE),
        ("truncate", b"conX", 5, ABOVE),
    ]
    setup.fs.files.release(fh)
    setup.sink.take()
    setup.fs.files.release(run_inline(setup.fs.files.open(setup.file, os.O_WRONLY | os.O_TRUNC)).fh)
    assert setup.sink.take()[0] == ("truncate", b"conX\0", 0, ABOVE)


def test_truncating_without_a_handle(setup: Setup) -> None:
    run_inline(setup.fs.files.truncate(setup.file, 2, None))
    assert setup.sink.take() == [("truncate", b"content", 2, ABOVE)]
    assert setup.fs.handle_count() == 0


def test_opening_and_reading_say_nothing(setup: Setup) -> None:
    setup.fs.files.release(run_inline(setup.fs.files.open(setup.file, os.O_RDWR)).fh)
    listing = setup.fs.tree.opendir(setup.b)[0]
    run_inline(setup.fs.tree.list(listing))
    assert [name for name, _ in listed(setup.fs, listing)][:2] == [b".", b".."]
    setup.fs.attributes.getattr(setup.file)
    assert setup.sink.take() == []


def test_making(setup: Setup) -> None:
    tree = setup.fs.tree
    opened, _ = run_inline(setup.fs.files.create(setup.b, b"new", 0o644, os.O_WRONLY, CALLER))
    setup.fs.files.release(opened.fh)
    tree.mknod(setup.b, b"node", stat.S_IFREG | 0o600, 0, CALLER)
    tree.mknod(setup.b, b"fifo", stat.S_IFIFO | 0o600, 0, CALLER)
    tree.mkdir(setup.b, b"sub", 0o755, CALLER)
    tree.symlink(setup.b, b"sym", b"x", CALLER)
    assert setup.sink.take() == [
        ("add", ["file"], ABOVE),
        ("created", "a/b/new"),
        ("add", ["file", "new"], ABOVE),
        ("created", "a/b/node"),
        ("add", ["file", "new", "node"], ABOVE),
        ("add", ["fifo", "file", "new", "node"], ABOVE),
        ("add", ["fifo", "file", "new", "node", "sub"], ABOVE),
    ]


def test_linking_and_unlinking(setup: Setup) -> None:
    setup.fs.tree.link(setup.file, setup.a, b"link")
    (added, linked) = setup.sink.take()
    assert added == ("add", ["b", "other"], ["a", "."])
    assert linked[:1] + linked[2:3] == ("metadata", ["st_nlink"])
    assert set(linked[3]) == {"a/b", "a", "."}  # type: ignore[call-overload]
    setup.fs.tree.unlink(setup.a, b"link")
    (removed, unlinked) = setup.sink.take()
    assert removed == ("remove", "link", ["a", "."])
    assert unlinked[:3] == ("metadata", "a/b/file", ["st_nlink"])
    setup.fs.tree.unlink(setup.b, b"file")
    assert setup.sink.take() == [("remove", "file", ABOVE), ("gone", "gone")]


def test_removing_a_directory(setup: Setup) -> None:
    setup.fs.tree.unlink(setup.b, b"file")
    setup.sink.take()
    setup.fs.tree.rmdir(setup.a, b"b")
    assert setup.sink.take() == [("remove", "b", ["a", "."]), ("gone", "gone")]
    with pytest.raises(FileNotFoundError):
        setup.fs.tree.mkdir(setup.b, b"new", 0o755, CALLER)


def test_renaming_to_a_free_name(setup: Setup) -> None:
    setup.fs.tree.rename(setup.b, b"file", setup.a, b"moved", RENAME_NOREPLACE)
    assert setup.sink.take() == [
        ("remove", "file", ABOVE),
        ("add", ["b", "other"], ["a", "."]),
        ("metadata", "a/moved", [], ["a", "."]),
    ]


def test_renaming_over_another_file(setup: Setup) -> None:
    setup.fs.tree.rename(setup.b, b"file", setup.a, b"other", 0)
    assert setup.sink.take() == [
        ("remove", "file", ABOVE),
        ("remove", "other", ["a", "."]),
        ("gone", "gone"),
        ("metadata", "a/other", [], ["a", "."]),
    ]


def test_renaming_over_one_of_several_links(setup: Setup) -> None:
    setup.fs.tree.link(setup.other, setup.b, b"link")
    setup.sink.take()
    setup.fs.tree.rename(setup.b, b"file", setup.b, b"link", 0)
    heard = setup.sink.take()
    assert heard[:2] == [("remove", "file", ABOVE), ("remove", "link", ABOVE)]
    assert heard[2][:3] == ("metadata", "a/other", ["st_nlink"])
    assert heard[3] == ("metadata", "a/b/link", [], ABOVE)


def test_exchanging(setup: Setup) -> None:
    setup.fs.tree.rename(setup.b, b"file", setup.a, b"other", RENAME_EXCHANGE)
    assert setup.sink.take() == [
        ("remove", "file", ABOVE),
        ("remove", "other", ["a", "."]),
        ("metadata", "a/b/file", [], ABOVE),
        ("metadata", "a/other", [], ["a", "."]),
    ]


def test_renaming_a_directory(setup: Setup) -> None:
    setup.fs.tree.rename(setup.a, b"b", 1, b"z", 0)
    assert setup.sink.take() == [
        ("remove", "b", ["a", "."]),
        ("add", ["a"], ["."]),
        ("metadata", "z", [], ["."]),
    ]
    run_inline(setup.fs.files.truncate(setup.file, 0, None))
    assert setup.sink.take() == [("truncate", b"content", 0, ["z", "."])]


def test_changing_attributes(setup: Setup) -> None:
    attributes = setup.fs.attributes
    run_inline(attributes.setattr(setup.file, NewAttrs(mode=0o600)))
    run_inline(attributes.setattr(setup.b, NewAttrs(mode=0o700)))
    run_inline(attributes.setattr(1, NewAttrs(mode=0o700)))
    run_inline(attributes.setattr(setup.file, NewAttrs(mtime_ns=5, ctime_ns=6)))
    attributes.setxattr(setup.file, b"user.a", b"1")
    attributes.removexattr(setup.file, b"user.a")
    assert setup.sink.take() == [
        ("metadata", "a/b/file", ["st_mode"], ABOVE),
        ("metadata", "a/b", ["st_mode"], ["a", "."]),
        ("metadata", ".", ["st_mode"] if os.stat(setup.root).st_mode & 0o777 != 0o700 else [], []),
        ("metadata", "a/b/file", ["st_mtime_ns"], ABOVE),
        ("metadata", "a/b/file", [], ABOVE),
        ("metadata", "a/b/file", [], ABOVE),
    ]


def test_times_that_the_file_has_already_are_not_set_and_not_announced(setup: Setup) -> None:
    setup.fs.tree.rename(setup.b, b"file", setup.b, b"renamed", 0)
    setup.sink.take()
    now = os.stat(f"{setup.root}/a/b/renamed")

    def confirmed(ctime_ns: int | None, **others: int) -> list[str]:
        """What the file's stat differs by after the kernel has sent its times."""
        time.sleep(0.02)  # longer than the kernel's clock takes to go on
        new = NewAttrs(mtime_ns=now.st_mtime_ns, ctime_ns=ctime_ns, **others)
        shown = run_inline(setup.fs.attributes.setattr(setup.file, new)).st
        after = os.stat(f"{setup.root}/a/b/renamed")
        assert (after.st_ctime_ns, after.st_mode) == (shown.st_ctime_ns, shown.st_mode)
        return [
            name for name in ("st_mode", "st_mtime_ns", "st_ctime_ns") if getattr(now, name) != getattr(after, name)
        ]

    assert confirmed(now.st_ctime_ns + 1_000_000) == []
    assert setup.sink.take() == []
    # Later it is somebody's wish, who may look at the ctime, and so it is if anything else is to be changed.
    assert confirmed(now.st_ctime_ns + 10**9) == ["st_ctime_ns"]
    assert confirmed(None) == ["st_ctime_ns"]
    assert confirmed(time.time_ns(), mode=0o700) == ["st_mode", "st_ctime_ns"]
    assert [change[2] for change in setup.sink.take()] == [[], [], ["st_mode"]]


def test_an_unlinked_open_file_is_in_no_directory(setup: Setup) -> None:
    fh = run_inline(setup.fs.files.open(setup.file, os.O_RDWR)).fh
    setup.fs.tree.unlink(setup.b, b"file")
    setup.sink.take()
    run_inline(setup.fs.files.write(fh, 0, b"more"))
    assert setup.sink.take() == [("write", b"content", 0, 4, [])]
    assert setup.fs.writers() == []
    setup.fs.files.release(fh)


def test_the_mtime_set_back_on_release_is_announced(setup: Setup) -> None:
    fh = run_inline(setup.fs.files.open(setup.file, os.O_WRONLY)).fh
    run_inline(setup.fs.files.write(fh, 0, b"x"))
    setup.sink.take()
    setup.fs.files.release(fh)
    assert setup.sink.take() == [("metadata", "a/b/file", ["st_mtime_ns"], ABOVE)]


@pytest.mark.parametrize("failing", ["unlink", "rmdir", "rename", "link", "mkdir", "create"])
def test_a_failed_operation_changes_nothing(setup: Setup, failing: str) -> None:
    tree = setup.fs.tree
    attempts = {
        "unlink": lambda: tree.unlink(setup.a, b"b"),
        "rmdir": lambda: tree.rmdir(setup.a, b"b"),
        "rename": lambda: tree.rename(1, b"a", setup.b, b"inside", 0),
        "link": lambda: tree.link(setup.file, setup.a, b"other"),
        "mkdir": lambda: tree.mkdir(setup.a, b"b", 0o755, CALLER),
        "create": lambda: run_inline(setup.fs.files.create(setup.a, b"other", 0o644, os.O_RDWR | os.O_EXCL, CALLER)),
    }
    before = (len(setup.fs.inodes), len(os.listdir("/proc/self/fd")))
    with pytest.raises(OSError, match="Errno"):
        attempts[failing]()
    assert (len(setup.fs.inodes), len(os.listdir("/proc/self/fd"))) == before
    assert (setup.root / "a" / "b" / "file").read_text() == "content"
    assert (setup.root / "a" / "other").read_text() == "other"
