"""A mount whose only store is a real Kubo node: what is there afterwards, for whoever has nothing but the node."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.background import Background
from tests.support.compare import assert_same_tree
from tests.support.kubo_node import KuboNode
from tests.support.mountproc import MountProcess
from tests.support.poll import wait_until

CANT_STORE = r"what changed can't be stored now, next try in \d+ s: "


@pytest.fixture
def node(new_node: Callable[..., KuboNode]) -> KuboNode:
    """A node that runs."""
    return new_node().start()


def store_at(node: KuboNode) -> list[str]:
    return ["--store", f"kubo={node.url}"]


def mount_at(node: KuboNode, mount: MountProcess, *flags: str) -> MountProcess:
    """Mount with `node` as the store."""
    return mount.start(*store_at(node), "--quiet-seconds", "0.2", *flags)


def fill(root: Path) -> None:
    (root / "many").mkdir()
    for number in range(200):
        (root / f"many/{number}").write_bytes(b"%d" % number * number)
    (root / "large").write_bytes(random.Random(1).randbytes((5 << 20) + 17))
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o4755)
    (root / "link").symlink_to("many/7")
    os.setxattr(root / "run", b"user.note", b"kept")


def pinned(node: KuboNode) -> set[str]:
    keys: dict[str, object] = node.rpc("pin/ls", type="recursive")["Keys"]
    return set(keys)


def test_everything_can_be_read_with_nothing_but_the_node(
    node: KuboNode, new_mount: Callable[..., MountProcess], tmp_path: Path
) -> None:
    mount = new_mount()
    fill(mount.path)
    mount_at(node, mount)
    cid = mount.sync()
    (mount.path / "later").write_text("later")
    newest = mount.sync()
    mount.stop()
    assert not (mount.store / "blocks").exists(), "there is a second copy"
    # Commands know the store of a directory that was mounted; the cache and what we know of the node may be gone.
    shutil.rmtree(mount.store)
    assert mount.ipfsfs("cat", f"{cid}/many/9", environ={"IPFSFS_STORE": f"kubo={node.url}"}).stdout == "9" * 9
    shutil.rmtree(mount.state)
    source = [*store_at(node), "--store-dir", str(tmp_path / "elsewhere")]
    listed = json.loads(mount.ipfsfs("ls", "-R", "--json", *source, cid).stdout)
    assert len(listed) == 204
    assert mount.ipfsfs("cat", *source, f"{cid}/many/7").stdout == "7777777"
    restored = mount.ipfsfs("restore", *source, cid, "--to", tmp_path / "restored")
    assert "left out" not in restored.stderr, "our own snapshot, as its pin says"
    assert_same_tree(mount.plain, tmp_path / "restored", mtimes=False, skip=lambda path: path == b"later")
    changed = mount.ipfsfs("diff", *source, cid, newest, check=False)
    assert (changed.returncode, changed.stdout.splitlines()[-1]) == (1, "A  later")

    # A mount that has lost all that it knew finds its snapshots again.
    mount_at(node, mount)
    assert {entry["snapshot"] for entry in json.loads(mount.ipfsfs("log", "--json", mount.path).stdout)} >= {
        cid,
        newest,
    }


def test_commands_use_the_mounts_own_store(node: KuboNode, new_mount: Callable[..., MountProcess]) -> None:
    mount = new_mount()
    (mount.path / "file").write_text("content")
    mount_at(node, mount)
    cid = mount.sync()
    assert mount.ipfsfs("cat", "--mount", mount.path, "latest/file").stdout == "content"
    mount.stop()
    # Not mounted, what it was made with last is known from its state.
    environ = {"XDG_STATE_HOME": str(mount.base / "home/state")}
    home = mount.base / "home/state/ipfsfs/mounts"
    home.mkdir(parents=True)
    shutil.copytree(mount.state, home / str(json.loads((mount.state / "settings.json").read_text())["owner"]))
    home.parent.chmod(0o700)
    assert mount.ipfsfs("cat", "--mount", mount.path, f"{cid}/file", environ=environ).stdout == "content"


def test_content_of_another_node_is_fetched_over_the_network(
    new_node: Callable[..., KuboNode], new_mount: Callable[..., MountProcess], tmp_path: Path
) -> None:
    first, second = new_node("first").start(), new_node("second").start()
    second.connect(first)
    mount = new_mount()
    fill(mount.path)
    mount_at(first, mount)
    cid = mount.sync()
    source = [*store_at(second), "--store-dir", str(tmp_path / "elsewhere")]
    assert second.rpc("refs/local") is None or cid not in second.run("refs", "local").decode()
    assert mount.ipfsfs("cat", *source, f"{cid}/many/5").stdout == "55555"
    mount.ipfsfs("restore", *source, "--trust", cid, "--to", tmp_path / "restored")
    assert_same_tree(mount.plain, tmp_path / "restored")


def test_a_cid_that_nobody_has_is_given_up_in_time(
    node: KuboNode, new_mount: Callable[..., MountProcess], tmp_path: Path
) -> None:
    absent = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
    environ = {"IPFSFS_READ_SECONDS": "2"}
    source = [*store_at(node), "--store-dir", str(tmp_path / "elsewhere")]
    done = new_mount().ipfsfs("cat", *source, absent, check=False, timeout=20, environ=environ)
    assert done.returncode in (4, 7)
    assert absent in done.stderr


def test_only_the_newest_snapshots_stay_pinned_and_listed(
    node: KuboNode, new_mount: Callable[..., MountProcess]
) -> None:
    mount = mount_at(node, new_mount(), "--keep-snapshots", "2")
    before = pinned(node)
    taken = []
    for number in range(4):
        (mount.path / "file").write_text(str(number))
        taken.append(mount.sync())
    log = [entry["snapshot"] for entry in json.loads(mount.ipfsfs("log", "--json", mount.path).stdout)]
    assert log == taken[:1:-1]
    assert set(taken) & pinned(node) == set(taken[2:])
    assert pinned(node) - before <= set(taken[2:])
    node.collect_garbage()
    assert mount.ipfsfs("cat", "--mount", mount.path, f"{taken[2]}/file").stdout == "2"


def test_the_newest_tree_is_seen_in_the_nodes_own_files(node: KuboNode, new_mount: Callable[..., MountProcess]) -> None:
    mount = mount_at(node, new_mount())
    for text in ("one", "two"):
        (mount.path / "file").write_text(text)
        mount.sync()
        (entry,) = node.rpc("files/ls", "/ipfsfs", long="true")["Entries"]
        assert entry["Hash"] == mount.status()["snapshot"]["tree"]
        assert entry["Name"].startswith("mnt-")
        assert node.run("files", "read", f"/ipfsfs/{entry['Name']}/file") == text.encode()


def test_unmounting_while_the_node_is_down_is_quick_and_says_what_is_not_stored(
    new_node: Callable[..., KuboNode], new_mount: Callable[..., MountProcess]
) -> None:
    place = Background(new_mount())
    (place.path / "before").write_text("before")
    place.base.expect_log(CANT_STORE, "the last snapshot failed")
    assert place.mount(*store_at(new_node())).returncode == 0
    (place.path / "after").write_text("after")
    wait_until(lambda: (place.base.status()["waiting"] or {}).get("files") == 2, "two files that wait")
    done = place.umount(check=False)
    assert done.returncode == 4
    assert "2 files (11 B) not stored yet" in done.stderr
    assert place.is_plain()
    assert (place.path / "after").read_text() == "after"


def test_a_node_that_is_down_at_mount_gets_everything_when_it_comes(
    new_node: Callable[..., KuboNode], new_mount: Callable[..., MountProcess]
) -> None:
    node, mount = new_node(), new_mount()
    (mount.path / "before").write_text("before")
    mount.expect_log(CANT_STORE)
    mount_at(node, mount)
    assert "warning: " in mount.log_text()
    assert "what is written stays local until the node can be reached" in mount.log_text()
    (mount.path / "after").write_text("after")
    wait_until(lambda: (mount.status()["waiting"] or {}).get("files") == 2, "two files that wait")
    waiting = mount.status()["waiting"]
    assert node.url.removeprefix("http://") in waiting["error"]
    said = mount.ipfsfs("status", mount.path).stdout
    assert "waiting   2 files (11 B) for the store since " in said
    assert mount.status()["files"]["dirty"] == 2

    node.start()
    wait_until(lambda: mount.status()["waiting"] is None, "empty queue", 60)
    status = mount.status()
    assert (status["wrong"], status["files"]["stored"], status["files"]["dirty"]) == ([], 2, 0)
    assert status["snapshot"]["snapshot"] in pinned(node)


def test_status_knows_the_node_and_is_there_in_time_when_that_hangs(
    node: KuboNode, new_mount: Callable[..., MountProcess]
) -> None:
    mount = mount_at(node, new_mount())
    mount.sync()
    store = mount.status()["store"]
    assert (store["kind"], store["address"], store["healthy"], store["reach"]) == ("kubo", node.url, True, "public")
    assert store["peer_id"] == node.peer_id
    assert "0.42" in store["version"]
    said = mount.ipfsfs("status", mount.path).stdout
    assert "public: whoever knows a CID can get its content" in said
    node.freeze()
    try:
        store = json.loads(mount.ipfsfs("status", "--json", mount.path, timeout=12).stdout)["store"]
    finally:
        node.thaw()
    assert not store["healthy"]
    assert node.url in store["error"]


def test_a_node_that_wants_authorization_gets_it_from_a_file(
    new_node: Callable[..., KuboNode], new_mount: Callable[..., MountProcess], tmp_path: Path
) -> None:
    secret = "not-to-be-told"
    access = {"us": {"AuthSecret": f"bearer:{secret}", "AllowedPaths": ["/api/v0"]}}
    node = new_node(config={"API.Authorizations": access}, headers={"Authorization": f"Bearer {secret}"}).start()
    file = tmp_path / "auth"
    file.touch(0o600)
    file.write_text(f"bearer:{secret}\n")
    mount = mount_at(node, new_mount(), "--auth-file", str(file))
    (mount.path / "file").write_text("content")
    cid = mount.sync()
    assert mount.ipfsfs("cat", "--mount", mount.path, f"{cid}/file").stdout == "content"
    refused = mount.ipfsfs("cat", *store_at(node), "--mount", mount.path, f"{cid}/many", check=False)
    assert refused.returncode in (4, 7)
    everything = mount.log_text() + (mount.state / "settings.json").read_text() + json.dumps(mount.status())
    assert secret not in everything


def test_doctor_asks_the_node_and_leaves_no_trace(node: KuboNode, new_mount: Callable[..., MountProcess]) -> None:
    background = Background(new_mount())

    def doctor() -> tuple[int, dict[str, dict[str, str]]]:
        places = [*store_at(node), *background.places]
        done = background.ipfsfs("doctor", "--json", *places, background.path, check=False)
        return done.returncode, {check["name"]: check for check in json.loads(done.stdout)["checks"]}

    before = sorted(background.base.base.rglob("*")), pinned(node)
    code, checks = doctor()
    assert (code, checks["store"]["state"]) == (0, "ok"), checks
    assert node.url.removeprefix("http://") in checks["store"]["detail"]
    assert str(node.rpc("version")["Version"]) in checks["store"]["detail"]
    assert (sorted(background.base.base.rglob("*")), pinned(node)) == before
    node.stop()
    code, checks = doctor()
    assert (code, checks["store"]["state"]) == (0, "warn"), checks
