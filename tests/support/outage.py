"""A mount whose only store is a real node, behind a proxy that may fail and lie; and what must be true afterwards."""

from __future__ import annotations

import json
import random
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

from fused.control import call
from tests.support.at_node import blocks_at
from tests.support.compare import assert_same_tree
from tests.support.kubo_node import KuboNode
from tests.support.mountproc import MountProcess
from tests.support.poll import wait_until
from tests.support.proxy import Proxy
from tests.support.whole import assert_whole

CANT_STORE = r"what changed can't be stored now, next try in \d+ s: |stays local until the node can be reached"
LOST = "the store has lost something that it took|the node does not keep the last snapshot any more|stored again"


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that no other seed gives."""
    return random.Random(seed).randbytes(size)


class Outage:
    """`mount` stores at `node` through `proxy`. What `sync` has printed is remembered, and checked by `assert_kept`."""

    def __init__(self, mount: MountProcess, node: KuboNode, proxy: Proxy, scratch: Path) -> None:
        self.mount = mount
        self.node = node
        self.proxy = proxy
        self.acknowledged: list[str] = []
        self._scratch = scratch
        self._looks = 0

    @property
    def path(self) -> Path:
        """The covered directory."""
        return self.mount.path

    def start(self, *flags: str) -> Outage:
        """Mount."""
        self.mount.start("--store", f"kubo={self.proxy.url}", "--quiet-seconds", "0.2", *flags)
        return self

    def write(self, name: str, size: int = 100_000, seed: int | None = None) -> None:
        """A file of noise."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(noise(size, zlib.crc32(name.encode()) if seed is None else seed))

    def sync(self) -> str:
        """The CID that `ipfsfs sync` prints: a promise."""
        self.acknowledged.append(self.mount.sync())
        return self.acknowledged[-1]

    def sync_fails(self, sentence: str) -> None:
        """It must say nothing that looks like success, and something like `sentence`."""
        done = self.mount.ipfsfs("sync", self.path, check=False)
        assert done.returncode == 4, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.stdout == ""
        assert re.search(sentence, done.stderr), done.stderr
        assert "Traceback" not in done.stderr

    def status(self) -> dict[str, Any]:
        """What the daemon says to `ipfsfs status`; without the command, which takes longer to start than to answer."""
        return call(str(self.mount.state), "status", timeout=60)

    def wrong(self) -> str:
        """What is wrong, in words."""
        return "\n".join(self.status()["wrong"])

    def newest(self) -> str | None:
        """The last snapshot that counts as stored."""
        snapshot = self.status()["snapshot"]
        return None if snapshot is None else str(snapshot["snapshot"])

    def is_stored(self) -> bool:
        """Whether everything is, says status, and nothing is wrong."""
        status = self.status()
        idle = status["waiting"] is None and status["files"]["dirty"] == 0 and status["activity"]["phase"] == "idle"
        return idle and status["snapshot"] is not None and status["wrong"] == []

    def wait_stored(self, seconds: float = 40.0) -> str:
        """Wait until everything is stored, without asking for it, and return the snapshot: a promise, too."""
        wait_until(self.is_stored, f"empty queue; status says {self.wrong() or 'nothing'}", seconds, every=0.2)
        newest = self.newest()
        assert newest is not None
        self.acknowledged.append(newest)
        return newest

    # --- afterwards -------------------------------------------------------------------------------------------

    def assert_kept(self, *, fsck: bool = True) -> None:
        """All that was acknowledged is at the node, every block of it, and pinned; nothing local was lost."""
        assert self.acknowledged, "nothing was ever stored"
        for cid in dict.fromkeys(self.acknowledged):
            blocks_at(self.node, cid)
        pinned = self.node.rpc("pin/ls", type="recursive")["Keys"]
        assert set(self.acknowledged) <= pinned.keys()
        assert_same_tree(self.mount.plain, self.restored(self.acknowledged[-1]))
        if fsck:
            assert_whole(self.mount)

    def restored(self, cid: str) -> Path:
        """The snapshot out of the node alone: what we know of it and our cache of blocks are not used."""
        self._looks += 1
        to = self._scratch / f"restored{self._looks}"
        store = self._scratch / f"fresh{self._looks}"
        self.mount.ipfsfs("restore", cid, "--to", to, "--store", f"kubo={self.node.url}", "--store-dir", store)
        shutil.rmtree(store, ignore_errors=True)
        return to

    def fsck(self, *flags: str) -> tuple[int, dict[str, Any]]:
        """Exit code and report of `ipfsfs fsck`."""
        state = ("--state-dir", str(self.mount.state))
        done = self.mount.ipfsfs("fsck", "--json", *flags, *state, self.path, check=False)
        return done.returncode, json.loads(done.stdout)
