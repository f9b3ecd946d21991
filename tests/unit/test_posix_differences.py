"""What is allowed to differ from the plain directory is documented, and the suite's output is read right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.posix.differences import ALLOWED
from tests.support.pjdfstest import CASES, dummy_users, parse

SEMANTICS = Path(__file__).resolve().parents[2] / "docs" / "semantics.md"

OUTPUT = """\
unlink::remove_type::fifo                                                     ok
unlink::erofs_named                                                      skipped
\tRemounts (allow_remount) are not allowed in the configuration file
chmod::eperm                                                              FAILED
\tassertion `left == right` failed
  left: Err(EACCES)
 right: Err(EPERM)

Summary: 1 failed, 1 skipped, 1 passed, 0 expected failures, 3 total
Error: Some tests have failed
"""


def _suites() -> str:
    text = SEMANTICS.read_text(encoding="utf-8").split("## Suites")[1].split("\n## ")[0]
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("difference", ALLOWED, ids=lambda difference: difference.case)
def test_every_allowed_difference_is_documented_with_its_reason(difference: object) -> None:
    case, _, fact = difference  # type: ignore[misc]
    assert f"`{case}`" in _suites()
    assert fact in _suites()


def test_the_documentation_counts_cases_and_differences_as_the_tests_do() -> None:
    assert f"| pjdfstest 0.2.2 | {CASES} cases |" in _suites()
    assert len(re.findall(r"`\w+::\w+(?:::\w+)*`", _suites())) == len(ALLOWED)


def test_outcomes_and_reasons_are_read_from_the_suites_output() -> None:
    results, summary = parse(OUTPUT)
    assert results.outcomes == {
        "unlink::remove_type::fifo": "ok",
        "unlink::erofs_named": "skipped",
        "chmod::eperm": "FAILED",
    }
    assert results.reasons["chmod::eperm"] == "assertion `left == right` failed"
    assert summary == (1, 1, 1, 3)


def test_output_that_breaks_off_has_no_summary() -> None:
    assert parse(OUTPUT.partition("Summary")[0])[1] is None


def test_a_case_that_comes_twice_is_an_error() -> None:
    with pytest.raises(AssertionError, match="twice"):
        parse(OUTPUT + OUTPUT)


def test_dummy_users_are_two_that_exist_and_are_not_root() -> None:
    users = dummy_users()
    assert len(set(users)) == 2
    assert "root" not in [name for pair in users for name in pair]
