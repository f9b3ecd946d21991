"""Rows about what happens behind the mount: storing, starting, memory.

    sync-small       `ipfsfs sync` of many small files, beside `ipfs add -r`
    sync-big         of one large file, beside `ipfs add`
    sync-chunk       of that file after 4 KiB of it have changed
    sync-unchanged   of many files that are known, of which none has changed
    serve-empty      from the command to the first request that is served, over an empty directory
    serve-known      over one with many files, all known
    memory-known     what the daemon's memory is then (resident), after it has looked through them
    …-million        the same with a million files, which takes an hour

`ipfs add` works offline, on a new repository with blocks in files (flatfs), with the profile under which both give the
same tree, which is checked. What is stored was written just before and is in the page cache. The time of either is that
of the whole command.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from bench.fs.columns import Ipfsfs, wait
from bench.fs.data import PAGE, big_file
from bench.fs.measure import Cell
from bench.fs.rows import MIB, CantError, Row, Sizes
from tests.support.kubo import KuboRepo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

T = TypeVar("T")

GROUP = "engine"
OURS, THEIRS, LIMIT = "ipfsfs", "ipfs add", "limit"
COLUMNS = (OURS, THEIRS, LIMIT)
MILLION = 1_000_000
HUGE = ("serve-million", "memory-million")
SYNCS = ("sync-small", "sync-big", "sync-chunk")
LIMITS = {
    "sync-unchanged": 0.05,
    "serve-empty": 0.3,
    "serve-known": 0.3,
    "serve-million": 0.3,
    "memory-known": 100.0 * MIB,
    "memory-million": 400.0 * MIB,
}
"""Seconds, or bytes, that are asked of the full size."""

ROWS = (
    *(Row(name, GROUP, unit="run") for name in (*SYNCS, "sync-unchanged", "serve-empty", "serve-known")),
    Row("memory-known", GROUP, unit="bytes"),
    Row("serve-million", GROUP, unit="run"),
    Row("memory-million", GROUP, unit="bytes"),
)


def small_files(root: Path, count: int) -> None:
    """Files of 4 KiB that nobody has stored, a hundred in a directory."""
    for i in range(count):
        if i % 100 == 0:
            (root / f"d{i // 100:05}").mkdir(parents=True)
        (root / f"d{i // 100:05}" / f"f{i:06}").write_bytes(os.urandom(16) * (PAGE // 16))


def _timed(act: Callable[[], T]) -> tuple[float, T]:
    os.sync()
    begun = time.perf_counter()
    result = act()
    return time.perf_counter() - begun, result


class Engine:
    """Measures the rows that it is asked for, in turns. `base` is a directory on the disk to be measured."""

    def __init__(self, base: Path, sizes: Sizes, turns: int, tell: Callable[[str], None]) -> None:
        self._base = base / "engine"
        self._base.mkdir()
        self._sizes = sizes
        self._turns = turns
        self._tell = tell
        self.cells: dict[str, dict[str, Cell]] = {}
        """What was measured, by row and column."""

    def measure(self, rows: Sequence[str]) -> None:
        """All of them. What can't be measured says so in its cells."""
        for name in rows:
            self.cells[name] = {column: Cell() for column in COLUMNS}
            limit = LIMITS.get(name)
            self.cells[name][LIMIT] = Cell([limit]) if limit else Cell(cant="none is asked for")
            if name not in SYNCS:
                why = "it would add everything again" if name == "sync-unchanged" else "it is no mount"
                self.cells[name][THEIRS] = Cell(cant=why)
        wanted = set(rows)
        self._try({"sync-small"} & wanted, self._sync_small)
        self._try({"sync-big", "sync-chunk"} & wanted, self._sync_big)
        self._try({"serve-empty"} & wanted, self._serve_empty)
        known = {"sync-unchanged", "serve-known", "memory-known"}
        self._try(known & wanted, partial(self._known, self._sizes.known, "known"))
        self._try(set(HUGE) & wanted, partial(self._known, MILLION, "million"))

    def _try(self, rows: set[str], act: Callable[[], None]) -> None:
        if not rows:
            return
        self._tell(", ".join(sorted(rows)))
        try:
            act()
        except (CantError, OSError, AssertionError) as error:
            for name in rows:
                self.cells[name][OURS].cant = str(error)
        finally:
            shutil.rmtree(self._base, ignore_errors=True)
            self._base.mkdir(exist_ok=True)

    def _add(self, row: str, column: str, value: float) -> None:
        if row in self.cells:
            self.cells[row][column].seconds.append(value)
            self.cells[row][column].operations = 1

    # --- storing ----------------------------------------------------------------------------------------------------

    def _sync_small(self) -> None:
        for turn in range(self._turns):
            self._stored_by_both(turn, partial(small_files, count=self._sizes.small), "sync-small")

    def _sync_big(self) -> None:
        for turn in range(self._turns):
            self._stored_by_both(turn, partial(big_file, sizes=self._sizes), "sync-big", "sync-chunk", _change_one_page)

    def _stored_by_both(
        self,
        turn: int,
        make: Callable[[Path], None],
        row: str,
        row_after: str | None = None,
        change: Callable[[Path], None] | None = None,
    ) -> None:
        """One turn: what `make` makes, then what `change` changes, stored by ipfsfs and added by ipfs."""
        sides = {OURS: partial(self._by_us, turn), THEIRS: partial(self._by_ipfs, turn)}
        trees: dict[str, list[str]] = {}
        order = list(sides) if turn % 2 == 0 else list(reversed(sides))
        source = self._base / f"source-{turn}"
        source.mkdir()
        make(source)
        changed = self._base / f"changed-{turn}"
        if change is not None:
            shutil.copytree(source, changed)
            change(changed)
        for column in order:
            self._tell(f"{row}, turn {turn + 1} of {self._turns}: {column}")
            try:
                found = list(sides[column](source, changed if change else None))
            except (CantError, AssertionError) as error:
                self.cells.setdefault(row, {}).setdefault(column, Cell()).cant = str(error).splitlines()[0]
                continue
            trees[column] = [tree for _, tree in found]
            for name, (seconds, _) in zip((row, row_after), found, strict=False):
                self._add(name or "", column, seconds)
        for place in (source, changed):
            shutil.rmtree(place, ignore_errors=True)
        if len(trees) == len(sides) and trees[OURS] != trees[THEIRS]:
            raise CantError(f"the trees differ: {trees}")

    def _by_us(self, turn: int, source: Path, changed: Path | None) -> Iterator[tuple[float, str]]:
        with self._mounted(f"mount-{turn}") as mount:
            mount.start()
            shutil.copytree(source, mount.path, dirs_exist_ok=True)
            yield self._sync(mount)
            if changed is not None:
                _change_one_page(mount.path)
                yield self._sync(mount)

    def _sync(self, mount: Ipfsfs) -> tuple[float, str]:
        seconds, said = _timed(partial(mount.ipfsfs, "sync", "--json", str(mount.path)))
        return seconds, str(json.loads(said)["tree"])

    def _by_ipfs(self, turn: int, source: Path, changed: Path | None) -> Iterator[tuple[float, str]]:
        repo = KuboRepo(self._base / f"repo-{turn}")
        yield _timed(partial(repo.add, source))
        if changed is not None:
            yield _timed(partial(repo.add, changed))
        shutil.rmtree(repo.path)

    @contextmanager
    def _mounted(self, name: str) -> Iterator[Ipfsfs]:
        """A column of ipfsfs, not started; removed at the end."""
        with closing(Ipfsfs(self._base / name)) as mount:
            yield mount
        shutil.rmtree(self._base / name)

    # --- starting, memory -------------------------------------------------------------------------------------------

    def _serve_empty(self) -> None:
        for turn in range(self._turns):
            with self._mounted(f"empty-{turn}") as mount:
                self._add("serve-empty", OURS, mount.serve())

    def _known(self, count: int, called: str) -> None:
        from tests.stress.test_million_files import make_files

        with self._mounted(called) as mount:
            self._tell(f"making {count:,} files")
            make_files(mount.path, count)
            self._tell(f"storing {count:,} files")
            mount.start()
            for turn in range(self._turns):
                self._tell(f"{count:,} known files, turn {turn + 1} of {self._turns}")
                if called == "known":
                    self._add("sync-unchanged", OURS, _timed(partial(mount.ipfsfs, "sync", str(mount.path)))[0])
                mount.unmount()
                self._add(f"serve-{called}", OURS, mount.serve())
                wait(lambda: not mount.status()["scan"]["running"], "its scan", 3600, 0.1)
                mount.settle()
                self._add(f"memory-{called}", OURS, float(mount.status()["rss_bytes"]))


def _change_one_page(root: Path) -> None:
    with open(root / "big", "r+b", buffering=0) as file:
        file.seek(os.stat(root / "big").st_size // 2)
        file.write(b"changed!" * (PAGE // 8))
