"""The HTTP client towards the application beside the gateway (and towards HTTPEndpoint services).

Whether it is there, how many calls at once and what every call carries is the same over HTTP/1.1, HTTP/2 and gRPC, for
which there is more in `gateway/grpc/application.py`.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, get_args
from urllib.parse import unquote, urlsplit

from gateway.config import HealthCheck
from gateway.http.client import BusyError, ConnectError, HTTPClient, NotSpokenError, ResponseError
from gateway.metrics.recording import Recorder
from gateway.metrics.sources import PROBED
from mesh.application import AppResponse, BindingAnswer, Headers, Kind, read_within
from mesh.errors import AppFailedError, AppUnreachableError, BadArgumentError
from mesh.middleware import MiddlewareError
from mesh.places import WAITS
from mesh.resources.subscription import Subscription, programmatic_subscriptions
from mesh.telemetry import who_answered

__all__ = ["Direct", "HTTPApplication", "Permits", "Probing", "outside_service"]

logger = logging.getLogger(__name__)

PROBE_FIRST_WAIT = 0.05
PROBE_LONGEST_WAIT = 0.5
PROBE_SECONDS = 1.0
STEADY_SECONDS = 1.0
ANSWER_LIMIT_BYTES = 1024 * 1024
SUBSCRIBE_SECONDS = 30.0
SUBSCRIBE_RETRY = 1.0
# There is no such path, or nothing is got from it: the application asks for nothing.
NOT_THERE = (404, 405, 501)


Direct = Callable[[str, str, Headers, bytes | AsyncIterator[bytes]], AbstractAsyncContextManager[AppResponse]]


Probing = Callable[[Callable[[], Awaitable[bool]], float], Awaitable[bool]]


class Permits(Protocol):
    """How many calls there may be at once; a semaphore is one."""

    async def acquire(self) -> object:
        """Take one, once there is one."""

    def release(self) -> None:
        """Give it back."""


class Client(Protocol):
    """A client of one origin, by HTTP/1.1 or HTTP/2."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc_info: object) -> None: ...
    def call(
        self, method: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> AbstractAsyncContextManager[AppResponse]: ...


class _Response:
    """An answer while it is read."""

    __slots__ = ("_response", "headers", "status")

    def __init__(self, response: AppResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Headers = response.headers

    @property
    def trailers(self) -> Headers:
        """What came behind the body, once that was read."""
        return self._response.trailers

    async def read_up_to(self, limit_bytes: int) -> bytes | None:
        """Read the whole body if its length is known and small, or if it is all here already."""
        try:
            return await self._response.read_up_to(limit_bytes)
        except ResponseError as error:
            raise _broken(error) from error

    async def parts(self) -> AsyncIterator[bytes]:
        """Iterate over the body as it arrives."""
        try:
            async for part in self._response.parts():
                yield part
        except ResponseError as error:
            raise _broken(error) from error


def _broken(error: ResponseError) -> AppFailedError:
    return AppFailedError(f"the application broke off: {str(error) or type(error).__name__}")


class _Call(AbstractAsyncContextManager[AppResponse]):
    """A call of an application; a generator for it takes longer."""

    __slots__ = ("_asked", "_begin", "_calling", "_check", "_permits")

    def __init__(
        self,
        check: Callable[[str], None],
        begin: Callable[..., Awaitable[tuple[AbstractAsyncContextManager[AppResponse], AppResponse]]],
        permits: Permits | None,
        *asked: Any,
    ) -> None:
        self._check, self._begin, self._permits, self._asked = check, begin, permits, asked
        self._calling: AbstractAsyncContextManager[AppResponse]

    async def __aenter__(self) -> AppResponse:
        self._check(self._asked[1])
        if self._permits is not None:
            waits = WAITS.get()
            waits(True)
            await self._permits.acquire()
            waits(False)
        try:
            self._calling, response = await self._begin(*self._asked)
        except BaseException:
            self._end()
            raise
        return _Response(response)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._calling.__aexit__(kind, error, traceback)
        finally:
            self._end()

    def _end(self) -> None:
        if self._permits is not None:
            self._permits.release()


class HTTPApplication:
    """An HTTP service at one address."""

    kinds: frozenset[Kind] = frozenset(get_args(Kind))
    speaks = "http"
    is_grpc = False

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        permits: Permits | None = None,
        health: HealthCheck | None = None,
        headers: Headers = (),
        tls: ssl.SSLContext | None = None,
        client: Callable[[str, int, ssl.SSLContext | None], Client] = HTTPClient,
        around: Callable[[Direct], Direct] | None = None,
        called: str = "the application",
        probing: Probing | None = None,
    ) -> None:
        """Prepare; entering opens the connection pool and begins to watch.

        Args:
            base_url: ``http://127.0.0.1:3000``.
            token: Sent as ``dapr-api-token`` with every call but health probes.
            permits: Of calls at once; None for no limit.
            health: Watch it; None takes an open port for healthy.
            headers: Sent with every call, replacing the caller's of the same name.
            tls: Context for ``https``; None trusts whom the machine trusts.
            client: What makes the calls.
            around: What every call passes, but for probes of its health; None = nothing.
            called: What it is, in errors.
            probing: Gives its health, given what asks for it and the seconds between; None = it is asked each time.
        """
        self._called = called
        parts = urlsplit(base_url.rstrip("/"))
        secure = parts.scheme == "https"
        self._base = base_url.rstrip("/")
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or (443 if secure else 80)
        self._path = parts.path
        self._secure = secure
        self._tls = tls
        making: object = client
        self.takes_grpc = making is not HTTPClient
        self._making = client
        self._client: Client
        self._fixed: list[tuple[str, str]] = [*headers, *([("dapr-api-token", token)] if token is not None else [])]
        self._fixed_names = {name.lower() for name, _ in self._fixed}
        self._permits, self._probing = permits, probing
        self._health = health
        self._passed: Direct = self._direct if around is None else around(self._direct)
        self.recorder: Recorder | None = None
        """Is told of probes, and by an application on gRPC of calls; None = nobody is."""
        self._tasks = asyncio.TaskGroup()
        self._watching: asyncio.Task[None] | None = None
        self._reachable = asyncio.Event()
        self._unreachable = asyncio.Event()
        self._unreachable.set()

    async def __aenter__(self) -> Self:
        """Open the connection pool."""
        tls = self._tls or await _system_trust() if self._secure else None
        self._client = await self._making(self._host, self._port, tls).__aenter__()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop watching and close the connections."""
        if self._watching is not None:
            self._watching.cancel()
        await self._tasks.__aexit__(None, None, None)
        await self._client.__aexit__(None, None, None)

    def watch(self) -> None:
        """Begin to find out whether it is there."""
        self._watching = self._tasks.create_task(self._watch(), name="application-watch")

    @property
    def reachable(self) -> bool:
        """Whether it accepted the last connection, and is healthy as far as it is asked."""
        return self._reachable.is_set()

    @property
    def unreachable(self) -> asyncio.Event:
        """Set while it is not there, or not healthy."""
        return self._unreachable

    async def until_reachable(self) -> None:
        """Wait until it accepts connections (and is healthy, if that is watched)."""
        await self._reachable.wait()

    async def until_unreachable(self) -> None:
        """Wait until it does not."""
        await self._unreachable.wait()

    def _note(self, *, reachable: bool) -> None:
        if reachable == self._reachable.is_set():
            return
        if reachable:
            self._unreachable.clear()
            self._reachable.set()
        else:
            self._reachable.clear()
            self._unreachable.set()
        logger.info("application at %s is %s", self._base, "up" if reachable else "down")

    async def _watch(self) -> None:
        """Probe: often until it is there, then by the health check, or when a call fails."""
        loop, wait = asyncio.get_running_loop(), PROBE_FIRST_WAIT
        failures = 0
        while True:
            healthy = await (self._probe_port() if self._health is None else self._healthy(self._health))
            failures = 0 if healthy else failures + 1
            threshold = 1 if self._health is None or not self.reachable else self._health.threshold
            if healthy or failures >= threshold:
                self._note(reachable=healthy)
            if self._health is not None:
                await asyncio.sleep(min(self._health.interval, PROBE_LONGEST_WAIT if not self.reachable else 3600))
                continue
            up_at = loop.time()
            if healthy:
                await self._unreachable.wait()
            # An open port says little: one that speaks no TLS would be up and down without a pause.
            if loop.time() - up_at > STEADY_SECONDS:
                wait = PROBE_FIRST_WAIT
            else:
                await asyncio.sleep(wait)
                wait = min(wait * 2, PROBE_LONGEST_WAIT)

    async def _probe_port(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                _, writer = await asyncio.open_connection(self._host, self._port)
            writer.close()
        except (OSError, TimeoutError):
            return False
        return True

    async def _healthy(self, health: HealthCheck) -> bool:
        if self._probing is None:
            return await self._probe(health)
        return await self._probing(partial(self._probe, health), health.interval)

    async def _probe(self, health: HealthCheck) -> bool:
        started, status = time.perf_counter(), ""
        try:
            async with asyncio.timeout(health.timeout):
                status, healthy = await self._probe_health(health)
        except (ConnectError, ResponseError, TimeoutError):
            healthy = False
        if self.recorder is not None:
            self.recorder(PROBED, (self.speaks, status), 1, time.perf_counter() - started)
        return healthy

    async def _probe_health(self, health: HealthCheck) -> tuple[str, bool]:
        """Ask for its health, give the status and whether that is good; past the limit of calls, without the token."""
        async with self._client.call("GET", health.path, (), b"") as response:
            return str(response.status), 200 <= response.status < 300

    def _headers(self, headers: Headers) -> Headers:
        if not self._fixed:
            return headers
        return [*((name, value) for name, value in headers if name.lower() not in self._fixed_names), *self._fixed]

    def _check(self, target: str) -> None:
        if self._path and _climbs(target):
            raise BadArgumentError(f"the path leaves {self._base} by '..'")
        self._check_healthy()

    def _check_healthy(self) -> None:
        if self._health is not None and not self.reachable:
            raise AppUnreachableError("app is not in a healthy state")

    def _away(self, error: ConnectError) -> AppUnreachableError:
        """Note that it is not there, unless it only has too much to do; give the error that says so."""
        if not isinstance(error, BusyError):
            self._note(reachable=False)
        why = str(error) if isinstance(error, (NotSpokenError, BusyError)) else "it does not accept connections"
        return AppUnreachableError(f"{self._called} at {self._base} is not reached: {why}")

    def call(
        self, method: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> AbstractAsyncContextManager[AppResponse]:
        """Call with any method; see ``mesh.application.Application``."""
        return self._passed(method, target, headers, body)

    def _direct(
        self, method: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> AbstractAsyncContextManager[AppResponse]:
        return _Call(self._check, self._begin, self._permits, method, target, headers, body)

    async def _begin(
        self, method: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> tuple[AbstractAsyncContextManager[AppResponse], AppResponse]:
        """Begin a call, for which there is room; gives it as it was entered, and its answer."""
        calling = self._client.call(method, self._path + target, self._headers(headers), body)
        try:
            return calling, await calling.__aenter__()
        except ConnectError as error:
            raise self._away(error) from error
        except ResponseError as error:
            raise AppFailedError(f"{self._called} broke off: {error}") from error

    async def post(self, path: str, headers: Headers, body: bytes, kind: Kind = "event") -> tuple[int, bytes]:
        """Post a small body to a route, which may lack its slash; an answer beyond 1 MiB is not read."""
        async with self.call("POST", path if path[:1] == "/" else f"/{path}", headers, body) as response:
            return response.status, await read_within(response, ANSWER_LIMIT_BYTES) or b""

    async def trigger(self, name: str, path: str, headers: Headers, body: bytes) -> tuple[int, BindingAnswer]:
        """Post an event of a binding, with its name among the headers."""
        async with self.call("POST", path if path[:1] == "/" else f"/{path}", headers, body) as response:
            return response.status, BindingAnswer(await read_within(response, ANSWER_LIMIT_BYTES))

    async def wants(self, name: str, path: str) -> bool:
        """Ask by ``OPTIONS``; who has no such verb has the route."""
        async with self.call("OPTIONS", path if path[:1] == "/" else f"/{path}", (), b"") as response:
            return 200 <= response.status < 300 or response.status == 405

    async def get(self, path: str, headers: Headers) -> tuple[int, bytes]:
        """Get a small answer; its body is what was asked for, so that one beyond 1 MiB is a failure."""
        async with self.call("GET", path, headers, b"") as response:
            body = await read_within(response, ANSWER_LIMIT_BYTES)
        if body is None:
            raise AppFailedError(f"the application's answer is larger than {ANSWER_LIMIT_BYTES} bytes")
        return response.status, body

    async def subscriptions(self, app_id: str) -> Sequence[Subscription]:
        """Ask what it wants of topics; tries again while the answer does not come."""
        told = ""
        while True:
            try:
                async with asyncio.timeout(SUBSCRIBE_SECONDS):
                    return await self._subscriptions(app_id)
            except (AppFailedError, AppUnreachableError, MiddlewareError) as error:
                problem = str(error)
            except TimeoutError:
                problem = f"no answer within {SUBSCRIBE_SECONDS:g} s"
            if problem != told:
                logger.warning("cannot read the application's subscriptions, trying again: %s", problem)
            told = problem
            await asyncio.sleep(SUBSCRIBE_RETRY)

    async def _subscriptions(self, app_id: str) -> Sequence[Subscription]:
        status, body = await self.get("/dapr/subscribe", [("dapr-app-id", app_id)])
        if status != 200:
            if status not in NOT_THERE:
                logger.warning("%s to GET /dapr/subscribe", who_answered(status))
            return ()
        subscriptions, warnings = programmatic_subscriptions(body)
        for warning in warnings:
            logger.warning("GET /dapr/subscribe: %s", warning)
        return subscriptions


def _climbs(target: str) -> bool:
    """Tell whether a path may lead out of the one that stands before it, as whoever decodes it first would read it."""
    depth = 0
    for segment in unquote(target.partition("?")[0]).replace("\\", "/").split("/"):
        name = segment.partition(";")[0]
        depth += -1 if name == ".." else name not in ("", ".")
        if depth < 0:
            return True
    return False


def outside_service(base_url: str) -> HTTPApplication:
    """Make the client of a service that is named by its absolute URL; entered for one call.

    Raises:
        BadArgumentError: It is no URL of a host.
    """
    try:
        return HTTPApplication(base_url)
    except ValueError as error:
        raise BadArgumentError(str(error)) from None


_trust: list[ssl.SSLContext] = []
_making_trust = threading.Lock()


async def _system_trust() -> ssl.SSLContext:
    """Give the one context of the process: to read the machine's authorities takes 60 ms, so not in the loop."""
    return _trust[0] if _trust else await asyncio.to_thread(_make_trust)


def _make_trust() -> ssl.SSLContext:
    with _making_trust:
        if not _trust:
            _trust.append(ssl.create_default_context())
    return _trust[0]
