"""``publish`` and ``publish/bulk``."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping, Sequence

import orjson
from aiohttp import web

from gateway.errors import APIError, publish_failed, rich
from gateway.http.response import Answered, Response, no_content
from gateway.routes.request import fields, header, metadata_of, read_body, text_map, trace_context, unescape
from mesh.blocks.envelope import parse_bool
from mesh.blocks.pubsub import BulkEntry, PubSub, PubSubComponent
from mesh.errors import ConfigError, DeadlineExceededError, MeshError

__all__ = ["PubSubRoutes"]

PUBLISH_SECONDS = 30.0
BINARY_TYPES = frozenset({"application/octet-stream"})
JSON_TYPES = frozenset({"application/json", "application/cloudevents+json"})


class PubSubRoutes:
    """Publishing."""

    def __init__(self, block: PubSub, app_id: str) -> None:
        """Bind the block."""
        self._block = block
        self._app_id = app_id

    def _component(self, name: str) -> PubSubComponent:
        component = self._block.components.get(name)
        if component is not None:
            return component
        if not self._block.components:
            message = f"pubsub {name} is not configured"
            raise rich(400, "ERR_PUBSUB_NOT_CONFIGURED", "DAPR_PUBSUB_NOT_CONFIGURED", message)
        if not name:
            raise rich(404, "ERR_PUBSUB_EMPTY", "DAPR_PUBSUB_NAME_EMPTY", "pubsub name is empty")
        raise rich(404, "ERR_PUBSUB_NOT_FOUND", "DAPR_PUBSUB_NOT_FOUND", f"pubsub {name} is not found")

    def _topic(self, component: PubSubComponent, segments: Sequence[str]) -> str:
        topic = "/".join(unescape(segment) for segment in segments)
        if not topic:
            message = f"topic is empty in pubsub {component.name}"
            context = ("pubsub", component.name)
            raise rich(404, "ERR_TOPIC_NAME_EMPTY", "DAPR_PUBSUB_TOPIC_NAME_EMPTY", message, resource=context)
        try:
            component.address(topic)
        except ConfigError as error:
            raise rich(400, "ERR_PUBSUB_REQUEST_METADATA", "DAPR_PUBSUB_METADATA_DESERIALIZATION", str(error)) from None
        return topic

    def _is_raw(self, metadata: Mapping[str, str]) -> bool:
        if "rawPayload" not in metadata:
            return False
        try:
            return parse_bool(metadata["rawPayload"])
        except ValueError as error:
            raise _bad_metadata(error) from None

    async def publish(self, request: web.BaseRequest, segments: Sequence[str], query: str) -> Answered:
        """Publish one event."""
        component = self._component(unescape(segments[0]) if segments else "")
        topic = self._topic(component, segments[1:])
        body = await read_body(request)
        metadata = metadata_of(query)
        raw = self._is_raw(metadata)
        content_type = header(request, "Content-Type")
        try:
            options = self._block.options(component, topic, metadata, *trace_context(request))
        except ValueError as error:
            raise _bad_metadata(error) from None
        key = metadata.get("partitionKey") if metadata else None
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                await self._block.publish(component, options, content_type, body, raw=raw, key=key)
        except TimeoutError:
            unknown = DeadlineExceededError(f"no confirmation within {PUBLISH_SECONDS:g} s")
            raise publish_failed(component.name, topic, self._app_id, unknown) from None
        except MeshError as error:
            raise publish_failed(component.name, topic, self._app_id, error) from error
        return no_content()

    async def publish_bulk(self, request: web.BaseRequest, segments: Sequence[str], query: str) -> Answered:
        """Publish an array of events."""
        component = self._component(unescape(segments[0]) if segments else "")
        topic = self._topic(component, segments[1:])
        body = await read_body(request)
        metadata = metadata_of(query)
        raw = self._is_raw(metadata)
        entries = self._entries(component, topic, body, metadata, request)
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                failed = await self._block.publish_bulk(component, topic, entries, raw=raw)
        except TimeoutError:
            unknown: MeshError = DeadlineExceededError(f"no confirmation within {PUBLISH_SECONDS:g} s")
            raise publish_failed(component.name, topic, self._app_id, unknown) from None
        except MeshError as error:
            raise publish_failed(component.name, topic, self._app_id, error) from error
        if not failed:
            return no_content()
        entries_failed = [{"entryId": entry_id, "error": str(error)} for entry_id, error in failed.items()]
        answer = orjson.dumps({"failedEntries": entries_failed, "errorCode": "ERR_PUBSUB_PUBLISH_MESSAGE"})
        told = [
            ("Content-Type", "application/json"),
            ("metadata.responseData", answer.decode("ascii", "replace")),
            ("metadata.error", "some entries were not published"),
        ]
        return Response(500, answer, told)

    def _entries(
        self,
        component: PubSubComponent,
        topic: str,
        body: bytes,
        metadata: Mapping[str, str],
        request: web.BaseRequest,
    ) -> list[BulkEntry]:
        try:
            items = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise _bad_entries(component, topic, f"cannot read the entries: {error}") from None
        if not isinstance(items, list):
            raise _bad_entries(component, topic, "the body must be a JSON array of entries")
        entries: list[BulkEntry] = []
        seen: set[str] = set()
        traceparent, tracestate = trace_context(request)
        for index, item in enumerate(items):
            if not isinstance(item, dict):
                raise _bad_entries(component, topic, f"entry {index} must be an object")
            members = fields(item, f"entry {index}")
            content_type = members.get("contenttype")
            data = _entry_bytes(component, topic, index, content_type, members)
            entry_id = members.get("entryid")
            if not isinstance(entry_id, str) or not entry_id or entry_id in seen:
                what = "is missing or empty" if not entry_id else "is used twice"
                raise _bad_entries(component, topic, f"entry {index}: entryId {what}; it must be unique in the request")
            seen.add(entry_id)
            try:
                own = text_map(members.get("metadata"), f"metadata of entry {index}")
            except APIError as error:
                raise _bad_entries(component, topic, error.message) from None
            merged = {**metadata, **own} if members.get("metadata") is not None else {}
            key = own.get("partitionKey", metadata.get("partitionKey"))
            try:
                options = self._block.options(component, topic, merged, traceparent, tracestate)
            except ValueError as error:
                raise _bad_metadata(error) from None
            entries.append(BulkEntry(entry_id, str(content_type), data, options, key))
        return entries


def _bad_metadata(error: ValueError) -> APIError:
    message = f"failed deserializing metadata. Error: {error}"
    return rich(400, "ERR_PUBSUB_REQUEST_METADATA", "DAPR_PUBSUB_METADATA_DESERIALIZATION", message)


def _bad_entries(component: PubSubComponent, topic: str, message: str) -> APIError:
    return rich(
        400,
        "ERR_PUBSUB_EVENTS_SER",
        "DAPR_PUBSUB_UNMARSHAL_EVENTS",
        f"error when unmarshaling the request for topic {topic} in pubsub {component.name}: {message}",
        resource=("pubsub", component.name),
    )


def _entry_bytes(
    component: PubSubComponent, topic: str, index: int, content_type: object, members: Mapping[str, object]
) -> bytes:
    """Read an entry's event by its content type."""
    media = content_type.partition(";")[0].strip().lower() if isinstance(content_type, str) else ""
    event = members.get("event")
    if media in JSON_TYPES:
        return orjson.dumps(event)
    if media in BINARY_TYPES:
        if isinstance(event, str):
            try:
                return base64.b64decode(event, validate=True)
            except (binascii.Error, ValueError):
                pass
        raise _bad_entries(component, topic, f"entry {index}: event must be a base64 string for {media}")
    if media.startswith("text/") or media == "application/xml":
        if isinstance(event, str):
            return event.encode("utf-8", "surrogatepass")
        raise _bad_entries(component, topic, f"entry {index}: event must be a string for {media}")
    raise _bad_entries(component, topic, f"entry {index}: unknown contentType {content_type!r}")
