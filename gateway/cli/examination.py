"""What ``mesh doctor`` finds: components, topics, groups and dead letters, as they are beside what files say."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from gateway.cli.kept_workflows import BACKBONE, MANY, kept_for_good
from gateway.config import DEFAULT_BACKBONE
from mesh.blocks.consumer import SubscriptionSettings, is_broadcast
from mesh.errors import (
    BrokerError,
    BrokerUnavailableError,
    ConfigError,
    FeatureNotSupportedError,
    MeshError,
    TopologyMismatchError,
)
from mesh.inspection import Inspectable, Letters
from mesh.registry import BACKBONE_TYPES
from mesh.resources.subscription import without_component
from mesh.scopes import in_scope

if TYPE_CHECKING:
    from gateway.cli.opening import Looked
    from mesh.address import Address
    from mesh.blocks.topics import PubSubComponent
    from mesh.broker import SubscribeOptions
    from mesh.inspection import Standing
    from mesh.resources.component import Component
    from mesh.resources.subscription import Subscription

__all__ = ["Check", "Status", "examine"]

AT_ONCE = 8
Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        component: Of which component; ``backbone`` for the mesh's own broker.
        what: ``resources``, ``backbone``, ``component``, ``subscription``, ``topic``, ``group``, ``letters`` or
            ``workflows``.
        name: Its name.
        status: ``note`` is nothing wrong, but perhaps not meant, or not to be known.
        told: What was found.
        next: What to do about it; empty unless it is a problem.
        waiting: Of a group: messages before it.
        taken: Of a group: messages that members have, unless the broker does not say.
        oldest: Of a group: seconds since the oldest of both was stored, unless the broker does not say.
        letters: Of a dead letter topic: how many lie there.
    """

    component: str
    what: Literal["resources", "backbone", "component", "subscription", "topic", "group", "letters", "workflows"]
    name: str
    status: Status
    told: str
    next: str = ""
    waiting: int | None = None
    taken: int | None = None
    oldest: float | None = None
    letters: int | None = None


async def examine(
    looked: Looked, within: float, max_lag: int | None, done: Callable[[int, int], None]
) -> Sequence[Check]:
    """Look at everything, several components at the same time.

    Args:
        looked: What is looked at.
        within: Seconds that each component may take.
        max_lag: Most messages that a group may have before it; None = any number.
        done: Is told how many components were looked at, of how many.
    """
    visits = [_Visit(looked, each, max_lag) for each in looked.components]
    if any(each.type in BACKBONE_TYPES for each in looked.components):
        visits.insert(0, _Visit(looked, None, max_lag))
    turns, finished = asyncio.Semaphore(AT_ONCE), 0

    async def visit(each: _Visit) -> None:
        nonlocal finished
        async with turns:
            await each.make(within)
        finished += 1
        done(finished, len(visits))

    await looked.read_secrets(within)
    async with asyncio.TaskGroup() as tasks:
        for each in visits:
            tasks.create_task(visit(each), name="doctor-visit")
        ended = tasks.create_task(kept_for_good(looked, within), name="doctor-workflows")
    found = [*_strays(looked), *(check for each in visits for check in each.found)]
    return found if (kept := ended.result()) is None else [*found, _kept(*kept)]


def _strays(looked: Looked) -> list[Check]:
    names = [each.name for each in looked.components if each.block == "pubsub"]
    return [
        Check(each.pubsub, "subscription", each.topic, "problem", problem.message, f"correct {each.file}:{each.line}")
        for each, problem in without_component(looked.subscriptions, names)
    ]


def _kept(place: str, apps: Mapping[str, int]) -> Check:
    policy = "spec.workflow.stateRetentionPolicy: {completed: 24h, anyTerminal: 720h}"
    told = (
        f"{MANY:,} or more that have ended are kept for good: a Configuration with {policy} has those deleted that end "
        "from then on, mesh workflow purge --all-older-than 720h those that are there"
    )
    return Check(place, "workflows", ", ".join(apps), "note", told)


class _Visit:
    """Looks at one component, or at the backbone; what was found stays when the time is over."""

    def __init__(self, looked: Looked, component: Component | None, max_lag: int | None) -> None:
        self._looked, self._component, self._max_lag = looked, component, max_lag
        self._name = BACKBONE if component is None else component.name
        self._counted: set[tuple[str, str]] = set()
        self.found: list[Check] = []

    @property
    def _place(self) -> str:
        """Where the reader of a next step has to look."""
        component = self._component
        if component is None:
            return "MESH_BACKBONE (or --backbone)"
        return f"{component.file}:{component.line}" if component.file else f"component {component.name}"

    async def make(self, within: float) -> None:
        what: Literal["backbone", "component"] = "backbone" if self._component is None else "component"
        title = (
            f"{self._component.name} ({self._component.type})" if self._component else self._looked.shown.rstrip(":")
        )
        try:
            async with asyncio.timeout(within):
                await self._look(what, title)
        except TimeoutError:
            step = f"see whether it is busy or away; --timeout gives it longer than {within:g} s"
            self._add(what, title, "problem", f"it did not answer within {within:g} s", step)
        except ConfigError as error:
            text = "; ".join(map(str, error.problems))
            self._add(what, title, "problem", text, f"correct {self._place}; mesh check reads it as a gateway does")
        except BrokerUnavailableError as error:
            if self._component is None and self._looked.shown == DEFAULT_BACKBONE:
                step = "start a gateway with mesh run, or name the broker that gateways use with --backbone"
            elif error.retryable:
                step = f"see that it runs, and that its address in {self._place} is right"
            else:
                step = f"correct user, password or certificate in {self._place}"
            self._add(what, title, "problem", str(error), step)
        except (MeshError, OSError) as error:
            self._add(what, title, "problem", str(error) or type(error).__name__, f"see {self._place}")
        except Exception as error:  # noqa: BLE001 - an adapter's own, which is no reason to look at nothing else
            told = f"its adapter failed: {type(error).__name__}: {error}"
            self._add(what, title, "problem", told, f"report it with the adapter of {self._place}")

    def _add(self, what: Any, name: str, status: Status, told: str, step: str = "", **numbers: Any) -> None:
        self.found.append(Check(self._name, what, name, status, told, step, **numbers))

    async def _look(self, what: Literal["backbone", "component"], title: str) -> None:
        component, looked = self._component, self._looked
        if component is None:
            async with looked.on_backbone() as broker:
                await broker.check()
                self._add(what, title, "ok", "reachable")
            return
        if component.name in looked.away:
            raise ConfigError(component.problem(looked.away[component.name]))
        if component.block == "pubsub":
            for app in looked.apps(component.name):
                async with looked.pubsub(component, app) as opened:
                    if not any(each.what == what for each in self.found):
                        self._add(what, title, "ok", "reachable")
                    for each in looked.subscriptions:
                        if each.pubsub == component.name and (not app or in_scope(each.scopes, app)):
                            await self._subscription(opened, each, app)
            return
        if component.type in BACKBONE_TYPES:
            self._add(what, title, "ok", "on the backbone")
            return
        adapter: Any = looked.registry.load(component.type)
        made = adapter.from_component(looked.resolved(component))
        if not hasattr(made, "__aenter__"):
            self._add(what, title, "ok", "its settings are right; it connects to nothing")
            return
        async with made as entered:
            if hasattr(entered, "check"):
                await entered.check()
                self._add(what, title, "ok", "reachable")
            else:
                self._add(what, title, "ok", "it could be opened; its adapter can tell no more")

    async def _subscription(self, opened: PubSubComponent, subscription: Subscription, app: str) -> None:
        wildcard = opened.broker.features.wildcard
        where = opened.address(subscription.topic, pattern=wildcard)
        try:
            options = SubscriptionSettings.read(subscription, replace(opened, group=opened.group or app)).options
        except ValueError as error:
            step = f"correct {subscription.file}:{subscription.line}"
            self._add("topic", subscription.topic, "problem", str(error), step)
            return
        known = bool(options.group) and not is_broadcast(subscription)
        if not isinstance(opened.broker, Inspectable):
            self._add("topic", subscription.topic, "note", f"{opened.broker.features.name} does not tell what it has")
        else:
            standing = await self._standing(opened.broker, where, options if known else None, subscription.topic)
            if standing is not None and known and standing.group:
                await self._group(opened, where, options, app)
                if standing.letters:
                    await self._letters(opened, standing.letters, app)
            elif standing is not None and standing.exists and known and standing.group is None:
                self._add("group", f"{options.group} of {subscription.topic}", "note", "not known")
            elif standing is not None and standing.exists and known:
                told = "nobody has subscribed with it yet; a gateway of the application makes it"
                self._add("group", f"{options.group} of {subscription.topic}", "note", told)
            elif standing is not None and not known and not is_broadcast(subscription):
                self._add("group", f"of {subscription.topic}", "note", "not known: --app-id says whose is meant")
        if subscription.dead_letter_topic is not None:
            await self._letters(opened, subscription.dead_letter_topic, app)

    async def _standing(
        self, broker: Inspectable, where: Address, options: SubscribeOptions | None, topic: str
    ) -> Standing | None:
        try:
            found = await broker.inspect(where, options)
        except TopologyMismatchError as error:
            self._add("topic", topic, "problem", str(error), "change it on the broker, or the settings here")
            return None
        for refused in found.refused:
            self._add("topic", topic, "problem", refused, f"give that right to the user of {self._place} on the broker")
        for loss in found.losses:
            self._add("topic", topic, "note", loss)
        if found.differs:
            step = f"change it on the broker, or the settings in {self._place}"
            self._add("topic", topic, "problem", f"{found.place}: {found.differs}", step)
        if not found.exists and not found.refused:
            if found.needed:
                step = f"make it on the broker: nothing makes {found.place} by itself"
                self._add("topic", topic, "problem", f"{found.place} is not there", step)
            else:
                self._add("topic", topic, "note", f"{found.place} is not there yet; it is made when it is needed")
        elif not found.differs and not found.refused:
            told = f"{found.place} is as it should be"
            if found.unknown:
                self._add("topic", topic, "note", f"{told}; {found.unknown}")
            else:
                self._add("topic", topic, "ok", told)
        return found

    async def _group(self, opened: PubSubComponent, where: Address, options: SubscribeOptions, app: str) -> None:
        name = f"{options.group} of {where.label[len(opened.topic_prefix) :]}"
        backlog = getattr(opened.broker, "backlog", None)
        if backlog is None:
            self._add("group", name, "ok", "it is there")
            return
        try:
            found = await backlog(where, options)
        except BrokerError as error:
            self._add("group", name, "note", str(error))
            return
        age = None if found.oldest is None else round(max(0.0, time.time() - found.oldest), 3)
        numbers = {"waiting": found.waiting, "taken": found.taken, "oldest": age}
        told = f"{found.waiting} waiting" + ("" if found.taken is None else f", {found.taken} taken")
        told += "" if age is None else f", the oldest for {age:.0f} s"
        if self._max_lag is not None and found.waiting > self._max_lag:
            of = f"of {app or options.group}"
            step = f"start more instances {of}, or see in their logs why they are slow; --max-lag is {self._max_lag}"
            self._add("group", name, "problem", told, step, **numbers)
        else:
            self._add("group", name, "ok", told, **numbers)

    async def _letters(self, opened: PubSubComponent, topic: str, app: str) -> None:
        # Where queues alone keep anything, each group has letters of its own.
        group = opened.group if getattr(opened.broker, "told_group", False) else ""
        if (group, topic) in self._counted:
            return
        self._counted.add((group, topic))
        where, broker = opened.address(topic), opened.broker
        standing = await self._standing(broker, where, None, topic) if isinstance(broker, Inspectable) else None
        if standing is not None and not standing.exists:
            if standing.refused:
                self._add("letters", topic, "note", "not known: a right is missing")
            else:
                self._add("letters", topic, "ok", "0 dead letters", letters=0)
            return
        if not isinstance(broker, Letters):
            told = f"{broker.features.name} does not keep what nobody has subscribed to, so none can be counted"
            self._add("letters", topic, "note", told)
            return
        try:
            async with broker.letters(where) as pile:
                count = await pile.count()
        except FeatureNotSupportedError as error:
            self._add("letters", topic, "note", str(error))
            return
        except BrokerUnavailableError:
            raise
        except BrokerError as error:
            self._add("letters", topic, "problem", f"not known: {error}", f"see {self._place}")
            return
        step = shlex.join(["mesh", "dlq", "show", opened.name, topic, *self._looked.words(app)]) if count else ""
        told = f"{count} dead letter{'' if count == 1 else 's'}" + (f" of {group}" if group else "")
        self._add("letters", topic, "problem" if count else "ok", told, step, letters=count)
