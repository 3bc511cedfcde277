"""A gateway's API over a block of workflows that answers as it is told, and notes what it is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import aiohttp

from gateway.config import GatewayConfig
from gateway.grpc.build import build_grpc
from gateway.grpc.listener import listening_for_grpc
from gateway.grpc.messages import message
from gateway.http.server import HTTPServer
from gateway.http.stages import staged, stages
from gateway.routes import build_api, build_router
from mesh.blocks import BLOCKS, workflows
from mesh.blocks.block import Block, Held, Inbound, Opened, Parts
from mesh.node.runtime import NodeSettings, Runtime
from mesh.operation import Method, Operation
from mesh.registry import Registry

__all__ = ["Served", "Workflows", "serving"]

METHODS = tuple(each for each in vars(workflows).values() if isinstance(each, Method))


class Workflows:
    """The block.

    Attributes:
        asked: Target and arguments of what it was asked, in order.
        answers: What each method gives, or raises.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, object]] = []
        self.deadlines: list[float] = []
        self.answers: dict[str, object] = {}

    def block(self) -> Block:
        return Block("workflows", METHODS, self._start)

    def _start(self, block: Block, parts: Parts, components: Mapping[str, Opened]) -> Workflows:
        return self

    async def run(self, operation: Operation) -> object:
        self.asked.append((operation.target, operation.arguments))
        self.deadlines.append(operation.deadline)
        answer = self.answers.get(operation.method.name)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def inbound(self, inbound: Inbound) -> Sequence[Held]:
        return ()

    def described(self) -> Mapping[str, object]:
        return {"workers": 2}


class _About:
    app_id = "shop"
    outbound_ready = True
    not_ready = ()
    metadata: ClassVar[dict[str, object]] = {}

    def shut_down(self, *, force: bool = False) -> None: ...


@dataclass
class Served:
    """What serves it, and where."""

    block: Workflows
    runtime: Runtime
    http: aiohttp.ClientSession
    http_port: int
    grpc_port: int


@asynccontextmanager
async def serving(home: Path) -> AsyncIterator[Served]:
    """Serve the API of the application ``shop`` over HTTP and gRPC."""
    block = Workflows()
    blocks = (*(each for each in BLOCKS if each.name != "workflows"), block.block())
    settings = NodeSettings("shop", "default", "memory:", components=())
    async with Runtime(settings, Registry(), blocks) as runtime:
        api = build_api(runtime, GatewayConfig("shop", home), _About(), {}, message)
        server = HTTPServer(
            staged(build_router(api), stages(api.config)), max_body_bytes=100_000, max_header_bytes=10_000
        )
        async with (
            server.listening(("127.0.0.1",), 0, None, lambda: 0.0) as port,
            listening_for_grpc(partial(build_grpc, api, port), ("127.0.0.1",), 0, None, lambda: 0.0) as grpc_port,
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
        ):
            yield Served(block, runtime, http, port, grpc_port)
