"""tar, rsync, sed and logrotate on the mount."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.compare import assert_same_tree
from tests.support.mountproc import run
from tests.support.workspace import Workspace


def make_tree(root: Path, seed: int = 3) -> None:
    """A tree with what archivers care about: modes, times, links of both kinds, a fifo, odd names, a hole."""
    rng = random.Random(seed)
    root.mkdir()
    for number in range(300):
        path = root / f"d{number % 11}" / f"d{number % 3}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.choice([0, 1, 100, 4096, 70_000])))
        path.chmod(rng.choice([0o600, 0o644, 0o755, 0o400, 0o4755]))
        os.utime(path, ns=(0, 1_600_000_000_123_456_789 + number))
    (root / "big").write_bytes(rng.randbytes(5 * 1024 * 1024 + 1))
    with open(root / "sparse", "wb") as sparse:
        sparse.seek(3_000_000)
        sparse.write(b"end")
    (root / "relative").symlink_to("d1/d1")
    (root / "dangling").symlink_to("/nowhere/at/all")
    os.link(root / "big", root / "d1" / "also big")
    os.link(root / "big", root / "big too")
    os.mkfifo(root / "fifo", 0o640)
    (root / ("n" * 255)).write_text("a long name")
    (root / "line\nbreak").write_text("x")
    Path(os.fsdecode(os.fsencode(root) + b"/not utf-8 \xff\xfe")).write_text("x")
    (root / "empty").mkdir(mode=0o711)
    os.setxattr(root / "big", "user.origin", b"test\x00value")
    for directory, directories, files in os.walk(root, topdown=False):
        for name in directories + files:
            if not name.startswith("f"):  # rsync lets a time be that differs by less than a second
                os.utime(os.path.join(directory, name), ns=(0, 1_500_000_000_987_654_321), follow_symlinks=False)
        os.utime(directory, ns=(0, 1_500_000_000_987_654_321))
    os.utime(root / "fifo", ns=(0, 1_400_000_000_000_000_000))


def test_tar_packs_and_unpacks(workspace: Workspace) -> None:
    source = workspace.outside / "source"
    make_tree(source)
    archive = workspace.path / "all.tar"
    run(["tar", "--xattrs", "-cf", archive, "-C", source, "."], cwd=workspace.path)
    target = workspace.path / "unpacked"
    target.mkdir()
    run(["tar", "--xattrs", "-xpf", archive, "-C", target], cwd=workspace.path)
    run(["tar", "--compare", "-f", archive, "-C", target], cwd=workspace.path)
    assert_same_tree(source, target)
    workspace.check()
    # And the other way, straight from the mount: the hard links must still be links in the archive.
    again = workspace.outside / "again.tar"
    run(["tar", "--xattrs", "-cf", again, "-C", target, "."], cwd=workspace.path)
    listing = run(["tar", "-tvf", again], cwd=workspace.path).stdout
    assert listing.count(" link to ") == 2


def test_rsync_archives_and_then_finds_nothing_to_do(workspace: Workspace, need: Callable[..., None]) -> None:
    need("rsync")
    source, target = workspace.outside / "source", workspace.path / "copy"
    make_tree(source)
    rsync = ["rsync", "-aHX", "--delete", f"{source}/", f"{target}/"]
    run(rsync, cwd=workspace.path)
    assert_same_tree(source, target)
    assert run([*rsync, "--dry-run", "--itemize-changes", "--checksum"], cwd=workspace.path).stdout == ""
    workspace.check()
    with open(source / "big", "r+b") as big:
        big.seek(1_000_000)
        big.write(b"changed")
    (source / "relative").unlink()
    (source / "d2").rename(source / "renamed")
    os.utime(source, ns=(0, 1_550_000_000_000_000_001))
    run(["rsync", "-aHX", "--delete", "--inplace", f"{source}/", f"{target}/"], cwd=workspace.path)
    assert_same_tree(source, target)
    workspace.check()


def test_sed_in_place_keeps_modes_and_leaves_no_temporary_files(workspace: Workspace) -> None:
    names = []
    for number in range(200):
        path = workspace.path / f"conf{number}"
        path.write_text(f"alpha {number}\nbeta\n" * 50)
        path.chmod(0o640 if number % 2 else 0o755)
        names.append(path.name)
    run(["sed", "-i", "s/beta/gamma/", *names], cwd=workspace.path)
    run(["sed", "-i.bak", "s/alpha/delta/", "conf0"], cwd=workspace.path)
    assert sorted(os.listdir(workspace.path)) == sorted([*names, "conf0.bak"])
    assert (workspace.path / "conf1").read_text() == "alpha 1\ngamma\n" * 50
    assert (workspace.path / "conf0").read_text() == "delta 0\ngamma\n" * 50
    assert [(workspace.path / name).stat().st_mode & 0o777 for name in ("conf0", "conf1")] == [0o755, 0o640]
    workspace.check()


# Appends `a 0`, `a 1`, … for each word `a COUNT` it is told, reopening the log when told so.
LOG_WRITER = """
import sys
log = open(sys.argv[1], "a")
for line in sys.stdin:
    if line == "reopen\\n":
        log.close()
        log = open(sys.argv[1], "a")
    else:
        word, count = line.split()
        for number in range(int(count)):
            log.write(f"{word} {number}\\n")
            log.flush()
    print("done", flush=True)
"""


class LogWriter:
    """A program that keeps a log open for appending."""

    def __init__(self, log: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", LOG_WRITER, str(log)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def close(self) -> None:
        self._process.communicate(timeout=20)


def lines_of(word: str, count: int) -> str:
    return "".join(f"{word} {number}\n" for number in range(count))


@pytest.mark.parametrize("way", ["create", "copytruncate"])
def test_logrotate_loses_no_line(workspace: Workspace, need: Callable[..., None], way: str) -> None:
    need("logrotate", "gzip")
    workspace.path.chmod(0o755)
    log, config = workspace.path / "app.log", workspace.path / "rotate.conf"
    config.write_text(f'"{log}" {{\n rotate 4\n size 1\n {way}\n compress\n delaycompress\n}}\n')
    config.chmod(0o644)
    rotate = ["logrotate", "--force", "--state", workspace.path / "rotate.state", config]
    writer = LogWriter(log)
    try:
        for word in ("one", "two", "three"):
            writer.tell(f"{word} 2000")
            inode = log.stat().st_ino
            run(rotate, cwd=workspace.path, PATH=os.environ["PATH"] + ":/usr/sbin:/sbin")
            assert (log.stat().st_ino == inode) == (way == "copytruncate")
            assert log.stat().st_size == 0
            if way == "create":
                writer.tell("late 3")  # between the rotation and the reopening: belongs to the old file
                writer.tell("reopen")
        writer.tell("four 10")
    finally:
        writer.close()
    late = lines_of("late", 3) if way == "create" else ""
    assert log.read_text() == lines_of("four", 10)
    assert (workspace.path / "app.log.1").read_text() == lines_of("three", 2000) + late
    assert run(["zcat", "app.log.2.gz"], cwd=workspace.path).stdout == lines_of("two", 2000) + late
    assert run(["zcat", "app.log.3.gz"], cwd=workspace.path).stdout == lines_of("one", 2000) + late
    workspace.check()
