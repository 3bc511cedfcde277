"""What requests over HTTP pass on their way, one adapter after the other.

There are two ways: to the API of a gateway (``spec.httpPipeline``) and from a gateway to its application
(``spec.appHttpPipeline``). Each is put together once at start; a component that is replaced is asked from the next
request on. Whoever has the requests (``gateway/http/middleware.py``) puts them into the shape below.

A middleware is a coroutine ``handle(request, onward)``. It awaits ``onward`` once at most, with the request as it came
or a changed one, and gives its answer, or gives an answer of its own::

    async def handle(self, request, onward):
        if request.header("x-key") != self._key:
            return Answer(401)
        return await onward(request)

Bodies stream past a middleware that does not look at them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from mesh.application import Headers
from mesh.errors import MeshError

if TYPE_CHECKING:
    from mesh.conditions import Conditions

__all__ = ["Answer", "Body", "Given", "Middleware", "MiddlewareError", "Onward", "Request", "through"]


class MiddlewareError(MeshError):
    """A middleware cannot tell what becomes of a request; it was not passed on.

    Attributes:
        known: Whether its text is for callers: what a middleware says itself is for the log alone.
        answer: What the request is answered all the same; None = that the middleware cannot tell.
    """

    code = "MIDDLEWARE_ERROR"
    known = False
    answer: Answer | None = None


class Body(Protocol):
    """The body of a request."""

    async def read(self) -> bytes:
        """Read all of it, up to the gateway's limit; again gives the same."""


@dataclass(frozen=True, slots=True)
class Given:
    """A body that is here."""

    data: bytes = b""

    async def read(self) -> bytes:
        """Give it."""
        return self.data


@dataclass(frozen=True, slots=True)
class Request:
    """A request; ``dataclasses.replace`` makes a changed one.

    Attributes:
        method: The verb.
        path: As it was written, with its percent escapes.
        query: As it was written, without its question mark.
        headers: In the order they came.
        body: Read by who asks for it.
        peer: Address of the client; empty on the way to the application.
        caller: App id of who asks: of an invocation its caller, else the gateway's own application.
        scheme: ``http`` or ``https``, as far as the gateway can see.
        told: Header fields that its answer gets, whatever it will be.
        named_by: Gives the app id that is called because a header names it, whatever the path says; else nothing.
    """

    method: str
    path: str
    query: str = ""
    headers: Headers = ()
    body: Body = field(default_factory=Given)
    peer: str = ""
    caller: str = ""
    scheme: str = "http"
    told: Headers = ()
    named_by: Callable[[Request], str | None] | None = field(default=None, repr=False)

    @property
    def place(self) -> str:
        """Give the path of the API that it goes to, also where a header names the application that is called.

        It is that of the request as it is now: a middleware may have changed the path, the method or the header.
        """
        named = self.named_by and self.named_by(self)
        if not named:
            return self.path
        return f"/v1.0/invoke/{quote(named, safe='')}/method/{self.path.lstrip('/')}"

    def header(self, name: str) -> str | None:
        """Give the first field of a name."""
        name = name.lower()
        return next((value for each, value in self.headers if each.lower() == name), None)

    def with_header(self, name: str, value: str | None) -> Request:
        """Give it with a field in the place of all of that name; None takes them away."""
        others = [(each, was) for each, was in self.headers if each.lower() != name.lower()]
        return replace(self, headers=others if value is None else [*others, (name, value)])


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer.

    Attributes:
        status: Of HTTP.
        headers: Its fields.
        body: None = it comes in parts. From the application its head can then be another one; what the API answers in
            parts is on its way already, and is given back as it is.
        source: What it was made of, for who made it.
        by: The middleware whose own answer it is; empty = what it passed the request on to answered.
    """

    status: int
    headers: Headers = ()
    body: bytes | None = b""
    source: object = field(default=None, repr=False)
    by: str = ""


Onward = Callable[[Request], Awaitable[Answer]]


class Middleware(Protocol):
    """What an adapter implements."""

    async def handle(self, request: Request, onward: Onward) -> Answer:
        """Answer a request, or pass it on.

        Raises:
            MiddlewareError: It cannot tell now; then nothing is passed on.
        """


def through(
    names: Sequence[str],
    opened: Mapping[str, Middleware],
    lives: Mapping[str, AbstractContextManager[object]],
    conditions: Conditions,
    last: Onward,
) -> Onward:
    """Put middleware around what takes the requests at last.

    Args:
        names: Of the components, outermost first.
        opened: Those that are open, as they are at any time.
        lives: Of each one, entered while it is used.
        conditions: The node's: the log has a line for each change, and not for each request.
        last: What is behind them.
    """
    for name in reversed(names):
        last = _step(name, opened, lives, conditions, last)
    return last


def _step(
    name: str,
    opened: Mapping[str, Middleware],
    lives: Mapping[str, AbstractContextManager[object]],
    conditions: Conditions,
    onward: Onward,
) -> Onward:
    condition = conditions.of("middleware", name)

    async def step(request: Request) -> Answer:
        passed = False

        async def pass_on(changed: Request) -> Answer:
            nonlocal passed
            passed = True
            condition.works(repeated=False)
            return await onward(changed)

        middleware = opened.get(name)
        if middleware is None:  # Whatever it would have kept out stays out.
            raise _unsaid(f"the middleware {name} is not open")
        with lives[name]:
            try:
                answer = await middleware.handle(request, pass_on)
            except MiddlewareError as error:
                if error.known:
                    raise
                condition.fails(f"it lets nothing through: {error}", level=logging.WARNING)
                if error.answer is None:
                    raise _unsaid(f"the middleware {name} cannot tell now; the gateway's log says why") from error
                answer = error.answer
            else:
                condition.works(repeated=False)
        return answer if passed else replace(answer, headers=(*answer.headers, *request.told), by=name)

    return step


def _unsaid(text: str) -> MiddlewareError:
    error = MiddlewareError(text)
    error.known = True
    return error
