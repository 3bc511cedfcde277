"""``secretstores.kubernetes``: the Secrets of a cluster.

Source: Dapr 1.18, the Kubernetes secret store; the Kubernetes API, Secret.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bindings.kubernetes.api import Cluster
from mesh.adapter import ComponentAdapter
from mesh.blocks.secrets import MULTIPLE_VALUES
from mesh.errors import SecretError, SecretStoreAwayError
from mesh.resources.settings import setting
from mesh.supply.names import SUPPLY_FOLDER
from mesh.supply.secrets import secret_of

__all__ = ["KubernetesSecretStore"]

PAGE = 100
MAX_SECRETS = 10_000
_NO_ACCESS = (
    "The operator gave this gateway nothing of it for its resources; applications read secrets by the rights of their "
    "pod's service account, whose token it does not have"
)
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class KubernetesSecretSettings:
    """Settings of ``secretstores.kubernetes``."""

    namespace: str | None = setting(
        "defaultNamespace", "The namespace of the secrets; without it the variable NAMESPACE tells.", example="default"
    )
    path: str | None = setting(
        "kubeconfigPath",
        "Path of a kubeconfig file; without it the pod's own access is used.",
        example="kubeconfig.yaml",
    )


class KubernetesSecretStore(ComponentAdapter):
    """Secrets of the namespace that is asked for, or of one by default; what is no text in them is left out."""

    settings = KubernetesSecretSettings
    capabilities: Sequence[str] = (MULTIPLE_VALUES,)
    tested = "Kubernetes 1.37; faults on a server written by hand from its documentation"

    def __init__(self, settings: Any) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        given, own = os.environ.get("MESH_SUPPLY"), settings.namespace in (None, os.environ.get("NAMESPACE"))
        folder = Path(os.environ.get("MESH_SUPPLY_DIR") or SUPPLY_FOLDER)
        self._given = folder if given and own and settings.path is None else None
        self._none = ""
        self._namespace = settings.namespace or os.environ.get("NAMESPACE")
        self._cluster = Cluster(settings.path, SecretError, SecretStoreAwayError)

    async def _enter(self) -> None:
        """Connect, and see that the API server answers; a permission is not needed.

        A gateway that is given what resources refer to need not know of one.
        """
        try:
            await self._stack.enter_async_context(self._cluster)
        except SecretError as error:
            if self._given is None:
                raise
            self._none = f"{error}. {_NO_ACCESS}"
        if self._given is None:
            await self.check()

    async def check(self) -> None:
        """Ask whether the API server answers."""
        if self._given is None:
            await self._cluster.get("/version", absent=(403,))

    async def referred(self, name: str) -> Mapping[str, str] | None:
        """Give what an operator gave this gateway of a secret, for resources that refer to it; None = nothing."""
        return None if self._given is None else await asyncio.to_thread(secret_of, self._given, name)

    async def get(self, name: str, metadata: Mapping[str, str]) -> Mapping[str, str]:
        """Read a secret of ``namespace``.

        Raises:
            SecretError: There is none of this name, or nothing in it is text.
        """
        if self._none:
            raise SecretError(self._none)
        namespace = self._of(metadata)
        found = None
        if _NAME.fullmatch(name):
            found = await self._cluster.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
        if found is None:
            raise SecretError(f"secret {name} not found in the namespace {namespace}")
        values = _values(found)
        if not values and found.get("data"):
            raise SecretError(f"nothing in the secret {name} is text")
        return values

    async def bulk(self, metadata: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
        """Read every secret of ``namespace``.

        Raises:
            SecretError: There are too many, or they may not be listed.
        """
        if self._none:
            raise SecretError(self._none)
        path = f"/api/v1/namespaces/{self._of(metadata)}/secrets"
        found: dict[str, Mapping[str, str]] = {}
        further = ""
        while True:
            page = await self._cluster.get(path, {"limit": str(PAGE), **({"continue": further} if further else {})})
            listed: Any = page or {}
            for each in listed.get("items") or ():
                found[str(each["metadata"]["name"])] = _values(each)
            further = str((listed.get("metadata") or {}).get("continue") or "")
            if not further:
                return found
            if len(found) > MAX_SECRETS:
                raise SecretError(f"there are more than {MAX_SECRETS} secrets")

    def _of(self, metadata: Mapping[str, str]) -> str:
        namespace = metadata.get("namespace") or self._namespace
        if not namespace:
            raise SecretError("no namespace is known: set defaultNamespace, or ask with metadata.namespace")
        if not _NAME.fullmatch(namespace):
            raise SecretError(f"there is no namespace {namespace}")
        return namespace


def _values(secret: Mapping[str, object]) -> Mapping[str, str]:
    values = {}
    for key, encoded in cast("Mapping[str, str]", secret.get("data") or {}).items():
        try:
            values[key] = base64.b64decode(encoded, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            continue
    return values
