"""libfuse's `passthrough_ll`: Debian ships its C source with the headers, but not the program; it is compiled once."""

from __future__ import annotations

import fcntl
import gzip
import os
import shutil
import subprocess
from pathlib import Path

from bench.fs.rows import CantError
from tests.support.kubo import CACHE

_EXAMPLES = "usr/share/doc/libfuse3-dev/examples"
_SOURCES = ("passthrough_ll.c", "passthrough_helpers.h")


def libfuse_version() -> str:
    """Of the library that it is linked with."""
    done = subprocess.run(["pkg-config", "--modversion", "fuse3"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def program() -> Path:
    """The program, compiled if it is not there. Raises CantError."""
    directory = CACHE / f"passthrough_ll-{libfuse_version()}"
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "passthrough_ll").exists():
            _compile(directory)
    return directory / "passthrough_ll"


def _take_sources(examples: Path, directory: Path) -> bool:
    """Whether they were all there."""
    for name in _SOURCES:
        plain, packed = examples / name, examples / f"{name}.gz"
        if plain.exists():
            shutil.copyfile(plain, directory / name)
        elif packed.exists():
            (directory / name).write_bytes(gzip.decompress(packed.read_bytes()))
        else:
            return False
    return True


def _unpack(directory: Path) -> None:
    """From the package itself: small systems are told to install no documentation (dpkg's path-exclude)."""
    unpacked = directory / "package"

    def run(*command: str | Path) -> None:
        subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True)

    try:
        run("apt-get", "download", "libfuse3-dev")
        package = next(directory.glob("libfuse3-dev_*.deb"))
        run("dpkg-deb", "--extract", package, unpacked)
        package.unlink()
    except (OSError, StopIteration) as exc:
        raise CantError(f"the source of passthrough_ll, in Debian's libfuse3-dev, can't be had: {exc}") from exc
    except subprocess.CalledProcessError as exc:
        raise CantError(f"the source of passthrough_ll can't be had: {exc.stderr.strip()}") from exc
    if not _take_sources(unpacked / _EXAMPLES, directory):
        raise CantError("the source of passthrough_ll is not in libfuse3-dev any more")
    shutil.rmtree(unpacked)


def _compile(directory: Path) -> None:
    if not _take_sources(Path("/") / _EXAMPLES, directory):
        _unpack(directory)
    flags = subprocess.run(["pkg-config", "fuse3", "--cflags", "--libs"], capture_output=True, text=True, check=False)
    command = ["cc", "-O2", "passthrough_ll.c", *flags.stdout.split(), "-o", "passthrough_ll.new"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CantError(f"passthrough_ll does not compile: {done.stderr.strip().splitlines()[-1]}")
    os.replace(directory / "passthrough_ll.new", directory / "passthrough_ll")
