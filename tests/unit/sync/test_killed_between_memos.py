"""A daemon that is killed after it has remembered a file's new content, and before its directory's."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from fused.index.index import FileMemo, Index
from fused.sync.ingest import RACY_NS
from tests.unit.sync.conftest import Covered

put_files = Index.put_files


class Killed(Exception):
    """Stands for the end of the process."""


def put_files_and_die(index: Index, memos: Sequence[FileMemo]) -> None:
    put_files(index, memos)
    if memos:
        raise Killed


@pytest.mark.parametrize("seen", [True, False])
async def test_the_next_snapshot_has_the_change(covered: Covered, monkeypatch: pytest.MonkeyPatch, seen: bool) -> None:
    """`seen`: the change was made through the mount; else while nothing was mounted, and the scan found it."""

    covered.fs.mkdir("sub")
    covered.fs.write("sub/file", b"before")
    await trio.sleep(2 * RACY_NS / 1e9)  # so that the memos are good for another run of the daemon
    await covered.engine.sync()
    if seen:
        covered.fs.write("sub/file", b"after!")
    else:
        (covered.root / "sub/file").write_bytes(b"after!")
        await covered.restart()
    await trio.sleep(2 * RACY_NS / 1e9)
    with monkeypatch.context() as patch:
        patch.setattr(Index, "put_files", put_files_and_die)
        with pytest.raises(Killed):
            await covered.engine.sync()
    await covered.restart()
    row = await covered.engine.sync()
    assert await covered.tree(row) == {b"sub": None, b"sub/file": b"after!"}
