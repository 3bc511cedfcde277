"""``mesh asyncapi``: one AsyncAPI 3.0 document of the whole live mesh.

Asked over the backbone, so that it covers every machine and needs none of their APIs. What nobody has done
since its node started (a topic that was never published to) cannot be known; over HTTP, neither can an
application's methods be: such an application has one operation for all of them.

Source: AsyncAPI 3.0.0 (Channel, Operation, Operation Reply, Message and Server Objects).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gateway.cli.parsing import Parser, UsageError
from gateway.cli.terminal import complain, note, show
from gateway.config import DEFAULT_BACKBONE
from mesh import address
from mesh.home import mesh_home
from mesh.registry import PUBSUB_ON_BACKBONE, Registry
from mesh.urls import without_credentials

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mesh.broker import Broker
    from mesh.node.description import Node

__all__ = ["document", "parser", "run"]

JSON = dict[str, object]
FORMATS = ("yaml", "json")
WAIT_SECONDS = 1.0
_UNSAFE = re.compile(r"[^A-Za-z0-9.-]")
_PROTOCOLS = {"tls": "nats", "rediss": "redis", "kafka+tls": "kafka-secure"}
_EVENT_ATTRIBUTES = ("specversion", "id", "source", "type", "datacontenttype", "time")


def parser() -> Parser:
    """Describe the command line."""
    made = Parser("mesh asyncapi", description="Describe the live mesh: topics, subscribers, publishers, methods.")
    made.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="WHAT",
        help="yaml, json, or a file to write to; may be given twice",
    )
    made.add_argument(
        "--wait", type=float, default=WAIT_SECONDS, metavar="SECONDS", help="how long to wait for answers (1)"
    )
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    form, file = _output(found.output)
    backbone = os.environ.get("MESH_BACKBONE") or DEFAULT_BACKBONE
    namespace = os.environ.get("NAMESPACE") or "default"
    adapter = Registry().backbone(backbone)
    shown = backbone
    if backbone.partition(":")[0] == "embedded":
        server = adapter.read_status(mesh_home(os.environ))  # type: ignore[attr-defined]  # as in `mesh status`
        if server is None:
            complain("no gateway runs on the embedded backbone; MESH_BACKBONE names another")
            return 1
        shown = server.url
    broker: Broker = adapter.from_url(backbone)  # type: ignore[attr-defined]  # what entry points promise
    nodes, prefix = asyncio.run(_collect(broker, namespace, found.wait))
    if not nodes:
        note("no node of this namespace answered")
    text = _text(document(nodes, namespace=namespace, backbone=shown, prefix=prefix), form)
    if file is None:
        show(text.rstrip())
    else:
        file.write_text(text, encoding="utf-8")
    return 0


def _output(given: Sequence[str]) -> tuple[str, Path | None]:
    """Tell format and file apart; a file's ending decides where no format is given."""
    forms = [each for each in given if each in FORMATS]
    files = [each for each in given if each not in FORMATS]
    if len(forms) > 1 or len(files) > 1:
        raise UsageError("--output takes one format and one file")
    by_name = "json" if files and files[0].endswith(".json") else "yaml"
    return (forms[0] if forms else by_name), (Path(files[0]) if files else None)


def _text(made: JSON, form: str) -> str:
    if form == "json":
        return json.dumps(made, indent=2, ensure_ascii=False) + "\n"
    import yaml

    # Read anew, what stands in it twice is written twice, without anchors.
    return yaml.safe_dump(json.loads(json.dumps(made)), sort_keys=False, allow_unicode=True)


async def _collect(broker: Broker, namespace: str, seconds: float) -> tuple[list[Node], str]:
    from mesh.node.description import collect

    async with broker:
        return await collect(broker, namespace, seconds), broker.features.event_prefix


def document(nodes: Iterable[Node], *, namespace: str, backbone: str, prefix: str = "ce-") -> JSON:
    """Make the document.

    Args:
        nodes: What they said.
        namespace: Of the mesh.
        backbone: Its URL; credentials are left out.
        prefix: Of CloudEvents attributes in headers on the backbone.
    """
    return _Document(namespace, backbone, prefix).of(list(nodes))


class _Document:
    """Collects channels and operations; an id belongs to one address."""

    def __init__(self, namespace: str, backbone: str, prefix: str) -> None:
        self._namespace = namespace
        self._servers = _servers(backbone)
        self._prefix = prefix
        self._channels: dict[str, JSON] = {}
        self._operations: dict[str, JSON] = {}
        self._ids: dict[str, tuple[str, ...]] = {}
        self._types: dict[str, str] = {}

    def of(self, nodes: list[Node]) -> JSON:
        self._types = {name: kind for node in nodes for name, kind in node.components}
        subscribed = sorted({(node.app_id, *each) for node in nodes for each in node.subscriptions})
        published = sorted({(node.app_id, *each) for node in nodes for each in node.published})
        for app, pubsub, topic, dead_letter in subscribed:
            more: JSON = {"x-mesh-dead-letter-topic": dead_letter} if dead_letter else {}
            self._event(app, "receive", pubsub, topic, more)
            if dead_letter:
                self._event(app, "send", pubsub, dead_letter, {"x-mesh-dead-letter-of": topic})
        for app, pubsub, topic in published:
            self._event(app, "send", pubsub, topic, {})
        methods: dict[str, set[str] | None] = {}
        for node in nodes:
            for app in node.apps:
                known = methods.setdefault(app, set())
                methods[app] = None if known is None or node.methods is None else known | set(node.methods)
        for app in sorted(methods):
            self._calls(app, methods[app])
        return self._whole()

    def _whole(self) -> JSON:
        made: JSON = {
            "asyncapi": "3.0.0",
            "info": {
                "title": f"Mesh {self._namespace}",
                "version": version("brokermesh"),
                "description": "What lives on the mesh now. Events are CloudEvents 1.0 in binary mode.",
            },
            "defaultContentType": "application/json",
            "servers": self._servers,
            "channels": self._channels,
            "operations": self._operations,
            "components": {"messages": _messages(self._prefix)},
        }
        return {key: value for key, value in made.items() if value != {}}

    def _id(self, *parts: str) -> str:
        """Give an id that is legal everywhere, and unique although it may lose characters."""
        made = base = ".".join(_UNSAFE.sub("-", part) or "-" for part in parts)
        number = 1
        while self._ids.setdefault(made, parts) != parts:
            number += 1
            made = f"{base}-{number}"
        return made

    def _event(self, app: str, action: str, pubsub: str, topic: str, more: JSON) -> None:
        channel = self._id("pubsub", pubsub, topic)
        if channel not in self._channels:
            where = address.topic(self._namespace, pubsub, topic, pattern=True).text
            self._channels[channel] = {
                "address": where,
                "title": f"{pubsub}/{topic}",
                **self._at(pubsub),
                "messages": {"event": {"$ref": "#/components/messages/event"}},
                "x-mesh-pubsub": pubsub,
                "x-mesh-topic": topic,
            }
        operation = self._id(app, action, pubsub, topic)
        self._operations[operation] = {
            "action": action,
            "title": f"{app} {action}s {topic}",
            **_on(channel, "event"),
            "x-mesh-app": app,
            **self._operations.get(operation, {}),
            **more,
        }

    def _at(self, pubsub: str) -> JSON:
        """Say which servers a component's topics are on; of a component elsewhere only its type is known."""
        kind = self._types.get(pubsub, PUBSUB_ON_BACKBONE)
        if kind == PUBSUB_ON_BACKBONE:
            return {"servers": [_ref("servers", each) for each in self._servers]} if self._servers else {}
        return {"x-mesh-component-type": kind}

    def _calls(self, app: str, methods: set[str] | None) -> None:
        channel, replies = self._id("app", app), self._id("replies")
        servers = {"servers": [_ref("servers", each) for each in self._servers]} if self._servers else {}
        self._channels[channel] = {
            "address": address.app(self._namespace, app).text,
            "title": f"calls of {app}",
            **servers,
            "messages": {"request": {"$ref": "#/components/messages/request"}},
            "x-mesh-app": app,
        }
        self._channels[replies] = {
            "address": None,
            "title": "the caller's inbox",
            "description": "Named by each request, as its reply address.",
            **servers,
            "messages": {"reply": {"$ref": "#/components/messages/reply"}},
        }
        reply: JSON = {"reply": _on(replies, "reply")}
        for method in [""] if methods is None else sorted(methods):
            operation = self._id(app, "answer", method) if method else self._id(app, "answer")
            self._operations[operation] = {
                "action": "receive",
                "title": f"{app} answers {method or 'calls'}",
                **_on(channel, "request"),
                **reply,
                "x-mesh-app": app,
                **({"x-mesh-method": method} if method else {}),
            }


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/{kind}/{name}"}


def _on(channel: str, message: str) -> JSON:
    return {
        "channel": _ref("channels", channel),
        "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"}],
    }


def _servers(backbone: str) -> dict[str, JSON]:
    made: dict[str, JSON] = {}
    backbone = without_credentials(backbone)
    for number, url in enumerate(backbone.split(","), 1):
        parts = urlsplit(url if "://" in url else f"{backbone.partition('://')[0]}://{url}")
        if parts.netloc:
            name = "backbone" if number == 1 else f"backbone-{number}"
            host = parts.netloc.rpartition("@")[2]
            path: JSON = {"pathname": parts.path} if parts.path.strip("/") else {}
            made[name] = {"host": host, "protocol": _PROTOCOLS.get(parts.scheme, parts.scheme), **path}
    return made


def _messages(prefix: str) -> Mapping[str, JSON]:
    text = {"type": "string"}
    event: JSON = {"type": "object", "properties": {prefix + name: text for name in _EVENT_ATTRIBUTES}}
    event["required"] = [prefix + name for name in _EVENT_ATTRIBUTES[:4]]
    call = {"description": "JSON: verb, path with query, list of headers.", **text}
    answer = {"description": "JSON: status, list of headers.", **text}
    deadline = {"description": "Unix time in milliseconds; after it the call is not run.", **text}
    return {
        "event": {
            "name": "event",
            "title": "CloudEvent",
            "summary": "The application's data as it is; the attributes are headers.",
            "headers": event,
            "payload": {},
        },
        "request": {
            "name": "request",
            "title": "Request",
            "headers": {
                "type": "object",
                "properties": {"mesh-http": call, "mesh-deadline": deadline},
                "required": ["mesh-http", "mesh-deadline"],
            },
            "payload": {},
        },
        "reply": {
            "name": "reply",
            "title": "Reply",
            "summary": "An answer, or in mesh-error why there is none.",
            "headers": {"type": "object", "properties": {"mesh-http": answer, "mesh-error": text}},
            "payload": {},
        },
    }
