"""Options of the test suite."""

from __future__ import annotations

import asyncio

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--broker", action="append", metavar="NAME", help="run the contract against this broker only")
    parser.addoption("--uvloop", action="store_true", help="run on uvloop, as a gateway does")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--uvloop"):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
