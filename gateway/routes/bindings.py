"""``bindings``: calls out of the mesh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import orjson

from gateway.errors import APIError
from gateway.http.response import Answered, Fields, Response, no_content, render
from gateway.routes.request import fields, header, read_json, text_map
from gateway.routes.route import WRITE, Asked, Route
from gateway.routes.rpc import RPC, Called
from mesh.blocks.binding_contract import BindingError, Invoke, Invoked
from mesh.blocks.bindings import INVOKE
from mesh.resources.component import header_refusal

__all__ = ["ROUTES", "RPCS"]


async def invoke(asked: Asked) -> Answered:
    """Make a call of a binding."""
    name = asked.text(0)
    body = await read_json(asked.request)
    members = fields({} if body is None else body, "the body")
    metadata = dict(text_map(members.get("metadata"), "metadata"))
    operation = members.get("operation")
    if not isinstance(operation, str | None):
        raise APIError(400, "ERR_MALFORMED_REQUEST", "failed deserializing HTTP body: operation must be a string")
    _add_baggage(metadata, header(asked.request, "baggage"))
    arguments = Invoke(operation or "", orjson.dumps(members.get("data")), metadata)
    try:
        found = cast("Invoked | None", await asked.run(INVOKE, name, arguments))
    except APIError as error:
        cause = error.__cause__
        answer = render(error)
        if isinstance(cause, BindingError):
            answer.fields.extend(_told(cause.metadata))
        return answer
    if found is None:
        return no_content()
    return Response(200, found.data or b"", [("Content-Type", "application/json"), *_told(found.metadata)])


def _told(metadata: Mapping[str, str]) -> Fields:
    """Write metadata as header fields; a line break is none that a field can hold."""
    return [
        (f"metadata.{name}", value)
        for name, value in metadata.items()
        if name.isascii()
        and name.isprintable()
        and not set(name) & set(' :"(),/;<=>?@[\\]{}')
        and not header_refusal(value)
    ]


def _add_baggage(metadata: dict[str, str], baggage: str | None) -> None:
    if baggage:
        metadata["baggage"] = baggage


async def invoke_rpc(called: Called) -> object:
    """Make a call of a binding."""
    asked = called.message
    metadata = dict(asked.metadata)
    _add_baggage(metadata, called.metadata.get("baggage"))
    arguments = Invoke(asked.operation, bytes(asked.data), metadata)
    found = cast("Invoked | None", await called.run(INVOKE, asked.name, arguments))
    if found is None:
        return called.reply()
    return called.reply(data=found.data or b"", metadata=found.metadata)


RPCS = (RPC("InvokeBinding", invoke_rpc, "bindings"),)

ROUTES = (Route("bindings/{name}", invoke, WRITE),)
