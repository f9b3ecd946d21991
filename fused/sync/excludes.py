"""What is covered but not stored: patterns with gitignore's syntax and rules (gitignore(5)).

They come from the settings and from a file `.ipfsfsignore` at the root of the covered directory, which
is read before each snapshot. As with git, what lies in an excluded directory can't be included again.
"""

from __future__ import annotations

import errno
import hashlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pathspec import GitIgnoreSpec

    from fused.sync.credentials import Credentials

IGNORE_FILE = b".ipfsfsignore"

WITHHELD = "has a name as {} have, and the node is public"

MAX_IGNORE_FILE = 1 << 20
"""Bytes of `.ipfsfsignore` that are read. Real ones have hundreds; without a limit, a mistake (a model
file of that name) would fill the memory."""


class Excludes:
    """A fixed list of patterns, compiled. `digest` tells two lists apart.

    `withheld`: names that are not stored either, for a reason that people are told.
    """

    def __init__(self, patterns: Sequence[str], withheld: Credentials | None = None) -> None:
        self.digest = hashlib.sha256("\n".join(patterns).encode("utf-8", "surrogateescape")).hexdigest()
        if withheld is not None:
            self.digest += " without credentials"
        self._withheld = withheld
        self._spec: GitIgnoreSpec | None = None
        if any(line.strip() and not line.startswith("#") for line in patterns):
            from pathspec import GitIgnoreSpec  # 15 ms that a mount without patterns need not spend

            self._spec = GitIgnoreSpec.from_lines(patterns)

    def __bool__(self) -> bool:
        return self._spec is not None

    def match(self, path: bytes, *, is_dir: bool) -> bool:
        """Whether `path`, relative to the covered directory, is excluded. Its parents are known not to be."""
        if self._spec is None:
            return False
        return self._spec.match_file(os.fsdecode(path) + ("/" if is_dir else ""))

    def why_withheld(self, path: bytes, *, is_dir: bool) -> str | None:
        """Why `path` is not stored though no pattern excludes it. Its parents are stored."""
        what = None if self._withheld is None else self._withheld.what(path, is_dir=is_dir)
        return None if what is None else WITHHELD.format(what)


def read_ignore_file(root_fd: int) -> list[str]:
    """The lines of `.ipfsfsignore`; none if there is no such file, or nothing that can be read as one.

    None either if somebody else made it than who may say what is stored: us, root, the directory's owner. Where
    everybody may make files, others' would not be stored, and a pattern can be made to take hours to match.
    """
    try:
        fd = os.open(IGNORE_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root_fd)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EACCES):
            return []
        raise
    try:
        if os.fstat(fd).st_uid not in (0, os.geteuid(), os.fstat(root_fd).st_uid):
            return []
        content = os.pread(fd, MAX_IGNORE_FILE, 0)
    except IsADirectoryError:
        return []
    finally:
        os.close(fd)
    return content.decode("utf-8", "surrogateescape").splitlines()
