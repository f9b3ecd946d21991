"""Disks and nodes that fill up, break and stop for a while, under a real mount; and what must be true afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.background import Background
from tests.support.disks import SmallDisk
from tests.support.faultyfs import FaultyDisk
from tests.support.kubo_node import KuboNode
from tests.support.mountproc import MountProcess
from tests.support.outage import Outage
from tests.support.proxy import Proxy


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., SmallDisk]]:
    """Makes small real file systems. Ask for it before `new_mount`, so that mounts on them go first."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    made: list[SmallDisk] = []

    def make(name: str, mebibytes: int, kind: str = "tmpfs") -> SmallDisk:
        made.append(SmallDisk(tmp_path / name, mebibytes, kind))
        return made[-1]

    yield make
    for disk in reversed(made):
        disk.close()


@pytest.fixture
def faulty_disk(tmp_path: Path) -> Iterator[FaultyDisk]:
    """A disk that fails on request. Ask for it before `new_mount`."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("/dev/fuse is missing")
    disk = FaultyDisk(tmp_path / "faulty")
    yield disk
    disk.close()


@pytest.fixture
def background(new_mount: Callable[..., MountProcess]) -> Iterator[Background]:
    """An empty directory, not mounted yet, for `ipfsfs mount` in the background."""
    place = Background(new_mount())
    yield place
    place.close()


@pytest.fixture
def new_place(tmp_path: Path) -> Iterator[Callable[..., tuple[KuboNode, Proxy]]]:
    """Makes real nodes, running, each with a proxy in front, that end after all mounts."""
    made: list[tuple[KuboNode, Proxy]] = []

    def make(path: Path | None = None) -> tuple[KuboNode, Proxy]:
        """`path` is where the node's repository is made."""
        node = KuboNode(path or tmp_path / "node").start()
        made.append((node, Proxy(node.url)))
        return made[-1]

    yield make
    for node, proxy in made:
        proxy.close()
        node.kill()


@pytest.fixture
def new_outage(
    tmp_path: Path, new_place: Callable[..., tuple[KuboNode, Proxy]], new_mount: Callable[..., MountProcess]
) -> Iterator[Callable[..., Outage]]:
    """Makes an empty directory, not mounted yet, to be stored at a real node behind a proxy."""
    made: list[Outage] = []

    def make(path: Path | None = None) -> Outage:
        node, proxy = new_place(path)
        made.append(Outage(new_mount(), node, proxy, tmp_path))
        return made[-1]

    yield make
    for outage in made:  # a test that has failed may have left it lying
        outage.proxy.honest()
        outage.proxy.up()


@pytest.fixture
def outage(new_outage: Callable[..., Outage]) -> Outage:
    """The same, once, with the repository on the disk of the tests."""
    return new_outage()
