"""A node that is away, or slow, while the mount stores at it. Local work never notices, and the queue drains by itself.

What is stored at the end is asked of the node itself, every block of it, and restored with nothing but the node.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fused.sync.outbox import BATCH_BYTES
from tests.support.disks import MIB
from tests.support.mountproc import run
from tests.support.outage import CANT_STORE, LOST, Outage
from tests.support.poll import wait_until
from tests.support.proxy import Cut, Delay, Hang


def git(*words: str, at: Path) -> subprocess.CompletedProcess[str]:
    """A command of git, with a name to commit under."""
    return run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=at)


def test_a_node_that_is_down_at_mount_is_waited_for_and_local_work_goes_on(outage: Outage) -> None:
    outage.proxy.down()
    outage.write("before")
    outage.mount.expect_log(CANT_STORE)
    outage.start()
    outage.write("after")
    assert sorted(os.listdir(outage.path)) == ["after", "before"]
    outage.sync_fails(r"127\.0\.0\.1:\d+")
    wait_until(outage.wrong, "word of it in status")
    status = outage.status()
    assert status["snapshot"] is None
    assert status["files"]["dirty"] == 2
    assert status["store"]["error"]

    outage.proxy.up()
    outage.wait_stored()
    outage.assert_kept()


def test_status_says_what_is_waiting_and_since_when(outage: Outage) -> None:
    outage.mount.expect_log(CANT_STORE)
    outage.start()
    outage.sync()
    assert outage.status()["waiting"] is None
    outage.proxy.down()
    outage.write("one", 1000)
    outage.write("two", 2000)
    wait_until(lambda: outage.status()["waiting"], "word of what is waiting")
    first = outage.status()["waiting"]
    assert first["files"] >= 2
    assert first["bytes"] >= 3000
    wait_until(lambda: outage.status()["waiting"]["seconds"] > first["seconds"], "time that passes", 5)
    assert outage.status()["waiting"]["since"] == first["since"]
    said = outage.mount.ipfsfs("status", outage.path).stdout
    assert "waiting" in said

    outage.proxy.up()
    outage.wait_stored()
    assert outage.status()["waiting"] is None
    outage.assert_kept()


@pytest.mark.parametrize("how", ["the connection breaks", "the node is killed"])
def test_an_upload_that_is_cut_goes_on_where_it_was(outage: Outage, how: str) -> None:
    size = 112 * MIB
    in_flight = 2 * BATCH_BYTES  # a node is sent two batches at a time: neither may have come to its end at the cut
    outage.mount.expect_log(CANT_STORE)
    outage.start()
    outage.sync()
    before = outage.proxy.body_bytes()
    outage.write("large", size)
    wait_until(lambda: outage.proxy.body_bytes() - before > size * 3 // 4, "most of an upload", every=0.001)
    if how == "the connection breaks":
        outage.proxy.rule("dag/import", Cut(request_bytes=MIB))
        outage.proxy.down()
    else:
        outage.node.kill()
    assert outage.newest() == outage.acknowledged[0], "it was over too soon for this test"
    wait_until(outage.wrong, "word of it in status")
    if how == "the connection breaks":
        outage.proxy.up()
        wait_until(lambda: outage.proxy.count("dag/import") and outage.wrong(), "a stream that is cut in the middle")
        outage.proxy.honest()
    else:
        outage.node.start()
    outage.wait_stored()
    sent = outage.proxy.body_bytes() - before
    assert sent < size + in_flight + 16 * MIB, f"{sent / MIB:.0f} MiB were sent for {size / MIB:.0f}"
    outage.assert_kept()


def test_local_work_does_not_notice_a_node_that_never_answers(outage: Outage) -> None:
    outage.mount.expect_log(CANT_STORE)
    git("init", "-q", ".", at=outage.path)
    outage.start()
    outage.sync()
    outage.proxy.rule("*", Hang())
    answered = outage.proxy.answered()
    outage.write("trigger")
    wait_until(lambda: outage.proxy.held, "a request that hangs")

    for number in range(50):
        outage.write(f"work/{number}", 20_000, number)
    assert (outage.path / "trigger").read_bytes()
    git("add", "-A", at=outage.path)
    git("commit", "-qm", "all of it", at=outage.path)
    assert git("status", "--porcelain", at=outage.path).stdout == ""
    assert len(run(["ls", "-lR", "work"], cwd=outage.path).stdout.splitlines()) > 50
    os.rename(outage.path / "work", outage.path / "done")
    (outage.path / "trigger").unlink()
    status = outage.status()
    assert status["files"]["dirty"] > 0
    assert outage.proxy.answered() == answered, "something was waited for"

    outage.proxy.honest()
    outage.wait_stored()
    outage.assert_kept()


def test_a_node_that_is_slow_to_answer_is_asked_little(outage: Outage) -> None:
    for number in range(300):
        outage.write(f"{number % 7}/{number}", 3000, number)
    outage.start()
    outage.sync()
    outage.proxy.rule("*", Delay(0.4))  # as many requests as with a second, in less of our time
    for number in range(40):
        outage.write(f"{number % 7}/{number}", 3000, 1000 + number)
    before = outage.proxy.counts()
    outage.sync()
    asked = {command: n - before.get(command, 0) for command, n in outage.proxy.counts().items()}
    assert sum(asked.values()) < 50, asked
    outage.proxy.honest()
    outage.assert_kept()


def test_a_node_that_starts_again_with_an_empty_repository_gets_everything_again(outage: Outage) -> None:
    outage.mount.expect_log(CANT_STORE, LOST)
    for number in range(30):
        outage.write(f"{number % 3}/{number}", 50_000, number)
    outage.start()
    lost = outage.sync()
    outage.node.clear()
    outage.node.start()
    outage.write("new")
    newest = wait_until(lambda: outage.is_stored() and outage.newest() != lost and outage.newest(), "a snapshot", 40)
    outage.acknowledged = [str(newest)]
    outage.assert_kept(fsck=False)

    # What was only at the node that is no more is named, and taken off the list.
    code, report = outage.fsck()
    assert code & 4
    assert {finding["kind"] for finding in report["findings"]} <= {"snapshot", "block", "pin"}, report
    outage.fsck("--repair")
    outage.assert_kept()


def test_unmounting_without_the_node_loses_nothing(outage: Outage) -> None:
    outage.mount.expect_log(CANT_STORE, "the last snapshot failed")
    outage.start()
    outage.sync()
    outage.proxy.down()
    outage.write("late")
    outage.mount.stop(code=4)
    assert (outage.path / "late").read_bytes() == (outage.mount.plain / "late").read_bytes()
    outage.proxy.up()
    outage.start()
    outage.wait_stored()
    outage.assert_kept()
