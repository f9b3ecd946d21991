"""What programs are given, made once for a run, beside the columns: a repository, a tree, a package, a wheel."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import subprocess
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING

from bench.fs.rows import CantError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.fs.rows import Sizes

TREE, REPOSITORY, WHEEL = "tree.tar", "repository.git", "many_files-1.0-py3-none-any.whl"


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Run a program with nobody's settings. Raises CantError."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "PIP_", "PYTHON"))}
    environ |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "LC_ALL": "C.UTF-8"}
    who = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    words: Sequence[str | Path] = [command[0], *who, *command[1:]] if command[0] == "git" else command
    try:
        done = subprocess.run(words, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except FileNotFoundError:
        raise CantError(f"{command[0]} is not installed") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise CantError(f"{' '.join(map(str, command[:2]))}: {said[-1] if said else done.returncode}")


def _text(rng: random.Random) -> str:
    """As long as source files are: 1 to 10 KiB."""
    return "".join(f"value_{rng.randrange(1 << 30)} = {rng.random()}\n" for _ in range(rng.randrange(30, 300)))


def _source_tree(root: Path, count: int) -> None:
    rng = random.Random(3)
    for i in range(count):
        path = root / f"part{i // 250:02}" / f"sub{i // 25 % 10}" / f"file{i:05}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_text(rng))


def make(sizes: Sizes) -> None:
    """Make all of it in `sizes.inputs`, which must not exist. Raises CantError."""
    inputs = sizes.inputs
    tree = inputs / "tree"
    tree.mkdir(parents=True)
    _source_tree(tree, sizes.repository)
    with tarfile.open(inputs / TREE, "w") as tar:
        tar.add(tree, "tree")
    run("git", "init", "-q", "-b", "main", cwd=tree)
    run("git", "add", "-A", cwd=tree)
    run("git", "commit", "-q", "-m", "all", cwd=tree)
    run("git", "clone", "-q", "--bare", tree, inputs / REPOSITORY)
    _wheel(inputs / WHEEL, sizes.wheel)


def package(root: Path, sizes: Sizes) -> None:
    """A package whose modules are all imported by its `__init__.py`; compiled, as an installed one is."""
    rng = random.Random(4)
    where = root / "many_modules"
    where.mkdir()
    names = [f"module_{i:04}" for i in range(sizes.modules)]
    for name in names:
        (where / f"{name}.py").write_text(_text(rng))
    (where / "__init__.py").write_text("".join(f"from . import {name}\n" for name in names))
    run(sys.executable, "-m", "compileall", "-q", where)


def _wheel(path: Path, count: int) -> None:
    rng = random.Random(5)
    info = "many_files-1.0.dist-info"
    contents = {f"many_files/part{i // 50:02}/file{i:04}.py": _text(rng) for i in range(count)}
    contents[f"{info}/METADATA"] = "Metadata-Version: 2.1\nName: many_files\nVersion: 1.0\n"
    contents[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in contents.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(content.encode())}\n")
            wheel.writestr(name, content)
        wheel.writestr(f"{info}/RECORD", "".join(record) + f"{info}/RECORD,,\n")
