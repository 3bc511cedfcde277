"""The application of a node whose application is a FastStream one in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

import orjson
from faststream import Response
from faststream.exceptions import AckMessage, NackMessage, RejectMessage, SubscriberNotFound
from faststream.message import AckStatus
from pydantic import ValidationError

from brokers.faststream._message import JSON, Delivered, IncomingCall, MeshMessage, encode, last_of_each
from mesh.application import BindingAnswer, Headers, Kind
from mesh.errors import EventError, HandlerFailedError

__all__ = ["FastStreamApplication", "Reply", "Subscriber"]

RETRY = (200, b'{"status":"RETRY"}')
DROP = (200, b'{"status":"DROP"}')
SUCCESS = (200, b"")
SETTLED = {AckStatus.NACKED: RETRY, AckStatus.REJECTED: DROP}


class Subscriber(Protocol):
    """What we use of a FastStream subscriber."""

    async def process_message(self, msg: object) -> Response:
        """Run middlewares and handler; raise what they raise."""


class Reply(Response):
    """A handler's answer with a status and headers of its own.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, body: object = None, *, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(body, headers=dict(headers or {}))
        self.status = status


class FastStreamApplication:
    """Takes events and calls as an HTTP application would, and gives them to FastStream's subscribers.

    Attributes:
        topics: Subscribers by the path that their subscription names.
        methods: Subscribers by verb (empty for any) and path.
        started: Set once FastStream has started them.
        takes_grpc: It does not.
        is_grpc: It is not.
        kinds: Single events.
    """

    takes_grpc = False
    is_grpc = False
    kinds = frozenset[Kind](("event",))

    def __init__(self, max_body_bytes: int) -> None:
        """Begin with nothing.

        Args:
            max_body_bytes: Largest body of a call; it is held in memory.
        """
        self._max_body_bytes = max_body_bytes
        self.topics: dict[str, Subscriber] = {}
        self.methods: dict[tuple[str, str], Subscriber] = {}
        self.started = asyncio.Event()

    async def trigger(self, name: str, path: str, headers: Headers, body: bytes) -> tuple[int, BindingAnswer]:
        """Take no events of bindings."""
        return 404, BindingAnswer()

    async def wants(self, name: str, path: str) -> bool:
        """Want nothing of bindings: FastStream has no word for them."""
        return False

    async def until_reachable(self) -> None:
        """Wait until FastStream has started."""
        await self.started.wait()

    async def until_unreachable(self) -> None:
        """Wait for ever: it ends together with its node."""
        await asyncio.Event().wait()

    async def post(self, path: str, headers: Headers, body: bytes, kind: Kind = "event") -> tuple[int, bytes]:
        """Deliver one event, which is the only kind there is here; answer as an HTTP application does.

        Raises:
            HandlerFailedError: The handler raised something else than how the event settles.
        """
        raw = Delivered(path, body)
        try:
            raw.message = message = MeshMessage.delivered(raw, body, last_of_each(headers))
        except EventError:
            return DROP
        try:
            await self.topics[path].process_message(raw)
        except AckMessage:
            return SUCCESS
        except NackMessage:
            return RETRY
        except (EventError, RejectMessage, SubscriberNotFound):
            return DROP
        except Exception as error:  # The handler's; FastStream has logged it, the policy decides what follows.
            text = " ".join(str(error).split())[:500]
            raise HandlerFailedError(f"the handler raised {type(error).__name__}{text and ': '}{text}") from error
        return SUCCESS if message.committed is None else SETTLED.get(message.committed, SUCCESS)

    @asynccontextmanager
    async def call(
        self, method: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> AsyncIterator[_Response]:
        """Answer a call."""
        yield await self._answer(method, target, headers, body)

    async def _answer(self, verb: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes]) -> _Response:
        path, _, query = target.partition("?")
        path = path.strip("/")
        subscriber = self.methods.get((verb.upper(), path)) or self.methods.get(("", path))
        if subscriber is None:
            return _problem(404, f"there is no method {path}")
        whole = await self._whole(body)
        if whole is None:
            return _problem(413, f"the body is larger than {self._max_body_bytes} bytes")
        raw = Delivered(path, whole)
        raw.message = MeshMessage.of_call(raw, IncomingCall(verb, path, query, last_of_each(headers)), whole)
        try:
            result = await subscriber.process_message(raw)
        except EventError as error:
            return _problem(400, str(error))
        except Exception as error:  # noqa: BLE001 - the handler's; FastStream has logged it
            return _problem(400 if _is_callers(error) else 500, f"{type(error).__name__}: {error}")
        return _rendered(result)

    async def _whole(self, body: bytes | AsyncIterator[bytes]) -> bytes | None:
        if isinstance(body, bytes):
            return body if len(body) <= self._max_body_bytes else None
        parts = bytearray()
        async for part in body:
            parts += part
            if len(parts) > self._max_body_bytes:
                return None
        return bytes(parts)


class _Response:
    """An answer that is there already."""

    __slots__ = ("_body", "headers", "status")

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self._body = body

    @property
    def trailers(self) -> Headers:
        return ()

    async def read_up_to(self, limit_bytes: int) -> bytes | None:
        return self._body if len(self._body) <= limit_bytes else None

    async def parts(self) -> AsyncIterator[bytes]:
        yield self._body


def _is_callers(error: Exception) -> bool:
    """Tell a body that does not fit the handler's parameters from a handler that fails by the same kind of error."""
    if not isinstance(error, ValidationError):
        return False
    deepest, trace = None, error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__"))
        if not module.startswith("pydantic"):
            deepest = (module.partition(".")[0], trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    return deepest == ("fast_depends", "__call__")  # Elsewhere there it is the answer that does not fit.


def _rendered(result: Response) -> _Response:
    given = [(str(name), str(value)) for name, value in result.headers.items()]
    status = result.status if isinstance(result, Reply) else 200
    if result.body is None:
        return _Response(204 if status == 200 else status, given, b"")
    body, content_type = encode(result.body)
    if not any(name.lower() == "content-type" for name, _ in given):
        given.append(("Content-Type", content_type))
    return _Response(status, given, body)


def _problem(status: int, message: str) -> _Response:
    return _Response(status, [("Content-Type", JSON)], orjson.dumps({"error": message}))
