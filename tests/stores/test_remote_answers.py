"""What the adapters do with answers that real servers give seldom; servers of a few lines give them here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import pytest
from aiohttp import web

from bindings.aws.dynamodb import DynamoDBStateStore
from bindings.etcd import EtcdStateStore
from bindings.memcached import MemcachedStateStore
from bindings.vault import VaultSecretStore
from mesh.errors import ConflictError, OutcomeUnknownError, SecretStoreAwayError, StateError
from mesh.store import Item
from tests.support.hand_servers import HandServer
from tests.support.nodes import component

Reply = tuple[int, object]


class Told(HandServer):
    """Answers as it is told, and keeps the paths of the requests."""

    def __init__(self, reply: Callable[[str], Reply]) -> None:
        super().__init__()
        self.paths: list[str] = []
        self._reply = reply

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.paths.append(request.path)
        status, body = self._reply(request.path)
        return web.json_response(body, status=status)


def etcd(*servers: Told) -> EtcdStateStore:
    endpoints = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return EtcdStateStore.from_component(component("c", "", version="v1", endpoints=endpoints))


def without_leader(path: str) -> Reply:
    return (503, {"error": "etcdserver: no leader", "code": 14}) if path.endswith("/txn") else (200, {})


async def test_an_etcd_member_that_fails() -> None:
    """What it failed to write may be written; what is read, and what is asked next, another member answers."""
    answered = {"succeeded": True, "responses": [{"response_range": {}}]}
    async with Told(without_leader) as bad, Told(lambda path: (200, answered)) as good:
        async with etcd(bad, good) as store:
            assert await store.get_many(["k"]) == [None]
        assert (bad.paths.count("/v3/kv/txn"), good.paths.count("/v3/kv/txn")) == (1, 1)
        async with etcd(bad, good) as store:
            with pytest.raises(OutcomeUnknownError, match="no leader"):
                await store.write([Item("k", b"1", "7")])
            await store.write([Item("k", b"1", "7")])
        async with etcd(bad, good) as store:
            with pytest.raises(StateError, match="no leader") as raised:
                await store.write([Item("k", b"1")])
            assert raised.value.retryable
            await store.write([Item("k", b"1")])


async def test_etcd_keeps_no_lease_of_a_write_that_conflicts() -> None:
    """Each attempt would leave one until its time is over."""
    async with Told(lambda path: (200, {"ID": "9"} if path.endswith("/grant") else {})) as server:
        async with etcd(server) as store:
            with pytest.raises(ConflictError):
                await store.write([Item("k", b"1", "7", ttl=3600.0)])
        assert server.paths[-2:] == ["/v3/kv/txn", "/v3/lease/revoke"]


async def test_memcached_leaves_no_connection_to_a_server_that_reads_nothing() -> None:
    """The rest of what was to be sent would keep it open."""
    size, received = 64 * 1024 * 1024, 0
    reads, ended = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        for reply in (b"MN\r\n", b"END\r\n"):
            await reader.readline()
            writer.write(reply)
        await reads.wait()
        with suppress(OSError):
            while data := await reader.read(65536):
                received += len(data)
        writer.close()
        ended.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        hosts = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with MemcachedStateStore.from_component(component("c", "", hosts=hosts, timeout="1s")) as store:
            with pytest.raises(StateError, match=r"did not answer within 1 s \(timeout\)"):
                await store.write([Item("k", b"x" * size)])
            reads.set()
            async with asyncio.timeout(20):
                await ended.wait()
        assert received < size


@pytest.mark.parametrize(
    ("reasons", "requests", "error"),
    [
        (("None", "TransactionConflict"), 4, StateError),
        (("TransactionConflict", "ThrottlingError"), 4, StateError),
        (("ConditionalCheckFailed", "TransactionConflict"), 1, ConflictError),
    ],
)
async def test_dynamodb_transactions_in_each_others_way(
    reasons: tuple[str, ...], requests: int, error: type[Exception]
) -> None:
    """They are made again, unless a condition does not hold."""
    told = {
        "__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
        "Message": "Transaction cancelled, please refer cancellation reasons for specific reasons",
        "CancellationReasons": [{"Code": each} for each in reasons],
    }
    written = 0

    def reply(path: str) -> Reply:
        nonlocal written
        written += 1
        return (200, {}) if written == 1 else (400, told)  # The first request is that of the start.

    given = {"table": "t", "region": "eu-west-1", "accessKey": "a", "secretKey": "b"}
    async with Told(reply) as server:
        endpoint = f"http://127.0.0.1:{server.port}"
        async with DynamoDBStateStore.from_component(component("c", "", endpoint=endpoint, **given)) as store:
            with pytest.raises(error) as raised:
                await store.write([Item("a", b"1", "7"), Item("b", b"1")])
    assert raised.type is error
    assert written == 1 + requests


@pytest.mark.parametrize("body", [None, [], "text", {}, {"data": None}, {"data": 7}, {"data": {"data": 7, "keys": 7}}])
@pytest.mark.parametrize("version", ["1", "2"])
async def test_vault_answers_that_are_somebody_elses(version: str, body: object) -> None:
    """Such a store is away; that of a deleted version is none."""
    mount = {"data": {"type": "kv", "options": {"version": version}}}

    def reply(path: str) -> Reply:
        return 200, mount if "mounts" in path else body

    async with Told(reply) as server:
        address = f"http://127.0.0.1:{server.port}"
        given = component("c", "", vaultAddr=address, vaultToken="t")
        async with VaultSecretStore.from_component(given) as store:
            with pytest.raises(SecretStoreAwayError):
                await store.bulk({})
            if version == "2":
                with pytest.raises(SecretStoreAwayError):
                    await store.get("k", {})
    if not isinstance(body, dict) or not isinstance(body.get("data"), dict):
        async with Told(lambda path: (200, body)) as server:
            given = component("c", "", vaultAddr=f"http://127.0.0.1:{server.port}", vaultToken="t")
            with pytest.raises(SecretStoreAwayError):
                async with VaultSecretStore.from_component(given):
                    pass
