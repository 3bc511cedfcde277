"""The application as a host of actors over a stream: its types are hosted for as long as the stream is there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from mesh.actors.stream import StreamHost
from mesh.errors import StreamEndedError
from mesh.streams import DRAINS, Streams
from mesh.tasks import task_group, until_any

__all__ = ["host_stream"]


async def host_stream(
    host: StreamHost, serve: Callable[[StreamHost, str], AbstractAsyncContextManager[None]], streams: Streams
) -> None:
    """Host the types of a stream until it ends, or this node drains: then it is told to let go of its actors first.

    Args:
        host: The stream.
        serve: Hosts a type while entered.
        streams: The node's.

    Raises:
        ActorTypeTakenError: One of the types is hosted on this node already.
        StreamEndedError: The node drains, or has too many streams.
        MeshError: The mesh has no records, or cannot reach them.
    """
    missing = set(host.settings.types)

    async def hold(type_: str) -> None:
        async with serve(host, type_):
            missing.discard(type_)
            if not missing:
                host.begun.set()
            await until_any(host.ended, streams.ending)

    with streams.one():
        async with task_group() as tasks:
            for type_ in host.settings.types:
                tasks.create_task(hold(type_), name="actor-stream-type")
            if not missing:  # An application may host nothing, and only call.
                host.begun.set()
                await until_any(host.ended, streams.ending)
        if not host.ended.is_set():
            raise StreamEndedError(DRAINS)
