"""What the model test has found, shrunk. Each is the steps that once came out differently, and a word on why."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.model.model import Model, Step
from tests.model.side import UTIME_OMIT

Run = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Takes steps on a mount that nothing in the background touches, and then looks whether all is as it must be."""
    made: list[Model] = []

    def take(*steps: Step, flags: tuple[str, ...] = ()) -> None:
        made.append(Model(tmp_path / f"model{len(made)}"))
        made[-1].run([("mount", ("--quiet-seconds=600", "--interval-seconds=600", *flags)), *steps])

    yield take
    for model in made:
        model.close()


def test_set_id_bits_of_a_fifo_made_with_them_stay(run: Run) -> None:
    """--allow-other gives a new file to its caller, and chown takes the bits off everything but a directory."""
    run(("mknod", "b", stat.S_IFIFO, 0o4755), flags=("--allow-other",))


def test_truncating_to_the_same_size_leaves_the_mtime_that_the_kernel_has(run: Run) -> None:
    """The plain file's was now, so the file seemed to change when the kernel had dropped it from its cache."""
    run(
        ("write_file", "a", 100, 1),
        ("utime", "a", UTIME_OMIT, 1_234_567_890_123_456_789, True),
        ("truncate", "a", 100),
        ("drop_caches",),
        ("lstat", "a"),
    )


def test_a_dead_mount_is_mounted_again_though_the_kernel_remembers_its_root(run: Run) -> None:
    """stat of the root is answered from the kernel's cache, whether or not the daemon lives."""
    run(("compare",), ("stat", "."), ("crash", "daemon and supervisor"))


def test_an_attribute_set_by_one_name_is_stored_for_the_other_name_too(run: Run) -> None:
    """After a mount only the index knows the other name, and it was asked about changed contents only."""
    run(
        ("write_file", "c", 5000, 1),
        ("mkdir", "b", 0o755),
        ("link", "c", "b/a", False),
        ("mount", ("--quiet-seconds=600", "--interval-seconds=600")),
        ("setxattr", "c", "user.a", 5, 0, True),
        ("sync",),
    )
