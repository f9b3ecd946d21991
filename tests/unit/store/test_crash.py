"""Power cuts and crashes: what was acknowledged is there, what was not is at most rubbish that goes away."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fused.store import blobs
from fused.store.base import Pin
from fused.store.blocking import BlockingStore
from tests.support.store_files import blob_files, check_invariants, temporary_files
from tests.support.toy_blocks import links_of, random_blocks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], Path]]]:
    """A directory, and a way to see it as a power cut at this very moment would leave it.

    With root and loop devices: an ext4 in an image file. The image has what ext4 has written out; what is still in
    the page cache is not in it, nor in a copy of it. Else: a copy of the files, which shows the order of things only.
    """
    image, mounts = tmp_path / "disk.img", [tmp_path / "disk"]
    mounts[0].mkdir()
    loop = os.geteuid() == 0 and shutil.which("mkfs.ext4") is not None
    if loop:
        with image.open("wb") as f:
            f.truncate(128 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        loop = subprocess.run(["mount", "-o", "loop", image, mounts[0]], capture_output=True).returncode == 0

    def cut_the_power() -> Path:
        after = tmp_path / f"after-{len(mounts)}"
        if not loop:
            shutil.copytree(mounts[0], after)
        else:
            copy = tmp_path / f"{after.name}.img"
            subprocess.run(["cp", "--sparse=always", image, copy], check=True)
            after.mkdir()
            subprocess.run(["mount", "-o", "loop", copy, after], check=True)
        mounts.append(after)
        return after

    yield mounts[0], cut_the_power
    for mount in mounts if loop else []:
        subprocess.run(["umount", mount], check=True)


@pytest.mark.parametrize("sizes", [[300], [70_000], [1 << 20], [300, 5000, 70_000, 200_000]])
@pytest.mark.parametrize("others_dirty", [False, True])  # one syncfs, or a sync of each file
def test_a_power_cut_right_after_put_loses_nothing(
    disk: tuple[Path, Callable[[], Path]], sizes: list[int], others_dirty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "_LITTLE_BYTES", -(1 << 40) if others_dirty else 1 << 40)
    monkeypatch.setattr(blobs, "_start_writing_out", lambda fd: None)  # by luck, the hint alone would often do
    directory, cut_the_power = disk
    with BlockingStore(directory / "store") as store:
        acknowledged = []
        for seed in range(4):
            batch = [block for size in sizes for block in random_blocks(8, size, seed=seed)]
            store.rows.put(batch)
            store.pins.add(Pin("m", batch[0].cid, str(seed)))
            acknowledged += batch
            if seed in (0, 3):
                after = cut_the_power() / "store"
                with BlockingStore(after) as again:
                    found = again.rows.get_many([block.cid for block in acknowledged])
                    assert found == {block.cid: block.data for block in acknowledged}
                    assert [pin.name for pin in again.pins.list("m")] == [str(n) for n in range(seed + 1)]
                    assert check_invariants(after) == len(acknowledged)


def test_a_crash_between_the_files_and_their_rows_leaves_rubbish_that_gc_removes(tmp_path: Path) -> None:
    path = tmp_path / "store"
    kept, lost = random_blocks(2, 100_000)
    with BlockingStore(path) as store:
        store.rows.put([kept])
        seen: list[Path] = []

        def copy_when_the_file_is_there() -> None:
            if len(blob_files(path)) == 2 and not seen:
                seen.append(shutil.copytree(path, tmp_path / "crashed"))

        store.rows.put([lost], copy_when_the_file_is_there)
    [crashed] = seen
    with BlockingStore(crashed) as store:
        assert store.rows.has([kept.cid, lost.cid]) == {kept.cid}
        assert len(blob_files(crashed)) == 2
        assert store.gc(links_of) == 0
        assert len(blob_files(crashed)) == 1
        assert store.rows.put([lost]) == 1
        assert store.rows.get(lost.cid) == lost.data
    assert check_invariants(crashed) == 2


def test_gc_leaves_the_files_of_a_living_writer_alone_though_they_have_no_row_yet(tmp_path: Path) -> None:
    path = tmp_path / "store"
    blocks = random_blocks(3, 100_000)
    collections = 0
    with BlockingStore(path) as writer, BlockingStore(path, grace_s=0) as collector:

        def collect() -> None:
            nonlocal collections
            if len(blob_files(path)) == 3:
                collector.gc(links_of)
                writer.gc(links_of)
                collections += 1

        writer.rows.put(blocks, collect)
        assert collections == 1
        assert len(writer.rows.get_many([block.cid for block in blocks])) == 3
    check_invariants(path)


def test_temporary_files_of_the_dead_are_swept_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with BlockingStore(path) as living:
        living.rows.put(random_blocks(1, 100_000))
        [ours] = temporary_files(path)
        dead = path / "tmp" / "0123abcd"
        dead.mkdir()
        (dead / "half-written").write_bytes(b"x")
        with BlockingStore(path):
            assert temporary_files(path) == [ours]
    assert temporary_files(path) == []


def test_an_error_in_the_middle_of_a_batch_leaves_no_files(tmp_path: Path) -> None:
    path = tmp_path / "store"
    calls = 0

    def fail_at_the_third() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    with BlockingStore(path) as store:
        with pytest.raises(KeyboardInterrupt):
            store.rows.put(random_blocks(4, 100_000), fail_at_the_third)
        assert blob_files(path) == []
        assert len(temporary_files(path)) == 1  # the writer's own, empty directory
        assert store.rows.put(random_blocks(4, 100_000)) == 4
    assert check_invariants(path) == 4
