"""The mounts that ipfsfs is compared with, and all columns by name."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

from bench.fs import passthrough
from bench.fs.columns import (
    SETTLE_S,
    Column,
    Ipfsfs,
    WriteThrough,
    detach,
    first_line,
    plant_files,
    read_all,
    tool,
    wait,
)
from bench.fs.rows import CantError, EmptiedError
from tests.support.kubo import VERSION as KUBO_VERSION
from tests.support.kubo_node import KuboNode

if TYPE_CHECKING:
    from pathlib import Path


class Over(Column):
    """A mount that shows another directory."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.beneath = self.source = base / "source"
        self.source.mkdir()


class Bindfs(Over):
    """Libfuse's high-level interface in C."""

    name = "bindfs"
    about = "bindfs, as it comes"

    def start(self) -> None:
        self._mount([tool("bindfs", "bindfs"), "-f", self.source, self.path])

    def version(self) -> str:
        return first_line(tool("bindfs", "bindfs"), "--version")


class PassthroughLL(Over):
    """What can be had in C."""

    name = "passthrough_ll"
    about = "libfuse's example in C, -o writeback,cache=always,timeout=3600"

    def start(self) -> None:
        options = f"source={self.source},writeback,cache=always,timeout=3600"
        # It keeps a descriptor of each file that the kernel knows, and has EMFILE for programs when it has no more.
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        self._mount(["prlimit", f"--nofile={descriptors}", passthrough.program(), "-f", "-o", options, self.path])

    def version(self) -> str:
        return f"libfuse {passthrough.libfuse_version()}"


class Mergerfs(Over):
    """With everything on that lets the kernel answer."""

    name = "mergerfs"
    about = "mergerfs over one branch, all its caches on"
    options = (
        "cache.files=full,cache.writeback=true,cache.readdir=true,cache.symlinks=true,cache.attr=3600,cache.entry=3600,"
        "cache.negative_entry=3600,cache.open=3600,cache.statfs=3600,security_capability=false,category.create=ff"
    )

    def start(self) -> None:
        self._mount([tool("mergerfs", "mergerfs"), "-f", "-o", self.options, self.source, self.path])

    def version(self) -> str:
        return first_line(tool("mergerfs", "mergerfs"), "--version")


class Rclone(Over):
    """Over a local directory, so no network is measured."""

    name = "rclone"
    about = "rclone mount of a local directory, --vfs-cache-mode full"

    def start(self) -> None:
        self._cache = self.base / "cache"
        flags = ["--vfs-cache-mode", "full", f"--cache-dir={self._cache}", f"--config={self.base / 'rclone.conf'}"]
        self._mount([tool("rclone", "rclone"), "mount", self.source, self.path, *flags])

    def settle(self) -> None:
        self.rest()

    def rest(self) -> None:
        """It uploads what was closed five seconds before."""
        wait(lambda: not any(_is_dirty(file) for file in self._cache.glob("vfsMeta/**/*")), "uploaded", SETTLE_S)

    def warm(self, name: str) -> None:
        super().warm(name)
        read_all(self._cache)

    def plant(self, name: str, count: int) -> None:
        """And let it forget what it knows of the directory, or it would not look for minutes."""
        super().plant(name, count)
        for pid in self.pids():
            os.kill(pid, signal.SIGHUP)

    def version(self) -> str:
        return first_line(tool("rclone", "rclone"), "version")


def _is_dirty(file: Path) -> bool:
    try:
        return file.is_file() and b'"Dirty": true' in file.read_bytes()
    except OSError:
        return False  # gone meanwhile


class Kubo(Column):
    """A node on loopback, without peers."""

    name = "kubo"
    about = f"Kubo {KUBO_VERSION}, ipfs mount: its MFS"

    def start(self) -> None:
        self.beneath = None
        self._node = KuboNode(self.base / "node")
        try:
            self._node.start()
            other = [self.base / name for name in ("ipfs", "ipns")]
            for directory in other:
                directory.mkdir()
            self._node.run("mount", "-f", other[0], "-n", other[1], "-m", self.path)
        except AssertionError as error:
            raise CantError(f"the node: {error}") from error
        self._pid = self._node.pid

    def settle(self) -> None:
        """Raises EmptiedError, with a new node, if it takes too long.

        After 100,000 names were listed through the mount it keeps both processors busy for a quarter of an hour and
        more, walking through its directory again and again, and its other rows would show that, or never come.
        """
        try:
            self._node.run("files", "flush", "/", timeout=SETTLE_S)
        except subprocess.TimeoutExpired:
            self.close()
            shutil.rmtree(self.base)
            self.path.mkdir(parents=True)
            self.start()
            raise EmptiedError(f"`ipfs files flush` takes more than {SETTLE_S:.0f} s") from None

    def warm(self, name: str) -> None:
        read_all(self.base / "node")

    def plant(self, name: str, count: int) -> None:
        """Added as a tree and linked into MFS: through the mount it would take many minutes."""
        tree = self.base / "planted"
        plant_files(tree, count)
        cid = self._node.run("add", "-r", "-Q", "--pin=false", tree).decode().strip()
        self._node.run("files", "cp", f"/ipfs/{cid}", f"/{name}")
        shutil.rmtree(tree)

    def pids(self) -> list[int]:
        return [self._pid]

    def version(self) -> str:
        return f"Kubo {KUBO_VERSION}"

    def alive(self) -> bool:
        return os.path.exists(f"/proc/{self._pid}/exe")

    def close(self) -> None:
        if hasattr(self, "_node"):
            for name in ("mnt", "ipns", "ipfs"):
                detach(str(self.base / name), "-z")
            self._node.stop()
        super().close()


COLUMNS: dict[str, type[Column]] = {
    column.name: column for column in (Column, Ipfsfs, WriteThrough, Bindfs, PassthroughLL, Mergerfs, Rclone, Kubo)
}
