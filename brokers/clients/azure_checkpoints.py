"""How far consumer groups have read an event hub, and who reads it, in blobs as the vendor's libraries lay them out.

Sources: the documentation of Azure Event Hubs; azure-eventhub-checkpointstoreblob-aio 1.2, which has the same blobs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.storage.blob.aio import BlobServiceClient, ContainerClient

from brokers.clients.azure import CONNECT_SECONDS, READ_SECONDS
from brokers.clients.azure_amqp import reason_of
from mesh.errors import MeshError

__all__ = ["BEGINNING", "Checkpoint", "CheckpointPlace", "Checkpoints", "Owners", "Ownership"]

logger = logging.getLogger(__name__)

ASK_SECONDS = 15.0
AT_ONCE = 16


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

    def client(self, retries: int) -> BlobServiceClient:
        """Make a client, which asks so often again; raises ``ValueError`` where the connection string is none."""
        options: dict[str, Any] = {
            "connection_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "retry_total": retries,
            # Three are within the time that a question has: after about 0.5, 2.5 and 4.5 seconds.
            **{"initial_backoff": 0.5, "increment_base": 2, "random_jitter_range": 0.5},
        }
        if self.account.startswith(("https://", "http://")):
            return BlobServiceClient(self.account, credential=self.credential, **options)
        return BlobServiceClient.from_connection_string(self.account, **options)


class Checkpoint(NamedTuple):
    """Up to where a partition was read.

    Attributes:
        offset: Of the last event that was taken; empty = only its number is known.
        number: Its sequence number; -1 = none was taken, or only the offset is known.
    """

    offset: str
    number: int


BEGINNING = Checkpoint("-1", -1)  # Before the first event.


class Ownership(NamedTuple):
    """Who reads a partition.

    Attributes:
        owner: The member; empty = nobody.
        etag: Of the blob that says so.
        modified: When the blob was written last, in seconds since 1970.
    """

    owner: str
    etag: str
    modified: float


class Owners(NamedTuple):
    """Who reads the partitions.

    Attributes:
        of: By a partition's name.
        now: When the service said so, by the clock that `Ownership.modified` is of, in seconds since 1970; 0 = it did
            not tell.
    """

    of: Mapping[str, Ownership]
    now: float


class Checkpoints:
    """Those of one consumer group of one hub."""

    def __init__(
        self, container: ContainerClient, place: CheckpointPlace, path: str, failed: Callable[[str], MeshError]
    ) -> None:
        """Prepare; ``opened`` makes one."""
        self._container, self._place, self._path, self._failed = container, place, path, failed
        self._few = asyncio.Semaphore(AT_ONCE)

    @classmethod
    @asynccontextmanager
    async def opened(
        cls,
        place: CheckpointPlace,
        host: str,
        hub: str,
        group: str,
        failed: Callable[[str], MeshError],
        *,
        retries: int = 0,
    ) -> AsyncIterator[Checkpoints]:
        """Make one, with connections of its own.

        Args:
            place: Where.
            host: Of the namespace.
            hub: Its name.
            group: The consumer group.
            failed: Makes the errors: of what may succeed later.
            retries: How often a service is asked again that was away, or too busy. Only for reading: a claim that was
                done, and not answered, would conflict with itself.
        """
        try:
            client = place.client(retries)
        except ValueError:  # Its text may quote the connection string.
            raise failed(f"the storage account of {place.container!r} is not named by the settings") from None
        async with client:
            yield cls(client.get_container_client(place.container), place, f"{host}/{hub}/{group}", failed)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (AzureError, OSError, ValueError) as error:  # A TimeoutError is an OSError.
            text = reason_of(error, self._place.account)
            raise self._failed(f"the checkpoints in the container {self._place.container!r}: {text}") from None

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        with self._failures():
            async with self._few, asyncio.timeout(ASK_SECONDS):
                yield

    async def make_container(self) -> None:
        """Make the container if it is not there, and this is allowed to."""
        async with self._asking():
            try:
                await self._container.create_container()
            except ResourceExistsError:
                pass
            except HttpResponseError as error:
                if error.status_code not in (401, 403):  # It may be there all the same.
                    raise

    async def read(self) -> Mapping[str, Checkpoint]:
        """Tell how far each partition was read, as far as that is noted; nothing without a container."""
        found: dict[str, Checkpoint] = {}
        # Libraries of old wrote names as they are; what is in small letters is newer.
        prefixes = dict.fromkeys((f"{self._path}/checkpoint/", f"{self._path}/checkpoint/".lower()))
        async with self._asking():
            try:
                for prefix in prefixes:
                    async for name, told, _ in self._listed(prefix):
                        offset, number = told.get("offset") or "", told.get("sequencenumber") or ""
                        if offset or number:
                            found[name] = Checkpoint(offset, int(number or -1))
            except ResourceNotFoundError:
                logger.warning("there is no container %r with checkpoints of %s", self._place.container, self._path)
        return found

    async def _listed(self, prefix: str, **options: Any) -> AsyncIterator[tuple[str, Mapping[str, str], Any]]:
        async for blob in self._container.list_blobs(name_starts_with=prefix, include=["metadata"], **options):
            told = {name.casefold(): value for name, value in (blob.metadata or {}).items()}
            yield blob.name.removeprefix(prefix), told, blob

    def _blob(self, kind: str, partition: str) -> Any:
        return self._container.get_blob_client(f"{self._path}/{kind}/{partition}".lower())

    async def begin(self, partition: str, checkpoint: Checkpoint) -> None:
        """Note where reading begins, unless that is noted already."""
        async with self._asking():
            with suppress(ResourceExistsError):
                await self._blob("checkpoint", partition).upload_blob(b"", metadata=_written(checkpoint))

    async def write(self, partition: str, checkpoint: Checkpoint) -> None:
        """Note how far a partition was read."""
        async with self._asking():
            blob = self._blob("checkpoint", partition)
            try:
                await blob.set_blob_metadata(_written(checkpoint))
            except ResourceNotFoundError:
                await blob.upload_blob(b"", metadata=_written(checkpoint), overwrite=True)

    async def owners(self) -> Owners:
        """Tell who reads each partition."""
        found: dict[str, Ownership] = {}
        now = 0.0

        def answered(response: Any) -> None:
            nonlocal now
            if said := response.http_response.headers.get("Date"):
                now = parsedate_to_datetime(said).timestamp()

        async with self._asking():
            async for name, told, blob in self._listed(f"{self._path}/ownership/".lower(), raw_response_hook=answered):
                found[name] = Ownership(told.get("ownerid") or "", blob.etag, blob.last_modified.timestamp())
        return Owners(found, now)

    async def claim(self, partition: str, owner: str, before: Ownership | None) -> Ownership | None:
        """Say who reads a partition; empty = nobody.

        Args:
            partition: Its name.
            owner: The member.
            before: What was read of it; None = nothing was there.

        Returns:
            What is said now; None = somebody else was faster.
        """
        told = {"ownerid": owner}
        async with self._asking():
            blob = self._blob("ownership", partition)
            try:
                if before is None:
                    made = await blob.upload_blob(b"", metadata=told)
                else:
                    unchanged = {"etag": before.etag, "match_condition": MatchConditions.IfNotModified}
                    made = await blob.set_blob_metadata(told, **unchanged)
            except (ResourceExistsError, ResourceModifiedError, ResourceNotFoundError):
                return None
        return Ownership(owner, str(made["etag"]), made["last_modified"].timestamp())


def _written(checkpoint: Checkpoint) -> dict[str, str]:
    return {"offset": checkpoint.offset, "sequencenumber": str(checkpoint.number)}
