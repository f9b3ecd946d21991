"""The real ipfs_kit_py, in the versions that are published: what is used of it, and what is refused."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from fused.errors import StoreUnavailable, UsageError
from fused.store.kit.package import WORKS, find_package
from fused.store.kit.store import KitStore
from fused.store.spec import StoreSpec
from tests.support.kit_package import kit_package
from tests.support.kubo import KuboRepo, kubo_binary
from tests.support.toy_blocks import random_blocks

pytestmark = pytest.mark.kubo

DOWNLOADERS = ("wget", "curl", "sudo", "apt-get", "snap")


@pytest.fixture
def ipfs_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where Kubo is installed."""
    monkeypatch.setenv("PATH", str(kubo_binary().parent), prepend=os.pathsep)


@pytest.fixture
def spec(tmp_path: Path) -> StoreSpec:
    """A repository without a daemon."""
    return StoreSpec("ipfs-kit", str(tmp_path / "state"), str(KuboRepo(tmp_path / "repo").path))


@pytest.fixture
def only_version(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `find_package` finds is what stands first on sys.path, whatever was found before."""
    yield
    sys.path_importer_cache.clear()


async def _roundtrip(spec: StoreSpec) -> None:
    [block] = random_blocks(1, 5000)
    async with KitStore(spec) as store:
        assert await store.put([block]) == 1
        assert await store.get(block.cid) == block.data


@pytest.mark.usefixtures("ipfs_on_path")
async def test_the_version_of_our_extra_works_and_leaves_our_process_alone(
    spec: StoreSpec, capfd: pytest.CaptureFixture[str]
) -> None:
    assert find_package().version == WORKS
    before = [*logging.root.handlers], logging.root.level, logging.lastResort
    await _roundtrip(spec)
    assert ([*logging.root.handlers], logging.root.level, logging.lastResort) == before
    assert not [name for name in sys.modules if name.split(".")[0] == "ipfs_kit_py"]
    assert capfd.readouterr() == ("", "")


async def test_nothing_is_downloaded(spec: StoreSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where importing the package in the usual way begins with a download."""
    programs, called = tmp_path / "bin", tmp_path / "called"
    programs.mkdir()
    for name in DOWNLOADERS:
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {called}\nexit 1\n')
        (programs / name).chmod(0o755)
    site = tmp_path / "site"
    shutil.copytree(find_fresh(), site, ignore=shutil.ignore_patterns("bin", "__pycache__"))
    environment = {"PATH": str(programs), "PYTHONPATH": str(site), "HOME": str(tmp_path)}
    usual = [sys.executable, "-c", "import ipfs_kit_py"]
    await trio.run_process(usual, env=environment, cwd=tmp_path, capture_stdout=True, capture_stderr=True, check=False)
    assert "wget" in called.read_text()
    called.unlink()
    shutil.rmtree(site / "ipfs_kit_py" / "bin")

    (programs / "ipfs").symlink_to(kubo_binary())
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.syspath_prepend(str(site))
    await _roundtrip(spec)
    assert find_package().directory == str(site / "ipfs_kit_py")
    assert not called.exists()
    assert not (site / "ipfs_kit_py" / "bin").exists()


def find_fresh() -> Path:
    """The version that works, installed beside nothing."""
    return kit_package(WORKS)


@pytest.mark.usefixtures("ipfs_on_path", "only_version")
def test_version_0_3_0_is_refused_with_what_is_wrong_and_what_to_do(
    spec: StoreSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(kit_package("0.3.0")))
    with pytest.raises(UsageError, match=r"^ipfs_kit_py 0\.3\.0 in .* can't be used: ") as caught:
        KitStore(spec)
    said = str(caught.value)
    assert "its run_ipfs_command runs nothing, and answers that all went well" in said
    assert "its install_ipfs.py does not compile (IndentationError in line 460)" in said
    assert "its directory ipfs/ hides its ipfs.py" in said
    assert "install ipfs_kit_py==0.2.0, as the extra ipfsfs[ipfs-kit] does, or use --store kubo" in said


@pytest.mark.usefixtures("ipfs_on_path", "only_version")
async def test_what_runs_nothing_is_found_out_also_when_it_does_not_say_its_version(
    spec: StoreSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(kit_package("0.3.0") / "ipfs_kit_py", tmp_path / "site" / "ipfs_kit_py")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    [block] = random_blocks(1, 10)
    async with KitStore(spec) as store:
        with pytest.raises(StoreUnavailable, match=r"ipfs_kit_py of no version .*Command executed successfully"):
            await store.put([block])
        status = await store.node()
        assert status.error is not None
        assert "install ipfs_kit_py==0.2.0" in status.error


@pytest.mark.usefixtures("only_version")
def test_a_missing_package_or_program_is_said(spec: StoreSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="needs the program ipfs"):
        KitStore(spec)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UsageError, match=r"ipfs_kit_py, which is not installed: install ipfs_kit_py==0\.2\.0"):
        KitStore(spec)


@pytest.mark.usefixtures("ipfs_on_path")
async def test_no_repository_is_a_node_that_is_not_there(tmp_path: Path) -> None:
    store = KitStore(StoreSpec("ipfs-kit", str(tmp_path / "state"), str(tmp_path / "nowhere")))
    await store.open()  # of the node nothing is asked
    with pytest.raises(StoreUnavailable, match=r"no IPFS repo found in .*nowhere"):
        await store.put(random_blocks(1, 10))
    assert "no IPFS repo found" in str((await store.node()).error)
    await store.aclose()
