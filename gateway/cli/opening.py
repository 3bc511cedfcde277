"""Opens what resources name as a gateway does, but for looking: for ``mesh doctor`` and ``mesh dlq``.

No node takes part in the mesh, nothing is declared, and no application is needed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gateway.cli.backbone import embedded_status
from gateway.cli.terminal import note
from gateway.config import DEFAULT_BACKBONE
from mesh.blocks import BLOCKS
from mesh.blocks.pubsub import broker_of, component_on
from mesh.blocks.secrets import BLOCK as SECRETS
from mesh.errors import BrokerUnavailableError, ConfigError, MeshError, SecretError
from mesh.home import mesh_home
from mesh.inspection import Onlooking
from mesh.node.components import in_order
from mesh.registry import PUBSUB_ON_BACKBONE, Registry
from mesh.resources.component import Component, SecretRef, TemplateTokens
from mesh.resources.loader import load_resources
from mesh.scopes import in_scope
from mesh.urls import without_credentials

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from mesh.blocks.topics import PubSubComponent
    from mesh.broker import Broker
    from mesh.errors import Problem
    from mesh.resources.subscription import Subscription

__all__ = ["Looked", "add_options"]

SECRETS_WITHIN = 15.0
NO_APP = "app"  # What stands for one in templates, where nobody in particular is meant.


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is looked at."""
    parser.add_argument(
        *("-d", "--resources-path"), action="append", default=[], metavar="PATH", help="file or folder of resources"
    )
    parser.add_argument("-b", "--backbone", metavar="URL", help="of the backbone; as MESH_BACKBONE says if not given")
    parser.add_argument("-a", "--app-id", metavar="APP-ID", help="whose groups are meant; all that scopes name")


@dataclass(slots=True)
class Looked:
    """Resources, and who is to use them.

    Attributes:
        app_id: Whose; empty = nobody in particular.
        namespace: Of the mesh.
        backbone: Its URL.
        components: In the order in which they can be opened.
        subscriptions: Declared ones.
        paths: Where all of them stand.
        given: The backbone's URL, if an option gave it; else empty.
        registry: What is installed.
        secrets: What was read, by store.
        away: Why a store could not be read, by its name.
    """

    app_id: str
    namespace: str
    backbone: str
    components: tuple[Component, ...]
    subscriptions: tuple[Subscription, ...]
    paths: tuple[str, ...] = ()
    given: str = ""
    registry: Registry = field(default_factory=Registry)
    secrets: dict[str, dict[SecretRef, str]] = field(default_factory=dict)
    away: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, found: argparse.Namespace) -> Looked:
        """Read the files that options name; raises ``ConfigError`` with all that is wrong with them."""
        namespace = os.environ.get("NAMESPACE")
        paths = [Path(each) for each in found.resources_path]
        loaded = load_resources(paths, namespace=namespace, app_id=found.app_id, together=False)
        for warning in loaded.warnings:
            note(f"warning: {warning}")
        problems: list[Problem] = []
        components = in_order(loaded.components, BLOCKS, problems)
        if problems:
            raise ConfigError(problems)
        subscriptions = loaded.subscriptions
        if found.app_id:
            components = [each for each in components if in_scope(each.scopes, found.app_id)]
            subscriptions = tuple(each for each in subscriptions if in_scope(each.scopes, found.app_id))
        if not components:  # As for a gateway without any.
            components = [Component("pubsub", PUBSUB_ON_BACKBONE)]
        backbone = found.backbone or os.environ.get("MESH_BACKBONE") or DEFAULT_BACKBONE
        return cls(
            found.app_id or "",
            namespace or "default",
            backbone,
            tuple(components),
            subscriptions,
            tuple(found.resources_path),
            found.backbone or "",
        )

    @property
    def shown(self) -> str:
        """The backbone, to be shown."""
        return without_credentials(self.backbone) if "://" in self.backbone else self.backbone

    def words(self, app: str) -> list[str]:
        """Give the options with which another command looks at the same; a URL with a password is left out."""
        found = [word for path in self.paths for word in ("-d", path)]
        if app:
            found += ["-a", app]
        if self.given and self.given == self.shown:
            found += ["-b", self.given]
        return found

    def apps(self, name: str) -> Sequence[str]:
        """Give the applications that subscribe by a component, as far as files say; one is empty if none is known."""
        if self.app_id:
            return (self.app_id,)
        scopes = [app for each in self.subscriptions if each.pubsub == name for app in each.scopes]
        return tuple(dict.fromkeys(scopes)) or ("",)

    def on_backbone(self) -> Broker:
        """Make the backbone's broker, which is not entered yet; nothing is started.

        Raises:
            BrokerUnavailableError: There is none that runs, or none that others can see.
        """
        adapter: Any = self.registry.backbone(self.backbone)
        scheme = self.backbone.partition(":")[0]
        if scheme == "memory":
            raise BrokerUnavailableError("the backbone memory: is within each process, so there is nothing to look at")
        if scheme == "embedded" and embedded_status(mesh_home(os.environ)) is None:
            raise BrokerUnavailableError("nothing runs on the embedded backbone: no gateway has started it")
        return cast("Broker", adapter.from_url(self.backbone))

    def resolved(self, component: Component, app: str = "") -> Component:
        """Close a component's references, for an application: the one that is given, or the only one that scopes name.

        Raises:
            ConfigError: Something has no value; or its secret store could not be read.
        """
        store = component.auth_secret_store or ""
        if store in self.away and component.secret_refs():
            raise ConfigError(component.problem(f"its secret store {store} could not be read"))
        only = component.scopes[0] if len(component.scopes) == 1 else NO_APP
        tokens = TemplateTokens(app or self.app_id or only, self.namespace, os.environ.get("POD_NAME"))
        return component.resolved(tokens, os.environ, self.secrets.get(store, {}))

    async def read_secrets(self, within: float = SECRETS_WITHIN) -> None:
        """Read what components refer to, from each store in turn, which has so many seconds; what fails is noted."""
        for store in self.stores:
            users = [each for each in self.components if each.auth_secret_store == store.name]
            refs = {ref for each in users for ref in each.secret_refs()}
            if not refs:
                continue
            found: dict[SecretRef, str] = {}
            try:
                adapter: Any = self.registry.load(store.type)
                async with asyncio.timeout(within), adapter.from_component(self.resolved(store)) as opened:
                    for ref in refs:
                        found |= _part(ref, await _secret(opened, ref))
                self.secrets[store.name] = found
            except TimeoutError:
                self.away[store.name] = f"it did not answer within {within:g} s"
            except MeshError as error:
                self.away[store.name] = str(error)
            except Exception as error:  # noqa: BLE001 - an adapter's own, which is no reason to look at nothing else
                self.away[store.name] = f"its adapter failed: {type(error).__name__}: {error}"

    @property
    def stores(self) -> Sequence[Component]:
        """The secret stores."""
        return [each for each in self.components if each.block == SECRETS.kind]

    @asynccontextmanager
    async def pubsub(self, component: Component, app_id: str = "") -> AsyncIterator[PubSubComponent]:
        """Open a pub/sub component, on its own broker or on the backbone.

        Raises:
            MeshError: It cannot be opened.
        """
        apps = self.apps(component.name)
        app = app_id or (apps[0] if len(apps) == 1 else "")
        closed = self.resolved(component, app)
        if component.type == PUBSUB_ON_BACKBONE:
            broker, group = self.on_backbone(), closed.setting("consumerID") or app
        else:
            broker, group = broker_of(closed, app, self.registry)
            if isinstance(broker, Onlooking):
                broker.as_onlooker()
        async with broker:
            await broker.check()
            yield component_on(broker, closed, self.namespace, group)


async def _secret(store: Any, ref: SecretRef) -> Mapping[str, str]:
    try:
        return cast("Mapping[str, str]", await store.get(ref.name, {}))
    except SecretError:  # Who refers to one that is not there says so.
        return {}


def _part(ref: SecretRef, secret: Mapping[str, str]) -> dict[SecretRef, str]:
    return {ref: secret[ref.key]} if ref.key in secret else {}
