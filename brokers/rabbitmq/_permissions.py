"""The rights of a node as those of a user of RabbitMQ: patterns of names, and of routing keys at topic exchanges.

Source: RabbitMQ documentation, access control: which method needs which right on what.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from brokers.rabbitmq._frames import INBOX
from brokers.rabbitmq._names import FRAMES, PLAIN
from mesh.address import encode_token
from mesh.rights import ALL, CALLS, Rights

__all__ = ["permissions"]

_SPACE = "(:groups|:unclaimed|:dead|:lock|:bodies)?$"  # Of what a component has but for the queues of its groups.


def permissions(rights: Rights) -> str:
    """Write the commands that make the user of an application's gateway."""
    user, inbox = encode_token(rights.app_id), re.escape(f"{INBOX}{encode_token(rights.app_id).translate(PLAIN)}:")
    calls, frames = rights.space("topic", CALLS), f"{re.escape(FRAMES)}$"
    shared = [f"{_name(rights.space('topic', name))}(:|$)" for name in rights.pubsub]
    shared += [f"{_name(calls)}{_SPACE}", f"{_name(f'{calls}:{user}:')}"]
    served = [f"{_key(each, PLAIN)}:" for each in rights.heard]
    own = [frames, inbox, *served, *shared]
    told = [f"{re.escape(INBOX)}", *(f"{_key(each)}$" for each in rights.told)]
    heard = [inbox, *(f"{_key(each)}$" for each in rights.heard)]
    called = [_stored(each) for each in rights.calls]
    configure, write = [*own, r"mesh\.seal-[0-9]+$"], [*own, r"amq\.default$"]
    exchange = calls.translate(PLAIN)
    lines = (
        f"set_permissions '{user}' {_any(configure)} {_any(write)} {_any(own)}",
        f"set_topic_permissions '{user}' '{FRAMES}' {_any(told)} {_any(heard)}",
        f"set_topic_permissions '{user}' '{exchange}' {_any(called)} '^#$'",
        f"set_topic_permissions '{user}' '{exchange}:groups' '^$' {_any([_stored(rights.queue)])}",
    )
    return (
        "# Each with -p VHOST, if it is not /; after: rabbitmqctl add_user\n"
        f"# The gateway: MESH_BACKBONE=amqp://{user}:PASSWORD@HOST:5672?inbox={user}\n"
        + "".join(f"rabbitmqctl {line}\n" for line in lines)
    )


def _stored(app: str) -> str:
    """Match the routing keys of the calls that are stored for an application."""
    return f"[^.]+\\.{'.+' if app == ALL else re.escape(encode_token(app))}$"


def _name(text: str) -> str:
    return re.escape(text.translate(PLAIN))


def _key(address: str, table: dict[int, int] | None = None) -> str:
    """Write an address as a pattern."""
    tokens = {ALL: "[^.]+", ">": ".+"}
    names = (tokens.get(each) or re.escape(each.translate(table or {})) for each in address.split("."))
    return "\\.".join(names)


def _any(patterns: Iterable[str]) -> str:
    """Match one of them; where there is none, nothing, though an empty alternative would match everything."""
    found = "|".join(dict.fromkeys(patterns))
    return f"'^({found})'" if found else "'^$'"
