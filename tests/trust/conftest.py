"""A root, and a server, for whole nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from mesh.trust.folder import Folder
from mesh.trust.identity import TrustSettings
from tests.http.harness import Backbone
from tests.support.nats import NatsServer


@pytest.fixture
def trust(tmp_path: Path) -> TrustSettings:
    Folder(tmp_path / "trust").init("public")
    return TrustSettings("strict", folder=tmp_path / "trust")


@pytest_asyncio.fixture
async def nats(tmp_path: Path) -> AsyncIterator[Backbone]:
    async with NatsServer(tmp_path / "nats") as server:
        yield Backbone(server.url)
