"""``bindings``: calls out of the mesh."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from functools import lru_cache
from typing import cast

import orjson

from gateway.errors import APIError
from gateway.errors import answer as failure
from gateway.http.response import Answered, Fields, Response, StreamedResponse, no_content, render
from gateway.routes.request import body_parts, fields, header, metadata_of, query_of, read_json, text_map
from gateway.routes.route import WRITE, Asked, Route
from gateway.routes.rpc import RPC, Called
from mesh.blocks.binding_contract import BindingError, Invoke, Invoked, StreamHead
from mesh.blocks.bindings import INVOKE, STREAM
from mesh.errors import MeshError
from mesh.flow import Body, Flow
from mesh.resources.component import header_refusal

__all__ = ["ROUTES", "RPCS"]

JSON, OCTETS = "application/json", "application/octet-stream"


async def invoke(asked: Asked) -> Answered:
    """Make a call of a binding, whose data and answer may be streams."""
    name = asked.text(0)
    # Without the operation there, the body has it: as JSON, whatever its type says.
    operation = query_of(asked.query).get("operation")
    streams = operation is not None and _media_type(header(asked.request, "content-type") or "") == OCTETS
    wanted = OCTETS in map(_media_type, (header(asked.request, "accept") or "").split(","))
    body: Body | None = None
    if streams:
        arguments = Invoke(operation or "", b"", dict(metadata_of(asked.query)))
        if asked.request.body_exists:
            body = Body(body_parts(asked.request))
    else:
        arguments = await _from_json(asked)
    try:
        if streams or wanted:
            return await _stream(asked, name, arguments, body, OCTETS if wanted else JSON)
        found = cast("Invoked | None", await asked.run(INVOKE, name, arguments))
    except APIError as error:
        cause = error.__cause__
        if body is not None and isinstance(body.error, APIError):
            raise body.error from None  # It is the client's own.
        if getattr(asked.request, "begun", False):
            raise
        answer = render(error)
        if isinstance(cause, BindingError):
            answer.fields.extend(_told(cause.metadata))
        return answer
    if found is None:
        return no_content()
    return Response(200, found.data or b"", [("Content-Type", JSON), *_told(found.metadata)])


async def _from_json(asked: Asked) -> Invoke:
    body = await read_json(asked.request)
    members = fields({} if body is None else body, "the body")
    metadata = dict(text_map(members.get("metadata"), "metadata"))
    operation = members.get("operation")
    if not isinstance(operation, str | None):
        raise APIError(400, "ERR_MALFORMED_REQUEST", "failed deserializing HTTP body: operation must be a string")
    return Invoke(operation or "", orjson.dumps(members.get("data")), metadata)


def _media_type(field: str) -> str:
    return field.partition(";")[0].strip().lower()


async def _stream(asked: Asked, name: str, arguments: Invoke, body: Body | None, kind: str) -> Answered:
    """Answer in parts; what goes wrong before the first is an answer of its own, later it breaks off."""
    async with aclosing(cast("Flow", await asked.run(STREAM, name, arguments, body=body))) as flow:
        head = cast("StreamHead", flow.result)
        if flow.source is None and not head.metadata:
            return no_content()
        told = [("Content-Type", kind), *_told(head.metadata)]
        if flow.source is None:
            return Response(200, b"", told)
        stream = StreamedResponse(200, told, head.length)
        await stream.prepare(asked.request)
        try:
            async for part in flow.source:
                await stream.write(part)
        except MeshError as error:
            raise failure(error, STREAM, name, arguments, asked.api.caller.app_id) from error
    await stream.write_eof()
    return stream


def _told(metadata: Mapping[str, str]) -> Fields:
    """Write metadata as header fields; a line break is none that a field can hold."""
    fields = ((_field(name), value) for name, value in metadata.items())
    return [(field, value) for field, value in fields if field and not header_refusal(value)]


@lru_cache(1024)  # They are few, and come with each answer.
def _field(name: str) -> str:
    """Name the header field of metadata; empty where no field can have that name."""
    fits = name.isascii() and name.isprintable() and not set(name) & set(' :"(),/;<=>?@[\\]{}')
    return f"metadata.{name}" if fits else ""


async def invoke_rpc(called: Called) -> object:
    """Make a call of a binding."""
    asked = called.message
    arguments = Invoke(asked.operation, bytes(asked.data), dict(asked.metadata))
    found = cast("Invoked | None", await called.run(INVOKE, asked.name, arguments))
    if found is None:
        return called.reply()
    return called.reply(data=found.data or b"", metadata=found.metadata)


RPCS = (RPC("InvokeBinding", invoke_rpc, "bindings"),)

ROUTES = (Route("bindings/{name}", invoke, WRITE),)
