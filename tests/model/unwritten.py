"""What a file may hold after a crash that had been written to and not been closed: old or new, and nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

_BLOCK = 4096


def read(fd: int) -> bytes:
    """The whole content of a file that `fd` is open on in any way, O_PATH included."""
    opened = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    with open(opened, "rb") as stream:
        return stream.read()


@dataclass
class _File:
    pin: int
    """O_PATH: keeps the inode number from being given to another file."""
    versions: list[bytes] = field(default_factory=list)
    """Every content since the last one that is known to be in the local file, which comes first."""


class Unwritten:
    """Files with data that the kernel may still keep to itself, by the plain file's inode number."""

    def __init__(self) -> None:
        self._files: dict[int, _File] = {}

    def __contains__(self, ino: int) -> bool:
        return ino in self._files

    def before(self, fd: int) -> None:
        """The plain file open at `fd` is about to be written to."""
        ino = os.fstat(fd).st_ino
        if ino not in self._files:
            self._files[ino] = _File(os.open(f"/proc/self/fd/{fd}", os.O_PATH), [read(fd)])

    def after(self, fd: int) -> None:
        """It has been written to."""
        file = self._files[os.fstat(fd).st_ino]
        content = read(fd)
        if content != file.versions[-1]:
            file.versions.append(content)

    def truncated(self, ino: int, size: int) -> None:
        """The file was cut or extended. The kernel passes that on at once, so whatever it still has is cut, too."""
        if ino in self._files:
            file = self._files[ino]
            file.versions = [version[:size].ljust(size, b"\0") for version in file.versions]

    def written(self, ino: int) -> None:
        """All that the file holds is in the local file now."""
        file = self._files.pop(ino, None)
        if file is not None:
            os.close(file.pin)

    def clear(self) -> None:
        """All of all files is written out, or lost."""
        for ino in list(self._files):
            self.written(ino)

    def problem(self, ino: int, found: bytes) -> str | None:
        """Why `found` can't be what is left of the file."""
        versions = self._files[ino].versions
        if found in versions:
            return None
        sizes = [len(version) for version in versions]
        if not min(sizes) <= len(found) <= max(sizes):
            return f"has {len(found)} bytes, not between {min(sizes)} and {max(sizes)}"
        for start in range(0, len(found), _BLOCK):
            block = found[start : start + _BLOCK]
            if any(version[start : start + _BLOCK] == block for version in versions):
                continue
            for at, byte in enumerate(block, start):
                # Before a write that begins beyond the end there is a hole, whether or not the write got there.
                if not any(byte == (version[at] if at < len(version) else 0) for version in versions):
                    return f"has the byte {byte:#x} at {at}, which it never had there"
        return None
