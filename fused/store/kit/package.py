"""Where ipfs_kit_py and the `ipfs` program are, found without importing the one or running the other."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from fused.errors import UsageError

WORKS = "0.2.0"
"""The version that our extra asks for."""

_BROKEN = {"0.3.0"}
_ADVICE = f"install ipfs_kit_py=={WORKS}, as the extra ipfsfs[ipfs-kit] does, or use --store kubo"


@dataclass(frozen=True, slots=True)
class Package:
    """`version` is what was installed; None for a copy of its repository. `ipfs` is the program that it will run."""

    directory: str
    version: str | None
    ipfs: str

    def __str__(self) -> str:
        return f"ipfs_kit_py {self.version or 'of no version'} in {self.directory}"


def find_package() -> Package:
    """What is installed here. Raises UsageError if it is missing, or known to be unable to do anything."""
    spec = importlib.util.find_spec("ipfs_kit_py")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"--store ipfs-kit needs the package ipfs_kit_py, which is not installed: {_ADVICE}")
    directory = os.path.abspath(next(iter(spec.submodule_search_locations)))
    version = _version(directory)
    ipfs = shutil.which("ipfs") or shutil.which(os.path.join(directory, "bin", "ipfs"))
    if version in _BROKEN:
        raise UsageError(
            refusal(
                Package(directory, version, ipfs or "ipfs"),
                "its run_ipfs_command runs nothing, and answers that all went well",
            )
        )
    if ipfs is None:
        raise UsageError(
            "--store ipfs-kit needs the program ipfs (Kubo), which ipfs_kit_py runs for every command:"
            f" it is neither on the PATH nor in {directory}/bin"
        )
    return Package(directory, version, os.path.abspath(ipfs))


def refusal(package: Package, why: str) -> str:
    """Why `package` can't be used, with what is visibly wrong in it, and what to do."""
    return "; ".join([f"{package} can't be used: {why}", *_defects(package.directory), _ADVICE])


def _version(directory: str) -> str | None:
    """The version of the distribution that `directory` belongs to. The package's own `__version__` is no help:
    in 0.3.0 it says 0.2.0."""
    for found in metadata.distributions(name="ipfs_kit_py", path=[os.path.dirname(directory)]):
        return found.version
    return None


def _defects(directory: str) -> list[str]:
    """What is wrong with the files that every use of it comes by."""
    found: list[str] = []
    for name in ("install_ipfs.py", "ipfs.py"):
        try:
            ast.parse(Path(directory, name).read_bytes(), name)
        except SyntaxError as exc:
            found.append(f"its {name} does not compile ({type(exc).__name__} in line {exc.lineno})")
        except (OSError, ValueError):
            continue
    if os.path.exists(os.path.join(directory, "ipfs", "__init__.py")):
        found.append("its directory ipfs/ hides its ipfs.py")
    return found
