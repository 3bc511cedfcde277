"""``crypto.dapr.kubernetes.secrets``: keys in the Secrets of a cluster.

Source: Dapr 1.18, the Kubernetes secrets cryptography component; the Kubernetes API, Secret.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any, cast

from bindings.crypto._keys import Key, parse_key
from bindings.crypto._provider import LocalProvider
from bindings.kubernetes.api import Cluster
from mesh.errors import CryptoAwayError, CryptoError
from mesh.resources.settings import setting

__all__ = ["KubernetesCrypto"]

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_KINDS = {"application/json": "json", "application/x-pem-file": "pem", "application/pkcs8": "pem"}


@dataclass(frozen=True, slots=True)
class KubernetesCryptoSettings:
    """Settings of ``crypto.dapr.kubernetes.secrets``."""

    namespace: str = setting(
        "defaultNamespace",
        "The namespace of the secrets whose keys are named without one.",
        default="",
        example="default",
    )
    path: str | None = setting(
        "kubeconfigPath",
        "Path of a kubeconfig file; without it the pod's own access is used.",
        example="kubeconfig.yaml",
    )


class KubernetesCrypto(LocalProvider):
    """Keys in Secrets, named as `namespace/secret/entry`, or `secret/entry` in one namespace by default."""

    tested = "Kubernetes 1.37; faults on a server written by hand from its documentation"
    settings = KubernetesCryptoSettings

    def __init__(self, settings: Any) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self._cluster = Cluster(settings.path, CryptoError, CryptoAwayError)

    async def _enter(self) -> None:
        """Connect, and see that the API server answers; a permission is not needed."""
        await self._stack.enter_async_context(self._cluster)
        await self.check()

    async def check(self) -> None:
        """Ask whether the API server answers."""
        await self._cluster.get("/version", absent=(403,))

    async def _key(self, name: str) -> Key:
        parts = name.split("/")
        if len(parts) == 2:
            parts = [self._settings.namespace, *parts]
        if len(parts) != 3:
            raise CryptoError("a key is named as namespace/secret/entry, or secret/entry with defaultNamespace")
        namespace, secret, entry = parts
        if not namespace:
            raise CryptoError("key doesn't have a namespace and the default namespace isn't set")
        found: Any = None
        if _NAME.fullmatch(namespace) and _NAME.fullmatch(secret):
            found = await self._cluster.get(f"/api/v1/namespaces/{namespace}/secrets/{secret}")
        encoded = cast("dict[str, str]", (found or {}).get("data") or {}).get(entry)
        if not encoded:
            raise CryptoError("key not found")
        try:
            data = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            raise CryptoError("the entry of the secret is no base64") from None
        return parse_key(data, _KINDS.get(str(found.get("type")), ""))
