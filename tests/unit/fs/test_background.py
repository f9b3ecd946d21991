"""The kernel's queue of writes is short while large writes come in, and as long as it was afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from fused.fs.background import QUIET_SECONDS, Background, background_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def control(tmp_path: Path) -> Path:
    path = tmp_path / "max_background"
    path.write_text("12\n")
    return path


def value(control: Path) -> int:
    return int(control.read_text())


async def test_the_queue_is_short_until_large_writes_have_ended(
    control: Path, autojump_clock: trio.testing.MockClock
) -> None:
    background = Background(str(control))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(background.run)
        for _ in range(2):
            assert value(control) == 12
            for _ in range(5):
                background.large_write()
                await trio.sleep(QUIET_SECONDS * 0.9)
                assert value(control) == 2
            await trio.sleep(QUIET_SECONDS)
        nursery.cancel_scope.cancel()


async def test_a_mount_that_is_gone_is_no_error(control: Path) -> None:
    background = Background(str(control))
    control.unlink()
    control.mkdir()
    background.large_write()


def test_what_is_no_mount_has_none(tmp_path: Path) -> None:
    assert background_of(str(tmp_path)) is None
