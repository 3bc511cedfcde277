"""Options of the test suite, and what may run beside what."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--broker", action="append", metavar="NAME", help="run the contract against this broker only")
    parser.addoption("--uvloop", action="store_true", help="run on uvloop, as a gateway does")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--uvloop"):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep together what shares a server, when several processes run the tests; all else may run anywhere."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Scheduling(config, log)


def group_of(nodeid: str) -> str:
    """Tell which tests one process runs one after the other: those with the same answer."""
    path, _, test = nodeid.partition("::")
    if path.startswith(("tests/contract/", "tests/faults/test_every_broker")):
        backend = re.search(r"\[([a-z]+)[]-]", test)
        rough = path.endswith("test_faults.py")  # On a server of their own, which they kill.
        return f"{path if rough else path.split('/')[1]} on {backend[1]}" if backend else path
    return path if path.startswith(("tests/http/", "tests/compose/")) else nodeid
