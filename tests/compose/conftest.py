"""One engine for all stacks, and one stack for each broker."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.compose.engine import BROKERS, EngineError, Stack, prepare, say
from tests.support.processes import free_port


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "stack" in metafunc.fixturenames:
        metafunc.parametrize("stack", _asked(metafunc.config), indirect=True, scope="module")


def _asked(config: pytest.Config) -> list[str]:
    return [name for name in BROKERS if name in (config.getoption("broker") or BROKERS)]


@pytest.fixture(scope="session")
def engine(pytestconfig: pytest.Config) -> None:
    """A Docker engine with all images that the stacks need; always when CI=true, and on request elsewhere."""
    if "true" not in (os.environ.get("COMPOSE_TEST"), os.environ.get("CI")):
        pytest.skip("`make compose-test` runs this")
    prepare(_asked(pytestconfig))


@pytest.fixture(scope="module")
def stack(engine: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that runs; nothing of it is left afterwards."""
    broker: str = request.param
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
