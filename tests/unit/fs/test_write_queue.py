"""The kernel's queue of writes is short while large writes come in, and as long as it was afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from fused.fs.write_queue import (
    DIRTY_BYTES,
    DIRTY_BYTES_WHILE_SLOW,
    QUIET_SECONDS,
    REQUESTS_WHILE_WRITING,
    Setting,
    WriteQueue,
    write_queue_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock


class Controls:
    """The files in which the kernel takes the numbers, as plain ones."""

    def __init__(self, directory: Path) -> None:
        self.requests = directory / "max_background"
        self.dirty = directory / "max_bytes"
        self.ratio = directory / "max_ratio_fine"
        self.requests.write_text("12\n")
        self.dirty.write_text("50000000\n")
        self.ratio.write_text("untouched")

    def queue(self) -> WriteQueue:
        return WriteQueue(
            Setting(str(self.requests), str(self.requests), b"12\n", 12),
            Setting(str(self.dirty), str(self.ratio), b"10000\n", 50_000_000),
        )

    def now(self) -> tuple[int, int]:
        return int(self.requests.read_text()), int(self.dirty.read_text())


@pytest.fixture
def controls(tmp_path: Path) -> Controls:
    return Controls(tmp_path)


async def test_the_queue_is_short_until_large_writes_have_ended(controls: Controls, autojump_clock: MockClock) -> None:
    queue = controls.queue()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.run)
        for _ in range(2):
            assert int(controls.requests.read_text()) == 12
            for _ in range(5):
                queue.large_write(slow=False)
                await trio.sleep(QUIET_SECONDS * 0.9)
                assert controls.now() == (REQUESTS_WHILE_WRITING, DIRTY_BYTES)
                assert controls.ratio.read_text() == "untouched"
            await trio.sleep(QUIET_SECONDS)
            assert controls.ratio.read_text() == "10000\n"
            controls.ratio.write_text("untouched")
        nursery.cancel_scope.cancel()


async def test_while_the_disk_holds_writes_up_less_is_dirty_and_nobody_waits_behind_another(
    controls: Controls, autojump_clock: MockClock
) -> None:
    queue = controls.queue()
    for slow, expected in (
        (True, (12, DIRTY_BYTES_WHILE_SLOW)),
        (False, (REQUESTS_WHILE_WRITING, DIRTY_BYTES)),
        (True, (12, DIRTY_BYTES_WHILE_SLOW)),
    ):
        queue.large_write(slow=slow)
        assert controls.now() == expected


async def test_nothing_is_written_for_each_write(controls: Controls) -> None:
    queue = controls.queue()
    queue.large_write(slow=False)
    controls.requests.write_text("7\n")
    queue.large_write(slow=False)
    assert controls.now() == (7, DIRTY_BYTES)


async def test_what_is_small_already_is_not_made_larger(tmp_path: Path) -> None:
    dirty = tmp_path / "max_bytes"
    dirty.write_text("4096\n")
    WriteQueue(None, Setting(str(dirty), str(dirty), b"4096\n", 4096)).large_write(slow=False)
    assert dirty.read_text() == "4096\n"


async def test_one_number_is_set_where_the_other_can_not_be(controls: Controls) -> None:
    requests = Setting(str(controls.requests), str(controls.requests), b"12\n", 12)
    WriteQueue(requests, None).large_write(slow=False)
    assert controls.now() == (REQUESTS_WHILE_WRITING, 50_000_000)


async def test_a_mount_that_is_gone_is_no_error(controls: Controls) -> None:
    queue = controls.queue()
    for path in (controls.requests, controls.dirty):
        path.unlink()
        path.mkdir()
    queue.large_write(slow=False)


def test_what_is_no_mount_has_none(tmp_path: Path) -> None:
    assert write_queue_of(str(tmp_path)) is None
