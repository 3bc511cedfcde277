"""One suite for each kind of component: every test runs on every row of its module's table.

The tables are in ``tests/support/stores.py``.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from tests.support.stores import Served, StoreKind


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        table = metafunc.module.TABLE
        metafunc.parametrize("kind", list(table.values()), ids=list(table), scope="module")


@pytest.fixture(autouse=True)
def _sockets_of_pymongo(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have the sockets collected here that pymongo forgets when a connection that it makes is given up."""
    if not any(name in request.node.nodeid for name in ("test_mongodb.py", "MongoDBStateStore")):
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    kind: StoreKind, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Served]:
    """What the store needs, for all tests of the module."""
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(kind.serve(tmp_path_factory.mktemp("store")))
