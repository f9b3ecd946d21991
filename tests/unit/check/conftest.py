"""A small tree, stored, with every kind of block in it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.support.checked import Checked


@pytest.fixture
def empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Checked:
    """Nothing in it, and not stored yet."""
    return Checked(tmp_path, capsys)


@pytest.fixture
def checked(empty: Checked) -> Checked:
    """Stored once. `twice/a` and `twice/b` have one content; `large` has three leaves; `xattrs` has many of those."""
    rng = random.Random(1)
    root = empty.root
    (root / "large").write_bytes(rng.randbytes((2 << 20) + 5))
    (root / "mid").write_bytes(rng.randbytes(100_000))
    (root / "twice").mkdir()
    for name in ("a", "b"):
        (root / "twice" / name).write_bytes(b"the same")
    (root / "deep/er").mkdir(parents=True)
    (root / "deep/er/small").write_text("small")
    (root / "deep/er/link").symlink_to("small")
    for number in range(4):
        os.setxattr(root / "mid", f"user.x{number}", rng.randbytes(800))
    empty.snapshot()
    return empty
