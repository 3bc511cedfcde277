"""The rights of a node as access control lists of Kafka.

Source: Kafka documentation, authorization: which request needs which operation on what.
"""

from __future__ import annotations

import shlex
from urllib.parse import quote

from brokers.kafka._bodies import bodies_topic
from brokers.kafka._frames_topic import TOPIC
from brokers.kafka._names import group_name, topic_name
from mesh import address
from mesh.rights import ALL, CALLS, Rights

__all__ = ["permissions"]

_MAKE = ("Create", "Describe", "DescribeConfigs")
_ALL = (*_MAKE, "Read", "Write")


def permissions(rights: Rights) -> str:
    """Write the commands that give the user of an application's gateway what it needs."""
    lines = [_line(rights, _ALL, "topic", TOPIC), _line(rights, ("Describe",), "cluster", "")]
    for name in rights.pubsub:
        space = topic_name(rights.space("topic", name))
        lines += [
            _line(rights, _MAKE, "topic", space),  # It holds no messages, but the settings of the others.
            _line(rights, _ALL, "topic", f"{space}.", prefixed=True),
            _line(rights, ("Read",), "group", f"{space}.", prefixed=True),
        ]
    space = topic_name(rights.space("topic", CALLS))
    own = address.topic(rights.namespace, CALLS, rights.queue)
    lines += [
        _line(rights, _MAKE, "topic", space),
        _line(rights, _ALL, "topic", topic_name(own.text)),
        _line(rights, _ALL, "topic", bodies_topic(own.space)),
        *(_line(rights, ("Read",), "group", group_name(own, rights.app_id, ordered=each)) for each in (False, True)),
    ]
    for app in rights.calls:
        name = f"{space}." if app == ALL else topic_name(address.topic(rights.namespace, CALLS, app).text)
        lines.append(_line(rights, (*_MAKE, "Write"), "topic", name, prefixed=app == ALL))
    return (
        "# Each with --bootstrap-server HOST:9092, and --command-config of an administrator.\n"
        f"# The gateway: MESH_BACKBONE=kafka://{quote(rights.app_id, safe='')}:PASSWORD@HOST:9092\n" + "".join(lines)
    )


def _line(rights: Rights, operations: tuple[str, ...], kind: str, name: str, *, prefixed: bool = False) -> str:
    what = " ".join(f"--operation {each}" for each in operations)
    where = f"--{kind} {name}".rstrip() + (" --resource-pattern-type prefixed" if prefixed else "")
    return f"kafka-acls.sh --add --allow-principal {shlex.quote(f'User:{rights.app_id}')} {what} {where}\n"
