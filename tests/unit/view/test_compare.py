"""Differences between stored trees."""

from __future__ import annotations

import os
import random
import shutil
from typing import TYPE_CHECKING

import pytest

from fused.view.compare import Change, ChangeKind, compare
from fused.view.directory import Blocks, open_root
from tests.support.compare import describe_tree
from tests.support.snapshot_builder import snapshot_of, tree_of
from tests.support.trees import make_random_tree

if TYPE_CHECKING:
    from pathlib import Path

    from fused.cid import CID
    from tests.unit.view.conftest import CountingStore


async def changes(blocks: Blocks, before: CID, after: CID) -> list[Change]:
    left, right = await open_root(blocks, before), await open_root(blocks, after)
    return [change async for change in compare(blocks, left.node, right.node)]


def short(found: list[Change]) -> list[tuple[str, bytes]]:
    return [(change.kind.value, b"/".join(change.path)) for change in found]


async def test_each_kind_of_change_is_told_apart(source: Path, store: CountingStore) -> None:
    for name in ("same", "edited", "removed", "touched", "moded", "retyped"):
        (source / name).write_text(name)
    (source / "gone" / "deep").mkdir(parents=True)
    (source / "gone" / "deep" / "file").touch()
    (source / "link").symlink_to("a")
    (source / "xattr").touch()
    before = await snapshot_of(store, str(source))
    (source / "edited").write_text("EDITED")
    (source / "removed").unlink()
    os.utime(source / "touched", ns=(0, 1))
    (source / "moded").chmod(0o777)
    (source / "retyped").unlink()
    (source / "retyped").mkdir()
    (source / "retyped" / "inside").touch()
    (source / "added").touch()
    shutil.rmtree(source / "gone")
    (source / "link").unlink()
    (source / "link").symlink_to("b")
    os.setxattr(source / "xattr", "user.k", b"v")
    found = await changes(store, before, await snapshot_of(store, str(source)))
    assert short(found) == [
        ("A", b"added"),
        ("M", b"edited"),
        ("D", b"gone"),
        ("D", b"gone/deep"),
        ("D", b"gone/deep/file"),
        ("M", b"link"),
        ("m", b"moded"),
        ("D", b"removed"),
        ("T", b"retyped"),
        ("A", b"retyped/inside"),
        ("m", b"touched"),
        ("m", b"xattr"),
    ]
    attributes = {change.path[-1]: change.attributes for change in found if change.kind is ChangeKind.METADATA}
    assert attributes == {b"moded": ("mode",), b"touched": ("mtime",), b"xattr": ("xattrs",)}


async def test_directory_turned_into_file_lists_what_was_in_it(source: Path, store: CountingStore) -> None:
    (source / "x").mkdir()
    (source / "x" / "y").touch()
    before = await snapshot_of(store, str(source))
    shutil.rmtree(source / "x")
    (source / "x").touch()
    assert short(await changes(store, before, await snapshot_of(store, str(source)))) == [("T", b"x"), ("D", b"x/y")]


async def test_attributes_of_the_root_and_of_directories_count(source: Path, store: CountingStore) -> None:
    (source / "dir").mkdir()
    (source / "dir" / "file").touch()
    before = await snapshot_of(store, str(source))
    (source / "dir").chmod(0o700)
    source.chmod(0o711)
    assert short(await changes(store, before, await snapshot_of(store, str(source)))) == [("m", b""), ("m", b"dir")]


async def test_mtime_of_a_directory_counts_only_if_nothing_in_it_changed(source: Path, store: CountingStore) -> None:
    (source / "a").mkdir()
    (source / "b").mkdir()
    before = await snapshot_of(store, str(source))
    (source / "a" / "new").touch()
    os.utime(source / "b", ns=(0, 1))
    found = short(await changes(store, before, await snapshot_of(store, str(source))))
    assert found == [("A", b"a/new"), ("m", b"b")]


async def test_equal_subtrees_are_not_fetched(source: Path, store: CountingStore) -> None:
    for number in range(50):
        (source / f"{number}").mkdir()
        (source / f"{number}" / "file").write_text(str(number))
    before = await snapshot_of(store, str(source))
    (source / "25" / "file").write_text("other")
    after = await snapshot_of(store, str(source))
    store.asked.clear()
    assert short(await changes(store, before, after)) == [("M", b"25/file")]
    # of each side: snapshot, root and directory 25, both with meta, of which the root's is read twice
    assert len(store.asked) <= 2 * 6
    store.asked.clear()
    assert await changes(store, before, before) == []
    assert len(store.asked) <= 4


async def test_hard_link_numbers_are_no_difference(source: Path, store: CountingStore, tmp_path: Path) -> None:
    (source / "a").write_text("x")
    os.link(source / "a", source / "b")
    before = await snapshot_of(store, str(source))
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    (copy / "b").unlink()
    os.link(copy / "a", copy / "b")
    shutil.copystat(source, copy)
    assert await changes(store, before, await snapshot_of(store, str(copy))) == []


async def test_plain_tree_against_snapshot_compares_contents_only(source: Path, store: CountingStore) -> None:
    (source / "file").write_text("x")
    (source / "dir").mkdir()
    os.mkfifo(source / "fifo")
    plain, whole = await tree_of(store, str(source)), await snapshot_of(store, str(source))
    assert await changes(store, plain, whole) == []
    (source / "file").write_text("y")
    (source / "file").chmod(0o600)
    found = await changes(store, plain, await snapshot_of(store, str(source)))
    assert short(found) == [("M", b"file")]


@pytest.mark.parametrize("seed", range(25))
async def test_differences_of_random_trees_are_those_on_disk(tmp_path: Path, store: CountingStore, seed: int) -> None:
    rng = random.Random(seed)
    path = os.fsencode(tmp_path / "random")
    make_random_tree(path, rng)
    before_disk, before = describe_tree(path), await snapshot_of(store, path)
    _mutate(path, rng)
    after_disk, after = describe_tree(path), await snapshot_of(store, path)
    found = await changes(store, before, after)
    expected: dict[bytes, str] = {}
    for name in before_disk.keys() | after_disk.keys():
        old, new = before_disk.get(name), after_disk.get(name)
        if old is None or new is None:
            expected[name] = "A" if old is None else "D"
        elif old["kind"] != new["kind"]:
            expected[name] = "T"
        elif any(old.get(field) != new.get(field) for field in ("sha256", "target")):
            expected[name] = "M"
        elif old["kind"] != "directory" and old != new:
            expected[name] = "m"
    told = {b"/".join(c.path): c.kind.value for c in found if not (c.kind is ChangeKind.METADATA and _is_dir(c))}
    assert told == expected
    assert [c.path for c in found] == sorted(c.path for c in found)


def _is_dir(change: Change) -> bool:
    return change.after is not None and change.after.kind == "dir"


def _mutate(root: bytes, rng: random.Random) -> None:
    for base, dirs, files in os.walk(root):
        for name in files:
            path = os.path.join(base, name)
            action = rng.randrange(6)
            if action == 0:
                os.unlink(path)
            elif action == 1 and not os.path.islink(path):
                with open(path, "ab") as file:
                    file.write(b"more")
            elif action == 2 and not os.path.islink(path):
                os.chmod(path, 0o604)
        for name in list(dirs):
            path = os.path.join(base, name)
            if os.path.islink(path):
                continue
            if rng.randrange(6) == 0:
                shutil.rmtree(path)
                dirs.remove(name)
                with open(path, "wb"):
                    pass
        with open(os.path.join(base, b"new%d" % rng.randrange(9)), "wb"):
            pass
