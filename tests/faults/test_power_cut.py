"""Power cuts of the disk with store and index: whatever `ipfsfs sync` had acknowledged is there, whole.

A real daemon works on a disk that records. Then, for many moments, what a power cut at that moment may have left is
made, more than any one disk would do to us (see `powercut.py`), and looked at.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from fused.cid import CID, parse_cid
from fused.dag.node import links_of
from fused.index.index import Index, read_snapshots
from fused.store.blocking import BlockingStore
from tests.support.compare import assert_same_tree
from tests.support.faultyfs import FaultyDisk
from tests.support.mountproc import MountProcess
from tests.support.powercut import PowerCuts, read_record
from tests.support.store_files import check_invariants
from tests.support.whole import assert_whole

NewMount = Callable[..., MountProcess]

STATES = 60
SEEDS = (1, 2)


def work(mount: MountProcess, disk: FaultyDisk, rng: random.Random, kept: Path) -> list[str]:
    """Write, sync, and end and begin again in between; returns the snapshots; `kept` gets a copy of each tree."""
    taken: list[str] = []
    mount.start("--quiet-seconds", "0.1")
    for step in range(8):
        for number in range(rng.randrange(1, 12)):
            (mount.path / f"small{step}-{number}").write_bytes(rng.randbytes(rng.randrange(3000)))
        for number in range(rng.choice([0, 1, 6])):
            (mount.path / f"large{step}-{number}").write_bytes(rng.randbytes(70_000 + rng.randrange(60_000)))
        (mount.path / "state.json").write_bytes(rng.randbytes(500))
        if step:
            os.rename(mount.path / f"small{step - 1}-0", mount.path / f"renamed{step}")
        snapshot = mount.sync()
        disk.mark(snapshot)
        taken.append(snapshot)
        shutil.copytree(mount.plain, kept / snapshot, symlinks=True)
        if step in (2, 5):  # the last connection folds SQLite's log in and removes it
            mount.restart()
    mount.stop()
    return taken


def reachable(store: BlockingStore, root: CID) -> int:
    """How many blocks are below a root, all read and verified."""
    seen: set[CID] = set()
    todo = [root]
    while todo:
        cid = todo.pop()
        if cid not in seen:
            seen.add(cid)
            todo += links_of(cid, store.rows.get(cid))
    return len(seen)


def check_state(state: Path, acknowledged: Sequence[str]) -> None:
    """Store and index can be opened, and have all that was acknowledged."""
    if (state / "store").exists() or acknowledged:
        with BlockingStore(state / "store") as store:
            pinned = {pin.cid for pin in store.pins.list(None)}
            for snapshot in acknowledged:
                cid = parse_cid(snapshot)
                assert cid in pinned, f"{snapshot} is not pinned"
                assert reachable(store, cid) > 3
            check_pins_are_whole(store)
        check_invariants(state / "store")
    if acknowledged:
        listed = [row.cid for row in read_snapshots(str(state / "state"))]
        for snapshot in acknowledged:
            assert parse_cid(snapshot) in listed, f"{snapshot} is not in the index"
        Index(str(state / "state")).close()


def check_pins_are_whole(store: BlockingStore) -> None:
    """Also a pin that nobody has heard of yet: blocks come before it."""
    for pin in store.pins.list(None):
        assert reachable(store, pin.cid)


def test_what_sync_acknowledged_is_there_after_a_power_cut_at_any_moment(
    faulty_disk: FaultyDisk, new_mount: NewMount, tmp_path: Path
) -> None:
    mount = new_mount()
    mount.state, mount.store = faulty_disk.path / "state", faulty_disk.path / "store"
    kept = tmp_path / "kept"
    kept.mkdir()
    faulty_disk.record(tmp_path / "record")
    work(mount, faulty_disk, random.Random(4), kept)
    operations = read_record(tmp_path / "record")
    assert sum(op[0] == "fsync" for op in operations) > 50, "nothing to test"

    marks = [at for at, op in enumerate(operations) if op[0] == "mark"]
    for seed in (*SEEDS, secrets.randbits(32)):
        rng = random.Random(seed)
        cuts = PowerCuts(operations, rng)
        for number in range(STATES):
            # Any moment, and the moments right after an acknowledgement, when nothing more would be written.
            moment = rng.choice(marks) + 1 if number % 3 == 0 else rng.randrange(len(operations) + 1)
            disk = rng.choice(["journal", "posix"])
            state = tmp_path / "cut"
            cuts.write(moment, disk, state)
            try:
                check_state(state, cuts.marks_before(moment))
            except BaseException as exc:
                exc.add_note(f"seed={seed} state={number} moment={moment} disk={disk}")
                raise
            shutil.rmtree(state)
        print(f"seed={seed} operations={len(operations)} states={STATES}")

    # A few of them through the commands and a new daemon.
    rng = random.Random(9)
    cuts = PowerCuts(operations, rng)
    mount.expect_log("the index .* can't be read", "this is another store than before")
    for number in range(4):
        moment = rng.randrange(marks[1], len(operations))
        cut = tmp_path / f"again{number}"
        cuts.write(moment, rng.choice(["journal", "posix"]), cut)
        mount.state, mount.store = cut / "state", cut / "store"
        for snapshot in cuts.marks_before(moment)[-2:]:
            assert_same_tree(kept / snapshot, mount.restore(snapshot, tmp_path / f"restored{number}-{snapshot}"))
        mount.start()
        assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / f"all{number}"))
        mount.stop()
        assert_whole(mount)
