"""Events of the official ``cloudevents`` package, for handlers that speak in them.

The package is not needed, and never imported here: who has one of its classes has imported it. Known are the classes
that it has from version 2 (``cloudevents.core.v1.event``), and those from before, with their pydantic ones
(``cloudevents.http``, which is ``cloudevents.v1.http`` now); each of CloudEvents 1.0.

Source: cloudevents 2.2, its public classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, get_args, get_origin

from pydantic_core import to_json

from mesh.errors import EventError
from mesh.event import SPECVERSION, Event, is_json, media_type

__all__ = ["cloudevent_of", "event_of", "is_cloudevent", "wanted_by"]

OPTIONAL = ("datacontenttype", "dataschema", "subject", "time")
CORE = ("id", "source", "type", *OPTIONAL)


def is_cloudevent(value: object) -> bool:
    """Tell whether a value is an event of the package's."""
    return _is_class(type(value))


def _is_class(kind: object) -> bool:
    if not isinstance(kind, type) or not hasattr(kind, "get_attributes"):
        return False
    return any(base.__module__.partition(".")[0] == "cloudevents" for base in kind.__mro__)


def wanted_by(subscriber: Any) -> Any:
    """Give the package's class that a subscriber's handlers take for the body; None when they take the data."""
    for item in subscriber.calls:
        for parameter in item.dependant.params if item.dependant is not None else ():
            kind = parameter.field_type
            kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
            if _is_class(kind):
                return kind
    return None


def cloudevent_of(event: Event | None, data: object, kind: Any) -> object:
    """Make one of the package's.

    Args:
        event: The mesh's; None when the message holds something else.
        data: As a handler gets it.
        kind: The class.

    Raises:
        EventError: There is no event.
    """
    if event is None:
        raise EventError("the handler takes a CloudEvent, and the message holds none")
    attributes: dict[str, Any] = {"specversion": SPECVERSION, "id": event.id, "source": event.source}
    attributes |= {"type": event.type, **event.extensions}
    attributes |= {name: value for name in OPTIONAL if (value := getattr(event, name))}
    if hasattr(kind, "create"):  # Before version 2.
        return kind.create(attributes, data)
    if event.time:
        attributes["time"] = datetime.fromisoformat(event.time.upper().replace(":60", ":59"))  # It has no leap seconds.
    return kind(attributes, data)


def event_of(given: Any) -> Event:
    """Read one of the package's: an event that `is_cloudevent`.

    Bytes are data of any kind, unless the event says of which. All else is JSON, but text that it says to be none.

    Raises:
        EventError: It is none that CloudEvents 1.0 admits.
    """
    attributes = {name: _value(value) for name, value in _attributes(given).items() if value is not None}
    if (version := attributes.pop("specversion", SPECVERSION)) != SPECVERSION:
        raise EventError(f"attribute 'specversion' must be '{SPECVERSION}', not {version!r}")
    core: dict[str, Any] = {name: attributes.pop(name) for name in CORE if name in attributes}
    data = given.get_data()
    if isinstance(data, bytes | bytearray):
        body = bytes(data)
        core.setdefault("datacontenttype", "application/octet-stream")
    elif data is None:
        body = b""
    elif isinstance(data, str) and not is_json(media_type(core.get("datacontenttype", "application/json"))):
        body = data.encode()
    else:
        body = to_json(data)
    return Event(data=body, extensions=attributes, **core)


def _attributes(given: Any) -> Mapping[str, object]:
    found: Mapping[str, object] = given.get_attributes()
    return found


def _value(value: object) -> str | int | bool:
    """Give an attribute as JSON has it."""
    if isinstance(value, datetime):
        text = value.isoformat()
        return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text
    if isinstance(value, bool | int):
        return value
    return str.__str__(value) if isinstance(value, str) else str(value)  # Some are members of an enumeration.
