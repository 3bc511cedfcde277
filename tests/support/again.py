"""Try again, alone, what failed in a whole run beside seven others: ``python -m tests.support.again FILE``.

A test that starts processes and breaks connections may be starved by its neighbours for longer than it allows for. Such
a failure is not hidden: both runs are printed, and the tests are named as what they are. What a busy machine is no
excuse for, and more than a few failures, are not tried again: there the first word is the last.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

__all__ = ["Failed", "verdict"]

MOST = 3
# What waits for nothing, and what looks for a message that is lost: once is once too often.
NEVER = ("tests/faults/", "tests/meta/", "tests/trust/", "tests/unit/", "tests/contract/test_faults")


class Failed:
    """Writes down which tests failed, when a run came to its end and nothing else was wrong with it.

    Args:
        path: One test a line; it is not there after a run that is none to try again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failed: list[str] = []
        self._dead = False
        path.unlink(missing_ok=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.append(report.nodeid)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object, error: object) -> None:
        if error:  # What that process was to run, nobody has.
            self._dead = True

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        # Too little of the core tested counts as one more.
        whole = exitstatus == pytest.ExitCode.TESTS_FAILED and not self._dead
        if whole and session.testsfailed == len(self._failed):
            self._path.write_text("\n".join(dict.fromkeys(self._failed)))


def verdict(failed: Sequence[str]) -> str | None:
    """Tell why these are not tried again; None if they are."""
    if not failed:
        return "the run itself failed"
    if len(failed) > MOST:
        return f"{len(failed)} tests failed, more than {MOST}"
    return next((f"{each} is none that others can starve" for each in failed if each.startswith(NEVER)), None)


def main(path: Path) -> int:
    failed = path.read_text().splitlines() if path.exists() else []
    if (reason := verdict(failed)) is not None:
        print(f"not tried again: {reason}")
        return 1
    print(f"{len(failed)} failed beside others, and are tried again alone:", *failed, sep="\n  ", flush=True)
    code = subprocess.run((sys.executable, "-m", "pytest", "-v", *failed), check=False).returncode
    if code == 0:
        print("FLAKY, to be mended: these failed beside others and passed alone:", *failed, sep="\n  ")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
