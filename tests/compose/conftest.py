"""One stack for each broker."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.compose.engine import BROKERS, EngineError, Stack, has_adapter, say
from tests.support.processes import free_port


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "stack" in metafunc.fixturenames:
        asked = metafunc.config.getoption("broker") or list(BROKERS)
        metafunc.parametrize("stack", [name for name in BROKERS if name in asked], indirect=True, scope="module")


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that runs; nothing of it is left afterwards."""
    broker: str = request.param
    if os.environ.get("COMPOSE_TEST") != "1":
        pytest.skip("`make compose-test` runs this")
    if not has_adapter(broker):
        message = f"brokermesh has no adapter for {broker} yet: its stack was not run"
        say(message)
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    made = Stack(broker, free_port(), tmp_path_factory.mktemp(broker))
    failures = request.session.testsfailed
    say(f"{broker}: starting")
    try:
        made.down(volumes=True)
        try:
            made.up()
        except EngineError:
            print(made.logs())
            raise
        say(f"{broker}: all are healthy")
        yield made
        if request.session.testsfailed > failures:
            print(made.logs())
    finally:
        made.down(volumes=True)
        say(f"{broker}: removed")
