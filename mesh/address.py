"""Names to addresses: the only place that knows the grammar.

An address is a dotted path of tokens, legal on every broker::

    mesh.<namespace>.topic.<component>.<topic>     an event topic; dots in the topic separate its tokens
    mesh.<namespace>.app.<app id>                  an application's requests
    mesh.<namespace>.bridge.<cluster>              requests to applications of another cluster
    mesh.<namespace>.component.<component>         requests to any host of a component
    mesh.<namespace>.component.<component>.<print> requests to hosts of equal settings
    mesh.<namespace>.nodes                         broadcast to every live node
    mesh.<namespace>.hosts                         broadcast to every host of components
    mesh.<namespace>.asker.<node>                  what a node that asked is answered
    mesh.<namespace>.taps                          broadcast to every live node: what is to be told of what passes it
    mesh.<namespace>.taps.<tap>                    what one who asked for that is told
    mesh.<namespace>.keepers                       any one node
    mesh.<namespace>.keepers.<node>                one node
    mesh.<namespace>.seen.<app id>                 whoever saw an application lately
    mesh.<namespace>.back.<app id>                 broadcast to those who wait for an application
    mesh.<namespace>.bindings.<app id>             events of input bindings for an application
    mesh.<namespace>.jobs.<app id>                 broadcast to gateways of an application that own no jobs yet
    mesh.<namespace>.workflows.<app id>            broadcast to gateways of an application that own no workflows yet
    mesh.<namespace>.owner.<app id>.<node>         one node, of what it owns
    mesh.<namespace>.work.<app id>.<node>          one node, of activities that its workers run for others
    mesh.<namespace>.node.<app id>.<node>          one node, of what it tells others and does for them
    mesh.<namespace>.owners.<print>                broadcast to those who host a kind: its table of owners has changed
    mesh.<namespace>.readers                       broadcast to those who read input bindings for others
    mesh.<namespace>.triggered                     broadcast to those whose application events may be for
    mesh.<namespace>.supply                        the operator of a cluster, of what it gives gateways
    mesh.<namespace>.supplied.<other namespace>    broadcast to the gateways of one: the operator has something new
    <what is served>.members                       broadcast to those who serve it
    mesh.<namespace>.kv.<component>.<key>          a key of a broker-native store

Tokens keep letters, digits, ``_`` and ``-``; every other byte of their UTF-8 form is written
``=XX``, and an empty token is a lone ``=``. A subscription's topic may hold wildcards: ``*`` for
one token, ``>`` as the last one for all that follow. Names are bounded, since a NATS server closes the connection of
who sends it an address of more than about 4,000 bytes: a topic has at most 512 bytes, any other name 256.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2s

from mesh.errors import BadArgumentError, ConfigError

__all__ = [
    "MAX_TOPIC_BYTES",
    "MAX_NAME_BYTES",
    "Address",
    "Kind",
    "app",
    "app_id_problem",
    "asker",
    "back",
    "bindings",
    "bridge",
    "component",
    "decode_token",
    "encode_token",
    "hosts",
    "is_own",
    "jobs",
    "keepers",
    "matches",
    "members",
    "node",
    "nodes",
    "overlaps",
    "owner",
    "owners",
    "readers",
    "seen",
    "store",
    "supplied",
    "supply",
    "taps",
    "topic",
    "triggered",
    "work",
    "workflows",
]

MAX_TOPIC_BYTES = 512
MAX_NAME_BYTES = 256
_UNSAFE = re.compile(rb"[^A-Za-z0-9_-]")
_OWN = re.compile(
    r"mesh\.[^.]*\.(topic|app|bridge|component|nodes?|hosts|asker|taps|keepers|seen|back|bindings|jobs|workflows|owners?|work"
    r"|readers|triggered|suppl(?:y|ied)|kv)\b"
)
_NO_APP_ID = re.compile(r"[./@\s\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_ESCAPE = re.compile(r"=([0-9A-F]{2})")


class Kind(StrEnum):
    """What an address names.

    What is said to an operator, and by it, is proven by what is said (``mesh/supply``), and by nothing of the exchange.
    """

    TOPIC = "topic"
    APP = "app"
    BRIDGE = "bridge"
    COMPONENT = "component"
    OWNER = "owner"
    NODES = "nodes"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Address:
    """Where an event goes.

    Attributes:
        kind: What it names.
        space: The tokens that select a stream of its own (``mesh.<namespace>.topic.<component>``).
        name: The tokens within the space, dotted; empty for spaces that hold one name.
        label: The user's own name for it (topic or app id), for messages and metrics.
    """

    kind: Kind
    space: str
    name: str
    label: str

    @property
    def text(self) -> str:
        """The whole address."""
        return f"{self.space}.{self.name}" if self.name else self.space

    @property
    def is_pattern(self) -> bool:
        """Whether it holds wildcards, so that it can only be subscribed to."""
        return any(token in ("*", ">") for token in self.name.split("."))

    def __str__(self) -> str:
        return self.text


def encode_token(text: str) -> str:
    """Write any text as one token."""
    if not text:
        return "="
    return _UNSAFE.sub(lambda m: b"=%02X" % m[0][0], text.encode()).decode()


def _bounded(what: str, name: str) -> str:
    """Write a name as one token, unless it is too long."""
    if len(name) > MAX_NAME_BYTES or len(name.encode()) > MAX_NAME_BYTES:
        raise BadArgumentError(f"{what} is longer than {MAX_NAME_BYTES} bytes: {name[:40]!r}…")
    return encode_token(name)


def decode_token(token: str) -> str:
    """Read a token back."""
    if token == "=":
        return ""
    return _ESCAPE.sub(lambda m: chr(int(m[1], 16)), token).encode("latin-1").decode()


def is_own(name: str) -> bool:
    """Tell whether a name on a broker is one of the mesh's own, of any namespace."""
    return _OWN.match(name) is not None


def store(namespace: str, name: str) -> str:
    """Name a key/value store of a namespace; a dot is in no token, so no two namespaces share one."""
    return f"{encode_token(namespace)}.{encode_token(name)}"


@lru_cache(maxsize=4096)
def topic(namespace: str, component: str, name: str, *, pattern: bool = False) -> Address:
    """Address a topic of a pub/sub component.

    Args:
        namespace: The mesh's namespace.
        component: The pub/sub component's name.
        name: The topic as users write it; any text.
        pattern: Read ``*`` and ``>`` as wildcards; otherwise they are ordinary characters.

    Raises:
        ConfigError: The name is empty or too long, or ``>`` is not the last token.
        BadArgumentError: Another name is too long, as in all of these functions.
    """
    if not name:
        raise ConfigError("topic is empty")
    if len(name.encode()) > MAX_TOPIC_BYTES:
        raise ConfigError(f"topic is longer than {MAX_TOPIC_BYTES} bytes: {name[:40]!r}…")
    parts = name.split(".")
    if pattern and ">" in parts[:-1]:
        raise ConfigError(f"topic {name!r}: '>' stands for all that follows, so it must be the last token")
    tokens = [part if pattern and part in ("*", ">") else encode_token(part) for part in parts]
    space = f"mesh.{_bounded('namespace', namespace)}.topic.{_bounded('component name', component)}"
    return Address(Kind.TOPIC, space, ".".join(tokens), name)


def app_id_problem(app_id: str) -> str | None:
    """Say what is wrong with an app id, if anything is: no application can have it then."""
    if not app_id:
        return "the app id must not be empty"
    if len(app_id) > MAX_NAME_BYTES or len(app_id.encode(errors="replace")) > MAX_NAME_BYTES:
        return f"the app id '{app_id[:40]}…' is longer than {MAX_NAME_BYTES} bytes"
    if _NO_APP_ID.search(app_id):
        return f"the app id {app_id!r} must not contain dots, slashes, '@', blanks or control characters"
    return None


@lru_cache(maxsize=4096)
def app(namespace: str, app_id: str) -> Address:
    """Address the requests of an application."""
    space = f"mesh.{_bounded('namespace', namespace)}.app.{_bounded('app id', app_id)}"
    return Address(Kind.APP, space, "", app_id)


@lru_cache(maxsize=4096)
def bridge(namespace: str, cluster: str) -> Address:
    """Address the bridges to another cluster (``mesh/clusters.py``)."""
    space = f"mesh.{_bounded('namespace', namespace)}.bridge.{_bounded('cluster', cluster)}"
    return Address(Kind.BRIDGE, space, "", cluster)


@lru_cache(maxsize=4096)
def component(namespace: str, name: str, fingerprint: str = "") -> Address:
    """Address the hosts of a component; with a fingerprint, those whose settings have it."""
    space = f"mesh.{_bounded('namespace', namespace)}.component.{_bounded('component name', name)}"
    return Address(Kind.COMPONENT, f"{space}.{fingerprint}" if fingerprint else space, "", name)


@lru_cache(maxsize=4096)
def members(served: Address) -> Address:
    """Address everybody who serves an address."""
    return Address(served.kind, served.space, f"{served.name}.members".lstrip("."), served.label)


def nodes(namespace: str) -> Address:
    """Address every live node of a namespace."""
    return _of_nodes(namespace, "nodes")


def hosts(namespace: str) -> Address:
    """Address every live host of components of a namespace."""
    return _of_nodes(namespace, "hosts")


def asker(namespace: str, node_id: str) -> Address:
    """Address one node that asked others something."""
    return _of_nodes(namespace, "asker", node_id)


def taps(namespace: str, tap: str = "") -> Address:
    """Address every live node, or one who asked them to tell what passes them."""
    return _of_nodes(namespace, "taps", tap)


def keepers(namespace: str, node_id: str = "") -> Address:
    """Address any one node, or a certain one, to keep in mind what another has seen."""
    return _of_nodes(namespace, "keepers", node_id)


def seen(namespace: str, app_id: str) -> Address:
    """Address whoever saw an application lately."""
    return _of_nodes(namespace, "seen", app_id)


def back(namespace: str, app_id: str) -> Address:
    """Address those who wait for an application."""
    return _of_nodes(namespace, "back", app_id)


def bindings(namespace: str, app_id: str) -> Address:
    """Address the events of input bindings for an application."""
    return _of_nodes(namespace, "bindings", app_id)


def jobs(namespace: str, app_id: str) -> Address:
    """Address the gateways of an application that do not own jobs of it yet."""
    return _of_nodes(namespace, "jobs", app_id)


def workflows(namespace: str, app_id: str) -> Address:
    """Address the gateways of an application that do not own workflows of it yet."""
    return _of_nodes(namespace, "workflows", app_id)


@lru_cache(maxsize=4096)
def owner(namespace: str, app_id: str, node_id: str) -> Address:
    """Address one node of an application, of what it owns."""
    return _of_node(namespace, "owner", app_id, node_id)


@lru_cache(maxsize=4096)
def work(namespace: str, app_id: str, node_id: str) -> Address:
    """Address one node of an application, of activities that its workers run for others."""
    return _of_node(namespace, "work", app_id, node_id)


@lru_cache(maxsize=4096)
def node(namespace: str, app_id: str, node_id: str) -> Address:
    """Address one node, of what it tells others and does for them."""
    return _of_node(namespace, "node", app_id, node_id)


@lru_cache(maxsize=4096)
def owners(namespace: str, kind: str) -> Address:
    """Address every node that hosts a kind of what is owned; its name may be long, so the address has a hash of it."""
    return replace(_of_nodes(namespace, "owners", blake2s(kind.encode(), digest_size=8).hexdigest()), label=kind)


def readers(namespace: str) -> Address:
    """Address every node that reads input bindings for others."""
    return _of_nodes(namespace, "readers")


def triggered(namespace: str) -> Address:
    """Address every node whose application may be triggered."""
    return _of_nodes(namespace, "triggered")


def supply(control: str) -> Address:
    """Address the operator of a cluster, by its own namespace."""
    return Address(Kind.OPERATOR, f"mesh.{_bounded('namespace', control)}.supply", "", "supply")


def supplied(control: str, namespace: str) -> Address:
    """Address the gateways of a namespace that an operator gives something."""
    return _of_nodes(control, "supplied", namespace)


def _of_node(namespace: str, what: str, app_id: str, node_id: str) -> Address:
    space = f"mesh.{_bounded('namespace', namespace)}.{what}.{_bounded('app id', app_id)}"
    return Address(Kind.OWNER, f"{space}.{_bounded('node', node_id)}", "", app_id)


def _of_nodes(namespace: str, what: str, name: str = "") -> Address:
    space = f"mesh.{_bounded('namespace', namespace)}.{what}"
    return Address(Kind.NODES, f"{space}.{_bounded('app id', name)}" if name else space, "", name or what)


def matches(pattern: str, name: str) -> bool:
    """Tell whether a dotted name fits a dotted pattern with ``*`` and ``>``."""
    wanted, given = pattern.split("."), name.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(given) > index
        if index >= len(given) or token not in ("*", given[index]):
            return False
    return len(wanted) == len(given)


def overlaps(first: str, second: str) -> bool:
    """Tell whether a name exists that fits both dotted patterns."""
    one, two = first.split("."), second.split(".")
    for a, b in zip(one, two, strict=False):
        if a == ">" or b == ">":
            return True
        if a != b and "*" not in (a, b):
            return False
    return len(one) == len(two)
