"""The inode table."""

from __future__ import annotations

import os
import stat
import time

import pytest

from fused.fs.inodes import ROOT_INO, SYNTHETIC_START, Inodes

DEV, OTHER_DEV = 10, 11


def st(ino: int, kind: int = stat.S_IFREG, *, dev: int = DEV, links: int = 1) -> os.stat_result:
    values = [kind | 0o644, ino, dev, links, 0, 0, 0, 0, 0, 0]
    return os.stat_result(values + [0] * (os.stat_result.n_fields - len(values)))


@pytest.fixture
def table() -> Inodes:
    return Inodes(st(500, stat.S_IFDIR))


def test_the_root_is_one_and_is_never_forgotten(table: Inodes) -> None:
    assert table.root.ino == ROOT_INO
    assert table.find(st(500, stat.S_IFDIR)) is table.root
    assert not table.forget(ROOT_INO, 5)
    assert table.get(ROOT_INO) is table.root


def test_numbers_are_the_hosts_where_free(table: Inodes) -> None:
    inode = table.remember(st(77), table.root, b"a")
    assert inode.ino == 77
    assert table.remember(st(77), table.root, b"a") is inode


@pytest.mark.parametrize(
    ("number", "dev"), [(77, OTHER_DEV), (1, DEV), (0, DEV)], ids=["other file system", "one", "zero"]
)
def test_other_files_get_numbers_of_our_own(table: Inodes, number: int, dev: int) -> None:
    table.remember(st(77), table.root, b"a")
    inode = table.remember(st(number, dev=dev), table.root, b"b")
    assert inode.ino >= SYNTHETIC_START
    assert table.find(st(number, dev=dev)) is inode
    assert inode.key == (dev, number)
    table.root.lookups = 1
    inode.lookups = 1
    table.get(77).lookups = 1
    table.check_invariants()


def test_a_host_number_that_we_gave_away_is_not_given_twice(table: Inodes) -> None:
    ours = table.remember(st(5, dev=OTHER_DEV), table.root, b"a")
    hosts = table.remember(st(ours.ino), table.root, b"b")
    assert hosts is not ours
    assert hosts.ino != ours.ino
    assert table.find(st(ours.ino)) is hosts


def test_hard_links_share_an_inode_and_all_names_are_known(table: Inodes) -> None:
    directory = table.remember(st(7, stat.S_IFDIR), table.root, b"d")
    inode = table.remember(st(8, links=3), table.root, b"a")
    assert table.remember(st(8, links=3), directory, b"b") is inode
    table.remember(st(8, links=3), table.root, b"c")
    assert sorted(table.paths(inode)) == [b"a", b"c", b"d/b"]
    table.remove_name(inode, table.root, b"a")
    assert sorted(table.paths(inode)) == [b"c", b"d/b"]
    assert list(table.directories_above(inode)) in ([(DEV, 7), (DEV, 500)], [(DEV, 500), (DEV, 7)])


@pytest.mark.parametrize("directories", [1, 5_000])
def test_names_of_a_file_with_thousands_are_told_and_forgotten_one_by_one(table: Inodes, directories: int) -> None:
    """Each costs the same, however many there are: a table that copies them takes minutes here."""
    count = 30_000
    parents = [table.remember(st(10_000 + i, stat.S_IFDIR), table.root, b"d%d" % i) for i in range(directories)]
    names = [(parents[i % directories], b"%d" % i) for i in range(count)]
    begun = time.process_time()
    for parent, name in names:
        inode = table.remember(st(8, links=count), parent, name)
        assert next(iter(inode.names())) == names[0]
    inode.lookups = 1
    table.check_invariants()
    assert set(inode.names()) == set(names)
    assert len(list(table.directories_above(inode))) == directories + 1
    for parent, name in names:
        table.remove_name(inode, parent, name)
    assert list(inode.names()) == []
    assert inode.more is None
    table.check_invariants()
    assert time.process_time() - begun < 5


def test_a_file_with_one_link_is_where_it_was_seen_last(table: Inodes) -> None:
    inode = table.remember(st(8), table.root, b"old")
    table.remember(st(8), table.root, b"new")
    assert table.paths(inode) == [b"new"]


def test_parents_stay_known_while_a_child_is(table: Inodes) -> None:
    dropped = []
    table.on_drop = dropped.append
    a = table.remember(st(1001, stat.S_IFDIR), table.root, b"a")
    a.lookups = 1
    b = table.remember(st(1002, stat.S_IFDIR), a, b"b")
    b.lookups = 1
    f = table.remember(st(1003), b, b"f")
    f.lookups = 2
    assert not table.forget(1001, 1)
    assert not table.forget(1002, 1)
    assert not table.forget(1003, 1)
    table.check_invariants()
    assert list(table.directories_above(f)) == [(DEV, 1002), (DEV, 1001), (DEV, 500)]
    assert table.forget(1003, 1)
    assert (len(table), dropped) == (1, [f, b, a])
    table.check_invariants()


def test_a_renamed_directory_takes_its_files_along(table: Inodes) -> None:
    a = table.remember(st(1001, stat.S_IFDIR), table.root, b"a")
    f = table.remember(st(1003), a, b"f")
    table.add_name(a, table.root, b"z")
    table.remove_name(a, table.root, b"a")
    assert table.paths(f) == [b"z/f"]
    assert a.more is None


def test_a_removed_file_has_no_paths_and_stays_until_forgotten(table: Inodes) -> None:
    f = table.remember(st(9), table.root, b"f")
    f.lookups = 1
    table.remove_name(f, table.root, b"f")
    assert table.paths(f) == []
    assert list(table.directories_above(f)) == []
    assert table.get(9) is f
    assert table.forget(9, 1)
    with pytest.raises(OSError, match="Stale"):
        table.get(9)


def test_a_number_given_to_a_file_of_another_type_is_another_inode(table: Inodes) -> None:
    old = table.remember(st(9), table.root, b"f")
    old.lookups = 1
    new = table.remember(st(9, stat.S_IFDIR), table.root, b"f")
    new.lookups = 1
    assert new is not old
    assert table.get(9) is old
    assert table.paths(old) == []
    assert table.find(st(9, stat.S_IFDIR)) is new
    table.check_invariants()


def test_forgetting_what_is_not_known_is_nothing(table: Inodes) -> None:
    assert not table.forget(4711, 1)


def test_a_hundred_thousand_inodes_stay_small(table: Inodes) -> None:
    import tracemalloc

    directory = table.remember(st(600, stat.S_IFDIR), table.root, b"d")
    tracemalloc.start()
    for n in range(20_000):
        table.remember(st(1_000_000 + n), directory, b"model-%05d-of-20000.safetensors" % n).lookups = 1
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / 20_000 < 400
