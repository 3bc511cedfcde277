"""Secrets: read from a store that the application needs no access to.

Which secrets an application may read is limited by ``spec.secrets.scopes`` of the Configuration.

Source: Dapr 1.18, the secrets API and secret scopes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

from mesh.blocks.block import Block, Opened, Parts
from mesh.blocks.components import ComponentService
from mesh.errors import ComponentNotFoundError, MeshError, PermissionDeniedError, SecretError
from mesh.operation import Context, Method, Operation

if TYPE_CHECKING:
    from mesh.pipeline import Handler
    from mesh.resources.component import Component, SecretRef
    from mesh.resources.configuration import SecretScope

__all__ = [
    "BLOCK",
    "BULK",
    "GET",
    "MULTIPLE_VALUES",
    "Bulk",
    "Get",
    "SecretStore",
    "SecretStoreComponent",
    "secret_value",
]

logger = logging.getLogger(__name__)

Secret = Mapping[str, str]
MULTIPLE_VALUES = "MULTIPLE_KEY_VALUES_PER_SECRET"


class SecretStore(Protocol):
    """What an adapter implements."""

    @property
    def capabilities(self) -> Sequence[str]:
        """What metadata tells (``MULTIPLE_KEY_VALUES_PER_SECRET``)."""

    async def get(self, name: str, metadata: Mapping[str, str]) -> Secret:
        """Read one secret: one pair or, where the store has that, several.

        Raises:
            SecretError: There is none of this name, or the store cannot be read.
        """

    async def bulk(self, metadata: Mapping[str, str]) -> Mapping[str, Secret]:
        """Read every secret."""


@dataclass(frozen=True, slots=True)
class Get:
    """Read one secret."""

    name: str
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bulk:
    """Read every secret that the application may read."""

    metadata: dict[str, str] = field(default_factory=dict)


GET = Method("secrets", "get", Get, dict[str, str])
BULK = Method("secrets", "bulk", Bulk, dict[str, dict[str, str]])


class SecretStoreComponent:
    """A configured secret store; its functions are the block's methods."""

    def __init__(self, store: SecretStore) -> None:
        """Use an open store."""
        self.store = store

    @property
    def capabilities(self) -> Sequence[str]:
        """What metadata tells."""
        return self.store.capabilities

    async def referred(self, operation: Operation) -> Secret:
        """Read one secret for a resource: an operator may have given it, and applications may not read that."""
        given = getattr(self.store, "referred", None)
        found = None if given is None else await given(cast("Get", operation.arguments).name)
        return await self.get(operation) if found is None else cast("Secret", found)

    async def get(self, operation: Operation) -> Secret:
        """Read one secret."""
        asked = cast("Get", operation.arguments)
        return await self.store.get(asked.name, asked.metadata)

    async def bulk(self, operation: Operation) -> Mapping[str, Secret]:
        """Read every secret."""
        return await self.store.bulk(cast("Bulk", operation.arguments).metadata)


async def open_store(component: Component, parts: Parts) -> SecretStoreComponent:
    """Open a secret store component."""
    adapter = parts.registry.load(component.type).from_component(component)  # type: ignore[attr-defined]
    store: SecretStore = await parts.stack.enter_async_context(adapter)
    return SecretStoreComponent(store)


async def secret_value(parts: Parts, component: Opened | None, store: str, ref: SecretRef) -> str | None:
    """Read what a resource's setting refers to; an application's scopes do not concern it.

    Args:
        parts: Of the node.
        component: The store, if it is open on this node; else a host of it is asked.
        store: Its name.
        ref: What is referred to.

    Returns:
        None when nobody gives it, which is logged with the reason.

    Raises:
        MeshError: It may be given later, as when the store is away.
    """
    operation = Operation(GET, store, Get(ref.name), Context(parts.caller), time.time() + GET.seconds)
    try:
        if component is None:
            absent = ComponentNotFoundError(store, f"there is no secret store {store!r}")
            secret = cast("Secret", await parts.hosts.ask(operation, lambda name: absent))
        elif isinstance(component, SecretStoreComponent):
            secret = await component.referred(operation)
        else:
            raise SecretError(f"{store} is no secret store")
    except MeshError as error:
        if error.retryable:
            raise
        logger.warning("secret %s of %s: %s", ref.name, store, error)
        return None
    return secret.get(ref.key)


def may_read(scopes: Sequence[SecretScope], store: str, secret: str) -> bool:
    """Tell whether the scopes of a Configuration let a secret of a store be read."""
    scope = next((each for each in scopes if each.store_name == store), None)
    if scope is None:
        return True
    if scope.allowed_secrets:
        return secret in scope.allowed_secrets
    return secret not in scope.denied_secrets and scope.default_access != "deny"


def start(block: Block, parts: Parts, components: Mapping[str, Opened]) -> ComponentService:
    """Run the block within the scopes of this node's Configuration, as they are at any time, wherever the store is."""

    async def scoped(proceed: Handler, operation: Operation) -> object:
        spec = parts.configuration.spec.secrets
        scopes = () if spec is None else spec.scopes
        asked, store = operation.arguments, operation.target
        if isinstance(asked, Get) and not may_read(scopes, store, asked.name):
            raise PermissionDeniedError(f'access denied by policy to get "{asked.name}" from "{store}"')
        result = await proceed(operation)
        if isinstance(asked, Get) or not scopes:
            return result
        secrets = cast("Mapping[str, Secret]", result)
        return {name: secret for name, secret in secrets.items() if may_read(scopes, store, name)}

    return ComponentService(block, parts, components, around=scoped)


BLOCK = Block(
    "secrets",
    (GET, BULK),
    start,
    kind="secretstores",
    open=open_store,
    hosted=True,
    policy=lambda policies, target: policies.for_component(target, "secretstore", "outbound"),
    called="secretstore",
)
