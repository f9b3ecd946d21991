"""What a power cut would have left of a disk: from a record of all that was done to it, made by `faultyfs.py`.

What was synced is there. Of the rest any part may be: of contents each page by itself, torn in the middle now and then.
Of names, there are two kinds of disk:

- `journal`: as on ext4 and XFS, changes of names and sizes become durable in the order in which they were made, and any
  fsync makes all before it durable. So what is left is a prefix.
- `posix`: only fsync of a directory makes its names durable; of the others any part may be there, in any combination.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = 4096
Operation = tuple[Any, ...]
_NAMES = {"create", "mkdir", "link", "unlink", "rename"}


def read_record(file: Path) -> list[Operation]:
    """All operations, in order."""
    operations: list[Operation] = []
    with open(file, "rb") as stream:
        while True:
            try:
                operations.append(pickle.load(stream))
            except EOFError:
                return operations


@dataclass
class _Node:
    names: dict[bytes, int] | None = None  # of a directory
    data: bytearray = field(default_factory=bytearray)


class PowerCuts:
    """Makes what may be left after a cut at some moment of the record."""

    def __init__(self, operations: list[Operation], rng: random.Random) -> None:
        self.operations = _with_what_was_meant(operations)
        self._rng = rng

    def marks_before(self, moment: int) -> list[str]:
        """What had been acknowledged before operation number `moment`."""
        return [op[1] for op in self.operations[:moment] if op[0] == "mark"]

    def write(self, moment: int, disk: str, target: Path) -> None:
        """Make in `target` what may be there after a cut just before operation number `moment`."""
        done = self.operations[:moment]
        nodes = {0: _Node({})}
        lucky = self._rng.choice([0.0, 0.3, 0.5, 0.9, 1.0])  # how much of what nobody synced is there
        kept_names = set(self._names_kept(done, disk, lucky))
        synced = _last_syncs(done)
        for at, op in enumerate(done):
            kind = op[0]
            if kind in _NAMES:
                if at in kept_names:
                    _apply_name(nodes, op)
                elif kind in ("create", "mkdir"):  # the inode has no name, its content may be linked later
                    nodes.setdefault(op[3], _Node({} if kind == "mkdir" else None))
            elif kind in ("write", "truncate"):
                node = nodes.setdefault(op[1], _Node())
                self._apply_data(node.data, op, durable=at < synced.get(op[1], -1), lucky=lucky)
        _materialise(nodes, 0, target)

    def _names_kept(self, done: list[Operation], disk: str, lucky: float) -> Iterator[int]:
        names = [at for at, op in enumerate(done) if op[0] in _NAMES]
        if disk == "journal":
            synced = max((at for at, op in enumerate(done) if op[0] == "fsync"), default=-1)
            durable = sum(1 for at in names if at < synced)
            yield from names[: self._rng.randint(durable, len(names))]
            return
        syncs = _last_syncs(done)
        for at in names:
            directories = _directories(done[at])
            if any(at < syncs.get(directory, -1) for directory in directories) or self._rng.random() < lucky:
                yield at

    def _apply_data(self, data: bytearray, op: Operation, *, durable: bool, lucky: float) -> None:
        if op[0] == "truncate":
            if durable or self._rng.random() < lucky:
                _resize(data, op[2])
            return
        offset, content = op[2], op[3]
        if durable:
            _put(data, offset, content)
            return
        start = offset
        while start < offset + len(content):
            stop = min(offset + len(content), (start // PAGE + 1) * PAGE)
            if self._rng.random() < lucky:
                piece = content[start - offset : stop - offset]
                if self._rng.random() < 0.1:  # torn: sectors
                    piece = piece[: self._rng.randrange(len(piece)) // 512 * 512]
                if piece:
                    _put(data, start, piece)
            start = stop


def _with_what_was_meant(operations: list[Operation]) -> list[Operation]:
    """Renames with the inode that was moved: a name that is durable leads to it whatever became of the old one."""
    nodes = {0: _Node({})}
    meant: list[Operation] = []
    for op in operations:
        if op[0] == "rename":
            names = nodes[op[1]].names
            assert names is not None
            op = (*op, names[op[2]])
        if op[0] in _NAMES:
            _apply_name(nodes, op)
        meant.append(op)
    return meant


def _last_syncs(done: list[Operation]) -> dict[int, int]:
    """By file or directory, the number of the last fsync."""
    return {op[1]: at for at, op in enumerate(done) if op[0] == "fsync"}


def _directories(op: Operation) -> tuple[int, ...]:
    return (op[1], op[3]) if op[0] == "rename" else (op[1],)


def _apply_name(nodes: dict[int, _Node], op: Operation) -> None:
    """Do what can be done: the names that an operation needs may not be there."""
    kind, parent = op[0], nodes.setdefault(op[1], _Node({}))
    if parent.names is None:
        parent.names = {}
    if kind in ("create", "link"):
        nodes.setdefault(op[3], _Node())
        parent.names[op[2]] = op[3]
    elif kind == "mkdir":
        node = nodes.setdefault(op[3], _Node({}))
        node.names = node.names if node.names is not None else {}
        parent.names[op[2]] = op[3]
    elif kind == "unlink":
        parent.names.pop(op[2], None)
    elif kind == "rename":
        moved, target = op[5], nodes.setdefault(op[3], _Node({}))
        nodes.setdefault(moved, _Node())
        if parent.names.get(op[2]) == moved:
            del parent.names[op[2]]
        if target.names is not None:
            target.names[op[4]] = moved


def _resize(data: bytearray, size: int) -> None:
    if size < len(data):
        del data[size:]
    else:
        data.extend(bytes(size - len(data)))


def _put(data: bytearray, offset: int, content: bytes) -> None:
    if len(data) < offset:
        _resize(data, offset)
    data[offset : offset + len(content)] = content


def _materialise(nodes: dict[int, _Node], number: int, target: Path) -> None:
    target.mkdir(mode=0o700)
    for name, child in (nodes[number].names or {}).items():
        node, path = nodes[child], target / name.decode()
        if node.names is not None:
            _materialise(nodes, child, path)
        else:
            path.write_bytes(node.data)
            path.chmod(0o600)
