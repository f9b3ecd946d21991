"""`ls`, `cat`, `diff` and `restore` on trees that somebody made to do harm: a sentence with the CID, and no harm."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from fused.cid import CID, DAG_CBOR, DAG_PB, RAW, cid_of, encode_varint, format_cid
from fused.dag import dagcbor
from fused.dag.build import file_root
from fused.dag.chunker import CHUNK
from fused.dag.dagpb import MAX_BLOCK, encode_link, encode_node
from fused.dag.unixfs import DIRECTORY_DATA, file_data, shard_data, symlink_data
from fused.store.base import Pin
from fused.store.embedded import EmbeddedStore
from fused.types import Block
from tests.support.stored import Stored

LEAF = Block(cid_of(RAW, b"leaf"), b"leaf")
EMPTY = Block(cid_of(DAG_PB, encode_node([], DIRECTORY_DATA)), encode_node([], DIRECTORY_DATA))
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices and give files away")


@pytest.fixture
def stored(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Stored:
    return Stored(tmp_path / "store", capfdbinary)


def put(stored: Stored, *blocks: Block, pin: CID | None = None) -> None:
    async def act() -> None:
        async with EmbeddedStore(stored.path) as store:
            await store.put(list(blocks))
            if pin is not None:
                await store.pin(Pin("a mount", pin, ""))

    trio.run(act)


def node(links: list[tuple[CID, bytes]], data: bytes = DIRECTORY_DATA) -> Block:
    block = encode_node([encode_link(cid, name, 4) for cid, name in links], data)
    return Block(cid_of(DAG_PB, block), block)


def cbor(value: object) -> Block:
    data = dagcbor.encode(value)
    return Block(cid_of(DAG_CBOR, data), data)


def attrs(kind: str = "dir", **more: object) -> dict[str, object]:
    return {"kind": kind, "mode": 0o755 if kind == "dir" else 0o644, "uid": 0, "gid": 0, "mtime": [0, 0]} | more


def snapshot(tree: Block, *entries: dict[str, object], root: dict[str, object] | None = None) -> list[Block]:
    """A snapshot of `tree` whose metadata says what it likes: its blocks, the snapshot itself last."""
    meta = cbor({"attrs": root or attrs(), "entries": list(entries)})
    head = cbor({"tree": tree.cid, "meta": meta.cid, "time": 0, "host": "evil", "ipfsfs": "1"})
    return [tree, meta, head]


class Case(NamedTuple):
    """Blocks, the one that lies, and the root that leads to it. `quiet`: commands that need not look at it."""

    blocks: list[Block]
    bad: CID
    root: CID
    quiet: tuple[str, ...] = ()


def directory_case(block: Block, *more: Block, quiet: tuple[str, ...] = ()) -> Case:
    """Once as the root would be too easy: below a directory."""
    top = node([(LEAF.cid, b"a"), (block.cid, b"bad")])
    return Case([top, block, LEAF, *more], block.cid, top.cid, quiet)


def cases() -> dict[str, Case]:
    """Every way to lie."""
    found: dict[str, Case] = {}
    for name in (b"", b".", b"..", b"a/b", b"../../x", b"/etc/x", b"a\0b"):
        found[f"name {name!r}"] = directory_case(node([(LEAF.cid, name)]))
    found["name twice"] = directory_case(node([(LEAF.cid, b"x"), (LEAF.cid, b"y"), (LEAF.cid, b"x")]))
    shards = {
        "fan-out of 3": ([(LEAF.cid, b"00x")], shard_data(1, 3)),
        "fan-out of 2**40": ([(LEAF.cid, b"00x")], shard_data(1, 1 << 40)),
        "prefix of another slot": ([(LEAF.cid, b"01x")], shard_data(1, 256)),
        "bit field with more bits": ([(LEAF.cid, b"00x")], shard_data(3, 256)),
        "bit field beyond the slots": ([(LEAF.cid, b"00x")], shard_data(1 << 300, 256)),
        "name in a slot that is not its own": ([(LEAF.cid, b"00x")], shard_data(1, 256)),
        "name .. in a shard": ([(LEAF.cid, b"00..")], shard_data(1, 256)),
    }
    for what, (links, data) in shards.items():
        found[f"shard: {what}"] = directory_case(node(links, data), quiet=("cat",))
    deep = node([(LEAF.cid, b"00x")], shard_data(1, 256))
    for _ in range(12):
        deep, below = node([(deep.cid, b"00")], shard_data(1, 256)), deep
        found["shard: deeper than a hash"] = Case([], deep.cid, deep.cid)
        found.setdefault("blocks", Case([], deep.cid, deep.cid)).blocks.extend([deep, below])
    found["shard: deeper than a hash"] = Case([*found.pop("blocks").blocks, LEAF], CID(b""), deep.cid, ("cat",))
    big = Block(cid_of(RAW, bytes(MAX_BLOCK + 1)), bytes(MAX_BLOCK + 1))
    found["raw block over 2 MiB"] = Case([big], big.cid, big.cid)
    padded = node([(LEAF.cid, b"x" * MAX_BLOCK)])
    found["directory over 2 MiB"] = directory_case(padded)
    inline = CID(bytes((1, DAG_PB, 0)) + encode_varint(len(bad := node([(EMPTY.cid, b"..")]).data)) + bad)
    top = node([(LEAF.cid, b"a"), (inline, b"bad")])
    found["inline directory with .."] = Case([top, LEAF], inline, top.cid)
    other = CID(bytes((1, 0x78)) + LEAF.cid[2:])
    top = node([(other, b"bad")])
    found["unknown codec"] = Case([top, Block(other, b"leaf")], other, top.cid)
    unknown = CID(bytes((1, DAG_PB, 0x1E, 32)) + bytes(32))
    top = node([(unknown, b"bad")])
    found["unknown hash function"] = Case([top], unknown, top.cid)
    for what, target in (("NUL", b"a\0b"), ("nothing", b""), ("1 MiB", b"x" * CHUNK)):
        found[f"symbolic link to {what}"] = directory_case(node([], symlink_data(target)))
    garbage = Block(cid_of(DAG_PB, b"\x12\xff\xff\xff\xff\x0f"), b"\x12\xff\xff\xff\xff\x0f")
    found["protobuf garbage"] = directory_case(garbage)
    wrong = node([(LEAF.cid, b"")] * 2, file_data([4, 5]))
    found["wrong size of a part"] = directory_case(wrong, quiet=("ls", "diff"))._replace(bad=LEAF.cid)
    overflow = node([(LEAF.cid, b"")] * 2, b"\x08\x02" + (b"\x20" + encode_varint((1 << 63) - 1)) * 2)
    found["sizes that overflow"] = directory_case(overflow)
    for what, data in {
        "keys twice": b"\xa2dhostaxdhostay",
        "indefinite": b"\xbf\xff",
        "nested deeply": b"\x81" * 500_000,
        "huge length": b"\xbb" + b"\xff" * 8,
        "float": b"\xfb" + bytes(8),
        "no map": b"\x80",
    }.items():
        block = Block(cid_of(DAG_CBOR, data), data)
        found[f"snapshot: {what}"] = Case([block], block.cid, block.cid)
    tree = node([(LEAF.cid, b"bad")])
    for what, entry in {
        "name ..": attrs("file", name=".."),
        "name with a slash": attrs("file", name="a/b"),
        "unknown kind": attrs("door", name="bad"),
        "a directory without its node": attrs("dir", name="bad"),
        "mode of 20 bits": attrs("file", name="bad", mode=1 << 20),
        "owner of 2**32": attrs("file", name="bad", uid=1 << 32),
        "negative owner": attrs("file", name="bad", gid=-1),
    }.items():
        made = snapshot(tree, entry)
        found[f"metadata: {what}"] = Case([*made, LEAF], made[1].cid, made[2].cid)
    made = snapshot(tree, attrs("dir", name="bad", node=(below := cbor({"attrs": attrs(), "entries": []})).cid))
    found["metadata: a file is a directory"] = Case([*made, LEAF, below], LEAF.cid, made[2].cid, ("cat",))
    made = snapshot(tree, attrs("link", name="bad"))
    found["metadata: a file is a link"] = Case([*made, LEAF], LEAF.cid, made[2].cid, ("diff",))
    made = snapshot(node([(EMPTY.cid, b"bad")]), attrs("file", name="bad", size=4))
    found["metadata: a directory is a file"] = Case([*made, EMPTY], EMPTY.cid, made[2].cid, ("ls", "diff"))
    made = snapshot(tree, attrs("file", name="bad", size=5))
    found["metadata: another size"] = Case([*made, LEAF], LEAF.cid, made[2].cid, ("ls", "cat", "diff"))
    return found


CASES = cases()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("command", ["ls", "cat", "diff", "restore"])
def test_a_tree_that_lies_is_refused_with_its_cid(stored: Stored, tmp_path: Path, name: str, command: str) -> None:
    case = CASES[name]
    if command in case.quiet:
        return
    put(stored, EMPTY, *case.blocks)
    root = format_cid(case.root)
    arguments = {
        "ls": ["-R", root],
        "cat": [root + ("/bad" if case.root != case.bad else "")],
        "diff": [format_cid(EMPTY.cid), root],
        "restore": [root, "--to", str(tmp_path / "out" / "to")],
    }
    if name == "raw block over 2 MiB" and command in ("diff", "restore"):
        return  # neither takes a file
    said = stored.run(command, *arguments[command])
    assert said.code not in (0, 130), said
    assert "Traceback" not in said.err
    assert all(line.startswith("ipfsfs: ") or line.startswith("restored ") for line in said.err.splitlines()), said.err
    assert format_cid(case.bad) in said.err if case.bad else "deeper than its hash" in said.err
    made = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*"))
    assert made in ([], [Path("to")], [Path("to"), Path("to/a")]), made


@pytest.mark.slow
def test_tree_that_is_too_deep_is_refused_with_a_cid(stored: Stored, tmp_path: Path) -> None:
    blocks = [node([(LEAF.cid, b"d")])]
    for _ in range(5000):
        blocks.append(node([(blocks[-1].cid, b"d")]))
    put(stored, LEAF, EMPTY, *blocks)
    root = format_cid(blocks[-1].cid)
    said = stored.run("restore", root, "--to", tmp_path / "to")
    assert (said.code, said.err.count("\n")) == (4, 1), said.err[-300:]
    assert f"{format_cid(blocks[903].cid)}: more than 4,096 directories" in said.err
    assert not (tmp_path / "to").exists()


# Trees of 2**40 entries


def bomb(stored: Stored) -> str:
    blocks = [LEAF, EMPTY, node([(LEAF.cid, b"%04d" % n) for n in range(1024)])]
    for _ in range(3):
        blocks.append(node([(blocks[-1].cid, b"%04d" % n) for n in range(1024)]))
    put(stored, *blocks)
    return format_cid(blocks[-1].cid)


def limited() -> None:
    """Little memory: what grows with what comes out shows soon."""
    resource.setrlimit(resource.RLIMIT_DATA, (400 << 20, 400 << 20))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["ls", "ls --json", "diff", "diff --json", "restore"])
def test_tree_of_two_to_the_forty_entries_takes_little_memory_and_ctrl_c(
    stored: Stored, tmp_path: Path, command: str
) -> None:
    root = bomb(stored)
    verb, *flags = command.split()
    tail = {
        "ls": ["-R", root],
        "diff": [format_cid(EMPTY.cid), root],
        "restore": [root, "--to", str(tmp_path / "to"), "--progress"],
    }[verb]
    words = [sys.executable, "-m", "fused", verb, "--store-dir", str(stored.path), *flags, *tail]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=limited, cwd=Path(__file__).parents[3]
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            stream = process.stderr if verb == "restore" else process.stdout
            seen = 0
            end = time.monotonic() + 30
            while seen < (300 if verb == "restore" else 1_000_000) and time.monotonic() < end:
                seen += len(os.read(stream.fileno(), 65536))
            assert seen > 100
            process.send_signal(signal.SIGINT)
            process.stdout.close()
            rest = process.stderr.read()
            assert process.wait(20) in (130, 141), rest[-500:]
            assert b"Traceback" not in rest
        finally:
            process.kill()
    assert not (tmp_path / "to").exists()


def test_more_files_than_there_is_room_for_are_refused_before_anything_is_made(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a real file system the walk to its limit takes a while, so it is told to be smaller."""
    import fused.view.restore

    monkeypatch.setattr(fused.view.restore, "_room", lambda _: 5000)
    said = stored.run("restore", bomb(stored), "--to", tmp_path / "to")
    assert (said.code, said.err) == (
        1,
        "ipfsfs: there is room for 5,000 files, and the snapshot has more; nothing was changed\n",
    )
    assert not (tmp_path / "to").exists()


def test_file_that_no_file_system_can_hold_fails_before_its_first_byte(stored: Stored, tmp_path: Path) -> None:
    blocks, root, size = [Block(cid_of(RAW, zeros := bytes(CHUNK)), zeros)], cid_of(RAW, zeros), CHUNK
    while size < 1 << 60:
        data = encode_node([encode_link(root, b"", 0)] * 1024, file_data([size] * 1024))
        root, size = cid_of(DAG_PB, data), size * 1024
        blocks.append(Block(root, data))
    top = node([(root, b"huge"), (LEAF.cid, b"a")])
    put(stored, *blocks, top, LEAF)
    said = stored.run("restore", format_cid(top.cid), "--to", tmp_path / "to")
    assert said.code == 1
    assert "failed: huge: File too large" in said.err
    assert os.listdir(tmp_path / "to") == ["a"]


# What a snapshot may bring along


def privileged() -> list[Block]:
    """A snapshot with everything that would make its author somebody else here."""
    tree = node([(LEAF.cid, name) for name in (b"given", b"group", b"setgid", b"setuid")] + [(EMPTY.cid, b"shared")])
    cap = ["security.capability", "\x01\0\0\2\0\x20" + "\0" * 14]
    below = cbor({"attrs": attrs(mode=0o2777), "entries": []})
    return [
        LEAF,
        EMPTY,
        below,
        *snapshot(
            tree,
            attrs("blk", name="disk", rdev=os.makedev(8, 0), mode=0o666),
            attrs("file", name="given", uid=12_001, gid=12_001, size=4, xattrs=[cap, ["user.x", "y"]]),
            attrs("file", name="group", uid=(1 << 32) - 2, gid=(1 << 32) - 2, size=4),
            attrs("chr", name="mem", rdev=os.makedev(1, 1), mode=0o666),
            attrs("fifo", name="pipe"),
            attrs("file", name="setgid", mode=0o2755, size=4),
            attrs("file", name="setuid", mode=0o4755, size=4),
            attrs("dir", name="shared", mode=0o2777, node=below.cid),
        ),
    ]


def state(path: Path) -> dict[str, tuple[str, int, list[str]]]:
    found = {}
    for entry in os.scandir(path):
        st = entry.stat(follow_symlinks=False)
        found[entry.name] = (stat.filemode(st.st_mode), st.st_uid, os.listxattr(entry.path, follow_symlinks=False))
    return found


@as_root
def test_foreign_snapshot_brings_no_privileges(stored: Stored, tmp_path: Path) -> None:
    blocks = privileged()
    put(stored, *blocks)
    root = format_cid(blocks[-1].cid)
    said = stored.run("restore", root, "--to", tmp_path / "to")
    assert said.code == 1  # devices were skipped
    assert "skipped: mem: is a character device, and this tree is not one of your own; --trust makes it" in said.err
    assert "none of your mounts has taken this snapshot; --trust restores them" in said.err
    assert state(tmp_path / "to") == {
        "given": ("-rw-r--r--", 0, ["user.x"]),
        "group": ("-rw-r--r--", 0, []),
        "pipe": ("prw-r--r--", 0, []),
        "setgid": ("-rwxr-xr-x", 0, []),
        "setuid": ("-rwxr-xr-x", 0, []),
        "shared": ("drwxrwxrwx", 0, []),
    }
    again = json.loads(stored.run("restore", root, "--to", tmp_path / "to", "--json", "--overwrite").out)
    assert (again["conflicts"], again["unchanged"]) == ([], 5), "what can't be restored is no difference"


@as_root
@pytest.mark.parametrize("how", ["--trust", "taken by a mount"])
def test_own_snapshot_and_a_trusted_one_bring_everything(stored: Stored, tmp_path: Path, how: str) -> None:
    blocks = privileged()
    put(stored, *blocks, pin=blocks[-1].cid if how != "--trust" else None)
    flags = ["--trust"] if how == "--trust" else []
    said = stored.run("restore", format_cid(blocks[-1].cid), "--to", tmp_path / "to", *flags)
    assert (said.code, "--trust" in said.err) == (0, False), said.err
    assert state(tmp_path / "to") == {
        "disk": ("brw-rw-rw-", 0, []),
        "given": ("-rw-r--r--", 12_001, ["security.capability", "user.x"]),
        "group": ("-rw-r--r--", (1 << 32) - 2, []),
        "mem": ("crw-rw-rw-", 0, []),
        "pipe": ("prw-r--r--", 0, []),
        "setgid": ("-rwxr-sr-x", 0, []),
        "setuid": ("-rwsr-xr-x", 0, []),
        "shared": ("drwxrwsrwx", 0, []),
    }


def test_xattr_kept_apart_that_is_no_list_is_refused(stored: Stored, tmp_path: Path) -> None:
    content = b"\x9a" + (CHUNK * 3).to_bytes(4, "big") + b"\x80" * (CHUNK * 3)
    chunks = [content[at : at + CHUNK] for at in range(0, len(content), CHUNK)]
    file, inner, _ = file_root([cid_of(RAW, chunk) for chunk in chunks], len(content))
    made = snapshot(EMPTY, root=attrs(xattrs=file))
    put(stored, *made, *inner, *(Block(cid_of(RAW, chunk), chunk) for chunk in set(chunks)))
    said = stored.run("restore", format_cid(made[-1].cid), "--to", tmp_path / "to")
    assert said.code == 4
    assert format_cid(file) in said.err
