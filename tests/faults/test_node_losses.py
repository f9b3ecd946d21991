"""A node that has no room, or removes what was not pinned yet. What `sync` has acknowledged is there all the same."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from tests.support.disks import MIB, SmallDisk
from tests.support.outage import CANT_STORE, LOST, Outage
from tests.support.poll import wait_until
from tests.support.proxy import Before


def test_a_full_node_acknowledges_nothing_and_gets_the_rest_when_there_is_room(
    small_disk: Callable[..., SmallDisk], new_outage: Callable[..., Outage]
) -> None:
    disk = small_disk("nodes", 40)
    outage = new_outage(disk.path / "repo")
    outage.mount.expect_log(CANT_STORE, LOST)
    outage.start()
    outage.write("fits", MIB)
    outage.sync()
    ballast = disk.fill(leave=6 * MIB)
    outage.write("large", 16 * MIB)
    outage.sync_fails("space|full")
    wait_until(outage.wrong, "word of it in status")
    assert outage.newest() == outage.acknowledged[-1]
    assert len((outage.path / "large").read_bytes()) == 16 * MIB

    ballast.unlink()
    outage.node.kill()  # as whoever made room would: its LevelDB takes nothing more after a full disk
    outage.node.start()
    outage.wait_stored()
    outage.assert_kept()


def test_garbage_that_is_collected_between_upload_and_pin_is_stored_again(outage: Outage) -> None:
    outage.mount.expect_log(CANT_STORE, LOST)
    outage.write("before", MIB)
    outage.start()
    outage.sync()
    collected = outage.proxy.rule("pin/[au]*", Before(outage.node.collect_garbage), times=1)
    outage.write("large", 5 * MIB)
    outage.write("d/small", 100)
    outage.wait_stored()
    assert collected.used == 1
    outage.assert_kept()


def test_garbage_that_is_collected_all_the_time_takes_nothing_that_was_acknowledged(outage: Outage) -> None:
    outage.mount.expect_log(CANT_STORE, LOST)
    outage.start()
    outage.sync()
    with collecting(outage) as rounds:
        for number in range(12):
            outage.write(f"{number % 3}/{number}", 700_000, number)
            if number % 4 == 3:
                done = outage.mount.ipfsfs("sync", outage.path, check=False)
                if done.returncode == 0:
                    outage.acknowledged.append(done.stdout.strip())
    assert len(rounds) > 3
    outage.wait_stored()
    outage.node.collect_garbage()
    outage.assert_kept()


@contextlib.contextmanager
def collecting(outage: Outage) -> Iterator[list[int]]:
    """The node collects garbage again and again, with the shortest of pauses. Yields a growing list of the rounds."""
    rounds: list[int] = []
    enough = threading.Event()

    def collect() -> None:
        while not enough.wait(0.1):
            outage.node.collect_garbage()
            rounds.append(len(rounds))

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        yield rounds
    finally:
        enough.set()
        thread.join()
