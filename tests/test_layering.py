"""Imports point down only; see the arrows below. Precedent: S3QL's check_imports.py."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "fused"

# From the bottom to the top. A part may import from lower rows and from itself; parts of one row ignore each other,
# but for the lowest, which are single modules.
LAYERS = [
    {"errors", "types", "cid", "inline", "leaves", "private", "allocator", "turns"},
    {"local", "index", "dag", "store"},
    {"view", "sync"},
    {"fs", "check"},
    {"status"},
    {"behind"},
    {"daemon"},
    {"serve"},
    {"supervise"},
    {"cli"},
]
# What the command line and the daemon share to find and talk to each other. Any of these may be imported by
# `daemon` and `cli`, and by nothing below them.
SHARED = {"config", "control", "control_server", "gates", "paths", "state"}
# A store behind a node sends CAR streams, whose form `dag` knows: the one thing of its row that it may import. And
# ipfs_kit_py gives many blocks at once only as the files of a directory, which has to be made.
FORMS = {
    "store/kubo/": ("fused.dag.car.",),
    "store/kit/": ("fused.dag.car.", "fused.dag.dagpb.", "fused.dag.unixfs."),
}
PYFUSE3 = {"fs/operations.py", "fs/session.py"}
HEAVY = {"trio", "pyfuse3", "pathspec"}

MODULES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py"))


def part_of(module: str) -> str:
    """`fs/tree.py` belongs to `fs`, `daemon.py` is its own part, the package's own modules belong to none."""
    return module.split("/")[0].removesuffix(".py")


def level(part: str) -> float:
    if part in SHARED:
        return 3.5
    for height, row in enumerate(LAYERS):
        if part in row:
            return height
    raise AssertionError(f"fused/{part} is in no layer: put it into LAYERS or SHARED of {Path(__file__).name}")


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """(dotted name, whether only for type checkers) of everything that `module` imports, at any depth."""
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, id(node) in typing_only
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import (line {node.lineno}); write the full name"
            assert node.module is not None
            for name in node.names:
                yield f"{node.module}.{name.name}", id(node) in typing_only


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_from_lower_layers(module: str) -> None:
    part = part_of(module)
    if part in {"__init__", "__main__"}:
        return
    for name, _ in imports(module):
        words = name.split(".")
        if words[0] != "fused" or len(words) < 2 or words[1].startswith("__"):
            continue
        other = words[1]
        forms = next((known for users, known in FORMS.items() if module.startswith(users)), ())
        if other == part or f"{name}.".startswith(forms):
            continue
        allowed = level(other) < level(part) or {part, other} <= SHARED or {part, other} <= LAYERS[0]
        assert allowed, f"fused/{module} imports {name}, which is not below it"


@pytest.mark.parametrize("module", MODULES)
def test_only_the_three_adapter_modules_import_pyfuse3(module: str) -> None:
    named = [name for name, _ in imports(module) if name.split(".")[0] == "pyfuse3"]
    assert not named or module in PYFUSE3, f"fused/{module} imports pyfuse3"


@pytest.mark.parametrize("module", [m for m in MODULES if part_of(m) == "dag"])
def test_dag_does_no_input_or_output(module: str) -> None:
    used = {name.split(".")[0] for name, _ in imports(module)}
    assert not used & {"os", "io", "pathlib", "socket", "sqlite3", "subprocess", "threading", "trio"}, used


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*(m.split('.')[0] for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    return set(done.stdout.split())


def test_command_line_starts_without_the_heavy_modules() -> None:
    loaded = _loaded_by("import fused.cli.main")
    assert not loaded & HEAVY, f"importing fused.cli.main loads {sorted(loaded & HEAVY)}"


def test_control_client_is_standard_library_only() -> None:
    loaded = _loaded_by("import fused.control")
    assert not loaded & HEAVY, f"importing fused.control loads {sorted(loaded & HEAVY)}"


def test_the_walk_sees_imports_inside_functions_and_for_type_checkers() -> None:
    found = dict(imports("errors.py"))
    assert found["fused.cid.CID"] is True
    assert found["fused.cid.format_cid"] is False
