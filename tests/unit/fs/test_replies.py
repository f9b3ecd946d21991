"""Errors become an errno at one place."""

from __future__ import annotations

import errno
import logging

import pytest

from fused import errors
from fused.cid import CID
from fused.fs.replies import ERRNO, errno_of, failure, may_try_again


def all_conditions() -> list[type[errors.IpfsfsError]]:
    found = [errors.IpfsfsError]
    for kind in found:
        found += kind.__subclasses__()
    return found


@pytest.mark.parametrize("kind", all_conditions())
def test_every_condition_has_an_errno(kind: type[errors.IpfsfsError]) -> None:
    # What a store tells apart for itself is to others the condition that it refines.
    known = [base for base in kind.__mro__ if base.__module__ == errors.__name__]
    assert known[0] in ERRNO, f"say in replies.py what a program sees for {known[0].__name__}"
    assert kind.__module__ == errors.__name__ or known[0] is not errors.IpfsfsError


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (FileNotFoundError(errno.ENOENT, "none"), errno.ENOENT),
        (errors.PathNotInDag("no such entry"), errno.ENOENT),
        (errors.StoreUnavailable("down"), errno.EIO),
        (MemoryError(), errno.ENOMEM),
        (OSError(errno.EMFILE, "the daemon's own limit"), errno.ENFILE),
    ],
)
def test_an_error_has_its_number(error: Exception, number: int) -> None:
    assert failure("op", error) == number


def test_a_bug_becomes_eio_with_one_traceback(caplog: pytest.LogCaptureFixture) -> None:
    assert failure("op", KeyError("bug")) == errno.EIO
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "op=op" in record.getMessage()


def test_a_broken_block_is_logged_with_its_cid(caplog: pytest.LogCaptureFixture) -> None:
    cid = CID(b"\x01\x55\x12\x20" + bytes(32))
    with caplog.at_level(logging.WARNING):
        assert failure("op", errors.BlockCorrupt(cid)) == errno.EIO
    assert "bafkrei" in caplog.text


class Room:
    """Who can make room so many times."""

    def __init__(self, times: int) -> None:
        self.times = times

    def make_room(self) -> bool:
        self.times -= 1
        return self.times >= 0


def test_what_failed_for_want_of_descriptors_may_be_tried_again_when_there_are_some() -> None:
    assert may_try_again(Room(1), OSError(errno.EMFILE, "too many"))
    assert may_try_again(Room(1), OSError(errno.ENFILE, "too many"))
    assert not may_try_again(Room(0), OSError(errno.EMFILE, "too many"))
    assert not may_try_again(Room(1), OSError(errno.ENOSPC, "full"))


def test_an_oserror_without_a_number_is_unexpected() -> None:
    assert errno_of(OSError("made by hand")) is None
    assert errno_of(ValueError()) is None
