"""Serving while a node can prove its answers, over a broker that may be away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mesh.errors import BrokerUnavailableError
from mesh.trust import standing
from mesh.trust.standing import Standing


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


def _stand(node: Standing, stands: bool) -> None:
    became, was = (node.proven, node.ended) if stands else (node.ended, node.proven)
    was.clear()
    became.set()


async def test_a_certificate_that_returns_while_the_broker_is_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(standing, "AGAIN_SECONDS", 0.01)
    node, broker = Standing(), Away()
    async with asyncio.timeout(10), node.while_proven("stock", broker.serve):
        assert broker.serves.is_set()
        _stand(node, False)
        await broker.left.wait()
        broker.away = True
        _stand(node, True)
        for _ in range(3):
            broker.refused.clear()
            await broker.refused.wait()
        broker.away = False
        await broker.serves.wait()
    assert not broker.serves.is_set()
    assert caplog.messages == ["stock is not served again yet: no connection"]


async def test_who_leaves_while_the_broker_is_away_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "AGAIN_SECONDS", 60.0)
    node, broker = Standing(), Away()
    _stand(node, False)
    async with asyncio.timeout(10), node.while_proven("stock", broker.serve):
        broker.away = True
        _stand(node, True)
        await broker.refused.wait()


async def test_a_broker_that_is_away_at_first_is_an_error() -> None:
    node, broker = Standing(), Away()
    broker.away = True
    with pytest.raises(BrokerUnavailableError, match="no connection"):
        async with node.while_proven("stock", broker.serve):
            raise AssertionError
