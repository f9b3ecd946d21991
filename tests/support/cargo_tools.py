"""Test suites that are published as Rust programs: find one, or install it once into a cache of the tests' own."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

PJDFSTEST = "0.2.2"

# As it was when the tests began: fixtures hide the user's own directories, and cargo keeps its cache there.
_ENVIRONMENT = dict(os.environ)
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ipfsfs-tests"


def cargo_tool(name: str, version: str) -> Path:
    """The program `name` of the crate of the same name, in the version that the tests are written for.

    IPFSFS_TEST_<NAME>, else the one on the PATH if it is of that version, else the one installed earlier, else one
    built now, which takes some minutes and needs cargo and its registry. Fails, saying what is missing.
    """
    if given := _ENVIRONMENT.get(f"IPFSFS_TEST_{name.upper()}"):
        return Path(given)
    found = shutil.which(name, path=_ENVIRONMENT.get("PATH"))
    if found and _is_version(Path(found), version):
        return Path(found)
    directory = _CACHE / f"{name}-v{version}"
    directory.mkdir(parents=True, exist_ok=True)
    program = directory / "bin" / name
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once build it once
        if not program.exists():  # cargo moves it there when it is whole
            _install(name, version, directory)
    return program


def _is_version(program: Path, version: str) -> bool:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    words = done.stdout.replace("-", " ").split()  # "name 1.2.3", or "name-1.2.3"
    return words[-1:] == [version]


def _install(name: str, version: str, root: Path) -> None:
    cargo = shutil.which("cargo", path=_ENVIRONMENT.get("PATH"))
    assert cargo is not None, f"{name} {version} is not installed, and there is no cargo to build it with"
    command = [cargo, "install", "--quiet", "--locked", "--version", f"={version}", "--root", str(root), name]
    done = subprocess.run(command, env=_ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr}"
