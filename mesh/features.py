"""What brokers can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mesh.errors import FeatureNotSupportedError

__all__ = ["Features", "not_in_layout"]


@dataclass(frozen=True, slots=True)
class Features:
    """What a broker can do; the only source of truth about it.

    Attributes:
        name: The broker's name in messages and metrics.
        event_prefix: Prefix of CloudEvents attributes in this broker's headers.
        max_message_bytes: Largest message, headers included.
        durable: Whether what was confirmed outlives the broker's process.
        shared: Whether other processes can take part.
        ordering: Whether ``SubscribeOptions.ordered`` is honoured.
        delay: Whether ``nack(delay)`` is held by the broker.
        dedup: Whether ``Message.id`` is honoured within a window.
        wildcard: Whether patterns can be subscribed to.
        key_value: Whether it is a ``KeyValueProvider``.
        ephemeral: Whether ``SubscribeOptions.ephemeral`` is honoured.
        release_counts: Whether handing back an unhandled delivery counts as an attempt.
        attempts: Whether a delivery tells by its attempt that another member had it before.
        retention: Whether topics keep what is published, within their ``Topology``: a new group begins
            with the oldest. Otherwise a group gets what comes after a member of it first subscribed.
        reassigns: Whether a delivery can go to another member while its own lives: after ``ack_wait``,
            or while that one leaves. Otherwise all that a member has goes once it has left or died.
        frames: Whether it carries frames, which a backbone must.
        embeds: Whether data travels as a part of one JSON object, and is written anew when that is read.
        layout: ``mesh`` = names and bytes are the mesh's own; ``native`` = they are as every other program there has
            them, so that topics are shared with these. Then an address is known by its ``label`` alone.
        both_layouts: Whether its components can have the mesh's layout as well.
        both_lack: What of these the mesh's layout lacks as well, by the names here.
        headers: Whether ``Message.headers`` travel beside the body; otherwise they must be empty.
        rejects: Whether the broker keeps what a delivery's ``reject`` gave up, among its own dead letters.
        expires: Whether the broker itself lets an event expire that was published with ``ttlInSeconds``.
        publish_metadata: What is read of ``Message.metadata``, ``*`` for all of it.
        subscribe_metadata: What is read of ``SubscribeOptions.metadata``.
        own_wildcards: Whether the broker has wildcards of its own, which stand in a topic's name as it knows them.
        competing: Whether several members of a group take part at once; otherwise the one that came last has all.
    """

    name: str
    event_prefix: str = "ce-"
    max_message_bytes: int = 1024 * 1024
    durable: bool = False
    shared: bool = False
    ordering: bool = False
    delay: bool = False
    dedup: bool = False
    wildcard: bool = False
    key_value: bool = False
    ephemeral: bool = False
    release_counts: bool = False
    attempts: bool = True
    retention: bool = True
    reassigns: bool = True
    frames: bool = True
    embeds: bool = False
    layout: Literal["mesh", "native"] = "mesh"
    both_layouts: bool = True
    both_lack: tuple[str, ...] = ()
    headers: bool = True
    rejects: bool = False
    expires: bool = False
    publish_metadata: tuple[str, ...] = ()
    subscribe_metadata: tuple[str, ...] = ()
    own_wildcards: bool = False
    competing: bool = True


def not_in_layout(features: Features, what: str, ability: str) -> FeatureNotSupportedError:
    """Make the error of asking for what the native layout lacks; it says which line gives it, if one does.

    Args:
        features: Of the layout.
        what: Was asked for.
        ability: Its name among the features.
    """
    if not features.both_layouts or ability in features.both_lack:
        return FeatureNotSupportedError(features.name, what)
    text = f"{what} in the native layout; the component's setting 'layout: mesh' has that, on topics of the mesh's own"
    return FeatureNotSupportedError(features.name, text)
