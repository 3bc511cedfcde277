"""Dead letters of a topic: which are meant, what they say, and how they go back to where they came from."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from mesh.address import matches
from mesh.blocks.consumer import SubscriptionSettings
from mesh.broker import LETTER_ATTEMPTS, LETTER_REASON, LETTER_TOPIC, OF_LETTERS
from mesh.errors import (
    BrokerError,
    BrokerUnavailableError,
    ConfigError,
    EventError,
    ExpressionError,
    MeshError,
    PublishRejectedError,
)
from mesh.event import decode_header_value, members_of
from mesh.inspection import Inspectable, Letters, Remembering
from mesh.large import PARTS_HEADER, carrying, whole_letters
from mesh.observed import unobserved

if TYPE_CHECKING:
    from mesh.address import Address
    from mesh.blocks.topics import PubSubComponent
    from mesh.broker import Message
    from mesh.expressions import Match
    from mesh.inspection import Letter, Pile
    from mesh.resources.subscription import Subscription

__all__ = ["Chosen", "Outcome", "described", "letters_of", "origin", "purge", "put_away", "replay", "sent_back"]

KAFKA_TOPIC = "__topic"
PUBLISH_WITHIN = 30.0
MAX_SHOWN = 4096
TOGETHER, TOGETHER_BYTES = 32, 1024 * 1024
# What a delivery told besides: other names are other programs' own.
_OF_DELIVERIES = frozenset({KAFKA_TOPIC, "__partition", "__offset", "__timestamp", "pubsubName"})
_NOT_KEPT = (OF_LETTERS, "mesh-passed-")  # The latter: that a node has moved it (``mesh/trust/kept.py``).


def letters_of(component: PubSubComponent) -> Letters:
    """Give what goes through topics, with each event whole.

    Raises:
        ConfigError: The broker keeps nothing that could be gone through.
    """
    broker = unobserved(component.broker)
    if not isinstance(broker, Letters):
        raise ConfigError(
            f"{component.name}: {broker.features.name} does not keep what nobody has subscribed to; subscribe to the "
            "dead letter topic, or use another broker for it"
        )
    return whole_letters(broker)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which letters are meant.

    Attributes:
        ids: Their ids; empty = any.
        where: A rule over ``event``; None = any.
        of: The topic that they are from, or do not say; empty = any.
        most: How many of them, the oldest first; 0 = all.
        unjudged: What the rule could not be evaluated for: why, and how often that was so.
    """

    ids: frozenset[str] = frozenset()
    where: Match | None = None
    of: str = ""
    most: int = 0
    unjudged: Counter[str] = field(default_factory=Counter)

    async def among(self, pile: Pile, component: PubSubComponent, topic: str) -> AsyncIterator[Letter]:
        """Give the letters that are meant, oldest first; all of them are looked at."""
        left, given = set(self.ids), 0
        async for letter in pile:
            if self.ids and letter.id not in self.ids:
                continue
            if self.of and origin(component, letter.message) not in ("", self.of):
                continue
            if self.where is not None and not self._fits(self.where, component, letter, topic):
                continue
            yield letter
            left.discard(letter.id)
            given += 1
            if (self.ids and not left) or given == self.most:
                return

    def _fits(self, where: Match, component: PubSubComponent, letter: Letter, topic: str) -> bool:
        try:
            return where.matches(_event(component, letter.message, topic))
        except ExpressionError as error:  # As for a subscription's rule, what cannot be evaluated is no match.
            self.unjudged[str(error)] += 1
            return False


async def put_away(component: PubSubComponent, subscriptions: Iterable[Subscription]) -> dict[str, list[str]]:
    """Find where the broker itself leaves letters: the topics of subscriptions, by where theirs are."""
    found: dict[str, list[str]] = {}
    broker = unobserved(component.broker)
    if not isinstance(broker, Inspectable) or not component.group:
        return found
    for each in subscriptions:
        if each.pubsub == component.name:
            try:
                where = component.address(each.topic, pattern=broker.features.wildcard)
                options = SubscriptionSettings.read(each, component).options
                standing = await broker.inspect(where, options)
            except (MeshError, ValueError):  # As mesh doctor tells.
                continue
            if standing.letters:
                found.setdefault(standing.letters, []).append(each.topic)
    return found


def _event(component: PubSubComponent, message: Message, topic: str) -> dict[str, object] | str:
    """Give the event that a letter holds as applications get it; its text where it is none."""
    try:
        return members_of(component.wire.read(message, topic, raw=False, batch=False).body)
    except EventError:
        return message.body.decode("utf-8", "replace")


def origin(component: PubSubComponent, message: Message) -> str:
    """Give the topic that a letter says it is from, as applications name it; empty if it does not say."""
    said = message.headers.get(LETTER_TOPIC)
    if said is not None:
        return decode_header_value(said)
    said = message.headers.get(KAFKA_TOPIC) or message.metadata.get(KAFKA_TOPIC, "")
    return said.removeprefix(component.topic_prefix)


def described(component: PubSubComponent, letter: Letter, topic: str) -> dict[str, Any]:
    """Describe a letter; of its event at most 4,096 characters of data."""
    headers = letter.message.headers
    event = _event(component, letter.message, topic)
    truncated = False
    if isinstance(event, str):
        event, truncated = event[:MAX_SHOWN], len(event) > MAX_SHOWN
    else:
        for name in ("data", "data_base64"):
            if name in event and len(text := str(event[name])) > MAX_SHOWN:
                event[name], truncated = text[:MAX_SHOWN], True
    attempts = headers.get(LETTER_ATTEMPTS, "")
    return {
        "id": letter.id,
        "stored": letter.stored,
        "topic": origin(component, letter.message) or None,
        "attempts": int(attempts) if attempts.isdecimal() and len(attempts) < 10 else None,
        "reason": decode_header_value(headers[LETTER_REASON]) if LETTER_REASON in headers else None,
        "size": len(letter.message.body),
        "event": event,
        "truncated": truncated,
    }


def sent_back(message: Message, topic: str, letter: Letter, prefix: str) -> Message:
    """Make what is published again: the message as it was before it became a letter.

    Its id is another one, since the broker may still know the first; it is the same whenever the same letter is sent
    back, so that once more within a short time is once.
    """

    def kept(name: str) -> bool:
        return name not in _OF_DELIVERIES and not name.startswith(_NOT_KEPT)

    headers = {name: value for name, value in message.headers.items() if kept(name)}
    metadata = {name: value for name, value in message.metadata.items() if kept(name)}
    key = message.key
    if key is None and f"{prefix}partitionkey" in headers:
        key = decode_header_value(headers[f"{prefix}partitionkey"])
    identity = f"replay-{topic}-{letter.id}-{int((letter.stored or 0) * 1000)}"
    return replace(message, headers=headers, metadata=metadata, key=key, id=identity)


@dataclass(slots=True)
class Outcome:
    """What came of it.

    Attributes:
        done: How many letters were sent back, or deleted.
        to: How many of them went to which topic.
        left: How many were meant, and stay; why, and how often that was so.
    """

    done: int = 0
    to: Counter[str] = field(default_factory=Counter)
    left: dict[str, int] = field(default_factory=dict)

    def leave(self, why: str) -> None:
        """Count one that stays."""
        self.left[why] = self.left.get(why, 0) + 1


async def replay(
    component: PubSubComponent,
    topic: str,
    chosen: Chosen,
    given: str,
    declared: Sequence[Address],
    done: Callable[[int], None],
) -> Outcome:
    """Send letters back: each is published first, and taken away once that is confirmed.

    A letter says itself where it is from, and whoever may write to a dead letter topic may make it say anything. So it
    goes only to topics whose subscriptions have their letters there, as files say, or to the one that was named.

    Args:
        component: Of the topic.
        topic: That of the letters.
        chosen: Which.
        given: Where those go that do not say where they are from; empty = they stay.
        declared: Topics and patterns of subscriptions that have their letters there.
        done: Is told how many were sent back.

    Raises:
        MeshError: One could not be published or taken away; those before it were sent back.
    """
    outcome = Outcome()
    async with letters_of(component).letters(component.address(topic)) as pile:
        work = _Replay(component, topic, pile, outcome, done)
        async for letter in chosen.among(pile, component, topic):
            if PARTS_HEADER in letter.message.headers:
                outcome.leave("its event was too large for a message, and its body is gone")
                continue
            if letter.altered:
                outcome.leave(letter.altered)
                continue
            target = origin(component, letter.message) or given
            if not target:
                outcome.leave("it does not say which topic it is from: --topic says where it goes")
                continue
            try:
                where = component.address(target)
            except MeshError as error:
                outcome.leave(f"it says that it is from an impossible topic: {error}")
                continue
            if target != given and not any(_is_of(each, where) for each in declared):
                told = repr(target[:100])
                outcome.leave(f"no subscription of {told} has its dead letters there: --topic {told} allows it")
                continue
            if target == topic:
                outcome.leave("it would go back to the dead letter topic itself")
                continue
            await work.add(where, letter)
        await work.flush()
    return outcome


class _Replay:
    """Sends letters back, some of one topic together."""

    def __init__(
        self, component: PubSubComponent, topic: str, pile: Pile, outcome: Outcome, done: Callable[[int], None]
    ) -> None:
        self._component, self._topic, self._pile, self._outcome, self._done = component, topic, pile, outcome, done
        self._broker = carrying(component.broker)
        self._where: Address | None = None
        self._letters: list[Letter] = []
        self._bytes = 0

    async def add(self, where: Address, letter: Letter) -> None:
        if self._where != where:
            await self.flush()
        self._where = where
        self._letters.append(letter)
        self._bytes += len(letter.message.body)
        if len(self._letters) >= TOGETHER or self._bytes >= TOGETHER_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Publish what there is, then take away what is confirmed; raises for the first that is not, unless refused."""
        letters, where = self._letters, self._where
        self._letters, self._bytes = [], 0
        if where is None or not letters:
            return
        component, prefix = self._component, self._component.broker.features.event_prefix
        if isinstance(self._pile, Remembering):
            letters = list(await self._pile.check(letters))
            if not letters:
                return
        messages = [sent_back(each.message, self._topic, each, prefix) for each in letters]
        try:
            async with asyncio.timeout(PUBLISH_WITHIN):
                results = await self._broker.publish_many(where, messages)
        except TimeoutError as error:
            told = f"{component.name}/{where.label} took no event within {PUBLISH_WITHIN:g} s"
            raise BrokerUnavailableError(f"{told}; {self._outcome.done} were sent back before") from error
        stored = [letter for letter, error in zip(letters, results, strict=True) if error is None]
        if stored:
            await self._pile.remove(stored)
        self._outcome.done += len(stored)
        if stored:
            self._outcome.to[where.label.removeprefix(component.topic_prefix)] += len(stored)
        self._done(self._outcome.done)
        for failed in filter(None, results):
            if isinstance(failed, PublishRejectedError):  # Of this one; others may go.
                self._outcome.leave(f"{component.name}/{where.label}: {failed}")
                continue
            raise BrokerError(f"{component.name}/{where.label}: {failed}; {self._outcome.done} were sent back")


def _is_of(declared: Address, where: Address) -> bool:
    return declared.name == where.name or (declared.is_pattern and matches(declared.name, where.name))


async def purge(component: PubSubComponent, topic: str, chosen: Chosen, done: Callable[[int], None]) -> Outcome:
    """Delete letters, oldest first."""
    outcome = Outcome()
    async with letters_of(component).letters(component.address(topic)) as pile:
        async for letter in chosen.among(pile, component, topic):
            await pile.remove([letter])
            outcome.done += 1
            done(outcome.done)
    return outcome
