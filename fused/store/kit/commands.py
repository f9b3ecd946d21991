"""A node's commands as functions of blocks and CIDs, run by ipfs_kit_py in its child. Blocking, for any thread.

Bytes never go through ipfs_kit_py's results, which are decoded as UTF-8: blocks go in as a CAR file, and come out as
files. A node keeps blocks by their hash, whatever their codec, so the CID of the same hash with the codec *raw* names
the bytes of any block, and `ipfs get` writes exactly them. Starting `ipfs` takes 40 ms and more for each command, so
several blocks are read with one: as the files of a small directory that is made for it.

With a daemon running, `ipfs` finds it by the file `api` in the repository and asks it; without one it opens the
repository itself, which one process can do at a time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fused.cid import CID, DAG_PB, RAW, cid_of, format_cid, parse_cid
from fused.dag.car import header, section_head
from fused.dag.dagpb import encode_link, encode_node
from fused.dag.unixfs import DIRECTORY_DATA
from fused.errors import StoreUnavailable, UsageError
from fused.store.base import Block
from fused.store.kit.child import verb
from fused.store.kit.ledger import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from fused.store.kit.child import Answer, Child

QUICK_S = 60.0
"""For a command that does little. Kubo's own start takes most of it, on a machine that is busy."""
PIN_S = 3600.0
"""For walking a DAG of any size at the node."""
_BYTES_S = 1 << 20  # a second more for each so many bytes
_TURN_S = 0.02  # between two looks whether a repository without a daemon is free

_MISSING = re.compile(r"could not find (\w+)")
_LOCKED = "someone else has the lock"


class CommandFailed(StoreUnavailable):
    """The command ran and failed. `missing` is the block that the node does not have, if that is why."""

    def __init__(self, what: str, said: str, missing: CID | None) -> None:
        super().__init__(f"ipfs {what} failed: {said}")
        self.missing = missing
        self.said = said


class Commands:
    """See the module. `scratch` is a directory of ours for files that are removed at once."""

    def __init__(self, child: Child, ipfs_path: str, scratch: str) -> None:
        self._child = child
        self._api = os.path.join(ipfs_path, "api")
        self._scratch = scratch
        self._turn = threading.Lock()

    # --- blocks -------------------------------------------------------------------------------------------------

    def put(self, blocks: Sequence[Block], check: Callable[[], None], timeout_s: float = QUICK_S) -> None:
        """Hand `blocks` to the node; each once, none of them inside its CID. Kubo compares each with its CID."""
        size = sum(len(block.data) for block in blocks)
        with self._directory() as directory:
            car = os.path.join(directory, "blocks.car")
            with open(car, "xb") as file:
                file.write(header([blocks[0].cid]))
                for block in blocks:
                    file.write(section_head(block))
                    file.write(block.data)
            said = self.run(
                ["--offline", "dag", "import", "--pin-roots=false", "--stats", "--enc=json", car],
                timeout_s + size / _BYTES_S,
                check,
            )
        taken = next((line["Stats"]["BlockCount"] for line in _json_lines(said) if line.get("Stats")), None)
        if taken != len(blocks):
            raise StoreUnavailable(f"the node took {taken} of {len(blocks)} blocks, and called that a success")

    def get(
        self, cids: Sequence[CID], timeout_s: float, check: Callable[[], None], *, offline: bool
    ) -> tuple[dict[CID, bytes], CID | None]:
        """The bytes of `cids`, not verified, and the first of them that the node could not give, if there is one.

        What comes after that one is missing too. Offline, nothing is asked of other nodes.
        """
        where = ["--offline"] if offline else []
        with self._directory() as directory:
            if len(cids) == 1:
                root, names = raw_alias(cids[0]), {cids[0]: directory + "/out"}
            else:
                node = _directory_of(cids)
                self.put([node], check, timeout_s)
                root, names = node.cid, {cid: f"{directory}/out/{_name(i)}" for i, cid in enumerate(cids)}
            try:
                self.run([*where, "get", "--progress=false", f"--output={directory}/out", text(root)], timeout_s, check)
            except CommandFailed as exc:
                if exc.missing is None:
                    raise
                return _until_missing(names, raw_alias(exc.missing))
            return _read(names)

    def has(self, cids: Sequence[CID], check: Callable[[], None]) -> set[CID]:
        """Those of `cids` whose bytes the node has itself."""
        if len(cids) <= 4:  # about what the list of a small repository costs
            return {cid for cid in cids if self._has(cid, check)}
        wanted = {text(raw_alias(cid)): cid for cid in cids}
        listed = self.run(["refs", "local", "--cid-base=base32"], PIN_S, check).split()
        found = {digest_of(wanted[line]) for line in listed if line in wanted}
        return {cid for cid in cids if digest_of(cid) in found}

    def _has(self, cid: CID, check: Callable[[], None]) -> bool:
        try:
            self.run(["--offline", "block", "stat", text(raw_alias(cid))], QUICK_S, check)
        except CommandFailed as exc:
            if exc.missing is None:
                raise
            return False
        return True

    def remove(self, cid: CID, check: Callable[[], None]) -> None:
        """Remove a block that no pin holds."""
        self.run(["block", "rm", "--force", text(raw_alias(cid))], QUICK_S, check)

    # --- pins ---------------------------------------------------------------------------------------------------

    def pins(self, kind: str, check: Callable[[], None]) -> dict[CID, str]:
        """Every pin of a kind, "direct" or "recursive", with its name."""
        said = self.run(["pin", "ls", f"--type={kind}", "--names", "--enc=json"], PIN_S, check)
        keys: dict[str, Any] = {}
        for line in _json_lines(said):
            keys.update(line.get("Keys") or {})
        return {_parse(name): str(entry.get("Name", "")) for name, entry in keys.items()}

    def pin(
        self, cid: CID, name: str, check: Callable[[], None], *, like: CID | None = None, timeout_s: float = PIN_S
    ) -> None:
        """Pin `cid` and all below it, by `name`; or as `like`, which is pinned: what both have is not walked, then.

        A daemon with a network asks that for what is missing, until the deadline: with `pin`, `--offline` is about
        finding the root only.
        """
        command = ["add", f"--name={name}"] if like is None else ["update", "--unpin=false", text(like)]
        self.run(["--offline", "pin", *command, text(cid)], timeout_s, check)

    def pin_alone(self, cid: CID, name: str, check: Callable[[], None]) -> None:
        """Pin the block `cid` by `name`, and nothing below it."""
        self.run(["--offline", "pin", "add", "--recursive=false", f"--name={name}", text(cid)], QUICK_S, check)

    def missing_below(self, cid: CID, check: Callable[[], None]) -> CID | None:
        """A block of the DAG at `cid` that the node does not have, if there is one. Reads all of it, at the node."""
        try:
            self.run(["--offline", "dag", "stat", "--progress=false", text(cid)], PIN_S, check)
        except CommandFailed as exc:
            if exc.missing is None:
                raise
            return exc.missing
        return None

    def unpin(self, cid: CID, check: Callable[[], None]) -> None:
        """Drop the pin on `cid`."""
        self.run(["pin", "rm", text(cid)], PIN_S, check)

    # --- the rest -----------------------------------------------------------------------------------------------

    def run(self, args: list[str], timeout_s: float, check: Callable[[], None]) -> str:
        """What `ipfs ARGS` writes. Raises CommandFailed with what it said."""
        end = time.monotonic() + timeout_s
        while True:
            with self._alone(check, end):
                answer = self._child.run(args, max(1.0, end - time.monotonic()), check)
            if answer.error is None:
                return answer.stdout
            if _LOCKED not in answer.stderr or time.monotonic() > end:
                raise _failure(args, answer)
            time.sleep(_TURN_S)  # another process has the repository open
            check()

    @contextmanager
    def _alone(self, check: Callable[[], None], end: float) -> Iterator[None]:
        """Without a daemon, keep our own commands from each other's way."""
        if os.path.exists(self._api):
            yield
            return
        while not self._turn.acquire(timeout=_TURN_S):
            check()
            if time.monotonic() > end:
                raise StoreUnavailable("other commands kept the repository busy for too long")
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def _directory(self) -> Iterator[str]:
        try:
            with tempfile.TemporaryDirectory(dir=self._scratch, ignore_cleanup_errors=True) as directory:
                yield directory
        except OSError as exc:
            raise StoreUnavailable(f"blocks can't be handed over in {self._scratch}: {exc.strerror}") from exc


def raw_alias(cid: CID) -> CID:
    """The CID under which the bytes of any block are a file."""
    return CID(bytes((1, RAW)) + digest_of(cid))


def text(cid: CID) -> str:
    """As commands take it."""
    return format_cid(cid)


def sweep(scratch: str) -> None:
    """Remove what killed processes have left in `scratch` an hour ago or earlier."""
    for entry in os.scandir(scratch):
        if entry.stat(follow_symlinks=False).st_mtime < time.time() - 3600:
            shutil.rmtree(entry.path, ignore_errors=True)


def _directory_of(cids: Sequence[CID]) -> Block:
    """A directory whose n-th file is the n-th block. Sizes are not needed to read it."""
    links = [encode_link(raw_alias(cid), _name(i).encode(), 0) for i, cid in enumerate(cids)]
    data = encode_node(links, DIRECTORY_DATA)
    return Block(cid_of(DAG_PB, data), data)


def _name(index: int) -> str:
    return f"{index:05x}"  # sorted as they are numbered


def _read(names: Mapping[CID, str]) -> tuple[dict[CID, bytes], CID | None]:
    found: dict[CID, bytes] = {}
    for cid, name in names.items():
        try:
            with open(name, "rb") as file:
                found[cid] = file.read()
        except FileNotFoundError:
            return found, cid
    return found, None


def _until_missing(names: Mapping[CID, str], missing: CID) -> tuple[dict[CID, bytes], CID | None]:
    before: dict[CID, str] = {}
    for cid, name in names.items():
        if raw_alias(cid) == missing:
            return _read(before)[0], cid
        before[cid] = name
    raise StoreUnavailable(f"the node misses block {text(missing)}, which was not asked for")


def _failure(args: list[str], answer: Answer) -> CommandFailed:
    said = " ".join((answer.stderr.strip() or answer.error or "it gave no reason").removeprefix("Error: ").split())
    found = _MISSING.search(said)
    return CommandFailed(verb(args), said, _parse(found[1]) if found else None)


def _parse(cid: str) -> CID:
    try:
        return parse_cid(cid)
    except UsageError as exc:
        raise StoreUnavailable(f"the node names a CID that is none: {exc}") from None


def _json_lines(said: str) -> Iterator[dict[str, Any]]:
    for line in said.splitlines():
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError:
                raise StoreUnavailable(f"the node answers what is no JSON: {line[:200]}") from None
