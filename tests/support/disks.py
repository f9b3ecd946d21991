"""Small disks for tests: real file systems of a few MiB, to be filled and made read-only. For root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

MIB = 1 << 20


class SmallDisk:
    """A file system mounted on `path`: an ext4 in an image file, or a tmpfs. `close` unmounts it, whatever uses it."""

    def __init__(self, base: Path, mebibytes: int, kind: str = "tmpfs") -> None:
        self.path = base / "disk"
        self.path.mkdir(parents=True)
        self._image = base / "disk.img"
        self.kind = kind
        self._loop = ""
        if kind == "tmpfs":
            self._run("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=755", "ipfsfs-test", self.path)
            return
        with open(self._image, "wb") as image:
            image.truncate(mebibytes * MIB)
        # Few inodes, a small journal and nothing reserved for root, so that most of it is room for files.
        self._run("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "1024", "-J", "size=1", self._image)
        self._loop = self._run("losetup", "--find", "--show", self._image).strip()
        try:
            self._run("mount", self._loop, self.path)
        except BaseException:
            self._run("losetup", "--detach", self._loop)
            raise

    def remount(self, option: str) -> None:
        """`ro` or `rw`."""
        self._run("mount", "-o", f"remount,{option}", self.path)

    def free(self) -> int:
        """Bytes that may still be written."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, leave: int = 0) -> Path:
        """Take all room but `leave` bytes; returns the file to remove."""
        ballast = self.path / "ballast"
        with open(ballast, "wb", buffering=0) as out:
            try:
                while (room := self.free() - leave) > 0:
                    out.write(bytes(min(MIB, room)))
                    os.fsync(out)
            except OSError:
                pass
        return ballast

    def close(self) -> None:
        """Unmount."""
        self._run("umount", "--lazy", self.path)
        if self._loop:
            # Done by the kernel once nothing uses it any more.
            self._run("losetup", "--detach", self._loop)

    def _run(self, *command: str | Path) -> str:
        program = shutil.which(command[0], path=os.environ["PATH"] + ":/usr/sbin:/sbin")
        assert program is not None, f"{command[0]} is not installed"
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout
