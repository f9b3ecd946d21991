"""`ipfsfs fsck` and `--repair` with a node as the only copy: what the node itself has is what counts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fused.cid import RAW, cid_of, format_cid
from tests.support.at_node import blocks_at
from tests.support.outage import CANT_STORE, Outage, noise
from tests.support.proxy import Rewrite, flipped

MIB = 1 << 20


@pytest.fixture
def stored(outage: Outage) -> Outage:
    """Two snapshots at a node, mounted, and nothing changes."""
    for number in range(20):
        outage.write(f"{number % 4}/{number}", 20_000, number)
    outage.write("large", 3 * MIB + 5, 7)
    outage.start("--quiet-seconds", "600", "--interval-seconds", "600")
    outage.sync()
    outage.write("late", 100)
    outage.sync()
    return outage


def large_leaf(number: int) -> str:
    """The CID of a chunk of the file `large`."""
    return format_cid(cid_of(RAW, noise(3 * MIB + 5, 7)[number * MIB : (number + 1) * MIB]))


def fsck_node(outage: Outage, *flags: str) -> tuple[int, dict[str, Any]]:
    """`ipfsfs fsck` of the node alone."""
    fresh = outage.mount.base / "fresh"
    where = ("--store", f"kubo={outage.node.url}", "--store-dir", fresh)
    done = outage.mount.ipfsfs("fsck", "--json", *flags, *where, check=False)
    return done.returncode, json.loads(done.stdout)


def lose(outage: Outage, *cids: str) -> None:
    """Remove blocks from the node, and with them, as it would not do it otherwise, all pins of ours."""
    for pin in outage.acknowledged:
        outage.node.rpc("pin/rm", pin)
    for cid in cids:
        outage.node.rpc("block/rm", cid)


def test_everything_that_is_pinned_is_read_at_the_node(stored: Outage) -> None:
    blocks = {**blocks_at(stored.node, stored.acknowledged[0]), **blocks_at(stored.node, stored.acknowledged[1])}
    before = stored.proxy.count("block/get")
    code, report = stored.fsck()
    assert (code, report["findings"], report["failed"]) == (0, [], [])
    assert report["checked"]["blocks"] == len(blocks)
    assert report["checked"]["bytes"] == sum(map(len, blocks.values()))
    assert report["checked"]["snapshots"] == 2
    assert stored.proxy.count("block/get") - before >= len(blocks), "some were taken from a cache"

    code, alone = fsck_node(stored)
    assert (code, alone["findings"]) == (0, [])
    assert {key: alone["checked"][key] for key in ("blocks", "bytes", "snapshots")} == {
        key: report["checked"][key] for key in ("blocks", "bytes", "snapshots")
    }
    said = stored.mount.ipfsfs("fsck", "--progress", "--state-dir", stored.mount.state, stored.path)
    assert "verifying" in said.stderr
    assert said.stdout.strip().endswith("clean")


def test_what_is_lost_is_named_and_put_and_pinned_again_while_mounted(stored: Outage) -> None:
    lost = large_leaf(1)
    lose(stored, lost)
    code, report = stored.fsck()
    assert code == 4
    found = {finding["kind"]: finding for finding in report["findings"]}
    assert found["block"]["cid"] == lost
    assert found["block"]["paths"] == ["large"]
    assert sorted(found["block"]["snapshots"]) == sorted(stored.acknowledged)
    assert sum(1 for finding in report["findings"] if finding["kind"] == "pin") == 2

    code, report = stored.fsck("--repair")
    assert code == 1, report
    assert all(finding["repaired"] for finding in report["findings"])
    stored.assert_kept()


def test_what_is_lost_is_put_again_while_nothing_is_mounted(stored: Outage) -> None:
    stored.mount.stop()
    lose(stored, large_leaf(0), large_leaf(2))
    code, _ = stored.fsck()
    assert code == 4
    code, report = stored.fsck("--repair")
    assert code == 1, report
    stored.start()
    stored.assert_kept()


def test_what_no_file_has_any_more_stays_named_and_nothing_goes(stored: Outage) -> None:
    (stored.path / "large").unlink()
    newest = stored.sync()
    lost = large_leaf(1)
    lose(stored, lost)
    code, report = stored.fsck("--repair")
    assert code & 4
    left = [finding for finding in report["findings"] if not finding["repaired"] and not finding["harmless"]]
    assert lost in {finding["cid"] for finding in left}
    assert newest in stored.node.rpc("pin/ls", type="recursive")["Keys"]
    blocks_at(stored.node, newest)
    stored.acknowledged = [newest]


def test_wrong_bytes_at_the_node_are_a_damaged_block(stored: Outage) -> None:
    stored.proxy.rule("block/get", Rewrite(flipped))
    code, report = stored.fsck()
    assert code & (4 | 8)
    said = json.dumps(report)
    assert re.search(r"damaged|match", said), said
    stored.proxy.honest()
    assert stored.fsck()[0] == 0


def test_a_file_of_the_node_that_was_changed_is_found_and_mended(stored: Outage) -> None:
    lost = large_leaf(1)
    data = noise(3 * MIB + 5, 7)[MIB : 2 * MIB]
    [file] = [path for path in stored.node.path.rglob("*.data") if path.read_bytes() == data]
    stored.node.stop()
    file.chmod(0o600)
    file.write_bytes(flipped(None, data))  # type: ignore[arg-type]  # it does not look at it
    stored.node.start()
    code, report = stored.fsck()
    assert code == 4
    [found] = report["findings"]
    assert (found["kind"], found["cid"], found["paths"]) == ("block", lost, ["large"])
    # Kubo writes no block that it takes itself to have. So it has to drop that first, as the documentation says.
    code, report = stored.fsck("--repair")
    assert code == 4, report
    assert [finding["cid"] for finding in report["findings"] if not finding["repaired"]] == [lost]
    stored.node.run("repo", "verify", "--drop")
    code, report = stored.fsck("--repair")
    assert code == 1, report
    stored.assert_kept()


def test_a_node_that_is_down_is_a_failure_of_the_check(outage: Outage, tmp_path: Path) -> None:
    outage.mount.expect_log(CANT_STORE)
    outage.proxy.down()
    done = outage.mount.ipfsfs(
        "fsck", "--store", f"kubo={outage.proxy.url}", "--store-dir", tmp_path / "s", check=False
    )
    assert done.returncode == 8
    assert re.search(r"127\.0\.0\.1:\d+", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
