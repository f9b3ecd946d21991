"""Run pjdfstest, a suite of small cases for the system calls of a POSIX file system, and read what it says.

Knows nothing of ipfsfs. A pattern that no case matches makes the suite run nothing and exit with 0, and so does
a build of it that lost its cases: hence every outcome is read from its line, and the lines are counted against the
summary. Who runs it still has to compare the number with the one that is expected.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CASES = 398
"""How many cases pjdfstest 0.2.2 has on Linux."""

_CASE = re.compile(r"^(\w+(?:::\w+)+) +(ok|skipped|FAILED)$")
_SUMMARY = re.compile(r"^Summary: (\d+) failed, (\d+) skipped, (\d+) passed, 0 expected failures, (\d+) total$")
_REASON = re.compile(r"^\t(.+)$")


@dataclass(frozen=True)
class Results:
    """`outcomes` is what each case came to; `reasons` is why, for those that failed or were skipped."""

    outcomes: dict[str, str]
    reasons: dict[str, str]

    def those(self, outcome: str) -> set[str]:
        """The cases that came to this."""
        return {case for case, found in self.outcomes.items() if found == outcome}

    def explain(self, cases: set[str]) -> str:
        """One line for each of `cases`."""
        return "\n".join(
            f"{case}: {self.outcomes.get(case, 'missing')} ({self.reasons.get(case, '')})" for case in sorted(cases)
        )


def dummy_users() -> list[tuple[str, str]]:
    """Two users of this system, other than root, with their groups: the suite takes on their identities.

    It looks them up by name and wants each user in the group of his own, but needs no home and no password, so those
    that every system has will do and none has to be made.
    """
    found: list[tuple[str, str]] = []
    for user in sorted(pwd.getpwall(), key=lambda user: user.pw_name != "nobody"):
        if user.pw_uid == 0 or user.pw_gid == 0:
            continue
        try:
            group = grp.getgrgid(user.pw_gid).gr_name
        except KeyError:
            continue
        if all(user.pw_uid != pwd.getpwnam(name).pw_uid and group != other for name, other in found):
            found.append((user.pw_name, group))
        if len(found) == 2:
            return found
    raise AssertionError("there are no two ordinary users with groups in /etc/passwd")


def write_configuration(path: Path, *, second_filesystem: Path, remount: bool) -> Path:
    """A configuration in which no case is skipped that can run on Linux, but for those that remount.

    `second_filesystem` is a directory on another file system, writable for whoever runs the suite. With `remount`,
    `mount -o remount` is run on the file system that is tested.
    """
    users = ", ".join(f'["{user}", "{group}"]' for user, group in dummy_users())
    path.write_text(
        f"""
        [features]
        posix_fallocate = {{}}
        rename_ctime = {{}}
        utime_now = {{}}
        utimensat = {{}}
        secondary_fs = "{second_filesystem}"
        [settings]
        naptime = 0.02  # more than a tick of the kernel's clock, which file times advance with
        allow_remount = {"true" if remount else "false"}
        [dummy_auth]
        entries = [{users}]
        """
    )
    return path


def run_suite(
    program: Path,
    directory: Path,
    configuration: Path,
    pattern: str | None = None,
    *,
    enter: Sequence[str] = (),
    path: Path | None = None,
) -> Results:
    """Run all cases, or those whose name contains `pattern`, in `directory`.

    `enter` is the start of a command line that runs the rest in another name space or as another user; programs in
    `path` are found first. Fails if the suite did not come to its end.
    """
    command = [*enter, program, "-c", configuration, "-p", directory, *([pattern] if pattern else [])]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("RUST_", "CLICOLOR"))}
    environ["NO_COLOR"] = "1"
    if path is not None:
        environ["PATH"] = f"{path}:{environ['PATH']}"
    done = subprocess.run(
        list(map(str, command)), env=environ, capture_output=True, text=True, timeout=240, check=False, cwd="/"
    )
    results, summary = parse(done.stdout)
    assert summary is not None, f"no summary, exit code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr}"
    counted = tuple(len(results.those(outcome)) for outcome in ("FAILED", "skipped", "ok"))
    assert (*counted, len(results.outcomes)) == summary, f"cases {counted} in the lines, but the summary says {summary}"
    return results


def parse(output: str) -> tuple[Results, tuple[int, ...] | None]:
    """What the suite printed: results, and its summary (failed, skipped, passed, total) if it came to that."""
    outcomes: dict[str, str] = {}
    reasons: dict[str, str] = {}
    case = None
    summary = None
    for line in output.splitlines():
        if found := _CASE.match(line):
            case = found[1]
            assert case not in outcomes, f"{case} came twice"
            outcomes[case] = found[2]
        elif (found := _REASON.match(line)) and case is not None:
            reasons.setdefault(case, found[1])
        elif found := _SUMMARY.match(line):
            summary = tuple(map(int, found.groups()))
    return Results(outcomes, reasons), summary
