"""``mesh publish``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from gateway.cli.client import opened, path_segment
from gateway.cli.invoke import add_data_options, add_socket_option, add_timeout, failed, given_data, own_gateway
from gateway.cli.parsing import Parser, UsageError
from gateway.cli.reference import as_dapr, succeeded
from gateway.cli.terminal import complain, note

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["content_type", "parser", "run"]

_CLOUD_EVENT = frozenset({"id", "source", "specversion", "type", "data"})


def parser() -> Parser:
    """Describe the command line."""
    made = Parser("mesh publish", description="Publish an event as an application that runs.")
    made.add_argument(
        "-i",
        "--publish-app-id",
        metavar="APP-ID",
        help="the application that publishes; not needed when only one runs",
    )
    made.add_argument("-p", "--pubsub", required=True, metavar="NAME", help="the pub/sub component")
    made.add_argument("-t", "--topic", required=True, metavar="TOPIC", help="the topic")
    add_data_options(made)
    made.add_argument("-m", "--metadata", metavar="JSON", help='metadata, such as {"ttlInSeconds": "10"}')
    add_socket_option(made)
    add_timeout(made)
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    # Slashes of a topic are quoted as well: of a path, neither two in a row nor what is between them stays as it was.
    path = f"/v1.0/publish/{path_segment(found.pubsub, 'pub/sub component')}/{path_segment(found.topic, 'topic')}"
    body = given_data(found)
    metadata = _metadata(found.metadata)
    gateway = own_gateway(found.publish_app_id, "say who publishes with --publish-app-id", found.unix_domain_socket)
    query = urlencode({f"metadata.{key}": value for key, value in metadata.items()}, errors="surrogateescape")
    headers = {"Content-Type": content_type(body)} if body is not None else {}
    try:
        with opened(
            gateway, "POST", f"{path}?{query}" if query else path, body or b"", headers=headers, timeout=found.timeout
        ) as response:
            if not response.ok:
                what = f"{found.pubsub}/{found.topic}"
                return failed(f"Error publishing topic {found.topic}" if as_dapr() else what, response)
    except TimeoutError:
        complain(f"no answer for {found.timeout:g} s; whether the event was published is not known")
        return 1
    if not succeeded("Event published successfully"):
        note(f"published to {found.topic} of {found.pubsub}")
    return 0


def content_type(body: bytes) -> str:
    """Say what data is: a CloudEvent when it has all of its members, and nothing but bytes when it is no text."""
    try:
        data = json.loads(body.decode())
    except UnicodeDecodeError:
        return "application/octet-stream"
    except ValueError:
        return "application/json"
    is_event = isinstance(data, dict) and data.keys() >= _CLOUD_EVENT
    return "application/cloudevents+json" if is_event else "application/json"


def _metadata(text: str | None) -> dict[str, str]:
    if not text:
        return {}
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--metadata is no JSON: {error}") from error
    if not isinstance(data, dict) or any(isinstance(value, dict | list) for value in data.values()):
        raise UsageError('--metadata must be a JSON object of texts, such as {"ttlInSeconds": "10"}')
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in data.items()}
