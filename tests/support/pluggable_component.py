"""A pluggable component as its author would write it: the official gRPC library, generated code, server reflection.

``python -m tests.support.pluggable_component SOCKET DATA SERVICES [REFLECTION]``: DATA is a folder, SERVICES and
REFLECTION (``v1alpha``, ``v1``, ``none``) have commas between. State and secrets outlive the process.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

PACKAGE = "dapr.proto.components.v1"
sys.path.append(str(Path(__file__).parents[2] / "bindings" / "pluggable" / "proto"))
messages, services = grpc.protos_and_services("components.proto")  # type: ignore[attr-defined]  # not in its stubs
statuses = grpc.protos("status.proto")  # type: ignore[attr-defined]  # not in its stubs
TRANSACTION = 50


class Component:
    """What all kinds have in common: an instance knows nothing before it is told its settings."""

    features: tuple[str, ...] = ()

    def __init__(self, data: Path) -> None:
        self.data = data
        self.instances: dict[str, dict[str, str]] = {}

    def _name(self, context: Any) -> str:
        return str(dict(context.invocation_metadata()).get("x-component-instance", ""))

    async def _settings(self, context: Any) -> dict[str, str]:
        settings = self.instances.get(self._name(context))
        if settings is None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this instance was not initialised")
        assert settings is not None
        return settings

    async def Init(self, request: Any, context: Any) -> Any:
        properties = dict(request.metadata.properties)
        if "refuse" in properties:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"refused: {properties['refuse']}")
        with (self.data / "inits").open("a") as file:
            file.write(json.dumps([self._name(context), properties]) + "\n")
        self.instances[self._name(context)] = properties
        return self.initialised()

    def initialised(self) -> Any:
        return messages.InitResponse()

    async def Features(self, request: Any, context: Any) -> Any:
        settings = await self._settings(context)
        without = settings.get("without", "").split(",")
        return messages.FeaturesResponse(features=[each for each in self.features if each not in without])

    async def Ping(self, request: Any, context: Any) -> Any:
        return messages.PingResponse()


async def wrong_etag(context: Any, code: grpc.StatusCode, text: str) -> None:
    """Say so as the protocol has it."""
    details = statuses.Status(code=code.value[0], message=text)
    violation = statuses.BadRequest(field_violations=[{"field": "etag", "description": text}])
    details.details.add().Pack(violation)
    await context.abort(code, text, (("grpc-status-details-bin", details.SerializeToString()),))


class State(Component):
    """A store in SQLite."""

    features = ("ETAG", "TRANSACTIONAL", "TTL", "QUERY_API")

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        self.writing = asyncio.Lock()
        self.table = sqlite3.connect(data / "state.db", isolation_level=None)
        self.table.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;"
            "CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value BLOB, etag INTEGER, expires REAL);"
            "CREATE TABLE IF NOT EXISTS etags (last INTEGER); INSERT INTO etags SELECT 0 WHERE NOT EXISTS"
            " (SELECT 1 FROM etags)"
        )

    def _row(self, key: str) -> tuple[bytes, int, float | None] | None:
        query = "SELECT value, etag, expires FROM state WHERE key = ? AND (expires IS NULL OR expires > ?)"
        row: tuple[bytes, int, float | None] | None = self.table.execute(query, (key, time.time())).fetchone()
        return row

    def _fields(self, key: str) -> dict[str, Any]:
        row = self._row(key)
        if row is None:
            return {}
        value, etag, expires = row
        when = {} if expires is None else {"ttlExpireTime": datetime.fromtimestamp(expires, UTC).isoformat()}
        return {"data": value, "etag": {"value": str(etag)}, "metadata": when}

    async def _write(self, request: Any, context: Any, *, kept: bool) -> None:
        row = self._row(request.key)
        if request.HasField("etag"):
            if not request.etag.value.isdigit():
                await wrong_etag(context, grpc.StatusCode.INVALID_ARGUMENT, f"no etag: {request.etag.value}")
            if row is None or str(row[1]) != request.etag.value:
                await wrong_etag(context, grpc.StatusCode.FAILED_PRECONDITION, f"not its etag: {request.etag.value}")
        elif kept and request.options.concurrency == 1 and row is not None:
            await wrong_etag(context, grpc.StatusCode.FAILED_PRECONDITION, "it is there already")
        if not kept:
            self.table.execute("DELETE FROM state WHERE key = ?", (request.key,))
            return
        ttl = int(request.metadata.get("ttlInSeconds", "-1"))
        [(etag,)] = self.table.execute("UPDATE etags SET last = last + 1 RETURNING last").fetchall()
        values = (request.key, request.value, etag, time.time() + ttl if ttl > 0 else None)
        self.table.execute("REPLACE INTO state VALUES (?, ?, ?, ?)", values)

    async def _all(self, context: Any, *requests: tuple[Any, bool]) -> None:
        await self._settings(context)
        async with self.writing:
            self.table.execute("BEGIN IMMEDIATE")
            try:
                for request, kept in requests:
                    await self._write(request, context, kept=kept)
            except BaseException:
                self.table.execute("ROLLBACK")
                raise
            self.table.execute("COMMIT")

    async def Get(self, request: Any, context: Any) -> Any:
        await self._settings(context)
        return messages.GetResponse(**self._fields(request.key))

    async def Set(self, request: Any, context: Any) -> Any:
        await self._all(context, (request, True))
        return messages.SetResponse()

    async def Delete(self, request: Any, context: Any) -> Any:
        await self._all(context, (request, False))
        return messages.DeleteResponse()

    async def _bulk(self, context: Any) -> None:
        if "bulk" in (await self._settings(context)).get("without", ""):
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not many at a time")

    async def BulkGet(self, request: Any, context: Any) -> Any:
        await self._bulk(context)
        items = [messages.BulkStateItem(key=each.key, **self._fields(each.key)) for each in request.items]
        return messages.BulkGetResponse(items=reversed(items))

    async def BulkSet(self, request: Any, context: Any) -> Any:
        await self._bulk(context)
        await self._all(context, *((each, True) for each in request.items))
        return messages.BulkSetResponse()

    async def BulkDelete(self, request: Any, context: Any) -> Any:
        await self._bulk(context)
        await self._all(context, *((each, False) for each in request.items))
        return messages.BulkDeleteResponse()

    async def Transact(self, request: Any, context: Any) -> Any:
        operations = [(getattr(each, name), name == "set") for each in request.operations for name in _set(each)]
        await self._all(context, *operations)
        return messages.TransactionalStateResponse()

    async def MultiMaxSize(self, request: Any, context: Any) -> Any:
        return messages.MultiMaxSizeResponse(max_size=TRANSACTION)

    async def Query(self, request: Any, context: Any) -> Any:
        await self._settings(context)
        page = request.query.pagination
        if page.token and not page.token.isdigit():
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no token")
        wanted = [{name: json.loads(each.value)} for name, each in request.query.filter.items()]
        found: list[tuple[str, Any]] = []
        for key, value in self.table.execute("SELECT key, value FROM state ORDER BY key"):
            try:
                found.append((key, json.loads(value)))
            except ValueError:
                continue
        found = [(key, value) for key, value in found if all(matches(value, each) for each in wanted)]
        for sort in reversed(request.query.sort):
            found.sort(key=lambda pair, path=sort.key: str(member(pair[1], path)), reverse=sort.order == 1)
        begin = int(page.token or 0)
        end = begin + page.limit if page.limit else len(found)
        items = []
        for key, _ in found[begin:end]:
            fields = self._fields(key)
            items.append(messages.QueryItem(key=key, data=fields["data"], etag=fields["etag"]))
        return messages.QueryResponse(items=items, token=str(end) if end < len(found) else "")


def _set(operation: Any) -> list[str]:
    return [str(operation.WhichOneof("request"))]


def member(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "EQ": lambda has, wanted: bool(has == wanted),
    "NEQ": lambda has, wanted: bool(has != wanted),
    "GT": lambda has, wanted: bool(has > wanted),
    "GTE": lambda has, wanted: bool(has >= wanted),
    "LT": lambda has, wanted: bool(has < wanted),
    "LTE": lambda has, wanted: bool(has <= wanted),
    "IN": lambda has, wanted: has in wanted,
}


def matches(value: Any, condition: dict[str, Any]) -> bool:
    ((operator, operand),) = condition.items()
    if operator in ("AND", "OR"):
        return (all if operator == "AND" else any)(matches(value, each) for each in operand)
    ((path, wanted),) = operand.items()
    has = member(value, path)
    return has is not None and COMPARE[operator](has, wanted)


class Secrets(Component):
    """Secrets in a file."""

    features = ("MULTIPLE_KEY_VALUES_PER_SECRET",)

    def initialised(self) -> Any:
        return messages.SecretStoreInitResponse()

    def _read(self) -> dict[str, dict[str, str]]:
        file = self.data / "secrets.json"
        read: dict[str, dict[str, str]] = json.loads(file.read_text()) if file.exists() else {}
        return read

    async def Get(self, request: Any, context: Any) -> Any:
        await self._settings(context)
        if (status := request.metadata.get("status")) is not None:
            await context.abort(grpc.StatusCode[status], "as you wish")
        found = self._read().get(request.key)
        if found is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no secret {request.key}")
        return messages.GetSecretResponse(data=found)

    async def BulkGet(self, request: Any, context: Any) -> Any:
        await self._settings(context)
        return messages.BulkGetSecretResponse(data={name: {"secrets": each} for name, each in self._read().items()})


class PubSub(Component):
    """Queues in memory, one for each topic and group; what is not acknowledged when a stream ends comes again.

    An event to the topic ``break-<topic>`` breaks all streams of that topic.
    """

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        self.queues: dict[tuple[str, str], asyncio.Queue[Any]] = {}
        self.breaks: dict[str, asyncio.Event] = {}

    def initialised(self) -> Any:
        return messages.PubSubInitResponse()

    def _put(self, topic: str, fields: dict[str, Any]) -> None:
        for (of, _), queue in self.queues.items():
            if of == topic:
                queue.put_nowait(fields)

    async def Publish(self, request: Any, context: Any) -> Any:
        await self._settings(context)
        if refused := request.topic.partition("refuse-")[2]:
            await context.abort(grpc.StatusCode[refused], "as you wish")
        before, breaks, of = request.topic.partition("break-")
        if breaks and (broken := self.breaks.pop(before + of, None)) is not None:
            broken.set()
        fields = {"data": request.data, "metadata": dict(request.metadata), "content_type": request.content_type}
        self._put(request.topic, fields)
        return messages.PublishResponse()

    async def BulkPublish(self, request: Any, context: Any) -> Any:
        if "bulk" in (await self._settings(context)).get("without", ""):
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not many at a time")
        failed = []
        for entry in request.entries:
            if entry.event == b"refuse":
                failed.append({"entry_id": entry.entry_id, "error": "as you wish"})
                continue
            fields = {"data": entry.event, "metadata": dict(entry.metadata), "content_type": entry.content_type}
            self._put(request.topic, fields)
        return messages.BulkPublishResponse(failed_entries=failed)

    async def PullMessages(self, requests: Any, context: Any) -> Any:
        group = (await self._settings(context))["consumerID"]
        first = await anext(requests)
        queue = self.queues.setdefault((first.topic.name, group), asyncio.Queue())
        given: dict[str, Any] = {}

        async def settle() -> None:
            async for request in requests:
                fields = given.pop(request.ack_message_id, None)
                if fields is not None and request.HasField("ack_error"):
                    queue.put_nowait(fields)

        settling = asyncio.ensure_future(settle())
        breaking = asyncio.ensure_future(self.breaks.setdefault(first.topic.name, asyncio.Event()).wait())
        taking: asyncio.Future[Any] | None = None
        try:
            while True:
                taking = taking or asyncio.ensure_future(queue.get())
                await asyncio.wait([taking, settling, breaking], return_when=asyncio.FIRST_COMPLETED)
                if breaking.done():
                    why = self.instances[self._name(context)].get("why", "as you wish")
                    await context.abort(grpc.StatusCode.INTERNAL, why)
                if settling.done():
                    return
                fields, taking = taking.result(), None
                number = str(next(self.numbers))
                given[number] = fields
                yield messages.PullMessagesResponse(**fields, id=number, topic_name=first.topic.name)
        finally:
            settling.cancel()
            breaking.cancel()
            if taking is not None and not taking.cancel() and not taking.cancelled():
                queue.put_nowait(taking.result())
            for fields in given.values():
                queue.put_nowait(fields)

    numbers = itertools.count(1)


class Events:
    """Those of a source, in memory; what is not acknowledged, or told as an error, comes again."""

    waiting: asyncio.Queue[bytes] = asyncio.Queue()


class Output(Component):
    """Answers with what it was given, and has the source have events."""

    def initialised(self) -> Any:
        return messages.OutputBindingInitResponse()

    async def ListOperations(self, request: Any, context: Any) -> Any:
        await self._settings(context)
        return messages.ListOperationsResponse(operations=["create", "emit", "nothing"])

    async def Invoke(self, request: Any, context: Any) -> Any:
        if request.operation == "emit":
            Events.waiting.put_nowait(request.data)
            return messages.InvokeResponse()
        settings = await self._settings(context)
        if (status := request.metadata.get("status")) is not None:
            await context.abort(grpc.StatusCode[status], f"as you wish: {settings.get('login')}")
        if request.operation == "nothing":
            return messages.InvokeResponse()
        return messages.InvokeResponse(data=request.data, metadata={**request.metadata, "did": request.operation})


class Input(Component):
    """Gives the events of the source on streams."""

    def initialised(self) -> Any:
        return messages.InputBindingInitResponse()

    async def Read(self, requests: Any, context: Any) -> Any:
        await self._settings(context)
        given: dict[str, bytes] = {}

        async def settle() -> None:
            async for request in requests:
                data = given.pop(request.message_id, None)
                with (self.data / "answers").open("a") as file:
                    answered = [request.response_data.decode(), request.response_error.message]
                    file.write(json.dumps(answered) + "\n")
                if data is not None and request.HasField("response_error"):
                    Events.waiting.put_nowait(data)

        settling = asyncio.ensure_future(settle())
        taking: asyncio.Future[bytes] | None = None
        try:
            while True:
                taking = asyncio.ensure_future(Events.waiting.get())
                await asyncio.wait([taking, settling], return_when=asyncio.FIRST_COMPLETED)
                if settling.done():
                    return
                data, taking = taking.result(), None
                if data == b"break":
                    await context.abort(grpc.StatusCode.INTERNAL, "as you wish")
                number = str(next(PubSub.numbers))
                given[number] = data
                yield messages.ReadResponse(data=data, metadata={"number": number}, message_id=number)
        finally:
            settling.cancel()
            if taking is not None and not taking.cancel() and not taking.cancelled():
                Events.waiting.put_nowait(taking.result())
            for data in given.values():
                Events.waiting.put_nowait(data)


KINDS: dict[str, Callable[[Path], Component]] = {
    "PubSub": PubSub,
    "StateStore": State,
    "SecretStore": Secrets,
    "InputBinding": Input,
    "OutputBinding": Output,
}
# Further services of what answers for a kind.
PARTS = {
    "TransactionalStateStore": "StateStore",
    "TransactionalStoreMultiMaxSize": "StateStore",
    "QueriableStateStore": "StateStore",
}


async def serve(path: Path, data: Path, names: list[str], reflections: list[str]) -> None:
    server = grpc.aio.server()
    made: dict[str, Component] = {}
    for name in names:
        kind = PARTS.get(name, name)
        if kind in KINDS:
            made.setdefault(kind, KINDS[kind](data))
            getattr(services, f"add_{name}Servicer_to_server")(made[kind], server)
    told = [*(f"{PACKAGE}.{name}" for name in names), reflection.SERVICE_NAME]
    if "v1alpha" in reflections:
        reflection.enable_server_reflection(told, server)
    if "v1" in reflections:  # The same messages under another name, which the library does not know.
        handler = grpc.stream_stream_rpc_method_handler(
            reflection.aio.ReflectionServicer(told).ServerReflectionInfo,
            request_deserializer=ServerReflectionRequest.FromString,
            response_serializer=ServerReflectionResponse.SerializeToString,
        )
        name = "grpc.reflection.v1.ServerReflection"
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}),)
        )
    path.unlink(missing_ok=True)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    _, socket, folder, wanted, *rest = sys.argv
    asyncio.run(serve(Path(socket), Path(folder), wanted.split(","), (rest or ["v1alpha"])[0].split(",")))
