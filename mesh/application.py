"""The application beside the gateway, as the core sees it; ``gateway`` speaks HTTP or gRPC to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["DROP_REASON", "AppResponse", "Application", "BindingAnswer", "Headers", "Kind", "read_within"]

Headers = Sequence[tuple[str, str]]
Kind = Literal["event", "events", "change", "job"]
"""What is posted: one event, a batch of them, a change of a configuration, a job."""
DROP_REASON = "mesh-reason"
"""Member of an entry in the answer to a batch: why that is dropped, where it was not the application who said so."""


class AppResponse(Protocol):
    """An application's answer while it is being read."""

    @property
    def status(self) -> int:
        """HTTP status."""

    @property
    def headers(self) -> Headers:
        """Fields of the head."""

    @property
    def trailers(self) -> Headers:
        """What came behind the body, once that was read; HTTP/1.1 has none."""

    async def read_up_to(self, limit_bytes: int) -> bytes | None:
        """Read the whole body if it is complete and small by now; else None, and use ``parts``."""

    def parts(self) -> AsyncIterator[bytes]:
        """Iterate over the body as it arrives."""


@dataclass(frozen=True, slots=True)
class BindingAnswer:
    """What an application answers to an event of an input binding.

    Attributes:
        data: What the source is told, and what is called gets; None = it was too large to be read.
        to: Output bindings to call.
        parallel: Whether they are called at once, not one after the other.
        store: Where state is saved.
        states: What is saved: items as in JSON, but for ``value``, which are the bytes.
        message: Whether all of that was said in a message; else a document in ``data`` may say it.
    """

    data: bytes | None = b""
    to: Sequence[str] = ()
    parallel: bool = False
    store: str = ""
    states: Sequence[Mapping[str, object]] = ()
    message: bool = False


async def read_within(response: AppResponse, limit_bytes: int) -> bytes | None:
    """Read a body to its end; None for one beyond the limit, of which no more is read."""
    whole = await response.read_up_to(limit_bytes)
    if whole is not None:
        return whole
    parts: list[bytes] = []
    size = 0
    async for part in response.parts():
        size += len(part)
        if size > limit_bytes:
            return None
        parts.append(part)
    return b"".join(parts)


class Application(Protocol):
    """The application's side of the gateway.

    Attributes:
        takes_grpc: Whether ``call`` reaches it by HTTP/2, which calls of gRPC need.
        is_grpc: Whether it is spoken to by gRPC alone, where verbs mean nothing.
        kinds: What can be posted to it.
    """

    takes_grpc: bool
    is_grpc: bool
    kinds: frozenset[Kind]

    def call(
        self, method: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> AbstractAsyncContextManager[AppResponse]:
        """Call with any method; ``target`` is path and raw query.

        Raises:
            AppUnreachableError: Nothing reached it.
            AppFailedError: It broke off.
        """

    async def post(self, path: str, headers: Headers, body: bytes, kind: Kind) -> tuple[int, bytes]:
        """Post a small body, give status and small answer.

        Args:
            path: The route.
            headers: Sent with it.
            body: What an application on HTTP is sent.
            kind: What it is, for an application that is told by something else than a path.

        Raises:
            AppUnreachableError: Nothing reached it.
            HandlerFailedError: It failed, and could say so.
            AppFailedError: It broke off.
        """

    async def trigger(self, name: str, path: str, headers: Headers, body: bytes) -> tuple[int, BindingAnswer]:
        """Hand over an event of an input binding, give status and answer.

        Args:
            name: The component's.
            path: The route.
            headers: Sent with it.
            body: The event.

        Raises:
            AppUnreachableError, HandlerFailedError, AppFailedError: As ``post``.
        """

    async def wants(self, name: str, path: str) -> bool:
        """Tell whether it wants the events of an input binding.

        Args:
            name: The component's.
            path: The route.

        Raises:
            AppUnreachableError: Nothing reached it.
            AppFailedError: It did not say.
        """

    async def until_reachable(self) -> None:
        """Wait until it accepts connections."""

    async def until_unreachable(self) -> None:
        """Wait until it does not."""
