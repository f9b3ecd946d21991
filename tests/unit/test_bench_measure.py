"""`bench/fs` goes on when something can't be done, and says why."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.fs.__main__ import SIZES
from bench.fs.columns import Column
from bench.fs.measure import Cell, Measuring
from bench.fs.rows import CantError, EmptiedError, Row, Sizes, Timed, once, repeat


def measured(tmp_path: Path, *rows: Row) -> list[Cell]:
    """In the directory itself."""
    measuring = Measuring([Column(tmp_path / "native")], replace(SIZES["smoke"]), 2, lambda _: None)
    return [measuring.row(row)["native"] for row in rows]


def touch(root: Path, sizes: Sizes) -> Timed:
    return once(lambda: (root / "touched").touch())


def refuse(root: Path, sizes: Sizes) -> None:
    raise CantError("there is nothing to prepare it with")


def test_each_turn_has_a_directory_of_its_own_and_none_is_left(tmp_path: Path) -> None:
    (cell,) = measured(tmp_path, Row("touch", "requests", touch))
    assert len(cell.seconds) == 2
    assert cell.cant is None
    assert os.listdir(tmp_path / "native/mnt") == []


def test_rows_that_share_what_cant_be_prepared_all_say_why(tmp_path: Path) -> None:
    rows = [Row(name, "requests", touch, prepare=refuse, keeps=True) for name in ("one", "two")]
    assert [cell.cant for cell in measured(tmp_path, *rows)] == ["there is nothing to prepare it with"] * 2


def test_an_errno_is_told_with_the_place_where_it_came(tmp_path: Path) -> None:
    def read_nothing(root: Path, sizes: Sizes) -> Timed:
        return once(lambda: os.stat(root / "nothing"))

    (cell,) = measured(tmp_path, Row("stat", "requests", read_nothing))
    assert cell.cant is not None
    assert cell.cant.startswith("No such file or directory (")


def test_what_takes_too_long_is_given_up(tmp_path: Path) -> None:
    def sleep(root: Path, sizes: Sizes) -> Timed:
        return once(lambda: time.sleep(60))

    (cell,) = measured(tmp_path, Row("sleep", "requests", sleep, limit=0.2))
    assert cell.cant == "not finished within 0.2 s"


def test_a_column_that_was_emptied_is_filled_again(tmp_path: Path) -> None:
    class Restless(Column):
        settled = 0

        def settle(self) -> None:
            self.settled += 1
            if self.settled == 2:
                shutil.rmtree(self.path)
                self.path.mkdir()
                raise EmptiedError("it does not come to rest")

    def prepare(root: Path, sizes: Sizes) -> None:
        (root / "file").touch()

    def look(root: Path, sizes: Sizes) -> Timed:
        return once(lambda: os.stat(root / "file"))

    measuring = Measuring([Restless(tmp_path / "native")], replace(SIZES["smoke"]), 2, lambda _: None)
    one, two = (
        measuring.row(Row(name, "requests", look, prepare=prepare, keeps=True))["native"] for name in ("one", "two")
    )
    assert one.cant == "it does not come to rest"
    assert two.cant is None
    assert len(two.seconds) == 2


def test_many_operations_end_when_the_time_is_over() -> None:
    timed = repeat(lambda _: time.sleep(0.01), range(1000), 0.01)
    assert timed.operations == 16
    with pytest.raises(ZeroDivisionError):
        repeat(lambda _: 1 / 0, range(3), 1.0)
