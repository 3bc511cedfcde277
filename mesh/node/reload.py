"""Puts changed resources to work on a running node: what is equal by value is not touched.

A component is opened first, then it takes the place of the one before, then that one is closed once its operations are
done. What cannot be opened changes nothing: the one before goes on, and why is told once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from mesh.application import Application
from mesh.blocks.middleware import named_by
from mesh.blocks.secrets import BLOCK as SECRETS
from mesh.blocks.state import is_marked
from mesh.errors import ConfigError, MeshError, MissingDependencyError, Problem
from mesh.life import Life, Lives
from mesh.node.components import (
    Components,
    Entry,
    check_denied,
    check_installed,
    check_together,
    check_types,
    in_order,
    open_component,
)
from mesh.resources.component import Component, HTTPEndpoint, without_store
from mesh.resources.configuration import DEFAULT_SAMPLING_RATIO, PIPELINES, Configuration, Tracing
from mesh.resources.resiliency import Resiliency, ResiliencyPolicies
from mesh.resources.subscription import Subscription, combined
from mesh.resources.workflow_access import WorkflowAccessPolicy
from mesh.scopes import in_scope
from mesh.telemetry import RESILIENCIES_LOADED, nobody

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mesh.application import AppResponse, Headers
    from mesh.blocks.block import Block, Parts
    from mesh.hosting import Hosting
    from mesh.node.inbound import Serve
    from mesh.node.places import Places
    from mesh.pipeline import Handler, Pipeline

__all__ = [
    "Endpoints",
    "Live",
    "OpenEndpoint",
    "Resources",
    "Step",
    "Told",
    "log_unexpected",
    "needs_restart",
    "sampling_ratio",
    "steps",
]

logger = logging.getLogger(__name__)

LAST_USE_SECONDS = 60.0
ENDPOINT_SECONDS = 5.0
RESTART_SECTIONS = {
    "api": "spec.api",
    "logging": "spec.logging",
    "metric": "spec.metric",
    "metrics": "spec.metrics",
    "placement": "spec.placement",
    **{section: f"spec.{name}" for section, name in PIPELINES.items()},
}

Resource = Component | Subscription | Configuration | Resiliency | HTTPEndpoint | WorkflowAccessPolicy
OpenEndpoint = Callable[[HTTPEndpoint], Awaitable[AbstractAsyncContextManager[Application]]]
_R = TypeVar("_R", Component, HTTPEndpoint)


@dataclass(frozen=True, slots=True)
class Resources:
    """What a node is to work with: what is in its scope.

    Attributes:
        components: In the order of the files.
        subscriptions: Declared ones.
        resiliencies: The later goes before the earlier.
        endpoints: Services outside of the mesh.
        configuration: Merged.
        workflow_access: Who else may use the application's workflows.
    """

    components: tuple[Component, ...] = ()
    subscriptions: tuple[Subscription, ...] = ()
    resiliencies: tuple[Resiliency, ...] = ()
    endpoints: tuple[HTTPEndpoint, ...] = ()
    configuration: Configuration = field(default_factory=Configuration)
    workflow_access: tuple[WorkflowAccessPolicy, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One resource that is another now.

    Attributes:
        before: None = it is added.
        after: None = it is removed.
    """

    before: Resource | None
    after: Resource | None

    @property
    def resource(self) -> Resource:
        """The one to speak of."""
        found = self.before if self.after is None else self.after
        assert found is not None
        return found

    def __str__(self) -> str:
        resource = self.resource
        what = "added" if self.before is None else "removed" if self.after is None else "changed"
        place = f" ({resource.file}:{resource.line})" if resource.file and resource.line and what != "removed" else ""
        return f"{type(resource).__name__} {resource.name} {what}{place}"


def steps(before: Resources, after: Resources) -> list[Step]:
    """Find what differs by value. A resource that moved within its file, or to another file, is the same."""
    found: list[Step] = []
    for kind in ("components", "endpoints", "resiliencies", "subscriptions", "workflow_access"):
        earlier: dict[str, Resource] = {each.name: each for each in getattr(before, kind)}
        later: dict[str, Resource] = {each.name: each for each in getattr(after, kind)}
        found += [Step(earlier.get(name), each) for name, each in later.items() if earlier.get(name) != each]
        found += [Step(each, None) for name, each in earlier.items() if name not in later]
    if before.configuration != after.configuration:
        found.append(Step(before.configuration, after.configuration))
    return found


def needs_restart(before: Configuration, after: Configuration) -> list[str]:
    """Name the sections that differ and are read at start only."""
    found = [name for key, name in RESTART_SECTIONS.items() if getattr(before.spec, key) != getattr(after.spec, key)]
    if _only_places(before) != _only_places(after):
        found.append("spec.tracing, but for its samplingRate,")
    return found


def _only_places(configuration: Configuration) -> Tracing:
    """Give where spans go, which is opened at start."""
    return dataclasses.replace(configuration.spec.tracing or Tracing(), sampling_rate=DEFAULT_SAMPLING_RATIO)


def _with_places_of(effective: Configuration, after: Configuration) -> Tracing | None:
    """Give the share that is sampled from now on, and where spans have gone since the start."""
    if _only_places(effective) == _only_places(after):
        return after.spec.tracing
    return dataclasses.replace(_only_places(effective), sampling_rate=sampling_ratio(after))


def sampling_ratio(configuration: Configuration) -> float:
    """Give the share of traces that are sampled."""
    tracing = configuration.spec.tracing
    return DEFAULT_SAMPLING_RATIO if tracing is None or tracing.sampling_rate is None else tracing.sampling_rate


@dataclass(frozen=True, slots=True)
class Told:
    """What came of a change.

    Attributes:
        done: What was changed.
        kept: Why the others are as they were.
        again: Whether it may work later without another change, as when a server was away.
    """

    done: tuple[Step, ...] = ()
    kept: tuple[Problem, ...] = ()
    again: bool = False


def log_unexpected(what: str, error: Exception, told: set[tuple[str, str]]) -> str:
    """Log where an error came from, once for each type; gives the type's name, for its text may hold a secret."""
    name = type(error).__name__
    if (what, name) not in told:
        told.add((what, name))
        logger.error("%s: %s, raised at\n%s", what, name, "".join(traceback.format_tb(error.__traceback__)))
    return name


class Endpoints:
    """Services outside of the mesh, each open until nobody uses it any more."""

    def __init__(self, parts: Parts, lives: Lives) -> None:
        """Know of none yet."""
        self.open: OpenEndpoint | None = None
        self._parts = parts
        self._all = lives
        self._lives: dict[str, Life] = {}

    async def put(self, endpoint: HTTPEndpoint) -> None:
        """Call it by its name from here on; raises ``ConfigError``."""
        opening = self.open
        if opening is None:
            return

        async def begin(stack: AsyncExitStack) -> Application:
            return await stack.enter_async_context(await opening(endpoint))

        application, life = await self._all.begin(f"HTTPEndpoint {endpoint.name}", begin)
        self.take(endpoint.name)
        self._parts.endpoints[endpoint.name], self._lives[endpoint.name] = _Used(application, life), life

    def take(self, name: str) -> None:
        """Call it no longer."""
        self._parts.endpoints.pop(name, None)
        former = self._lives.pop(name, None)
        if former is not None:
            self._all.retire(former, LAST_USE_SECONDS)


class _Used:
    """A service that stays open while a call to it lasts, its answer included."""

    def __init__(self, application: Application, life: Life) -> None:
        self._application = application
        self._life = life

    def __getattr__(self, name: str) -> Any:
        return getattr(self._application, name)

    @asynccontextmanager
    async def call(
        self, method: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> AsyncIterator[AppResponse]:
        with self._life:
            async with self._application.call(method, target, headers, body) as response:
                yield response


@dataclass(slots=True)
class Live:
    """A node's resources at work.

    Attributes:
        app_id: Whose scope counts.
        resources: What is at work.
        parts: Of the node.
        blocks: The table.
        components: What is open.
        places: Where the mesh's own records are.
        endpoints: Services outside of the mesh.
        lives: Holds components open.
        hosting: Answers others.
        answer: The pipeline that their answers come from.
        pipeline: Of the node.
        policies: Makes the pipeline's policies of the parts'.
        serve: Of the application.
        unexpected: What was logged of errors that nobody foresaw.
    """

    app_id: str
    resources: Resources
    parts: Parts
    blocks: Sequence[Block]
    components: Components
    places: Places
    endpoints: Endpoints
    lives: Lives
    hosting: Hosting
    answer: Handler
    pipeline: Pipeline
    policies: Callable[[str, str], Any]
    serve: Serve
    unexpected: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Count what is at work from the start."""
        self._count(self.resources.resiliencies)

    def _count(self, loaded: Iterable[Resiliency]) -> None:
        observer = self.parts.own_observer or nobody
        for each in loaded:
            observer(RESILIENCIES_LOADED, (each.name,))

    async def apply(self, wanted: Resources) -> Told:
        """Put other resources to work; what fails is left as it was, and tried again with the next ones."""
        done: list[Step] = []
        kept: list[Problem] = []
        again = False
        former: list[Entry] = []
        all_steps = steps(self.resources, wanted)
        self._configure(wanted.configuration, all_steps, done, kept)
        self._set_policies(wanted, all_steps, done)
        for step in self._ordered(all_steps, kept):
            try:
                await self._component(step, former)
                done.append(step)
                self.resources = dataclasses.replace(self.resources, components=_with(self.resources.components, step))
            except ConfigError as error:
                self._note_absent(step.after, str(error))
                kept += error.problems
                cause = error.__cause__
                again = again or not isinstance(cause, ConfigError | MissingDependencyError | None)
            except Exception as error:  # noqa: BLE001 - an adapter may raise anything
                again, text = True, self._failed(f"component {step.resource.name}", step, error, kept)
                self._note_absent(step.after, text)
        for step in all_steps:
            if isinstance(step.resource, HTTPEndpoint):
                again = await self._endpoint(step, done, kept) or again
        if self._subscribe(wanted, all_steps, done, kept) or done:
            self.serve.changed.set()  # What nobody's change concerns is left as it is.
            self.parts.streams.renew()
        self.components.forget_absent(each.name for each in wanted.components)
        for entry in former:
            entry.leave()
            self.lives.retire(entry.life, LAST_USE_SECONDS)
        return Told(tuple(done), tuple(dict.fromkeys(kept)), again)

    def _failed(self, what: str, step: Step, error: Exception, kept: list[Problem]) -> str:
        """Say why a step was not taken."""
        text = str(error) if isinstance(error, MeshError) else log_unexpected(what, error, self.unexpected)
        kept.append(Problem(f"{what}: {text}", "", step.resource.file, step.resource.line))
        return text

    def _configure(self, after: Configuration, changed: Sequence[Step], done: list[Step], kept: list[Problem]) -> None:
        """Read the sections from another Configuration that are looked at all the time.

        What needs a restart is told for as long as it is so, not with its change alone.
        """
        effective = self.parts.configuration
        restart = needs_restart(effective, after)
        if restart:
            kept.append(Problem(f"{' and '.join(restart)} needs a restart to change", "", after.file, after.line))
        step = next((each for each in changed if isinstance(each.resource, Configuration)), None)
        if step is None:
            return
        at_start = {key: getattr(effective.spec, key) for key in RESTART_SECTIONS}
        spec = dataclasses.replace(after.spec, tracing=_with_places_of(effective, after), **at_start)
        if spec != effective.spec or after.name != effective.name:
            done.append(step)
        self.parts.configuration = dataclasses.replace(after, spec=spec)
        self.parts.tracing.sample(sampling_ratio(after))
        self.parts.access.apply(after.spec.access_control)
        self.resources = dataclasses.replace(self.resources, configuration=after)

    def _set_policies(self, wanted: Resources, changed: Sequence[Step], done: list[Step]) -> None:
        now, access = self.resources, wanted.workflow_access
        self.resources = dataclasses.replace(now, resiliencies=wanted.resiliencies, workflow_access=access)
        done += [step for step in changed if isinstance(step.resource, Resiliency | WorkflowAccessPolicy)]
        if now.workflow_access != access:
            self.parts.workflow_access.apply(access)
        if now.resiliencies != wanted.resiliencies:
            self.parts.policies = ResiliencyPolicies(wanted.resiliencies, self.app_id)
            self.pipeline.apply(self.policies if wanted.resiliencies else None)
            self._count(step.after for step in changed if isinstance(step.after, Resiliency))

    def _ordered(self, changed: Sequence[Step], kept: list[Problem]) -> list[Step]:
        """Give steps of components that may be taken: secret stores first, what is removed last."""
        of = {step.resource.name: step for step in changed if isinstance(step.resource, Component)}
        new = [step.after for step in of.values() if isinstance(step.after, Component)]
        fine: list[Component] = []
        for component in new:
            problems = [
                *check_types([component], self.blocks),
                *chain(*check_installed([component], self.blocks, self.parts.registry)),
                *check_denied([component], self.parts.configuration),
                *([] if component.ignore_errors else without_store(component, self._stores(new))),
            ]
            if problems:
                kept += problems
                self._note_absent(component, str(ConfigError(problems)))
            else:
                fine.append(component)
        fine = self._together(fine, of, kept)
        ordered = in_order(fine, self.blocks, kept)
        return [*(of[each.name] for each in ordered), *(step for step in of.values() if step.after is None)]

    def _together(self, fine: Sequence[Component], changed: Mapping[str, Step], kept: list[Problem]) -> list[Component]:
        """Give those that go together with what stays open; the rest is a problem."""
        entries = self.components.entries
        stay = {name: each for name, each in entries.items() if name not in changed or self.places.held_by(name)}
        others = [each for each in fine if each.name not in stay]
        refused = check_together([*(entry.component for entry in stay.values()), *others], self.blocks)
        for component, problem in refused:
            kept.append(problem)
            self._note_absent(component, str(ConfigError([problem])))
        return [each for each in fine if not any(each is component for component, _ in refused)]

    def _note_absent(self, wanted: Resource | None, reason: str) -> None:
        if isinstance(wanted, Component) and wanted.name not in self.components.entries:
            self.components.absent[wanted.name] = wanted, reason

    def _stores(self, new: Sequence[Component]) -> list[str]:
        open_now = [entry.component for entry in self.components.entries.values()]
        return sorted({each.name for each in (*open_now, *new) if each.block == SECRETS.kind})

    async def _component(self, step: Step, former: list[Entry]) -> None:
        """Open, add, change or remove one; what is to be closed is put to the former ones.

        Raises:
            ConfigError: It cannot be opened, or not be changed while the node runs.
            MeshError: The backbone failed.
        """
        name, after = step.resource.name, step.after
        self._check_records(name, step)
        self._check_passed(name, step)
        if isinstance(after, Component):
            entry = await open_component(after, self.blocks, self.parts, self.components, self.lives)
            try:
                self._check_records(name, step)  # Records may have been opened meanwhile.
            except ConfigError:
                entry.leave()
                self.lives.retire(entry.life, 0)
                raise
            taken = self.components.put(entry, self.parts)
            hosted = entry.answer(self.answer, self.parts.tracing) if entry.hosted else None
        else:
            taken, hosted = self.components.take(name, self.parts), None
        if taken is not None:
            former.append(taken)
        if hosted is not None:
            await self.hosting.put(hosted)
        else:
            await self.hosting.take(name)

    def _check_records(self, name: str, step: Step) -> None:
        """Refuse to change the store where the mesh's own records are: whoever has it open would keep the old one."""
        text = ""
        if self.places.held_by(name):
            text = f"component {name} keeps the mesh's own records (actorStateStore), and needs a restart to change"
        elif self.places.in_file and isinstance(step.after, Component) and is_marked(step.after):
            text = (
                f"component {name} is marked by actorStateStore, and needs a restart: until then the mesh's own "
                "records are in a file of this machine (MESH_SINGLE_HOST)"
            )
        if text:
            raise ConfigError(Problem(text, "", step.resource.file, step.resource.line))

    def _check_passed(self, name: str, step: Step) -> None:
        """Refuse to take away what requests pass: they would all be refused. Its settings may change."""
        before, after = step.before, step.after
        if not isinstance(before, Component) or before.block != "middleware":
            return
        same = isinstance(after, Component) and after.type == before.type
        if not same and (by := named_by(self.parts.configuration, name)):
            text = f"component {name} is named by {by}, and needs a restart to go"
            raise ConfigError(Problem(text, "", step.resource.file, step.resource.line))

    async def _endpoint(self, step: Step, done: list[Step], kept: list[Problem]) -> bool:
        """Call another service by a name; tells whether it may work later."""
        try:
            if isinstance(step.after, HTTPEndpoint):
                problems = without_store(step.after, self._stores(()))
                if problems:
                    raise ConfigError(problems)
                try:
                    async with asyncio.timeout(ENDPOINT_SECONDS):
                        await self.endpoints.put(step.after)
                except TimeoutError:
                    late = f"HTTPEndpoint {step.after.name}: its secrets were not read within {ENDPOINT_SECONDS:g} s"
                    kept.append(Problem(late, "", step.after.file, step.after.line))
                    return True
            else:
                self.endpoints.take(step.resource.name)
        except ConfigError as error:
            kept += error.problems
            return isinstance(error.__cause__, MeshError) and error.__cause__.retryable
        except Exception as error:  # noqa: BLE001 - an adapter may raise anything
            self._failed(f"HTTPEndpoint {step.resource.name}", step, error, kept)
            return True
        self.resources = dataclasses.replace(self.resources, endpoints=_with(self.resources.endpoints, step))
        done.append(step)
        return False

    def _subscribe(self, wanted: Resources, changed: Sequence[Step], done: list[Step], kept: list[Problem]) -> bool:
        """Take other declared subscriptions; tells whether they are others."""
        if self.resources.subscriptions == wanted.subscriptions:
            return False
        problems = combined(each for each in wanted.subscriptions if in_scope(each.scopes, self.app_id))[1]
        kept += problems
        if not problems:
            self.parts.subscriptions = wanted.subscriptions
            self.resources = dataclasses.replace(self.resources, subscriptions=wanted.subscriptions)
            done += [step for step in changed if isinstance(step.resource, Subscription)]
        return not problems


def _with(resources: tuple[_R, ...], step: Step) -> tuple[_R, ...]:
    """Give resources with one step taken; one that is changed keeps its place."""
    after: Any = step.after
    if step.before is None:
        return (*resources, after)
    name = step.before.name
    return tuple(after if each.name == name else each for each in resources if each.name != name or after is not None)
