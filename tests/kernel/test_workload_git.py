"""git on the mount: clone, edit, commit, branch, merge, gc, fsck, worktree."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mountproc import run
from tests.support.workspace import Workspace

ENV = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_TERMINAL_PROMPT": "0",
}


def git(cwd: Path, *args: str) -> str:
    return run(["git", *args], cwd=cwd, **ENV).stdout


def write_some(tree: Path, rng: random.Random, files: int) -> None:
    for number in range(files):
        path = tree / f"dir{number % 7}" / f"sub{number % 3}" / f"file {number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{rng.random()}\n" for _ in range(rng.randrange(200))))


@pytest.fixture
def origin(tmp_path: Path, need: Callable[..., None]) -> Path:
    """A bare repository with some history, outside the mount."""
    need("git")
    rng = random.Random(1)
    work, bare = tmp_path / "origin-work", tmp_path / "origin.git"
    git(tmp_path, "init", "-q", "-b", "main", str(work))
    for commit in range(8):
        write_some(work, rng, 150)
        (work / "run.sh").write_text(f"#!/bin/sh\necho {commit}\n")
        (work / "run.sh").chmod(0o755)
        git(work, "add", "-A")
        git(work, "commit", "-q", "-m", f"commit {commit}")
    git(tmp_path, "clone", "-q", "--bare", str(work), str(bare))
    return bare


def test_git_clone_commit_merge_gc_and_fsck(workspace: Workspace, origin: Path) -> None:
    git(workspace.path, "clone", "-q", origin.as_uri(), "clone")
    clone = workspace.path / "clone"
    assert git(clone, "rev-list", "--count", "HEAD") == "8\n"
    assert git(clone, "status", "--porcelain") == ""
    rng = random.Random(2)
    git(clone, "checkout", "-q", "-b", "topic")
    write_some(clone, rng, 40)
    (clone / "link").symlink_to("dir0/sub0")
    git(clone, "add", "-A")
    git(clone, "commit", "-q", "-m", "on topic")
    git(clone, "checkout", "-q", "main")
    (clone / "only on main").write_text("x")
    git(clone, "add", "-A")
    git(clone, "commit", "-q", "-m", "on main")
    git(clone, "merge", "-q", "-m", "merge", "topic")
    git(clone, "mv", "dir0", "moved")
    git(clone, "commit", "-q", "-m", "move")
    workspace.check()
    git(clone, "repack", "-q", "-a", "-d", "-f")
    git(clone, "gc", "-q", "--prune=now")
    git(clone, "fsck", "--full", "--strict")
    assert git(clone, "status", "--porcelain") == ""
    git(clone, "push", "-q", "origin", "main")
    assert git(origin, "rev-parse", "main") == git(clone, "rev-parse", "main")
    workspace.check()


def test_git_status_stays_clean_over_a_remount(workspace: Workspace, origin: Path) -> None:
    if workspace.mount is None:
        pytest.skip("a plain directory can't be mounted again")
    git(workspace.path, "clone", "-q", origin.as_uri(), "clone")
    clone = workspace.path / "clone"

    def stats() -> dict[Path, tuple[int, int, int, int]]:
        found = {path: path.lstat() for path in clone.rglob("*") if path.name != "index"}
        return {path: (st.st_ino, st.st_mtime_ns, st.st_size, st.st_mode) for path, st in found.items()}

    before = stats()
    workspace.mount.restart()
    assert stats() == before
    assert git(clone, "status", "--porcelain") == ""


def test_git_worktree_and_stash(workspace: Workspace, origin: Path) -> None:
    git(workspace.path, "clone", "-q", origin.as_uri(), "clone")
    clone = workspace.path / "clone"
    git(clone, "worktree", "add", "-q", "../tree", "HEAD~3")
    (clone / "run.sh").write_text("changed\n")
    git(clone, "stash", "-q")
    assert (clone / "run.sh").read_text() == "#!/bin/sh\necho 7\n"
    git(clone, "stash", "pop", "-q")
    assert (clone / "run.sh").read_text() == "changed\n"
    git(clone, "worktree", "remove", "../tree")
    git(clone, "reset", "-q", "--hard")
    git(clone, "fsck", "--full", "--strict")
    workspace.check()
