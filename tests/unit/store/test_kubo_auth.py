"""The authorization file: who may read it, what it may hold, and that what it holds is shown nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fused.errors import UsageError
from fused.store.kubo.auth import read_secret

SECRET = "Pa55:wort-δ"


def write(path: Path, content: bytes, mode: int = 0o600) -> str:
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


def test_both_kinds_become_a_header(tmp_path: Path) -> None:
    bearer = read_secret(write(tmp_path / "bearer", b"bearer:abc-DEF.123=\n"))
    assert bearer.headers() == {"Authorization": "Bearer abc-DEF.123="}
    basic = read_secret(write(tmp_path / "basic", f"basic:user:{SECRET}\n".encode()))
    assert basic.headers() == {"Authorization": "Basic dXNlcjpQYTU1OndvcnQtzrQ="}


def test_a_secret_is_not_in_its_repr(tmp_path: Path) -> None:
    secret = read_secret(write(tmp_path / "auth", b"bearer:abcdef"))
    assert "abcdef" not in f"{secret!r} {secret} {secret!s}"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"Pa55",
        b"basic:Pa55",
        b"bearer:",
        b"bearer:Pa 55",
        "bearer:Pa55δ".encode(),
        b"bearer:Pa55\nX: y",
        b"digest:user:Pa55",
        b"bearer:Pa55\xff",
        b"bearer:Pa55" + b"x" * 9000,
    ],
)
def test_what_is_not_understood_is_not_shown_either(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match="bearer:TOKEN or basic:USER:PASSWORD") as caught:
        read_secret(write(tmp_path / "auth", content))
    error: BaseException | None = caught.value
    assert error is not None
    assert "Pa55" not in str(error)
    assert error.__suppress_context__ or error.__context__ is None
    assert error.__cause__ is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602])
def test_a_file_that_others_can_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(UsageError, match=r"chmod 600|written by everybody"):
        read_secret(write(tmp_path / "auth", b"bearer:abc", mode))


def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    path = write(tmp_path / "auth", b"bearer:abc")
    os.chown(path, 12345, 12345)
    with pytest.raises(UsageError, match="another user"):
        read_secret(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read: No such file"):
        read_secret(str(tmp_path / "missing"))
    with pytest.raises(UsageError, match="can't be read"):
        read_secret(str(tmp_path))
