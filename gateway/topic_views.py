"""Topics of a gateway's pub/sub components: what they have, what lies in them, and their dead letters."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from gateway import dead_letters
from gateway.dead_letters import Chosen, Outcome, described, letters_of, put_away
from mesh.blocks.consumer import SubscriptionSettings
from mesh.errors import (
    BadArgumentError,
    ComponentNotFoundError,
    DeadlineExceededError,
    FeatureNotSupportedError,
    MeshError,
)
from mesh.inspection import Inspectable, Letters
from mesh.observed import unobserved
from mesh.telemetry import EVENTS_DEAD_LETTERED, EVENTS_DELIVERED

if TYPE_CHECKING:
    from mesh.blocks.topics import PubSubComponent
    from mesh.node.backlogs import Backlogs, SubscriptionBacklog
    from mesh.node.runtime import Runtime
    from mesh.resources.subscription import Subscription

__all__ = ["Page", "TopicViews"]

LOOK_SECONDS = 5.0
PAGE_SECONDS = 10.0
CHANGE_SECONDS = 30.0
_OUTCOMES = ("success", "retry", "drop")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Page:
    """Which events of a topic are wanted.

    Attributes:
        limit: How many at most.
        after: Those behind the one of this id; empty = from the oldest on.
        newest: The newest ones instead, newest first.
    """

    limit: int = 20
    after: str = ""
    newest: bool = False


class TopicViews:
    """Looks at them when it is asked."""

    def __init__(self, runtime: Runtime, backlogs: Backlogs) -> None:
        """Use a runtime that was entered."""
        self._runtime, self._backlogs = runtime, backlogs

    def _component(self, name: str) -> PubSubComponent:
        """Find a pub/sub component of this node; raises ``ComponentNotFoundError``."""
        entry = self._runtime.components.get(name)
        if entry is None or entry.block.name != "pubsub":
            raise ComponentNotFoundError(name, f"this node has no pub/sub component {name[:100]!r}")
        return cast("PubSubComponent", entry.opened)

    def _subscriptions(self, component: str) -> list[Subscription]:
        return [each for each in self._runtime.description.subscriptions if each.pubsub == component]

    async def listed(self) -> list[dict[str, object]]:
        """Tell of all topics that this node publishes or subscribes to, and of their dead letter topics."""
        backlogs = {(each.component, each.topic): each for each in await self._backlogs.look()}
        node = self._runtime.description
        of: dict[tuple[str, str], list[str]] = {}
        for each in node.subscriptions:
            if each.dead_letter_topic:
                of.setdefault((each.pubsub, each.dead_letter_topic), []).append(each.topic)
        subscribed = {(each.pubsub, each.topic): each for each in node.subscriptions}
        keys = sorted({*subscribed, *of, *node.published})
        return [
            {
                **self._row(key, subscribed.get(key), backlogs.get(key)),
                "published": key in node.published,
                "deadLetterOf": sorted(of.get(key, ())),
            }
            for key in keys
        ]

    def _row(
        self, key: tuple[str, str], subscription: Subscription | None, backlog: SubscriptionBacklog | None
    ) -> dict[str, object]:
        component, topic = key
        counted = self._runtime.counters.snapshot()
        attempts = {each: counted.get((EVENTS_DELIVERED, *key, each), 0) for each in _OUTCOMES}
        entry = self._runtime.components.get(component)
        keeps = entry is not None and _keeps(cast("PubSubComponent", entry.opened))
        row: dict[str, object] = {"component": component, "topic": topic, "subscribed": subscription is not None}
        row |= {"deadLetterTopic": subscription and subscription.dead_letter_topic, "events": keeps}
        row |= {"waiting": None, "taken": None, "oldestSeconds": None}
        if backlog is not None:
            row |= {"waiting": backlog.backlog.waiting, "taken": backlog.backlog.taken}
            row["oldestSeconds"] = backlog.oldest_seconds
        return row | {"attempts": attempts, "deadLetters": counted.get((EVENTS_DEAD_LETTERED, *key), 0)}

    async def shown(self, component: str, topic: str) -> dict[str, object]:
        """Tell of one topic, also of one that this node has not used yet; raises ``MeshError``."""
        opened, key = self._component(component), (component, topic)
        rows = {(each["component"], each["topic"]): each for each in await self.listed()}
        row = rows.get(key) or {**self._row(key, None, None), "published": False, "deadLetterOf": []}
        subscription = next((each for each in self._subscriptions(component) if each.topic == topic), None)
        rules = () if subscription is None else subscription.rules
        row["routes"] = [{"match": each.match, "path": each.path} for each in rules]
        if subscription is not None and subscription.default_path is not None:
            row["routes"] = [*cast("list[object]", row["routes"]), {"path": subscription.default_path}]
        row["origin"] = None if subscription is None else subscription.origin
        row |= await _soon(self._standing(opened, topic, subscription), {"place": None, "exists": None, "group": None})
        return row | {"kept": await _soon(self._kept(opened, topic), None)}

    async def _standing(
        self, opened: PubSubComponent, topic: str, subscription: Subscription | None
    ) -> dict[str, object]:
        broker = unobserved(opened.broker)
        told: dict[str, object] = {"place": None, "exists": None, "group": None}
        if isinstance(broker, Inspectable):
            options = None if subscription is None else SubscriptionSettings.read(subscription, opened).options
            where = opened.address(topic, pattern=subscription is not None and broker.features.wildcard)
            found = await broker.inspect(where, options)
            told = {"place": found.place, "exists": found.exists, "group": found.group}
        return told

    async def _kept(self, opened: PubSubComponent, topic: str) -> int | None:
        if not _keeps(opened):
            return None
        if await _is_missing(opened, topic):
            return 0
        async with letters_of(opened).letters(opened.address(topic)) as pile:
            return await pile.count()

    # What lies in a topic

    async def events(self, component: str, topic: str, page: Page) -> dict[str, object]:
        """Give events of a topic as they lie there; nobody misses one for it.

        Raises:
            MeshError: The broker keeps none, or failed.
        """
        return await self._page(self._component(component), topic, Chosen(), page)

    async def dead_letters(self, component: str, topic: str, page: Page) -> dict[str, object]:
        """Give the dead letters of a topic, or those that lie in a dead letter topic; raises ``MeshError``."""
        opened = self._component(component)
        lie_in, of = await self._where(opened, topic)
        return await self._page(opened, lie_in, Chosen(of=of), page)

    async def _where(self, opened: PubSubComponent, topic: str, *, undeclared: bool = False) -> tuple[str, str]:
        """Find the topic that dead letters of one lie in, and whose of them are meant; empty = all that lie there.

        Raises:
            BadArgumentError: No subscription of this node has any there.
        """
        subscriptions = self._subscriptions(opened.name)
        if any(each.dead_letter_topic == topic for each in subscriptions):
            return topic, ""
        own = next((each.dead_letter_topic for each in subscriptions if each.topic == topic), None)
        if own:
            return own, topic
        away = await put_away(opened, subscriptions)
        if topic in away:
            return topic, ""
        if (found := next((place for place, of in away.items() if topic in of), None)) is not None:
            return found, topic
        if undeclared:
            return topic, ""
        raise BadArgumentError(
            f"no subscription of {self._runtime.caller.app_id} has its dead letters in {opened.name}/{topic}, or is of "
            "it and has a deadLetterTopic; a gateway of an application that has is the one to ask"
        )

    async def _page(self, opened: PubSubComponent, topic: str, chosen: Chosen, page: Page) -> dict[str, object]:
        found: deque[dict[str, Any]] = deque(maxlen=page.limit if page.newest else None)
        count: int | None = 0
        complete, passed = True, not page.after or page.newest
        try:
            async with asyncio.timeout(PAGE_SECONDS):
                if await _is_missing(opened, topic):
                    return {"topic": topic, "count": 0, "events": [], "after": None, "complete": True}
                async with _letters_of(opened).letters(opened.address(topic)) as pile:
                    count = await pile.count()
                    async for letter in chosen.among(pile, opened, topic):
                        if passed:
                            if not page.newest and len(found) == page.limit:
                                complete = False
                                break
                            found.append(described(opened, letter, topic))
                        passed = passed or letter.id == page.after
        except TimeoutError:
            complete = False  # What was seen until then is told.
        events = [*reversed(found)] if page.newest else [*found]
        after = events[-1]["id"] if events and not complete and not page.newest else None
        return {"topic": topic, "count": count, "events": events, "after": after, "complete": complete}

    # Dead letters, changed

    async def replay(self, component: str, topic: str, chosen: Chosen, given: str, *, undeclared: bool) -> Outcome:
        """Send dead letters back, the oldest first.

        Args:
            component: Of the topic.
            topic: Theirs, or the one that they are from.
            chosen: Which.
            given: Where those go that do not say where they are from; empty = they stay.
            undeclared: Whether the topic may be one that no subscription here has its letters in.

        Raises:
            MeshError: One could not be sent back, or not all of them in time; those before it were.
        """
        opened = self._component(component)
        lie_in, of = await self._where(opened, topic, undeclared=undeclared)
        wildcard = opened.broker.features.wildcard
        declared = [
            opened.address(each.topic, pattern=wildcard)
            for each in self._subscriptions(component)
            if each.dead_letter_topic == lie_in
        ]
        _letters_of(opened)
        return await _in_time(
            "sent back", lambda done: dead_letters.replay(opened, lie_in, replace(chosen, of=of), given, declared, done)
        )

    async def purge(self, component: str, topic: str, chosen: Chosen, *, undeclared: bool) -> Outcome:
        """Delete dead letters, as `replay` sends them back."""
        opened = self._component(component)
        lie_in, of = await self._where(opened, topic, undeclared=undeclared)
        _letters_of(opened)
        return await _in_time("deleted", lambda done: dead_letters.purge(opened, lie_in, replace(chosen, of=of), done))


def _keeps(opened: PubSubComponent) -> bool:
    return isinstance(unobserved(opened.broker), Letters)


def _letters_of(opened: PubSubComponent) -> Letters:
    """Give what goes through topics; raises ``FeatureNotSupportedError``."""
    if not _keeps(opened):
        raise FeatureNotSupportedError(f"{opened.name} ({opened.broker.features.name})", "looking into topics")
    return letters_of(opened)


async def _is_missing(opened: PubSubComponent, topic: str) -> bool:
    broker = unobserved(opened.broker)
    if not isinstance(broker, Inspectable):
        return False
    found = await broker.inspect(opened.address(topic), None)
    return not found.exists and not found.refused


async def _soon(looking: Awaitable[_T], otherwise: _T) -> _T:
    """Give what is found, or something else where the broker fails or takes too long."""
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            return await looking
    except (MeshError, ValueError, TimeoutError):
        return otherwise


async def _in_time(said: str, work: Callable[[Callable[[int], None]], Awaitable[Outcome]]) -> Outcome:
    count = 0

    def done(number: int) -> None:
        nonlocal count
        count = number

    try:
        async with asyncio.timeout(CHANGE_SECONDS):
            return await work(done)
    except TimeoutError:
        text = f"{count} were {said} within {CHANGE_SECONDS:g} s; ask again for the rest"
        raise DeadlineExceededError(text) from None
