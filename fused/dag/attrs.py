"""A file's attributes as the meta tree keeps them (`meta.py` has the format)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args

from fused.cid import CID, RAW
from fused.dag import dagcbor, walk
from fused.dag.build import file_root
from fused.dag.chunker import CHUNK
from fused.dag.dagcbor import as_link, literal, unliteral
from fused.errors import DagError
from fused.types import Block

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fused.dag.node import Get
    from fused.dag.seal import Seal

AttrKind = Literal["dir", "file", "link", "fifo", "sock", "chr", "blk"]

MAX_INLINE_XATTRS = 16 << 10
"""Bytes of a file's xattrs above which they move into a file of their own. One value may have 64 KiB (xattr(7)), and
how many there may be is up to the file system."""

MAX_XATTRS = 64 << 20
"""Bytes of xattrs that we read for one file: far above what any file system keeps, far below what fills the memory."""

MAX_XATTR_NAMES = 64 << 10
"""Bytes of the names of one file's xattrs, a zero byte after each: no more can be listed (xattr(7), XATTR_LIST_MAX)."""

MAX_XATTRS_APART = 256 << 20
"""Bytes of xattrs kept apart that we read for one directory. Many files may share them, and each is read once."""

_KINDS = frozenset(get_args(AttrKind))
_REQUIRED = frozenset(("kind", "mode", "uid", "gid", "mtime"))
_OPTIONAL = frozenset(("size", "rdev", "hardlink", "xattrs"))
_MAX_ID = (1 << 32) - 1
_MAX_INT = (1 << 64) - 1
_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Attrs:
    """What `stat` and `listxattr` say. `mode` is the permission bits (07777), `rdev` is a device's st_rdev, else 0.

    `hardlink` is a number that all names of one file with several names share within a snapshot, else None.
    """

    kind: AttrKind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    rdev: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    hardlink: int | None = None


def encode_attrs(attrs: Attrs, seal: Seal, blocks: list[Block]) -> dict[str, object]:
    """The attributes as an object, ready for `dagcbor.encode`. Blocks of large xattrs are appended to `blocks`."""
    # Two numbers, because some file systems keep 64 bits of seconds, and dag-cbor has no larger integer.
    seconds, nanoseconds = divmod(attrs.mtime_ns, _SECOND)
    value: dict[str, object] = {
        "kind": attrs.kind,
        "mode": attrs.mode,
        "uid": attrs.uid,
        "gid": attrs.gid,
        "mtime": [seconds, nanoseconds],
    }
    if attrs.size:
        value["size"] = attrs.size
    if attrs.rdev:
        value["rdev"] = attrs.rdev
    if attrs.hardlink is not None:
        value["hardlink"] = attrs.hardlink
    if attrs.xattrs:
        pairs = [[encode_bytes(name), encode_bytes(content)] for name, content in sorted(attrs.xattrs)]
        value["xattrs"] = pairs
        if sum(len(name) + len(content) for name, content in attrs.xattrs) > MAX_INLINE_XATTRS:
            value["xattrs"] = _as_file(dagcbor.encode(pairs), seal, blocks)
    return value


async def decode_attrs(apart: XattrsApart, value: object) -> Attrs:
    """The inverse. Fetches only large xattrs, kept apart. Raises DagError for what `encode_attrs` never writes."""
    fields = as_map(value, _REQUIRED, _OPTIONAL)
    kind = as_text(fields["kind"])
    if kind not in _KINDS:
        raise DagError(f"a file of unknown kind {kind!r}")
    mtime = as_list(fields["mtime"])
    if len(mtime) != 2:
        raise DagError("a time that is not a pair of numbers")
    xattrs = fields.get("xattrs", [])
    pairs = await apart.read(as_link(xattrs)) if isinstance(xattrs, bytes) else _pairs(as_list(xattrs))
    return Attrs(
        cast("AttrKind", kind),
        mode=as_int(fields["mode"], 0, 0o7777),
        uid=as_int(fields["uid"], 0, _MAX_ID),
        gid=as_int(fields["gid"], 0, _MAX_ID),
        mtime_ns=as_int(mtime[0], -_MAX_INT, _MAX_INT) * _SECOND + as_int(mtime[1], 0, _SECOND - 1),
        size=as_int(fields.get("size", 0), 0, _MAX_INT),
        rdev=as_int(fields.get("rdev", 0), 0, _MAX_INT),
        xattrs=pairs,
        hardlink=as_int(fields["hardlink"], 0, _MAX_INT) if "hardlink" in fields else None,
    )


def encode_bytes(raw: bytes) -> str | bytes:
    """A name or an xattr: text if it is UTF-8, so that other tools show it, else a byte string."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return literal(raw)


def decode_bytes(value: object) -> bytes:
    """The inverse. Raises DagError, also for UTF-8 in a byte string: each name has one encoding only."""
    if isinstance(value, str):
        return value.encode()
    raw = unliteral(value)
    if encode_bytes(raw) == literal(raw):
        return raw
    raise DagError("text that is written as bytes")


def as_map(value: object, required: frozenset[str], optional: frozenset[str] = frozenset()) -> dict[str, object]:
    """A map with all the required keys and no unknown ones. Raises DagError."""
    if not isinstance(value, dict) or not required <= value.keys() <= required | optional:
        raise DagError("a map with missing or unknown fields")
    return value


def as_list(value: object) -> list[object]:
    """A list. Raises DagError."""
    if not isinstance(value, list):
        raise DagError("something else where a list should be")
    return value


def as_int(value: object, low: int, high: int) -> int:
    """An integer from `low` to `high`. Raises DagError, also for a bool, which Python takes for an integer."""
    if type(value) is not int or not low <= value <= high:
        raise DagError(f"{value!r} where a number from {low} to {high} should be")
    return value


def as_text(value: object) -> str:
    """A text. Raises DagError."""
    if not isinstance(value, str):
        raise DagError("something else where a text should be")
    return value


def _as_file(content: bytes, seal: Seal, blocks: list[Block]) -> CID:
    leaves = [Block(*seal(RAW, content[at : at + CHUNK])) for at in range(0, len(content), CHUNK)]
    root, above, _ = file_root([leaf.cid for leaf in leaves], len(content), seal)
    blocks += leaves + above
    return root


class XattrsApart:
    """The xattrs that the entries of one directory keep apart: each list is read once, and not more than a limit."""

    def __init__(self, get: Get) -> None:
        self._get = get
        self._known: dict[CID, tuple[tuple[bytes, bytes], ...]] = {}
        self._bytes = 0

    async def read(self, root: CID) -> tuple[tuple[bytes, bytes], ...]:
        """The list in the file `root`. Raises DagError, and what `get` raises."""
        if root not in self._known:
            size = (await walk.stat_node(self._get, root)).size
            self._bytes += size
            if size > MAX_XATTRS or self._bytes > MAX_XATTRS_APART:
                raise DagError(f"more than {min(size, MAX_XATTRS_APART)} bytes of xattrs", root)
            content = await walk.read_range(self._get, root, 0, size)
            try:
                self._known[root] = _pairs(_items(content))
            except (DagError, UnicodeDecodeError, IndexError) as err:
                raise DagError(f"no list of xattrs: {err}", root) from None
        return self._known[root]


def _pairs(items: Iterable[object]) -> tuple[tuple[bytes, bytes], ...]:
    pairs: list[tuple[bytes, bytes]] = []
    room = MAX_XATTR_NAMES
    for item in items:
        pair = as_list(item)
        if len(pair) != 2:
            raise DagError("xattrs that are no list of pairs")
        name, content = decode_bytes(pair[0]), decode_bytes(pair[1])
        room -= len(name) + 1
        if room < 0 or (pairs and name <= pairs[-1][0]):
            raise DagError("xattrs that are not sorted, or more than a file can have")
        pairs.append((name, content))
    return tuple(pairs)


def _items(content: bytes) -> Iterator[object]:
    """The pairs in the canonical DAG-CBOR of a list of pairs of texts or byte strings, one by one.

    By hand, because decoding 64 MiB of something else at once may take 4 GiB: an empty list is one byte.
    Raises DagError, UnicodeDecodeError, IndexError.
    """
    count, at = _head(content, 0, _ARRAY)
    for _ in range(count):
        length, at = _head(content, at, _ARRAY)
        pair: list[object] = []
        for _ in range(min(length, 3)):
            text = content[at] >> 5 == _TEXT
            size, at = _head(content, at, _TEXT if text else _BYTES)
            raw, at = content[at : at + size], at + size
            if at > len(content):
                raise IndexError("it ends in the middle of a value")
            pair.append(raw.decode() if text else raw)
        yield pair
    if at != len(content):
        raise DagError("more after the list")


_BYTES, _TEXT, _ARRAY = 2, 3, 4  # major types (RFC 8949, section 3.1)


def _head(content: bytes, at: int, major: int) -> tuple[int, int]:
    """The number in the head of an item of type `major`, and the offset behind it."""
    kind, short = content[at] >> 5, content[at] & 31
    width = 0 if short < 24 else 1 << short - 24 if short < 28 else -1
    value = short if width == 0 else int.from_bytes(content[at + 1 : at + 1 + width], "big")
    smallest = {0: 0, 1: 24, 2: 1 << 8, 4: 1 << 16, 8: 1 << 32}
    if kind != major or width < 0 or value < smallest[width]:
        raise DagError("something else where a list of pairs should be")
    return value, at + 1 + width
