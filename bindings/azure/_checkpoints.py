"""Checkpoints that another reader of an event hub left in blobs, as the vendor's libraries lay them out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from brokers.clients.azure_checkpoints import Checkpoint, CheckpointPlace, Checkpoints
from mesh.blocks.binding_contract import BindingError

__all__ = ["CheckpointPlace", "checkpoints"]

RETRIES = 3


async def checkpoints(place: CheckpointPlace, host: str, hub: str, group: str) -> Mapping[str, Checkpoint]:
    """Read how far each partition was read.

    Raises:
        BindingError: They cannot be read.
    """
    failed = partial(BindingError, retryable=True)
    async with Checkpoints.opened(place, host, hub, group, failed, retries=RETRIES) as found:
        return await found.read()
