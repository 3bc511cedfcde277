"""Our topics and MQTT's: a topic is what its users call it, so that devices and meshes mean the same by it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache

from brokers.shared.mqtt import UNCLEAN
from mesh.address import Address, Kind, encode_token
from mesh.errors import BrokerError, FeatureNotSupportedError, PublishRejectedError

__all__ = ["Filter", "filter_of", "is_clean", "label_of", "topic_of"]

MAX_TOPIC_BYTES = 65535
_ESCAPE = re.compile(r"=([0-9A-F]{6})")
_SHARED = re.compile(r"\$(?:share|queue)/([^/+#]+)/(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Filter:
    """What a group subscribes to.

    Attributes:
        pattern: The topic filter, without ``$share``.
        group: The name of the shared subscription.
        key: Names the group's sessions of this filter; the same at all its members.
    """

    pattern: str
    group: str
    key: str

    @property
    def shared(self) -> str:
        """The filter of a shared subscription."""
        return f"$share/{self.group}/{self.pattern}"


def is_clean(text: str) -> bool:
    """Tell whether a server takes this text as it is."""
    return not UNCLEAN.search(text)


def _is_escape(match: re.Match[str]) -> bool:
    code = int(match[1], 16)
    return code <= 0x10FFFF and (chr(code) == "=" or not is_clean(chr(code)))


def _escape(label: str) -> str:
    """Write what MQTT does not allow as ``=XXXXXX``, and ``=`` where it would read as that."""
    if "=" in label:
        label = _ESCAPE.sub(lambda m: f"=00003D{m[1]}" if _is_escape(m) else m[0], label)
    return UNCLEAN.sub(lambda m: f"={ord(m[0]):06X}", label)


def _unescape(topic: str) -> str:
    if "=" not in topic:
        return topic
    return _ESCAPE.sub(lambda m: chr(int(m[1], 16)) if _is_escape(m) else m[0], topic)


@lru_cache(maxsize=4096)
def topic_of(address: Address, prefix: str) -> str:
    """Give the topic to publish to.

    Raises:
        PublishRejectedError: MQTT has no such topic.
    """
    topic = prefix.replace("{space}", address.space) + _escape(address.label)
    if "+" in topic or "#" in topic:
        raise PublishRejectedError(f"an MQTT topic to publish to has no '+' and no '#': {address.label!r}")
    if len(topic.encode()) > MAX_TOPIC_BYTES:
        raise PublishRejectedError(f"the topic is longer than {MAX_TOPIC_BYTES} bytes: {address.label[:40]!r}…")
    return topic


@lru_cache(maxsize=4096)
def label_of(topic: str, space: str, prefix: str) -> Address:
    """Address the topic that a message was published to."""
    label = _unescape(topic.removeprefix(prefix.replace("{space}", space)))
    return Address(Kind.TOPIC, space, ".".join(map(encode_token, label.split("."))), label)


def filter_of(address: Address, group: str, prefix: str) -> Filter:
    """Read what a subscription asks for: MQTT's wildcards count, and ``$share/<group>/`` names another group.

    Raises:
        FeatureNotSupportedError: It has the mesh's wildcards.
        BrokerError: MQTT has no such filter.
    """
    if address.is_pattern:
        raise FeatureNotSupportedError("mqtt", f"the pattern {address.label!r}; MQTT's wildcards are + and #")
    label = address.label
    if named := _SHARED.fullmatch(label):
        group, label = named[1], named[2]
    pattern = prefix.replace("{space}", address.space) + _escape(label)
    levels = pattern.split("/")
    if any(("+" in level or "#" in level) and len(level) > 1 for level in levels) or "#" in levels[:-1]:
        raise BrokerError(f"{label!r} is no MQTT topic filter: '+' and '#' stand for whole levels, '#' for the last")
    name = encode_token(group)
    return Filter(pattern, name, hashlib.sha256(f"{name}/{pattern}".encode()).hexdigest()[:16])
