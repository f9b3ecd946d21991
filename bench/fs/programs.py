"""Rows with whole programs, unmodified, whose wall time counts.

The programs themselves are in the page cache when the clock starts, also in -cold rows: only what lies in the directory
is cold.
"""

from __future__ import annotations

import json
import mmap
import sqlite3
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from bench.fs.data import PAGE
from bench.fs.inputs import REPOSITORY, TREE, WHEEL, make, package, run
from bench.fs.rows import MIB, CantError, Row, Sizes, State, Timed, once, repeat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GROUP = "programs"
_TENSOR = 16 * MIB


def _clone(root: Path, sizes: Sizes) -> None:
    # As from another machine: not by hard links, which only the directory itself could make.
    run("git", "clone", "-q", "--no-local", sizes.inputs / REPOSITORY, root / "clone")


def _untar(root: Path, sizes: Sizes) -> None:
    run("tar", "-xf", sizes.inputs / TREE, "-C", root)


def _git_status(root: Path, sizes: Sizes) -> Timed:
    del sizes
    run("git", "version")
    return once(lambda: run("git", "-C", root / "clone", "status", "--short"))


def _import(root: Path, sizes: Sizes) -> Timed:
    del sizes
    run(sys.executable, "-I", "-c", "import random")
    code = f"import sys; sys.path.insert(0, {str(root)!r}); import many_modules"
    return once(lambda: run(sys.executable, "-I", "-c", code))


def _pip_install(root: Path, sizes: Sizes) -> Timed:
    flags = ["--no-index", "--no-deps", "--no-cache-dir", "--ignore-installed", "--disable-pip-version-check", "-q"]
    pip = [sys.executable, "-m", "pip"]
    run(*pip, "--version")
    return once(lambda: run(*pip, "install", *flags, "--prefix", root / "prefix", sizes.inputs / WHEEL))


def _sqlite(mode: str) -> Callable[[Path, Sizes], Timed]:
    """One row in each transaction, durable when it has ended."""

    def transactions(root: Path, sizes: Sizes) -> Timed:
        try:
            with closing(sqlite3.connect(root / "db.sqlite", isolation_level=None)) as db:
                if db.execute(f"pragma journal_mode={mode}").fetchone()[0] != mode:
                    raise CantError(f"no journal mode {mode}")
                db.execute("pragma synchronous=full")
                db.execute("create table t (id integer primary key, value text)")

                def insert(number: int) -> None:
                    db.execute("insert into t (value) values (?)", (f"value {number} " * 8,))

                return repeat(insert, range(sizes.transactions), sizes.seconds * 2)
        except sqlite3.Error as error:
            raise CantError(f"SQLite: {error}") from None

    return transactions


def _duckdb_load(root: Path, sizes: Sizes) -> Timed:
    try:
        import duckdb
    except ImportError:
        raise CantError("the module duckdb is not installed") from None
    query = (
        "create table t as select range as id, hash(range) as h, 'name ' || (range % 1000) as name "
        f"from range({sizes.database_rows})"
    )

    def load() -> None:
        with duckdb.connect(str(root / "db.duckdb")) as db:
            db.execute(query)
            db.execute("checkpoint")

    try:
        return once(load)
    except duckdb.Error as error:
        raise CantError(f"DuckDB: {str(error).splitlines()[0]}") from None


def safetensors(root: Path, sizes: Sizes) -> None:
    """A model's file: the length of the header, the header, and the tensors one after the other."""
    count = max(1, sizes.big // _TENSOR)
    size = sizes.big // count
    header = {
        f"layer.{i}.weight": {"dtype": "U8", "shape": [size], "data_offsets": [i * size, (i + 1) * size]}
        for i in range(count)
    }
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % PAGE)
    content = bytearray(MIB)
    with open(root / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number in range(sizes.big // MIB):
            content[:16] = number.to_bytes(16, "big")
            file.write(content)


def _load_tensors(root: Path, sizes: Sizes) -> Timed:
    """As loaders do it: map the file, and copy one tensor after the other out of it."""
    del sizes

    def load() -> None:
        with (
            open(root / "model.safetensors", "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            start = 8 + int.from_bytes(view[:8], "little")
            header = json.loads(bytes(view[8:start]))
            target = bytearray(max(tensor["shape"][0] for tensor in header.values()))
            for tensor in header.values():
                begin, end = tensor["data_offsets"]
                target[: end - begin] = view[start + begin : start + end]

    return once(load)


def _whole(act: Callable[[Path, Sizes], None]) -> Callable[[Path, Sizes], Timed]:
    return lambda root, sizes: once(lambda: act(root, sizes))


def _program(
    name: str,
    timed: Callable[[Path, Sizes], Timed],
    prepare: Callable[[Path, Sizes], None] | None = None,
    state: State = State.AS_IS,
    unit: str = "run",
) -> Row:
    keeps = state is not State.AS_IS
    return Row(name, GROUP, timed, prepare=prepare, keeps=keeps, state=state, unit=unit, inputs=make)


def _remove_tree(root: Path, sizes: Sizes) -> None:
    del sizes
    run("rm", "-r", root / "tree")


ROWS = (
    _program("git-clone", _whole(_clone)),
    _program("git-status-cold", _git_status, _clone, State.COLD),
    _program("git-status-again", _git_status, _clone, State.AGAIN),
    _program("untar", _whole(_untar)),
    _program("rm-r", _whole(_remove_tree), _untar),
    _program("import-cold", _import, package, State.COLD),
    _program("import-again", _import, package, State.AGAIN),
    _program("pip-install", _pip_install),
    _program("sqlite-wal", _sqlite("wal"), unit="op"),
    _program("sqlite-journal", _sqlite("delete"), unit="op"),
    _program("duckdb-load", _duckdb_load),
    _program("safetensors-cold", _load_tensors, safetensors, State.COLD),
    _program("safetensors-again", _load_tensors, safetensors, State.AGAIN),
)
