"""What an RPC is: a row of a table, and a function that reads a message, asks the pipeline and makes the reply.

Rows stand in the module of their block, beside its HTTP routes; so nothing here may load what gRPC needs, which
`gateway/grpc` does when the first client comes. What a method takes and gives is told by ``gateway/grpc/proto``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.routes.route import API, Asking
from mesh.application import Headers
from mesh.operation import UNTRACED, Context, Trace

__all__ = ["DAPR", "RPC", "Called", "Connection", "Stream"]

DAPR = "Dapr"


class Connection(Protocol):
    """What calls come over; one object for all of them.

    Attributes:
        gone: Done once it is closed.
    """

    gone: asyncio.Future[None]


class Stream(Protocol):
    """The messages of a call that streams."""

    @property
    def connection(self) -> Connection:
        """What it came over."""

    def messages(self) -> AsyncIterator[Any]:
        """Iterate over what the client sends. A message that is no such one ends the call."""

    async def send(self, message: Any) -> None:
        """Send a message; waits while the client reads more slowly.

        Raises:
            OSError: The client is gone.
        """

    async def send_raw(self, messages: bytes) -> None:
        """Send messages that are serialized and framed; none of them begins the answer, and says no more.

        Raises:
            OSError: The client is gone.
        """

    async def break_off(self) -> None:
        """End it visibly in the middle."""

    def event(self, envelope: bytes, path: str, proven: str | None, into: Callable[[Any], Any]) -> Any:
        """Make the message of an event, and from that what the client is handed.

        Raises:
            EventError: The client could not read it.
        """


@dataclass(slots=True)
class Called(Asking):
    """A call that found its row.

    Attributes:
        api: What every route has.
        message: What the client sent; None where it streams.
        metadata: Of the call, by lower-case names; of repeated ones the first.
        fields: Gives all of them.
        reply: The class of what is answered.
        stream: The messages, where either side streams; else only what the call came over.
        deadline: The client's, in Unix time; None = it gave none.
        trailers: What is told of the answer besides; added to by the row.
        headers: The same, sent before the answer.
        trace: The call's span, and what goes with it.
    """

    api: API
    message: Any
    metadata: Mapping[str, str]
    fields: Callable[[], Headers]
    reply: Callable[..., Any]
    stream: Stream | None = None
    deadline: float | None = None
    trailers: list[tuple[str, str]] = field(default_factory=list)
    headers: list[tuple[str, str]] = field(default_factory=list)
    trace: Trace = UNTRACED

    def context(self, deadline: float | None = None) -> Context:
        """Give the context of an operation."""
        return Context(self.api.caller, self.deadline if deadline is None else deadline, *self.trace)


@dataclass(frozen=True, slots=True)
class RPC:
    """A row of the table of RPCs.

    Attributes:
        name: Of the method in its service.
        answer: Answers a call with a message; where the answer streams it sends them, and gives None.
        api: What ``spec.api`` of a Configuration calls it.
        aliases: Deprecated names of it.
        service: ``Dapr`` of the package ``dapr.proto.runtime.v1``, or one that has no package.
    """

    name: str
    answer: Callable[[Called], Awaitable[Any]]
    api: str
    aliases: tuple[str, ...] = ()
    service: str = DAPR
