"""The kernel's structures have the sizes and values of include/uapi/linux/fuse.h."""

from __future__ import annotations

import os
import stat
import struct

import pytest

from fused.fs import protocol

ATTR = 88


def a_stat(**changed: int) -> os.stat_result:
    fields = {"st_mode": stat.S_IFREG | 0o640, "st_ino": 9, "st_dev": 1, "st_nlink": 2, "st_uid": 3, "st_gid": 4}
    fields |= {"st_size": 5, "st_atime": 0, "st_mtime": 0, "st_ctime": 0} | changed
    more = {"st_atime_ns": 1_500_000_007, "st_mtime_ns": -1, "st_ctime_ns": 8 * 10**9, "st_blksize": 4096}
    more |= {"st_blocks": 16, "st_rdev": 0} | {name: value for name, value in changed.items() if name not in fields}
    return os.stat_result(list(fields.values())[:10], more)


@pytest.mark.parametrize(
    ("form", "size"),
    [
        (protocol.REQUEST, 40),
        (protocol.REPLY, 16),
        (protocol.INIT, 16),
        (protocol.FORGET, 8),
        (protocol.BATCH_FORGET, 8),
        (protocol.FORGET_ONE, 16),
        (protocol.SETATTR, 88),
        (protocol.MKDIR, 8),
        (protocol.RENAME, 8),
        (protocol.RENAME2, 16),
        (protocol.OPEN, 8),
        (protocol.CREATE, 16),
        (protocol.WRITE, 40),
        (protocol.SIZE, 8),
        (protocol.MASK, 8),
        (protocol.SETXATTR, 8),
    ],
)
def test_sizes(form: struct.Struct, size: int) -> None:
    assert form.size == size


def test_an_entry_has_the_number_twice_and_the_stat() -> None:
    packed = protocol.entry(7, a_stat())
    assert len(packed) == 40 + ATTR
    node, generation, name_good, attributes_good, nanoseconds, more = struct.unpack_from("=QQQQII", packed)
    assert (node, generation, nanoseconds, more) == (7, 0, 0, 0)
    assert name_good == attributes_good == protocol.GOOD_FOR
    ino, size, blocks = struct.unpack_from("=QQQ", packed, 40)
    assert (ino, size, blocks) == (7, 5, 16)
    assert struct.unpack_from("=qqqIII", packed, 64) == (1, -1, 8, 500_000_007, 999_999_999, 0)
    assert struct.unpack_from("=IIIIIII", packed, 100) == (stat.S_IFREG | 0o640, 2, 3, 4, 0, 4096, 0)


def test_attributes_are_those_of_an_entry() -> None:
    packed = protocol.attributes(7, a_stat())
    assert struct.unpack_from("=QII", packed) == (protocol.GOOD_FOR, 0, 0)
    assert packed[16:] == protocol.entry(7, a_stat())[40:]


def test_no_entry_is_kept_as_long() -> None:
    assert struct.unpack_from("=QQQ", protocol.NO_ENTRY) == (0, 0, protocol.GOOD_FOR)
    assert len(protocol.NO_ENTRY) == 40 + ATTR


@pytest.mark.parametrize(("major", "minor", "encoded"), [(0, 0, 0), (1, 3, 0x103), (8, 0x12345, 0x12300845)])
def test_devices(major: int, minor: int, encoded: int) -> None:
    assert protocol.encode_device(os.makedev(major, minor)) == encoded


def test_entries_of_a_directory_are_padded_and_limited() -> None:
    reply = protocol.DirectoryReply(24 + 8 + 24 + 8, plus=False)
    assert reply.add(b"12345678", 5, stat.S_IFDIR, None, 3)
    assert reply.add(b"a", 6, 0, None, 4)
    assert not reply.add(b"b", 7, 0, None, 5)
    packed = reply.encoded()
    assert packed == struct.pack("=QQII8sQQII8s", 5, 3, 8, 4, b"12345678", 6, 4, 1, 0, b"a")


def test_entries_with_attributes_and_names_alone() -> None:
    reply = protocol.DirectoryReply(1 << 16, plus=True)
    reply.add(b"with", 7, stat.S_IFREG, a_stat(), 3)
    reply.add(b"alone", 8, stat.S_IFLNK, None, 4)
    first, second = reply.encoded()[:160], reply.encoded()[160:]
    assert first == protocol.entry(7, a_stat()) + struct.pack("=QQII8s", 7, 3, 4, 8, b"with")
    assert second == bytes(128) + struct.pack("=QQII8s", 8, 4, 5, 10, b"alone")
