"""The rights of a node as permissions of a user of nats-server.

Source: NATS documentation, Authorization and the JetStream API's subjects.
"""

from __future__ import annotations

import json

from brokers.nats._consumer import consumer_name, stream_of
from mesh.address import encode_token
from mesh.rights import CALLS, Rights

__all__ = ["permissions"]

_INBOX = "_INBOX"


def permissions(rights: Rights) -> str:
    """Write the user of an application's gateway, as it stands in a server's configuration."""
    user, mark = json.dumps(rights.app_id), encode_token(rights.app_id)
    publish, subscribe = _publish(rights), [f"{_INBOX}.{mark}.>", *rights.heard]
    return (
        f"# Into authorization {{ users: [ … ] }}, or the users of an account with JetStream.\n"
        f"# The gateway: MESH_BACKBONE=nats://USER:PASSWORD@HOST:4222?inbox={mark}\n"
        f"{{\n  user: {user}\n  password: $PASSWORD\n  permissions: {{\n"
        f"    publish: {{ allow: [\n{_listed(publish)}    ] }}\n"
        f"    subscribe: {{ allow: [\n{_listed(subscribe)}    ] }}\n  }}\n}}\n"
    )


def _listed(subjects: list[str]) -> str:
    return "".join(f"      {json.dumps(each)}\n" for each in dict.fromkeys(subjects))


def _publish(rights: Rights) -> list[str]:
    found = [f"{_INBOX}.>"]  # To whoever asked, and whoever was asked: these names cannot be guessed.
    found += [*rights.told, *(rights.space("topic", CALLS, "*", app) for app in rights.calls)]
    calls = stream_of(rights.space("topic", CALLS))
    own = consumer_name(rights.app_id, own_calls := rights.space("topic", CALLS, "*", rights.queue))
    found += [*_stream(calls), f"$JS.API.CONSUMER.LIST.{calls}", f"$JS.API.STREAM.PURGE.{calls}"]
    found += _consumer(calls, own, own_calls)
    for name in rights.pubsub:
        space = rights.space("topic", name)
        stream = stream_of(space)
        found += [f"{space}.>", *_stream(stream), f"$JS.API.CONSUMER.LIST.{stream}", f"$JS.API.STREAM.PURGE.{stream}"]
        found += _consumer(stream, "*", f"{space}.>")
        found.append(f"$JS.API.STREAM.MSG.GET.{stream}")  # For the age of what waits.
    for name in rights.stores:
        bucket = f"KV_{encode_token(name)}"
        found += [f"$KV.{encode_token(name)}.>", *_stream(bucket), f"$JS.API.STREAM.PURGE.{bucket}"]
        found += [f"$JS.API.STREAM.MSG.GET.{bucket}", f"$JS.API.DIRECT.GET.{bucket}", f"$JS.API.DIRECT.GET.{bucket}.>"]
    return [*found, "$JS.API.STREAM.NAMES"]


def _stream(name: str) -> list[str]:
    return [f"$JS.API.STREAM.CREATE.{name}", f"$JS.API.STREAM.INFO.{name}"]


def _consumer(stream: str, name: str, subjects: str) -> list[str]:
    """Of a consumer that sees these subjects and no others: the server compares what stands behind its name."""
    return [
        f"$JS.API.CONSUMER.CREATE.{stream}.{name}.{subjects}",
        f"$JS.API.CONSUMER.INFO.{stream}.*",
        f"$JS.API.CONSUMER.DELETE.{stream}.{name}",
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}",
        f"$JS.ACK.{stream}.{name}.>",
    ]
