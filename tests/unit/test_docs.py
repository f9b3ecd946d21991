"""The documentation names real tests and real commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fused.cli.exits import Exit
from fused.cli.main import COMMANDS

REPO = Path(__file__).resolve().parents[2]
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_named_in_the_documentation_exist(page: Path) -> None:
    for file, name in re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", page.read_text(encoding="utf-8")):
        assert re.search(rf"\bdef {name}\b", (REPO / file).read_text(encoding="utf-8")), f"{page.name}: {file}::{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_shown_in_the_documentation_exist(page: Path) -> None:
    for command in re.findall(r"(?:^\$ |`)(?:sudo )?ipfsfs (\w+)", page.read_text(encoding="utf-8"), re.MULTILINE):
        assert command in COMMANDS, f"{page.name}: ipfsfs {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_linked_in_the_documentation_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_promise_names_a_test() -> None:
    text = (REPO / "docs/semantics.md").read_text(encoding="utf-8")
    promises = re.split(r"^\d\. \*\*", text.split("## Promises")[1].split("\n## ")[0], flags=re.MULTILINE)[1:]
    assert len(promises) == 7
    assert all("::test_" in promise for promise in promises)


def test_every_promise_about_security_names_a_test() -> None:
    text = (REPO / "docs/security.md").read_text(encoding="utf-8").split("\n## Not promised")[0]
    promises = re.split(r"^(\d+)\. \*\*", text, flags=re.MULTILINE)[1:]
    assert [int(number) for number in promises[::2]] == list(range(1, 17))
    assert all("::test_" in promise for promise in promises[1::2])


def test_exit_codes_are_documented_as_they_are() -> None:
    text = (REPO / "docs/operations.md").read_text(encoding="utf-8")
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert documented == {int(code) for code in Exit}
