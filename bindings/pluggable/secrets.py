"""``secretstores.<name>``: secrets of the pluggable component whose socket has the name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bindings.pluggable._adapter import PluggableAdapter
from bindings.pluggable._connection import Failed
from bindings.pluggable._messages import message
from mesh.blocks.secrets import MULTIPLE_VALUES
from mesh.errors import SecretError, SecretStoreAwayError

__all__ = ["PluggableSecretStore"]


class PluggableSecretStore(PluggableAdapter):
    """A store whose own words say what it has not."""

    service = "SecretStore"

    @property
    def capabilities(self) -> Sequence[str]:
        """What the component says that it can do."""
        return [MULTIPLE_VALUES] if MULTIPLE_VALUES in self._features else []

    async def get(self, name: str, metadata: Mapping[str, str]) -> Mapping[str, str]:
        """Read a secret.

        Raises:
            SecretError: There is none, or the component fails.
        """
        answer = await self._ask("Get", message("GetSecretRequest")(key=name, metadata=dict(metadata)))
        if not answer.data:
            raise SecretError(f"secret {name} not found: the pluggable component gives no value")
        return dict(answer.data)

    async def bulk(self, metadata: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
        """Read all secrets."""
        answer = await self._ask("BulkGet", message("BulkGetSecretRequest")(metadata=dict(metadata)))
        return {name: dict(each.secrets) for name, each in answer.data.items()}

    def _error(self, failed: Failed) -> SecretError:
        # Without a status of its own a component says so of what it has not, as of a failure.
        passes = failed.away or not (failed.final or failed.code.name == "UNKNOWN")
        return (SecretStoreAwayError if passes else SecretError)(str(failed))
