"""Options of the test suite, and what may run beside what."""

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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what shares a server, when several processes run the tests; all else may run anywhere."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "shared_backend" in fixtures:
            group = f"contract on {item.callspec.params['backend_name']}"  # type: ignore[attr-defined]
        elif "module_backbone" in fixtures:
            group = item.path.name
        else:
            continue
        item.add_marker(pytest.mark.xdist_group(group))
