"""``publish`` and ``publish/bulk``."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import orjson

from gateway.errors import ERRORS, answer, told
from gateway.http.response import Answered, Response, no_content
from gateway.routes.request import fields, header, metadata_of, read_body
from gateway.routes.route import WRITE, Asked, Asking, Route
from gateway.routes.rpc import RPC, Called
from mesh.blocks.topics import BULK_PUBLISH, PUBLISH, BulkEntry, BulkPublish, Publish, is_raw, spelled
from mesh.errors import MeshError, PublishFailedError
from mesh.event import MAX_LEVELS, media_type
from mesh.operation import Operation
from mesh.resources.fields import described

__all__ = ["ROUTES", "RPCS", "check_topic", "find_pubsub"]

BINARY_TYPES = frozenset({"application/octet-stream"})
JSON_TYPES = frozenset({"application/json", "application/cloudevents+json"})


class EntriesError(Exception):
    """The entries of a bulk publish cannot be read."""


async def _target(asked: Asked) -> tuple[str, str]:
    """Give component and topic."""
    name = asked.text(0)
    await find_pubsub(asked, name)
    topic = "/".join(asked.text(index) for index in range(1, len(asked.segments)))
    check_topic(name, topic)
    return name, topic


async def find_pubsub(asking: Asking, name: str) -> None:
    """Find the component; raises ``APIError`` when there is none."""
    if not name and asking.api.services["pubsub"].components:  # type: ignore[attr-defined]
        raise told(ERRORS["pubsub/NAME_EMPTY"])
    await asking.find(PUBLISH, name)


def check_topic(name: str, topic: str) -> None:
    """Refuse a topic without a name, by an ``APIError``."""
    if not topic:
        raise told(ERRORS["pubsub/TOPIC_EMPTY"], target=name)


async def publish(asked: Asked) -> Answered:
    """Publish one event."""
    name, topic = await _target(asked)
    body = await read_body(asked.request)
    event = Publish(topic, body, header(asked.request, "Content-Type"), metadata_of(asked.query))
    await asked.run(PUBLISH, name, event)
    return no_content()


async def publish_bulk(asked: Asked) -> Answered:
    """Publish an array of events."""
    name, topic = await _target(asked)
    body = await read_body(asked.request)
    read = partial(_entries, body)
    error = await _publish_all(asked, name, BulkPublish(topic, (), metadata=metadata_of(asked.query)), read)
    return no_content() if error is None else _failed(error)


async def _publish_all(
    asking: Asking, name: str, bulk: BulkPublish, read: Callable[[Mapping[str, str]], Sequence[BulkEntry]]
) -> PublishFailedError | None:
    """Store the entries that ``read`` gives for the metadata of the request; give what not all of them failed of."""
    try:
        metadata = spelled(bulk.metadata)
        bulk.raw = is_raw(metadata)
        bulk.entries = read(metadata)
        await asking.api.run(Operation(BULK_PUBLISH, name, bulk, asking.context()))
    except EntriesError as error:
        raise told(ERRORS["pubsub/ENTRIES_INVALID"], error, name, bulk) from None
    except PublishFailedError as error:
        return error
    except MeshError as error:
        raise answer(error, BULK_PUBLISH, name, bulk, asking.api.caller.app_id) from error
    return None


def _failed(error: PublishFailedError) -> Response:
    failed = [{"entryId": entry_id, "error": str(each)} for entry_id, each in error.failed.items()]
    body = orjson.dumps({"failedEntries": failed, "errorCode": "ERR_PUBSUB_PUBLISH_MESSAGE"})
    told_fields = [
        ("Content-Type", "application/json"),
        ("metadata.responseData", body.decode("ascii", "replace")),
        ("metadata.error", str(error)),
    ]
    return Response(500, body, told_fields)


def _entries(body: bytes, metadata: Mapping[str, str]) -> Sequence[BulkEntry]:
    """Read the entries; raises ``EntriesError``."""
    try:
        items = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise EntriesError(f"cannot read the entries: {error}") from None
    if not isinstance(items, list):
        raise EntriesError("the body must be a JSON array of entries")
    entries: list[BulkEntry] = []
    seen: dict[str, int] = {}
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise EntriesError(f"entry {index} must be an object, not {described(item)}")
        members = fields(item, f"entry {index}")
        content_type = members.get("contenttype")
        if not isinstance(content_type, str) or not content_type:
            raise EntriesError(f"entry {index}: contentType {_lacking(content_type)} (for example 'application/json')")
        if "event" not in members:
            raise EntriesError(f"entry {index}: event is missing")
        data = _entry_bytes(index, content_type, members["event"])
        entry_id = members.get("entryid")
        if not isinstance(entry_id, str) or not entry_id:
            raise EntriesError(f"entry {index}: entryId {_lacking(entry_id)} (for example '{index + 1}')")
        _check_new(entry_id, index, seen)
        given = members.get("metadata")
        if given is not None and not (
            isinstance(given, dict) and all(isinstance(value, str) for value in given.values())
        ):
            raise EntriesError(f"entry {index}: metadata must be an object of strings")
        entries.append(_entry(entry_id, content_type, data, metadata, given))
    return entries


def _check_new(entry_id: str, index: int, seen: dict[str, int]) -> None:
    if (first := seen.setdefault(entry_id, index)) != index:
        raise EntriesError(f"entry {index}: entryId {entry_id!r} is that of entry {first} already")


def _entry(
    entry_id: str, content_type: str, data: bytes, metadata: Mapping[str, str], given: Mapping[str, str] | None
) -> BulkEntry:
    """Make an entry; the metadata of the request are those of entries that have any, too."""
    own = spelled(given or {}, "*")
    merged = {**metadata, **own} if given is not None else {}
    return BulkEntry(entry_id, content_type, data, merged, own.get("partitionKey", metadata.get("partitionKey")))


def _lacking(value: object) -> str:
    """Say what is wrong with a member that must be a string."""
    if value is None or value == "":
        return "is missing" if value is None else "is empty"
    return f"must be a string, not {described(value)}"


def _entry_bytes(index: int, content_type: str, event: object) -> bytes:
    """Read an entry's event by its content type."""
    media = media_type(content_type)
    if media in JSON_TYPES:
        try:
            return orjson.dumps(event)
        except orjson.JSONEncodeError:
            raise EntriesError(f"entry {index}: event is nested more than {MAX_LEVELS} levels") from None
    if media in BINARY_TYPES:
        if isinstance(event, str):
            try:
                return base64.b64decode(event, validate=True)
            except (binascii.Error, ValueError):
                raise EntriesError(f"entry {index}: event is not base64, which {media} needs") from None
        raise EntriesError(f"entry {index}: event must be a base64 string for {media}, not {described(event)}")
    if media.startswith("text/") or media == "application/xml":
        if isinstance(event, str):
            return event.encode("utf-8", "surrogatepass")
        raise EntriesError(f"entry {index}: event must be a string for {media}, not {described(event)}")
    raise EntriesError(
        f"entry {index}: contentType {content_type!r} is none of application/json, application/cloudevents+json, "
        "application/octet-stream (base64), application/xml and text/…"
    )


async def publish_rpc(called: Called) -> object:
    """Publish one event."""
    asked = called.message
    await find_pubsub(called, asked.pubsub_name)
    check_topic(asked.pubsub_name, asked.topic)
    event = Publish(asked.topic, asked.data, asked.data_content_type or None, dict(asked.metadata))
    await called.run(PUBLISH, asked.pubsub_name, event)
    return called.reply()


async def publish_bulk_rpc(called: Called) -> object:
    """Publish several events; those that were not stored are told of in the reply."""
    asked = called.message
    await find_pubsub(called, asked.pubsub_name)
    check_topic(asked.pubsub_name, asked.topic)
    bulk = BulkPublish(asked.topic, (), metadata=dict(asked.metadata))
    error = await _publish_all(called, asked.pubsub_name, bulk, partial(_sent, asked.entries))
    failed = {} if error is None else error.failed
    return called.reply(failedEntries=[{"entry_id": name, "error": str(each)} for name, each in failed.items()])


def _sent(given: Sequence[Any], metadata: Mapping[str, str]) -> Sequence[BulkEntry]:
    """Read the entries of a message; raises ``EntriesError``."""
    entries: list[BulkEntry] = []
    seen: dict[str, int] = {}
    for index, each in enumerate(given):
        if not each.entry_id:
            raise EntriesError(f"entry {index}: entry_id is empty (for example '{index + 1}')")
        _check_new(each.entry_id, index, seen)
        entries.append(_entry(each.entry_id, each.content_type, each.event, metadata, dict(each.metadata) or None))
    return entries


RPCS = (
    RPC("PublishEvent", publish_rpc, "publish"),
    RPC("BulkPublishEvent", publish_bulk_rpc, "publish", ("BulkPublishEventAlpha1",)),
)

# A component named "bulk" can only receive topics of one segment; this is Dapr's order too.
ROUTES = (
    Route("publish/bulk/{pubsub}/{topic}/{rest*}", publish_bulk, WRITE, ("v1.0", "v1.0-alpha1")),
    Route("publish/{pubsub}/{topic}/{rest*}", publish, WRITE),
)
