"""A root in a secret store: ``roots.pem`` and ``root.key`` of one secret, or one text with both."""

from __future__ import annotations

import asyncio
import datetime
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from mesh.errors import ConfigError, MeshError
from mesh.registry import Registry
from mesh.resources.component import TemplateTokens
from mesh.trust.certificates import as_pem, key_as_pem, read_certificates, read_key
from mesh.trust.folder import Issued, Root
from mesh.trust.identity import Identity, RootSecret

__all__ = ["IssuedBySecret", "read_root", "texts_of"]

READ_SECONDS = 15.0
LOOK_SECONDS = 60.0  # Stores count, and charge for, what is read.
_ROOTS, _KEY = "roots.pem", "root.key"


async def read_root(secret: RootSecret, registry: Registry, namespace: str, app_id: str) -> Root:
    """Read a root from a store, which is open meanwhile.

    Args:
        secret: With its store.
        registry: What is installed.
        namespace: For templates in the store's settings; so is the app id.
        app_id: See there.

    Raises:
        ConfigError: The store cannot be read in time, or what it has is of no use.
        MissingDependencyError: The store needs a library that is not installed.
    """
    component, where = secret.component, f"the secret {secret}"
    if component is None:
        raise ConfigError(f"the root is in {secret}, and there are no resources that say where {secret.store} is")
    tokens = TemplateTokens(app_id, namespace, os.environ.get("POD_NAME"))
    component = component.resolved(tokens, os.environ, {})
    adapter = registry.load(component.type).from_component(component)  # type: ignore[attr-defined]
    try:
        async with asyncio.timeout(READ_SECONDS), adapter as store:
            values: Mapping[str, str] = await store.get(secret.name, {})
    except TimeoutError:
        raise ConfigError(f"{where} could not be read within {READ_SECONDS:g} s") from None
    except ConfigError:
        raise
    except MeshError as error:
        raise ConfigError(f"{where} cannot be read: {error}") from error
    return await asyncio.to_thread(_root, values, where)


def _root(values: Mapping[str, str], where: str) -> Root:
    """Read a secret's values; raises ``ConfigError``, which tells nothing of them."""
    roots_where, key_where = f"{_ROOTS} of {where}", f"{_KEY} of {where}"
    roots, key = values.get(_ROOTS, ""), values.get(_KEY, "")
    if not roots and not key and len(values) == 1:
        [roots] = [key] = values.values()
        roots_where = key_where = where
    if not roots or not key:
        missing = " and ".join(name for name, text in ((_ROOTS, roots), (_KEY, key)) if not text)
        raise ConfigError(f"{where} has no {missing}; mesh trust init --output json makes both")
    certificates = read_certificates(roots.encode(), roots_where)
    return Root(certificates, read_key(key.encode(), key_where), roots_where, key_where)


def texts_of(root: Root) -> dict[str, str]:
    """Give what a secret is to hold."""
    return {_ROOTS: as_pem(root.roots).decode(), _KEY: key_as_pem(root.key).decode()}


class IssuedBySecret:
    """A certificate that a node issues itself by a root in a secret store."""

    def __init__(self, secret: RootSecret, identity: Identity, registry: Registry) -> None:
        """Read nothing yet."""
        self._secret, self._identity, self._registry = secret, identity, registry
        self._look_at = 0.0
        self._problem: ConfigError | None = None
        self._issued: Issued

    async def first(self) -> Issued:
        """Issue one; raises ``ConfigError``."""
        root = await self._read()
        self._issued = await asyncio.to_thread(self._issue, root)
        return self._issued

    async def renewed(self) -> Issued | None:
        """Look once a minute whether another root is there, and issue another one when half of its life is over."""
        if asyncio.get_running_loop().time() >= self._look_at:
            self._problem = None
            try:
                return await self._looked(await self._read())
            except ConfigError as error:
                self._problem = error
        if self._problem is not None:
            raise ConfigError(self._problem.problems)
        return None

    def ending(self) -> str:
        """Give when the certificate in use ends, once that is near; else nothing."""
        return self._issued.ending()

    async def _read(self) -> Root:
        self._look_at = asyncio.get_running_loop().time() + LOOK_SECONDS
        return await read_root(self._secret, self._registry, self._identity.namespace, self._identity.app_id)

    async def _looked(self, root: Root) -> Issued | None:
        issued, due = self._issued, datetime.datetime.now(datetime.UTC) >= self._issued.half()
        if not due and issued.roots == root.roots:
            return None
        kept = replace(issued, roots=root.roots)
        if not due:
            # Others may not have seen a new root yet: what the former one has issued is used as long as it is trusted.
            with suppress(ConfigError):
                kept.check(self._identity, str(self._secret))
                self._issued = kept
                return kept
        self._issued = await asyncio.to_thread(self._issue, root)
        return self._issued

    def _issue(self, root: Root) -> Issued:
        issued = root.issue(self._identity)
        issued.check(self._identity, str(self._secret))
        return issued
