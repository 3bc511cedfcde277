"""What holds for every call, whatever its method."""

from __future__ import annotations

from pathlib import Path

from tests.grpc.harness import client, refused
from tests.http.harness import Backbone, gateway


async def test_methods_that_are_not_there(memory: Backbone, tmp_path: Path) -> None:
    async with gateway(memory, tmp_path) as node, client(node) as called:
        await node.post("/v1.0/state/statestore", [{"key": "k", "value": {"a": 1}}])
        assert await called.call("GetState", store_name="statestore", key="k") == {"data": "eyJhIjoxfQ==", "etag": "1"}
        assert await refused(called, "GetState", store_name="none", key="k") == (
            "INVALID_ARGUMENT",
            "state store none is not found",
        )
