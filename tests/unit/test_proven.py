"""Serving while a node can prove its answers, over a broker that may be away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mesh import address
from mesh.calls import proven
from mesh.calls.proven import while_proven
from mesh.errors import BrokerUnavailableError
from mesh.trust.guard import Guard
from tests.support.guards import strict_guards

STOCK = address.app("default", "stock")


class Away:
    """Serves, unless it is away."""

    def __init__(self) -> None:
        self.away = False
        self.serves, self.left, self.refused = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        if self.away:
            self.refused.set()
            raise BrokerUnavailableError("no connection")
        self.serves.set()
        try:
            yield
        finally:
            self.serves.clear()
            self.left.set()


@pytest.fixture
def guard() -> Guard:
    made = strict_guards("default")("stock")
    assert made is not None
    return made


def _stand(guard: Guard, stands: bool) -> None:
    became, was = guard.standing.proven, guard.standing.ended
    if not stands:
        became, was = was, became
    was.clear()
    became.set()


async def test_a_certificate_that_returns_while_the_broker_is_away(
    guard: Guard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(proven, "AGAIN_AFTER", 0.01)
    broker = Away()
    async with asyncio.timeout(10), while_proven(guard, STOCK, broker.serve):
        assert broker.serves.is_set()
        _stand(guard, False)
        await broker.left.wait()
        broker.away = True
        _stand(guard, True)
        for _ in range(3):
            broker.refused.clear()
            await broker.refused.wait()
        broker.away = False
        await broker.serves.wait()
    assert not broker.serves.is_set()
    assert caplog.messages == ["stock is not served again yet: no connection"]


async def test_who_leaves_while_the_broker_is_away_does_not_wait(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proven, "AGAIN_AFTER", 60.0)
    broker = Away()
    _stand(guard, False)
    async with asyncio.timeout(10), while_proven(guard, STOCK, broker.serve):
        broker.away = True
        _stand(guard, True)
        await broker.refused.wait()


async def test_a_broker_that_is_away_at_first_is_an_error(guard: Guard) -> None:
    broker = Away()
    broker.away = True
    with pytest.raises(BrokerUnavailableError, match="no connection"):
        async with while_proven(guard, STOCK, broker.serve):
            raise AssertionError
