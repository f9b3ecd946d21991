"""Two daemons on one store: the same content and different content at the same time, one killed, gc in between."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tests.support.compare import assert_same_tree
from tests.support.mountproc import REPO, MountProcess
from tests.support.whole import assert_whole

NewMount = Callable[..., MountProcess]

COLLECT = """
import sys, time
from fused.dag.node import links_of
from fused.store.blocking import BlockingStore
end = time.monotonic() + float(sys.argv[2])
with BlockingStore(sys.argv[1]) as store:
    while time.monotonic() < end:
        store.gc(links_of)
        time.sleep(0.05)
"""


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def write(mount: MountProcess, step: int, own: int) -> None:
    """Content that the other writes as well, at the same time, and content that only this one has."""
    for number in range(8):
        (mount.path / f"same{step}-{number}").write_bytes(
            noise(150_000 if number % 4 == 0 else 4000, step * 10 + number)
        )
        (mount.path / f"own{step}-{number}").write_bytes(noise(2000, 10_000 * own + step * 10 + number))


def test_two_daemons_store_into_one_store_while_it_is_collected(new_mount: NewMount, tmp_path: Path) -> None:
    mounts = [new_mount("one"), new_mount("two")]
    mounts[1].store = mounts[0].store
    for mount in mounts:
        mount.start("--quiet-seconds", "0.1")
    collector = subprocess.Popen([sys.executable, "-c", COLLECT, str(mounts[0].store), "12"], cwd=REPO)
    taken: list[list[tuple[str, Path]]] = [[], []]
    failures: list[BaseException] = []

    def run(which: int) -> None:
        try:
            for step in range(5):
                write(mounts[which], step, which + 1)
                snapshot = mounts[which].sync()
                kept = tmp_path / f"kept{which}-{step}"
                shutil.copytree(mounts[which].plain, kept)
                taken[which].append((snapshot, kept))
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert collector.wait(60) == 0
    assert not failures, failures
    for which, mount in enumerate(mounts):
        for snapshot, kept in (taken[which][0], taken[which][2], taken[which][-1]):
            assert_same_tree(kept, mount.restore(snapshot, tmp_path / f"restored-{snapshot}"))
    for mount in mounts:
        mount.stop()
        assert_whole(mount)


def test_a_daemon_that_is_killed_in_the_middle_harms_no_other_on_the_same_store(
    new_mount: NewMount, tmp_path: Path
) -> None:
    survivor, victim = new_mount("survivor"), new_mount("victim")
    victim.store = survivor.store
    rng = random.Random(5)
    survivor.start("--quiet-seconds", "0.1")
    kept: list[str] = []
    for step in range(4):
        victim.start("--quiet-seconds", "0.1")
        write(victim, step, 2)
        kept.append(victim.sync())
        for number in range(40):
            (victim.path / f"more{step}-{number}").write_bytes(noise(90_000, 5000 + step * 100 + number))
        syncing = threading.Thread(target=lambda: victim.ipfsfs("sync", victim.path, check=False))
        syncing.start()
        write(survivor, step, 1)
        threading.Event().wait(rng.random() * 0.8)  # the random moment
        victim.kill9()
        syncing.join(60)
        victim.detach()
        snapshot = survivor.sync()
        assert_same_tree(survivor.plain, survivor.restore(snapshot, tmp_path / f"survivor{step}"))
    for number, snapshot in enumerate(kept):
        restored = survivor.restore(snapshot, tmp_path / f"kept{number}")
        assert (restored / f"own{number}-3").read_bytes() == noise(2000, 20_000 + number * 10 + 3)
    victim.start()
    assert_same_tree(victim.plain, victim.restore(victim.sync(), tmp_path / "restored"))
    for mount in (survivor, victim):
        mount.stop()
        assert_whole(mount)
