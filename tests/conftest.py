"""Fixtures for all tests, and the rules that every test is held to.

- Settings, gates and a user's own directories never reach a test (`clean_env`).
- With IPFSFS_TEST_NO_SKIP=1, which make sets, a test that can't run here fails and says what is missing.
- With IPFSFS_TEST_STORE=kubo or ipfs-kit, which `make test-stores` sets, mounts store at a real node.
- `mounted` is a real mount; at the end of the session nothing of ours may be left mounted or running.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.kubo import kubo_binary
from tests.support.kubo_node import KuboNode
from tests.support.mountproc import GATES, TIME_LIMIT, MountProcess, mounts_under

settings.register_profile(
    "ci", derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("soak", settings.get_profile("ci"), derandomize=False, max_examples=5000)
settings.load_profile(os.environ.get("IPFSFS_TEST_PROFILE", "ci"))


# --- skips ------------------------------------------------------------------------------------------------------


def _fail_instead(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("IPFSFS_TEST_NO_SKIP") == "1":
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{why}\n(IPFSFS_TEST_NO_SKIP=1: what can't run here is a failure)"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:  # the value is pytest's report
    report = yield
    _fail_instead(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    _fail_instead(report)
    return report


# --- environment ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def clean_env(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No gate is closed and nobody's settings, state or store are used, in this process and its children."""
    for name in list(os.environ):
        if name in GATES or name.startswith(("IPFSFS_", "XDG_")):
            monkeypatch.delenv(name)
    home = tmp_path_factory.getbasetemp() / "home"
    for variable in ("XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(home / variable.lower()))


# --- mounts -----------------------------------------------------------------------------------------------------


STORE = os.environ.get("IPFSFS_TEST_STORE", "embedded")  # read now: `clean_env` takes our variables away


@pytest.fixture
def store_node(tmp_path: Path) -> Iterator[KuboNode | None]:
    """The node that mounts store at; None if they store in a store of their own."""
    if STORE == "embedded":
        yield None
        return
    with KuboNode(tmp_path / "store-node") as node:
        yield node


@pytest.fixture
def new_mount(tmp_path: Path, store_node: KuboNode | None) -> Iterator[Callable[..., MountProcess]]:
    """Makes `MountProcess` objects, not yet started, that are closed at the end of the test."""
    _need_fuse()
    made: list[MountProcess] = []

    def make(name: str = "fs", *, time_limit: float = TIME_LIMIT, **options: object) -> MountProcess:
        limit = time_limit * (4 if STORE == "ipfs-kit" else 1)  # each of its commands is a process, and takes seconds
        made.append(MountProcess(tmp_path / name, time_limit=limit, **options))  # type: ignore[arg-type]
        if store_node is not None:
            made[-1].store_kind = f"kubo={store_node.url}" if STORE == "kubo" else f"{STORE}={store_node.path}"
            made[-1].environ["PATH"] = f"{kubo_binary().parent}:{made[-1].environ['PATH']}"
        return made[-1]

    yield make
    errors = []
    for mount in reversed(made):
        try:
            mount.close()
        except AssertionError as exc:
            errors.append(exc)
    if errors:
        raise errors[0]


@pytest.fixture
def mounted(new_mount: Callable[..., MountProcess]) -> MountProcess:
    """A mount over an empty directory, serving."""
    return new_mount().start()


def _need_fuse() -> None:
    if not os.path.exists("/dev/fuse"):
        pytest.skip("/dev/fuse is missing: is the fuse kernel module loaded, or the device passed to this container?")


@pytest.fixture
def need() -> Callable[..., None]:
    """Skips the test, naming what is missing, unless all the programs are there."""

    def check(*programs: str) -> None:
        path = os.environ["PATH"] + ":/usr/sbin:/sbin"
        missing = [program for program in programs if shutil.which(program, path=path) is None]
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}")

    return check


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    base = tmp_path_factory.getbasetemp()
    yield
    assert not mounts_under(base), f"left mounted: {mounts_under(base)}"
    left = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                command = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            if b"fused" in command and os.fsencode(base) + b"/" in command:
                left.append(f"{entry} {command.replace(bytes(1), b' ').decode(errors='replace')}")
    assert not left, f"left running: {left}"
