"""The native layout: topics as they stand on a broker, shared with programs that never heard of the mesh.

Written is the structured envelope as Dapr's runtime writes it, byte for byte; binary mode or the mere data on request.
Read is whatever comes, told apart by message: binary mode by its attributes among the headers, structured mode by
being a JSON object, anything else by its content type or not at all. What the publisher says beside an event goes to
the broker as it is (``Message.metadata``), and what the broker says of a message goes to the application.

Source: Dapr 1.18 as it was seen on these brokers; docs/compatibility.md lists where this differs.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, get_args

from msgspec.structs import replace

from mesh.address import Address
from mesh.blocks import envelope
from mesh.blocks.envelope import CONTENT_TYPE, Envelope, PublishOptions
from mesh.blocks.wire import Sign, letter_headers, letter_of
from mesh.broker import OF_LETTERS, ROUTING, ROUTING_HEADER, Delivery, Features, Message
from mesh.errors import BadArgumentError, EventError, FeatureNotSupportedError
from mesh.event import encode_header_value, from_structured, is_structured, media_type, to_headers
from mesh.features import not_in_layout
from mesh.telemetry import BAGGAGE, is_baggage, is_traceparent

__all__ = ["ContentMode", "NativeWire"]

ContentMode = Literal["structured", "binary", "raw"]
OCTETS = "application/octet-stream"
OWN = "mesh-"
# Programs write the attributes of binary mode by the bindings of several protocols, on every broker.
PREFIXES = ("ce_", "ce-", "cloudEvents:", "cloudEvents_")
MAX_TOLD_BYTES = 16 * 1024
# What the call to the application says itself, or what would change how it is read, or by whom.
UNTOLD_FAMILIES = ("dapr-", "x-forwarded-")
UNTOLD = frozenset(
    (
        *("authorization", "cookie", "forwarded"),
        *("connection", "content-encoding", "content-length", "content-type", "expect", "host"),
        *("keep-alive", "proxy-authorization", "proxy-connection", "pubsubname", "te", "traceparent", "tracestate"),
        *("trailer", "transfer-encoding", "upgrade"),
    )
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_PLAIN = re.compile(r"[!-~](?:[ -~]*[!-~])?\Z|\Z")
# What a header does not carry, or not at its ends; text of any language goes as UTF-8.
_UNCARRIED = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]|\A\s+|\s+\Z")


class NativeWire:
    """Makes and reads the messages of a component whose topics are shared.

    Attributes:
        publish_metadata: What a publisher's metadata may say to the broker.
    """

    def __init__(self, features: Features, pubsub: str, mode: ContentMode = "structured") -> None:
        """Prepare for a component's broker.

        Args:
            features: The broker's.
            pubsub: The component's name.
            mode: How events are written when their publisher says nothing of it.
        """
        self._features, self._pubsub, self._mode = features, pubsub, mode
        self.publish_metadata = (*features.publish_metadata, "__key", "cloudevents")

    def compose(
        self,
        options: PublishOptions,
        content_type: str | None,
        body: bytes,
        metadata: Mapping[str, str],
        *,
        raw: bool,
        key: str | None,
    ) -> Message:
        """Make the message of an event."""
        features = self._features
        if options.not_before is not None:
            raise not_in_layout(features, "delayed events", "delay")
        key = key or metadata.get("__key")
        mode = self._mode_of(metadata)
        if raw or mode == "raw":
            headers = {CONTENT_TYPE: content_type} if mode == "raw" and content_type and features.headers else {}
            return Message(headers, body, key, secrets.token_hex(12), metadata)
        if features.expires:  # By the broker; an envelope that said so as well would be read by who has another clock.
            options = replace(options, expires_at=None)
        identity: object
        if is_structured(content_type):
            members = envelope.complete(options, body)
            identity, body = members.get("id"), envelope.written(members)
        else:
            identity, body = envelope.build_enveloped(options, content_type, body)
        message = Message({}, body, key, str(identity) if identity else secrets.token_hex(12), metadata)
        return self._in_binary(message) if mode == "binary" else message

    def _mode_of(self, metadata: Mapping[str, str]) -> str:
        mode = metadata.get("cloudevents", self._mode)
        if mode not in get_args(ContentMode):
            raise BadArgumentError(f"the metadata 'cloudevents' is structured, binary or raw, not {mode[:40]!r}")
        if mode == "binary" and not self._features.headers:
            raise FeatureNotSupportedError(self._features.name, "events in binary mode: its messages have no headers")
        return mode

    def _in_binary(self, message: Message) -> Message:
        event = from_structured(message.body)
        headers = to_headers(replace(event, datacontenttype=None), self._features.event_prefix)
        if event.datacontenttype is not None:
            headers[CONTENT_TYPE] = event.datacontenttype
        return replace(message, headers=headers, body=event.data)

    # Proofs: of what is the mesh's own. Whatever a broker adds, or takes away, is not signed.

    def sign(self, sign: Sign, address: Address, message: Message) -> Message:
        """Sign a message, where it has headers to say so."""
        if not self._features.headers:
            return message
        signed = sign(address, self._covered(message))
        return replace(message, headers={**message.headers, **signed.headers})

    def signed(self, delivery: Delivery) -> Delivery:
        """Give a delivery as it was signed."""
        return Delivery(self._covered(delivery.message), delivery.address, delivery.attempt, delivery)

    def _covered(self, message: Message) -> Message:
        prefix = self._features.event_prefix
        names = (name for name in message.headers if name.startswith((OWN, prefix)))
        return replace(message, headers={name: message.headers[name] for name in names})

    # Reading

    def read(self, message: Message, topic: str, *, raw: bool, batch: bool) -> Envelope:
        """Make what an application receives."""
        trace = message.metadata.get("traceparent") or message.headers.get("traceparent", "")
        trace = trace if is_traceparent(trace) else ""
        if raw:
            body = message.body
            if not batch:
                body = envelope.wrap_raw(body, pubsub=self._pubsub, topic=topic, traceparent=trace)
            return Envelope(body, trace, raw=True)
        said = message.headers
        prefix = next((each for each in PREFIXES if f"{each}specversion" in said), None) if said else None
        if prefix is not None:
            found = self._binary(message, topic, prefix)
        elif media_type(self._content_type(message)) == OCTETS:
            if batch:
                body = envelope.wrap_raw(message.body, pubsub=self._pubsub, topic=topic, traceparent=trace)
                return Envelope(body, trace)
            return Envelope(message.body, trace)
        else:
            try:
                found = envelope.read({}, message.body, pubsub=self._pubsub, topic=topic, prefix="ce-")
            except EventError as error:
                hint = 'a subscription with the metadata rawPayload: "true" takes any message'
                raise EventError(f"{error}; {hint}") from None
        return found if found.traceparent or not trace else replace(found, traceparent=trace)

    @staticmethod
    def _content_type(message: Message) -> str:
        return message.headers.get(CONTENT_TYPE) or message.headers.get("Content-Type", "")

    def _binary(self, message: Message, topic: str, prefix: str) -> Envelope:
        size = len(prefix)
        headers = {f"ce-{name[size:]}": value for name, value in message.headers.items() if name.startswith(prefix)}
        for name in ("ce-data", "ce-data_base64"):  # These are no attributes.
            headers.pop(name, None)
        if content_type := self._content_type(message):
            headers.setdefault("ce-datacontenttype", encode_header_value(content_type))
        body = message.body and envelope.as_json(headers.get("ce-datacontenttype"), message.body)
        return envelope.read(headers, body, pubsub=self._pubsub, topic=topic, prefix="ce-")

    def told(self, message: Message) -> Mapping[str, str]:
        """Give what the broker tells of a message, as far as it can stand in headers, and is not said otherwise."""
        found: dict[str, str] = {}
        room = MAX_TOLD_BYTES
        for name, value in (letter_headers(message) | dict(message.metadata)).items():
            if len(name) > MAX_TOLD_BYTES or not _may_be_told(name):
                continue
            if name.lower() == BAGGAGE and not is_baggage(value):
                continue
            text = value if _PLAIN.match(value) else _UNCARRIED.sub(_encoded, value)
            room -= len(name) + len(text.encode())
            if room >= 0:
                found[name] = text
        return found

    def letter(self, message: Message, reason: str, attempts: int, topic: str, group: str) -> Message:
        """Make a message's dead letter: what the broker told of it goes along."""
        metadata = {**message.metadata, "pubsubName": self._pubsub}
        made = letter_of(message, reason, attempts, topic, group)
        headers = dict(made.headers) if self._features.headers else {}
        if headers and (routed := metadata.pop(ROUTING, "")):
            headers[ROUTING_HEADER] = encode_header_value(routed)
        return replace(made, metadata=metadata, headers=headers)


def _encoded(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))


@lru_cache(maxsize=256)
def _may_be_told(name: str) -> bool:
    """Tell whether a header of this name means nothing to whoever passes it on: those of a topic are few."""
    folded = name.lower().replace("_", "-")  # Servers of some kinds make no difference between these.
    if folded.startswith(OWN):
        return folded.startswith(OF_LETTERS) and _TOKEN.match(name) is not None
    return not folded.startswith(UNTOLD_FAMILIES) and folded not in UNTOLD and _TOKEN.match(name) is not None
