"""How near the limit of dirty pages is: read from what the kernel prints, and not too often."""

from __future__ import annotations

from pathlib import Path

import pytest

from fused.fs.dirty import NEAR, DirtyMemory
from fused.fs.pace import Pace


@pytest.fixture
def vmstat(tmp_path: Path) -> Path:
    return tmp_path / "vmstat"


def say(path: Path, *, dirty: int, writeback: int = 0) -> None:
    """Nobody is held up to 1,000 pages."""
    path.write_text(
        f"nr_free_pages 5\nnr_dirty {dirty}\nnr_writeback {writeback}\nnr_dirty_threshold 1300\n"
        "nr_dirty_background_threshold 700\nnr_dirtied 99999\n"
    )


@pytest.mark.parametrize(
    ("dirty", "writeback", "near"),
    [(0, 0, False), (int(NEAR * 1000), 0, False), (int(NEAR * 1000) + 1, 0, True), (500, 400, True), (9000, 0, True)],
)
def test_what_is_dirty_and_what_is_being_written_count(vmstat: Path, dirty: int, writeback: int, *, near: bool) -> None:
    say(vmstat, dirty=dirty, writeback=writeback)
    assert DirtyMemory(str(vmstat)).near_limit(1.0) is near


def test_far_from_the_limit_it_is_read_ten_times_a_second_and_near_it_more_often(vmstat: Path) -> None:
    say(vmstat, dirty=10)
    memory = DirtyMemory(str(vmstat))
    assert not memory.near_limit(1.0)
    say(vmstat, dirty=700)
    assert not memory.near_limit(1.05)
    assert not memory.near_limit(1.11)
    say(vmstat, dirty=900)
    assert not memory.near_limit(1.12)
    assert memory.near_limit(1.14)
    say(vmstat, dirty=10)
    assert not memory.near_limit(1.17)


@pytest.mark.parametrize("content", ["", "nr_dirty 5000\n", "nonsense"])
def test_where_the_kernel_does_not_say_nothing_is_near(vmstat: Path, content: str) -> None:
    vmstat.write_text(content)
    assert not DirtyMemory(str(vmstat)).near_limit(1.0)
    assert not DirtyMemory(str(vmstat / "nowhere")).near_limit(1.0)


def test_this_kernel_says_it() -> None:
    memory = DirtyMemory()
    assert memory._part() > 0
    memory.close()
    assert memory._part() == 0


def test_no_write_is_inline_near_the_limit_but_in_memory(vmstat: Path) -> None:
    say(vmstat, dirty=900)
    memory = DirtyMemory(str(vmstat))
    assert not Pace(1, lambda _: "ext4", memory).inline(1.0)
    assert Pace(1, lambda _: "tmpfs", memory).inline(1.0)
    say(vmstat, dirty=100)
    assert Pace(1, lambda _: "ext4", memory).inline(2.0)
