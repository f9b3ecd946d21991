"""ipfsfs cat."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fused.cid import RAW, cid_of, format_cid
from tests.support.store_files import change_block, cut, flip_bit
from tests.support.stored import Stored

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def stored(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Stored:
    return Stored(tmp_path / "store", capfdbinary)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    return path


def test_content_comes_out_as_it_is(stored: Stored, source: Path) -> None:
    data = random.Random(1).randbytes(5 * MIB + 3)
    (source / "dir").mkdir()
    (source / "dir" / "large").write_bytes(data)
    (source / "empty").touch()
    (source / "link").symlink_to("dir/large")
    for cid in (stored.snapshot(source), stored.tree(source)):
        for name in ("dir/large", "/dir//large", "link"):
            said = stored.run("cat", f"{cid}/{name}")
            assert (said.code, said.out == data, said.err) == (0, True, "")
        assert stored.run("cat", f"/ipfs/{cid}/empty").out == b""
        assert stored.run("cat", f"ipfs://{cid}/dir/large", f"{cid}/empty", f"{cid}/link").out == data + data
        assert (
            stored.run("cat", f"{cid}/link", "--offset", str(MIB - 1), "--length", "3").out == data[MIB - 1 : MIB + 2]
        )
        assert stored.run("cat", f"{cid}/link", "--offset", str(9 * MIB)).out == b""


def test_what_is_no_file_is_said(stored: Stored, source: Path) -> None:
    (source / "dir").mkdir()
    (source / "dangling").symlink_to("gone")
    cid = stored.snapshot(source)
    said = stored.run("cat", f"{cid}/dir")
    assert (said.code, said.err) == (2, f"ipfsfs: {cid}/dir is a directory; `ipfsfs ls` lists it\n")
    said = stored.run("cat", f"{cid}/gone/file")
    assert (said.code, said.err) == (7, "ipfsfs: gone is not in the tree\n")
    assert stored.run("cat", f"{cid}/dangling").code == 7
    assert stored.run("cat", "notacid/x").code == 2
    said = stored.run("cat", format_cid(cid_of(RAW, b"never stored")))
    assert said.code == 7
    assert "is not in the store" in said.err


@pytest.mark.parametrize("damage", [flip_bit, cut])
def test_damaged_block_fails_the_command_and_is_named(
    stored: Stored, source: Path, damage: Callable[[bytes], bytes]
) -> None:
    data = random.Random(2).randbytes(9 * MIB)
    (source / "large").write_bytes(data)
    (source / "small").write_bytes(b"small")
    cid = stored.snapshot(source)
    for bad, name in ((cid_of(RAW, data[8 * MIB :]), "large"), (cid_of(RAW, b"small"), "small")):
        change_block(stored.path, bad, damage)
        said = stored.run("cat", f"{cid}/{name}")
        assert said.code == 4
        assert format_cid(bad) in said.err
        assert said.err.count("\n") == 1
        assert data.startswith(said.out)


def test_missing_store_is_said_and_not_made(stored: Stored) -> None:
    said = stored.run("cat", format_cid(cid_of(RAW, b"x")))
    assert said.code == 4
    assert f"there is no store at {stored.path}" in said.err
    assert not stored.path.exists()


def test_reader_that_goes_away_ends_it_quietly(stored: Stored, source: Path) -> None:
    (source / "large").write_bytes(bytes(range(256)) * (8 * 4096))
    cid = stored.snapshot(source)
    command = [sys.executable, "-m", "fused", "cat", "--store-dir", str(stored.path), f"{cid}/large"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(30) == 141
        assert process.stderr.read() == b""
