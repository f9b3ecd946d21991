"""What looks like credentials and a real node that anybody can ask."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.background import Background
from tests.support.kubo_node import KuboNode, new_swarm_key
from tests.support.mountproc import MountProcess
from tests.support.poll import wait_until


@pytest.fixture
def background(new_node: object, new_mount: Callable[..., MountProcess]) -> Background:
    """A directory with credentials in it, to be mounted in the background; `new_mount` closes it."""
    place = Background(new_mount())
    (place.path / "app").mkdir()
    (place.path / "app/.env").write_text("TOKEN=secret")
    (place.path / "ordinary").write_text("ordinary")
    return place


def mount_at(node: KuboNode, place: Background, *flags: str) -> subprocess.CompletedProcess[str]:
    return place.mount("--store", f"kubo={node.url}", "--quiet-seconds", "0.2", *flags, check=False)


def stored(place: Background) -> set[str]:
    """The paths in a snapshot of now."""
    cid = place.base.sync()
    listed = place.ipfsfs("ls", "-R", "--json", "--mount", place.path, cid).stdout
    return {entry["path"] for entry in json.loads(listed)}


def test_a_public_node_is_refused_with_ways_out(new_node: Callable[..., KuboNode], background: Background) -> None:
    node = new_node().start()
    refused = mount_at(node, background)
    assert refused.returncode == 2
    assert "app/.env" in refused.stderr
    assert "is public" in refused.stderr
    for way in ("--exclude", "--store embedded", "--i-understand-this-is-public"):
        assert way in refused.stderr
    assert background.is_plain()

    mounted = mount_at(node, background, "--exclude", ".env")
    assert mounted.returncode == 0
    assert f"the node at {node.url}" in mounted.stderr
    assert "is public: whoever knows the CID" in mounted.stderr
    assert stored(background) == {"app", "ordinary"}
    background.umount()

    (background.path / ".ipfsfsignore").write_text(".env\n")
    assert mount_at(node, background).returncode == 0
    background.umount()
    (background.path / ".ipfsfsignore").unlink()

    assert mount_at(node, background, "--i-understand-this-is-public").returncode == 0
    assert stored(background) == {"app", "app/.env", "ordinary"}
    background.umount()


@pytest.mark.parametrize("reach", ["private", "offline"])
def test_other_nodes_are_told_and_get_everything(
    new_node: Callable[..., KuboNode], background: Background, reach: str
) -> None:
    options = {"swarm_key": new_swarm_key()} if reach == "private" else {"offline": True}
    node = new_node(**options).start()
    mounted = mount_at(node, background)
    assert mounted.returncode == 0
    assert f"is {reach}: " in mounted.stderr
    assert stored(background) == {"app", "app/.env", "ordinary"}
    assert background.base.status()["store"]["reach"] == reach
    background.umount()


def test_what_comes_later_is_not_stored_and_is_named(new_node: Callable[..., KuboNode], background: Background) -> None:
    node = new_node().start()
    (background.path / "app/.env").unlink()
    assert mount_at(node, background).returncode == 0
    (background.path / "app/id_ed25519").write_text("secret key")
    (background.path / "new").write_text("new")
    synced = background.ipfsfs("sync", background.path)
    assert "without 1 file that could not be stored: app/id_ed25519 (has a name as private keys have" in synced.stderr
    assert stored(background) == {"app", "ordinary", "new"}
    (skipped,) = background.base.status()["skipped"]
    assert skipped["path"] == "app/id_ed25519"
    assert not at_node(node, background.path / "app/id_ed25519")
    assert at_node(node, background.path / "new")
    background.umount()


def test_a_node_that_proves_public_at_first_contact_gets_no_credentials(
    new_node: Callable[..., KuboNode], background: Background
) -> None:
    node = new_node()
    background.base.expect_log("what changed can't be stored now")
    mounted = mount_at(node, background)
    assert mounted.returncode == 0
    assert "can be reached" in mounted.stderr
    node.start()
    wait_until(lambda: background.base.status()["snapshot"], "snapshot", 60)
    assert stored(background) == {"app", "ordinary"}
    assert [entry["path"] for entry in background.base.status()["skipped"]] == ["app/.env"]
    assert not at_node(node, background.path / "app/.env")
    background.umount()


def at_node(node: KuboNode, file: Path) -> bool:
    """Whether the node has this small file's only block."""
    cid = node.run("add", "-Q", "--only-hash", "--cid-version=1", "--raw-leaves", file).decode().strip()
    return cid in node.run("refs", "local").decode().split()
