"""Checkpoints that another reader of an event hub left in blobs, as the vendor's libraries lay them out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from azure.core.exceptions import AzureError, ResourceNotFoundError
from azure.storage.blob.aio import BlobServiceClient

from bindings._service import safe
from bindings.azure._client import CONNECT_SECONDS, READ_SECONDS, RETRIES
from brokers.clients.azure_amqp import secrets_of
from mesh.blocks.binding_contract import BindingError

__all__ = ["CheckpointPlace", "checkpoints"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CheckpointPlace:
    """Where they are.

    Attributes:
        account: URL of the account's blobs, or its connection string.
        credential: Who asks; None = the connection string says.
        container: The container's name.
    """

    account: str
    credential: Any
    container: str

    def client(self) -> BlobServiceClient:
        """Make a client; raises ``ValueError`` where the connection string is none."""
        options: dict[str, Any] = {
            "connection_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "retry_total": RETRIES,
        }
        if self.account.startswith(("https://", "http://")):
            return BlobServiceClient(self.account, credential=self.credential, **options)
        return BlobServiceClient.from_connection_string(self.account, **options)


async def checkpoints(place: CheckpointPlace, host: str, hub: str, group: str) -> Mapping[str, tuple[str, int]]:
    """Read how far each partition was read: offset and sequence number; what is not known is empty or -1.

    Raises:
        BindingError: They cannot be read.
    """
    found: dict[str, tuple[str, int]] = {}
    prefixes = dict.fromkeys((f"{host}/{hub}/{group}/checkpoint/".lower(), f"{host}/{hub}/{group}/checkpoint/"))
    try:
        async with place.client() as client:
            container = client.get_container_client(place.container)
            for prefix in prefixes:
                async for blob in container.list_blobs(name_starts_with=prefix, include=["metadata"]):
                    told = {name.casefold(): value for name, value in (blob.metadata or {}).items()}
                    offset, number = told.get("offset") or "", told.get("sequencenumber") or ""
                    if offset or number:
                        found[blob.name.removeprefix(prefix)] = (offset, int(number or -1))
    except ResourceNotFoundError:
        logger.warning("there is no container %r with checkpoints of %r", place.container, hub)
    except (AzureError, OSError, ValueError) as error:
        reason = safe(str(error).partition("\n")[0] or type(error).__name__, secrets_of(place.account))
        raise BindingError(f"the checkpoints in {place.container!r} cannot be read: {reason}", retryable=True) from None
    return found
