"""What a component of NATS JetStream says in the native layout, and what its consumers are made of.

Source: Dapr 1.18, NATS JetStream pub/sub.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2s

from brokers.native._topics import NativeSettings
from brokers.nats._config import ConnectionSettings
from brokers.nats._consumer import consumer_name
from brokers.nats._errors import JSON
from brokers.shared.settings import Reading, layout_setting
from mesh.address import Address, encode_token
from mesh.broker import SubscribeOptions
from mesh.errors import BadArgumentError, TopologyMismatchError
from mesh.resources.settings import BOOLEAN, LIMIT, Kind, choice, setting, whole
from mesh.values import parse_duration

__all__ = ["JetStreamSettings", "check_consumer", "stream_named", "subject_of", "wanted_consumer"]

MAX_NAME = 120
EPHEMERAL_SECONDS = 60.0  # Outlives a lost connection, but not a process that died.
_PUSH_ONLY = ("flowControl", "heartbeat", "rateLimit", "maxDeliver", "backOff")
# The server's own, and the mesh's: an application that may publish could steer them.
_RESERVED = ("$", "_INBOX.", "mesh.")
_NO_SUBJECT = re.compile(r"[\s\x00-\x1f\x7f]")
_NS = 1_000_000_000


def _only(word: str, why: str) -> Kind:
    def parse(text: str) -> str:
        if text.casefold() != word:
            raise ValueError(f"is {word}: {why}")
        return word

    return Kind("one of a few words", parse, (word,))


def _durations(text: str) -> tuple[float, ...]:
    return tuple(parse_duration(each.strip()) for each in text.split(","))


def _deliveries(text: str) -> int:
    return -1 if text == "-1" else whole(1).parse(text)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class JetStreamSettings(NativeSettings, ConnectionSettings):
    """Settings of ``pubsub.jetstream``."""

    layout: str = layout_setting()
    stream: str = setting(
        "streamName", "The stream to read; if not set, the one that has the topic.", default="", example="ORDERS"
    )
    creates: bool = setting(
        "createStream",
        "Make a stream for a topic that none has, named as the topic (or `streamName`); otherwise that is an error.",
        BOOLEAN,
        default=False,
    )
    durable: str = setting(
        "durableName",
        "The durable consumer, as every sidecar names it; it is for one topic. If neither this nor `queueGroupName` is "
        "set, each consumer group has a durable pull consumer per topic.",
        default="",
        example="shop",
    )
    queue: str = setting(
        "queueGroupName", "The deliver group of a push consumer, whose members compete.", default="", example="shop"
    )
    policy: str = setting(
        "deliverPolicy",
        "Where a new consumer begins.",
        choice("all", "last", "new", "sequence", "time"),
        default="all",
    )
    sequence: int = setting(
        "startSequence", "Number of the first message, with `deliverPolicy: sequence`.", whole(), default=0
    )
    since: int = setting(
        "startTime", "Unix time in seconds of the first message, with `deliverPolicy: time`.", whole(), default=0
    )
    ack_wait: float | None = setting(
        "ackWait",
        "How long a delivery whose member is gone is kept from others; else 15s, and of a push consumer 30s.",
        LIMIT,
        example="30s",
    )
    at_once: int = setting(
        "maxAckPending",
        "Most unsettled deliveries of a group; else any number, and of a push consumer 1,000.",
        whole(),
        default=0,
        example="1000",
    )
    deliveries: int = setting(
        "maxDeliver",
        "How often a push consumer delivers a message at most, which is lost to it then; -1 = as often as it takes.",
        Kind("whole number from 1 on, or -1", _deliveries),
        default=-1,
    )
    backoff: tuple[float, ...] = setting(
        "backOff",
        "Instead of `ackWait`, for each delivery of a push consumer.",
        Kind("durations with commas between", _durations),
        default=(),
        example="30s, 1m",
    )
    flow_control: bool = setting("flowControl", "Of a push consumer without a group.", BOOLEAN, default=False)
    heartbeat: float | None = setting("heartbeat", "Of a push consumer without a group.", LIMIT, example="10s")
    rate: int = setting("rateLimit", "Bits per second that a push consumer delivers at most.", whole(), default=0)
    copies: int = setting("replicas", "Copies of a consumer that is made, and of a stream.", whole(), default=0)
    memory: bool = setting(
        "memoryStorage", "Keep what is made in memory: a restart of the server loses it.", BOOLEAN, default=False
    )
    ack_policy: str = setting(
        "ackPolicy",
        "`explicit` alone.",
        _only("explicit", "with another one, the server forgets events that no application has taken"),
        default="explicit",
    )
    domain: str = setting("domain", "The JetStream domain.", default="", example="hub")
    api: str = setting(
        "apiPrefix", "What the subjects of the API begin with; else `$JS.API`.", default="", example="JS.hub.API"
    )
    concurrency: str = setting(
        "concurrency",
        "Whether a member works on one event at a time, or on many.",
        choice("single", "parallel"),
        default="parallel",
    )

    @property
    def api_prefix(self) -> str:
        """What the subjects of the API begin with."""
        return self.api.rstrip(".") or (f"$JS.{self.domain}.API" if self.domain else "$JS.API")

    @property
    def shared(self) -> str:
        """The consumer that every sidecar of this component's kind uses; empty = each group has its own."""
        return self.durable or self.queue

    def check(self, reading: Reading[JetStreamSettings]) -> None:
        """Note what does not go together."""
        if self.domain and self.api:
            reading.wrong("domain", "domain and apiPrefix exclude each other")
        for policy, name in (("sequence", "startSequence"), ("time", "startTime")):
            if self.policy == policy and not reading.text(name):
                reading.wrong("deliverPolicy", f"it needs {name}")
        if self.flow_control and not self.heartbeat:
            reading.wrong("flowControl", "it needs heartbeat")
        for name, given in (("flowControl", self.flow_control), ("heartbeat", self.heartbeat)):
            if given and self.queue:
                reading.wrong(name, "a consumer with a deliver group (queueGroupName) has none")
        for name in ("durableName", "queueGroupName", "streamName"):
            if re.search(r"[\s.*>/\\]", reading.text(name)):
                reading.wrong(name, "no name of NATS has a blank, '.', '*', '>', '/' or '\\'")
        for name in ("domain", "apiPrefix"):
            if re.search(r"[\s*>]", reading.text(name)):
                reading.wrong(name, "has a blank or a wildcard")

    def useless(self, text: Callable[[str], str]) -> list[str]:
        """Name those that are set and have no effect.

        Args:
            text: Gives a setting's text; empty = not set.
        """
        found = [] if self.shared else [name for name in _PUSH_ONLY if text(name).lower() not in ("", "false", "-1")]
        pairs = (("sequence", "startSequence"), ("time", "startTime"))
        return found + [name for policy, name in pairs if text(name) and self.policy != policy]


def subject_of(address: Address, api_prefix: str, *, pattern: bool = False) -> str:
    """Give a topic's subject.

    Args:
        address: The topic.
        api_prefix: What the subjects of the API begin with.
        pattern: Whether it may hold wildcards.

    Raises:
        BadArgumentError: It cannot be one, or not a topic.
    """
    subject = address.label
    tokens = subject.split(".")
    if _NO_SUBJECT.search(subject) or "" in tokens:
        raise BadArgumentError(f"topic {subject!r}: a subject of NATS has no blanks, and no empty part between dots")
    if not pattern and not {"*", ">"}.isdisjoint(tokens):
        raise BadArgumentError(f"topic {subject!r}: '*' and '>' are wildcards of NATS; nothing is published to them")
    if subject.startswith((*_RESERVED, f"{api_prefix}.")):
        raise BadArgumentError(f"topic {subject!r}: such a subject is the server's own, or the mesh's")
    return subject


def stream_named(subject: str) -> str:
    """Name the stream that is made for a subject."""
    name = encode_token(subject)
    return (
        name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}-{blake2s(subject.encode(), digest_size=8).hexdigest()}"
    )


def wanted_consumer(settings: JetStreamSettings, subject: str, options: SubscribeOptions, inbox: str) -> JSON:
    """Say what consumer a group has for a subject.

    Args:
        settings: The component's.
        subject: The topic, or a pattern.
        options: The subscription's.
        inbox: Where it would deliver to.
    """
    shared = settings.shared if options.group == settings.shared and not options.ephemeral else ""
    name = shared or consumer_name(options.group, subject)
    wanted: JSON = {
        "name": name,
        "durable_name": name,
        "ack_policy": "explicit",
        "filter_subject": subject,
        "replay_policy": "instant",
        **_beginning(settings, ephemeral=options.ephemeral),
    }
    if settings.copies:
        wanted["num_replicas"] = settings.copies
    if settings.memory:
        wanted["mem_storage"] = True
    expires = EPHEMERAL_SECONDS if options.ephemeral else options.expires
    if shared:
        return wanted | _push(settings, inbox)
    if expires is not None:
        wanted["inactive_threshold"] = int(expires * _NS)
    ack_wait = settings.ack_wait or options.ack_wait
    # What waits for a delayed attempt counts as pending: a limit would have it hold up the rest.
    return wanted | {"ack_wait": int(ack_wait * _NS), "max_ack_pending": settings.at_once or -1, "max_deliver": -1}


def _beginning(settings: JetStreamSettings, *, ephemeral: bool) -> JSON:
    if ephemeral:
        return {"deliver_policy": "new"}
    if settings.policy == "sequence":
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": settings.sequence}
    if settings.policy == "time":
        since = datetime.fromtimestamp(settings.since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"deliver_policy": "by_start_time", "opt_start_time": since}
    return {"deliver_policy": settings.policy}


def _push(settings: JetStreamSettings, inbox: str) -> JSON:
    """Say what the reference's consumer has; what is not set is the server's to choose, as it is there."""
    said: JSON = {
        "deliver_group": settings.queue,
        "ack_wait": int((settings.ack_wait or 0) * _NS),
        "max_ack_pending": settings.at_once,
        "max_deliver": settings.deliveries,
        "backoff": [int(each * _NS) for each in settings.backoff],
        "flow_control": settings.flow_control,
        "idle_heartbeat": int((settings.heartbeat or 0) * _NS),
        "rate_limit_bps": settings.rate,
    }
    return {"deliver_subject": inbox, **{name: value for name, value in said.items() if value}}


def check_consumer(stream: str, info: JSON, wanted: JSON) -> JSON:
    """Give the settings of a consumer that is there, and is used as it is.

    Raises:
        TopologyMismatchError: That would lose events, or take others than are wanted.
    """
    config: JSON = info["config"]  # type: ignore[assignment]  # as the server documents it
    must = {name: wanted.get(name, "") for name in ("ack_policy", "filter_subject")}
    if config.get("deliver_subject"):
        must["deliver_group"] = wanted.get("deliver_group", "")
    sides = [
        f"{name} is {config.get(name, '')!r} and should be {value!r}"
        for name, value in must.items()
        if config.get(name, "") != value
    ]
    if sides:
        raise TopologyMismatchError(
            f"consumer {wanted['name']} of stream {stream} differs: {', '.join(sides)}; "
            "take another durableName, or delete that consumer"
        )
    return config
