"""Subscriptions: declared in files, or asked for by the application.

Source: Dapr 1.18, declarative and programmatic subscriptions, bulk subscribe.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import orjson

from mesh.errors import ExpressionError, Problem
from mesh.expressions import compile_match
from mesh.scopes import in_scope
from mesh.spelling import did_you_mean
from mesh.values import parse_bool, parse_duration, parse_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "BROKERS_OWN",
    "METADATA",
    "DEFAULT_MAX_IN_FLIGHT",
    "MAX_IN_FLIGHT",
    "Asked",
    "BulkOptions",
    "Rule",
    "Subscription",
    "asked",
    "clashes",
    "combined",
    "checked_route",
    "programmatic_subscriptions",
    "unknown_metadata",
    "without_component",
]

DEFAULT_MAX_IN_FLIGHT = 64
MAX_IN_FLIGHT = 10_000
# As long as events are kept. Whoever is away for longer loses some anyway; and what the group has handled is not kept
# any more, so that beginning anew it gets nothing twice.
GROUP_EXPIRES = 7 * 24 * 3600.0
MIN_GROUP_EXPIRES, MAX_GROUP_EXPIRES = 60.0, 365 * 24 * 3600.0
_UNCALLABLE = re.compile(r"[\x00-\x20\x7f]")  # What cannot stand in a request line.


@dataclass(frozen=True, slots=True)
class Asked:
    """What a subscription's metadata asks for.

    Attributes:
        accepts_unproven: Whether events are taken whose publisher has not proven who it is, as those of other programs.
        dead_letters: Whether dead letters are taken from there that other applications' gateways have moved.
        deduplicate: Seconds for which an event is known; zero = it is not looked at.
        delivery: To one instance of a group, or to all (``broadcast``).
        group: None = that of the component.
        group_expires: Seconds for which nobody used a group that only streams have, after which it ends.
        max_in_flight: Deliveries at once.
        ordered: Whether events of one key follow each other.
        raw: Whether events have no envelope.
    """

    accepts_unproven: bool = False
    dead_letters: bool = False
    deduplicate: float = 0.0
    delivery: str = "group"
    group: str | None = None
    group_expires: float = GROUP_EXPIRES
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT
    ordered: bool = False
    raw: bool = False


def _delivery(text: str) -> str:
    if text not in ("group", "broadcast"):
        raise ValueError(f"delivery must be group or broadcast, not '{text}'")
    return text


def _group_expires(text: str) -> float:
    seconds = parse_duration(text)
    if not MIN_GROUP_EXPIRES <= seconds <= MAX_GROUP_EXPIRES:
        raise ValueError(f"groupExpires is from 1m to 8760h, not '{text}'")
    return seconds


# The last of two names for one field counts.
METADATA: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "acceptUnproven": ("accepts_unproven", parse_bool),
    "deadLetters": ("dead_letters", parse_bool),
    "deduplicate": ("deduplicate", parse_duration),
    "delivery": ("delivery", _delivery),
    "group": ("group", str),
    "groupExpires": ("group_expires", _group_expires),
    "isRawPayload": ("raw", parse_bool),
    "maxInFlight": ("max_in_flight", lambda text: parse_whole(text, least=1, most=MAX_IN_FLIGHT)),
    "ordered": ("ordered", parse_bool),
    "rawPayload": ("raw", parse_bool),
}


# What brokers of one kind read; whether that of a subscription does is known when it is subscribed.
BROKERS_OWN = {
    name.casefold(): name
    for name in (
        *("maxPriority", "queueName", "queueType", "routingKey", "singleActiveConsumer", "maxLen", "maxLenBytes"),
        *("valueSchemaType", "startSequence", "startTime", "deliverPolicy", "requireAllProperties"),
        *("requireSessions", "maxConcurrentSessions", "sessionIdleTimeoutInSec"),
    )
}


@dataclass(frozen=True, slots=True)
class Rule:
    """A route for the events that an expression takes.

    Attributes:
        match: A CEL expression over ``event``; empty = every event.
        path: Where the application takes them, with a leading slash.
        place: Where the rule stands, for people.
    """

    match: str
    path: str
    place: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class BulkOptions:
    """Whether and how deliveries are batched; ``max_wait`` is in seconds."""

    enabled: bool = False
    max_messages: int = 100
    max_wait: float = 1.0

    @classmethod
    def of(cls, enabled: bool, max_messages: int, max_wait_ms: int) -> BulkOptions:
        """Take what was asked for; as in Dapr, zero means the default."""
        standard = cls()
        return cls(enabled, max_messages or standard.max_messages, max_wait_ms / 1000 or standard.max_wait)


@dataclass(frozen=True, slots=True)
class Subscription:
    """What an application wants from one topic.

    Attributes:
        name: The resource's name; empty for one that is not declared.
        pubsub: The pub/sub component.
        topic: May hold wildcards where the broker has them.
        rules: Tried in order; the first that takes an event decides.
        default_path: For events that no rule takes; None = they are dropped.
        metadata: Passed to the component.
        dead_letter_topic: On the same component; None = none.
        bulk: Batching.
        scopes: App ids that it is for; empty = all.
        origin: Who asked for it.
        namespace: None = not given.
        file: None for one that is not declared.
        line: Where the document begins, from 1.
    """

    name: str
    pubsub: str
    topic: str
    rules: tuple[Rule, ...] = ()
    default_path: str | None = None
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    dead_letter_topic: str | None = None
    bulk: BulkOptions = BulkOptions()
    scopes: tuple[str, ...] = ()
    origin: Literal["DECLARATIVE", "PROGRAMMATIC", "STREAMING"] = "DECLARATIVE"
    namespace: str | None = None
    file: str | None = field(default=None, compare=False)
    line: int | None = field(default=None, compare=False)

    @property
    def told(self) -> str:
        """Say which one it is."""
        return f"'{self.name}' ({self.file}:{self.line})" if self.file else "that of the application"


def combined(subscriptions: Iterable[Subscription]) -> tuple[list[Subscription], list[Problem]]:
    """Make one of those to the same topic: their rules apply in this order, before the default route.

    Returns:
        One for each topic, and what two of them say differently; there the first counts.
    """
    found: dict[tuple[str, str], Subscription] = {}
    problems: list[Problem] = []
    for each in subscriptions:
        key = each.pubsub, each.topic
        first = found.setdefault(key, each)
        if first is each:
            continue
        merged: dict[str, object] = {"rules": first.rules + each.rules}
        for name, shown in _SINGLE.items():
            mine, other = getattr(first, name), getattr(each, name)
            unset = getattr(_NOTHING, name)
            if mine == unset:
                merged[name] = other
            elif other not in (unset, mine) and _slashed(other) != _slashed(mine):
                message = (
                    f"a second subscription to the topic '{each.topic}' of '{each.pubsub}', beside {first.told}: the "
                    f"rules of both would apply, but they differ in {shown}, of which there can be one only"
                )
                problems.append(Problem(message, "", each.file, each.line, None if each.line is None else 1))
        found[key] = replace(first, **merged)  # type: ignore[arg-type]  # fields of it, by name
    return list(found.values()), problems


def clashes(subscriptions: Sequence[Subscription]) -> list[Problem]:
    """Find what `combined` would say to any application in any namespace."""
    apps = {"", *(app_id for each in subscriptions for app_id in each.scopes)}
    problems: dict[Problem, None] = {}
    for namespace in {each.namespace for each in subscriptions}:
        for app_id in apps:
            there = [each for each in subscriptions if each.namespace in (None, namespace)]
            problems |= dict.fromkeys(combined(each for each in there if in_scope(each.scopes, app_id))[1])
    return list(problems)


def without_component(
    subscriptions: Iterable[Subscription], names: Sequence[str]
) -> list[tuple[Subscription, Problem]]:
    """Find subscriptions by a pub/sub component that is none of these, each with what is wrong.

    Args:
        subscriptions: Those of files.
        names: Of the pub/sub components that there are.
    """
    found: list[tuple[Subscription, Problem]] = []
    for each in subscriptions:
        if each.pubsub not in names:
            guess = did_you_mean(each.pubsub, names)
            there = f"did you mean {guess!r}?" if guess else f"there is {', '.join(sorted(names)) or 'none'}"
            text = f"there is no pub/sub component {each.pubsub!r} here; {there}"
            found.append((each, Problem(text, "spec.pubsubname", each.file, each.line)))
    return found


def asked(metadata: Mapping[str, str]) -> tuple[Asked, list[tuple[str, str]]]:
    """Read metadata, whose names count without regard to case; and give the names with wrong values, and why."""
    given = {name.casefold(): name for name in metadata}
    values: dict[str, object] = {}
    wrong: list[tuple[str, str]] = []
    for known, (field_name, parse) in METADATA.items():
        name = given.get(known.casefold())
        if name is not None:
            try:
                values[field_name] = parse(metadata[name])
            except ValueError as error:
                wrong.append((name, str(error)))
    return Asked(**values), wrong  # type: ignore[arg-type]  # each read by the function of its field


def unknown_metadata(
    names: Iterable[str], *, stream: bool = False
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Find names that nothing reads, each with what to say: those that look like a known one, then the others.

    Args:
        names: As they were given.
        stream: Whether the subscription is one by a stream.
    """
    known = BROKERS_OWN.keys() | {name.casefold() for name in METADATA}
    near: list[tuple[str, str]] = []
    others: list[tuple[str, str]] = []
    for name in names:
        if name.casefold() == "groupexpires" and not stream:
            others.append((name, f"the metadata '{name}' has no effect here: only groups of streams expire"))
        elif name.casefold() not in known:
            guess = did_you_mean(name, METADATA)
            if guess:
                near.append((name, f"unknown metadata '{name}'; did you mean '{guess}'?"))
            else:
                others.append((name, f"the metadata '{name}' has no effect here (known: {', '.join(METADATA)})"))
    return near, others


def _slashed(value: object) -> object:
    """Write routes that are one path of HTTP in one way."""
    return "/" + value.removeprefix("/") if isinstance(value, str) else value


_NOTHING = Subscription("", "", "")
_SINGLE = {
    "default_path": "the route",
    "metadata": "metadata",
    "dead_letter_topic": "deadLetterTopic",
    "bulk": "bulkSubscribe",
}


def checked_route(path: str) -> str:
    """Give a route as it was written. SDKs and samples leave the slash away that a path of HTTP begins with.

    Raises:
        ValueError: It cannot be called.
    """
    if _UNCALLABLE.search(path):
        raise ValueError(f"the route {path!r} holds a blank or a control character; write it as %20 and the like")
    return path


def programmatic_subscriptions(body: bytes, *, as_given: bool = False) -> tuple[list[Subscription], list[str]]:
    """Read the application's answer to ``GET /dapr/subscribe``.

    Field names are matched without regard to case. What cannot be used is left out with a
    warning, so that one wrong item does not stop the others.

    Args:
        body: A JSON array, ``null`` or nothing.
        as_given: Routes are names rather than paths: of an application on gRPC, which may also leave them away.

    Returns:
        The subscriptions in the application's order, and one warning per item left out.
    """
    if not body.strip():
        return [], []
    try:
        items: object = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return [], [f"the application's subscriptions are no JSON: {error}"]
    if items is None:
        return [], []
    if not isinstance(items, list):
        return [], ["the application's subscriptions must be a JSON array"]
    subscriptions: list[Subscription] = []
    warnings: list[str] = []
    for index, item in enumerate(items):
        try:
            subscriptions.append(_subscription(item, as_given, warnings.append))
        except (ValueError, ExpressionError) as error:
            warnings.append(f"subscription {index} of the application is left out: {error}")
    return subscriptions, warnings


def _subscription(item: object, as_given: bool, warn: Callable[[str], None]) -> Subscription:
    fields = _folded(item, "it")
    pubsub, topic = _text(fields, "pubsubname"), _text(fields, "topic")
    if not pubsub or not topic:
        raise ValueError(f"it has no {'topic' if pubsub else 'pubsubname'}")
    routes = _folded(fields.get("routes"), "routes")
    path = str if as_given else checked_route
    rules = _rules(routes.get("rules"), f"'{topic}' on '{pubsub}'", as_given, warn)
    default = _text(routes, "default") or _text(fields, "route")
    if not rules and not default and not as_given:
        raise ValueError(f"'{topic}' on '{pubsub}' has no usable route")
    metadata = {key: _scalar(value) for key, value in _mapping(fields.get("metadata"), "metadata").items()}
    near, others = unknown_metadata(metadata)
    for _, message in near + others:
        warn(f"subscription of the application to '{topic}' on '{pubsub}': {message}")
    return Subscription(
        name="",
        pubsub=pubsub,
        topic=topic,
        rules=rules,
        default_path=path(default) if default or (as_given and not rules) else None,
        metadata=MappingProxyType(metadata),
        dead_letter_topic=_text(fields, "deadlettertopic") or None,
        bulk=_bulk(_folded(fields.get("bulksubscribe"), "bulkSubscribe")),
        origin="PROGRAMMATIC",
    )


def _rules(value: object, place: str, as_given: bool, warn: Callable[[str], None]) -> tuple[Rule, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError("routes.rules must be an array")  # noqa: TRY004 - bad input, not a bad call
    rules: list[Rule] = []
    for number, item in enumerate(value, 1):
        fields = _folded(item, "a rule")
        match, path = _text(fields, "match"), _text(fields, "path")
        if path or as_given:
            compile_match(match)
            called = path if as_given else checked_route(path)
            rules.append(Rule(match, called, f"rule {number} of the application's subscription"))
        else:
            warn(f"a rule of {place} has no path and is left out: '{match}'")
    return tuple(rules)


def _bulk(fields: Mapping[str, object]) -> BulkOptions:
    enabled = fields.get("enabled")
    if enabled is not None and not isinstance(enabled, bool):
        raise ValueError("bulkSubscribe.enabled must be true or false")
    return BulkOptions.of(enabled is True, _count(fields, "maxMessagesCount"), _count(fields, "maxAwaitDurationMs"))


def _count(fields: Mapping[str, object], name: str) -> int:
    value = fields.get(name.casefold())
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"bulkSubscribe.{name} must be a whole number of at least 0")
    return value


def _mapping(value: object, name: str) -> dict[str, object]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object")  # noqa: TRY004 - bad input, not a bad call
    return value


def _folded(value: object, name: str) -> dict[str, object]:
    return {key.casefold(): item for key, item in _mapping(value, name).items()}


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string")  # noqa: TRY004 - bad input, not a bad call
    return value.strip()


def _scalar(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
