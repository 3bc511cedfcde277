"""The HTTP server: listening, time limits for slow clients, and the router.

What a request passes before the router stands in `gateway/http/stages.py`. The router is a dictionary and
not aiohttp's: whatever it does not know is an invocation (Dapr has no plain 404), and it reads raw
paths, since a key may hold an escaped slash.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMethod, LineTooLong

from gateway.errors import APIError, bad_request, header_too_large, unexpected
from gateway.http.loading import Connections, Loading, hand_over
from gateway.http.parser import RequestParser
from gateway.http.response import Answered, Request, Response, render, split_target
from gateway.socket_file import BACKLOG, listen_at, place_of, port_of, serve_at
from mesh.errors import ConfigError
from mesh.tasks import task_group

if TYPE_CHECKING:
    from gateway.given import Passing

__all__ = ["Find", "Found", "HTTPServer", "Handler", "Router"]

logger = logging.getLogger(__name__)

HEADER_SECONDS = 10.0
IDLE_SECONDS = 75.0
CLOSING_SECONDS = 1.0
AT_ONCE = 0.01
FLUSH_SECONDS = 0.001
FEW_DESCRIPTORS = 32
TOLD_SECONDS = 60.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 section 3.4.
TOO_MANY_FIELDS = "Too many headers received"  # aiohttp has no class for it.
IPV6_LOOPBACK = "::1"

Handler = Callable[[web.BaseRequest], Awaitable[Answered]]
Found = Callable[[web.BaseRequest, str], Awaitable[Answered]]
Find = Callable[[str, Sequence[str]], Found | None]


class Router:
    """Finds the route of a raw path: ``/{version}/{block}/{segments…}``.

    Routes are compared with a normalised copy; what is passed on is the path as it was written.
    """

    def __init__(self, blocks: Mapping[tuple[str, str], Find], fallback: Find, clean: Callable[[str], str]) -> None:
        """Set the routes.

        Args:
            blocks: By version and name: gives what answers a method and the segments after the name.
            fallback: For everything else; its one segment is the whole path as it was written.
            clean: Makes the copy: collapses empty and dotted segments.
        """
        self._blocks = blocks
        self._fallback = fallback
        self._clean = clean

    async def __call__(self, request: web.BaseRequest) -> Answered:
        """Answer a request."""
        if request.method == "CONNECT":
            raise APIError(405, "ERR_DIRECT_INVOKE", "the method CONNECT is not supported")
        path, query = split_target(request)
        if "#" in path or "#" in query:  # What else cannot stand in a request line, the parser refuses.
            raise bad_request("a '#' cannot stand in a request line; it is written as %23")
        found = self.route(request.method, path)
        if found is None:
            found = self._fallback(request.method, (path,))
            assert found is not None  # It takes everything.
        return await found(request, query)

    def route(self, method: str, path: str) -> Found | None:
        """Find the route of a path as it was written; None = only the fallback takes it."""
        plain = self._clean(path) if "//" in path or "/." in path else path
        found = self._find(method, plain)
        if found is None and plain[-1:] == "/":
            found = self._find(method, plain.rstrip("/"))
        return found

    def _find(self, method: str, path: str) -> Found | None:
        parts = path.split("/", 3)
        find = self._blocks.get((parts[1], parts[2])) if len(parts) > 2 else None
        if find is None:
            return None
        return find(method, parts[3].split("/") if len(parts) == 4 else ())


class _Connection(web.RequestHandler):
    """One client.

    Closes a connection whose request header does not arrive in time (aiohttp's own limit is the idle
    one, which must be long), and answers what is not HTTP in the one shape of all errors.
    """

    _header_timer: asyncio.TimerHandle | None = None
    _heads = 0  # Headers that were complete when something came last.
    _begun: bytes | None = None  # What may become the preface of HTTP/2; None once that is decided.
    _answered: asyncio.Future[None] | None = None  # Once it shall end: done when its request is answered.
    _http2: Loading
    _pipelined = False  # Whether there was once more than one request that was not answered yet.
    _finished = 0  # Requests that were answered.

    def __init__(self, manager: web.Server, *, loop: asyncio.AbstractEventLoop, **settings: Any) -> None:
        super().__init__(manager, loop=loop, **settings)
        self._parser = RequestParser(
            self,
            loop,
            self._read_bufsize,
            max_line_size=self.max_line_size,
            max_field_size=self.max_field_size,
            max_headers=self.max_headers,
            payload_exception=web.RequestPayloadError,
            auto_decompress=False,  # A compressed body passes through as it is, and no bomb unpacks here.
            max_msg_queue_size=self._max_msg_queue_size,
        )

    def may_become(self, http2: Loading) -> None:
        """Hand over to another protocol if the client begins as those of HTTP/2 do."""
        self._begun, self._http2 = b"", http2

    def handle_error(  # type: ignore[override]  # our responses are what the protocol asks of one
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> Response:
        if isinstance(exc, LineTooLong):
            return render(header_too_large(f"a header field is larger than {self.max_line_size} bytes"))
        if message == TOO_MANY_FIELDS:
            return render(header_too_large(f"there are more than {self.max_headers} header fields"))
        if status == 400:
            return render(bad_request(_complaint(exc, message or "not HTTP")))
        return render(unexpected(exc if isinstance(exc, Exception) else RuntimeError(message)))

    @property
    def idle(self) -> bool:
        """Whether nothing is to be answered.

        aiohttp's own sign misses a request that its task has taken, and not begun with.
        """
        return self._request_count == self._finished

    @property
    def alone(self) -> bool:
        """Whether the request that is being answered is all that has come, since there was never more than one."""
        return not (self._pipelined or self._messages or self._reading_paused)

    @property
    def alive(self) -> bool:
        """Whether it is not being closed."""
        return self.transport is not None

    def until_answered(self) -> asyncio.Future[None] | None:
        """Close it if it is idle; else give what is done once its request is answered."""
        manager = cast("_Server | None", self._manager)  # None once the client has gone.
        passes = manager is not None and manager.pass_on is not None
        if self.idle and not (passes and self._half):
            # aiohttp's own ``close`` would leave it open and drop what comes: its client would wait for all others.
            if not self._passed_on():
                self.force_close()
            return None
        if self._answered is None:
            self._answered = self._loop.create_future()
        return self._answered

    @property
    def ending(self) -> bool:
        """Whether the request that is being answered is its last."""
        manager = cast("_Server | None", self._manager)  # As above.
        return self._answered is not None and (manager is None or manager.pass_on is None)

    @property
    def _half(self) -> bool:
        """Whether a part of a request has come."""
        return bool(self._begun) or (isinstance(self._parser, RequestParser) and self._parser.half)

    def _passed_on(self) -> bool:
        """Have another process go on with it, if there is one that does, from a moment at which it is idle."""
        transport, manager = self.transport, cast("_Server | None", self._manager)
        pass_on = None if manager is None else manager.pass_on
        if pass_on is None or transport is None or transport.is_closing() or transport.get_write_buffer_size():
            return False
        if not (isinstance(self._parser, RequestParser) and self._parser.whole):
            return False
        transport.pause_reading()
        if not pass_on(transport.get_extra_info("socket").fileno()):
            transport.resume_reading()
            return False
        transport.abort()  # Here it is only forgotten.
        return True

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._finished += 1
            if self.ending:
                self.close()  # Its head may have been sent before, and promise to take another.
                self._tell_answered()
            elif self._answered is not None:
                self._loop.call_later(FLUSH_SECONDS, self._end_by_passing)
            if self._handler_waiter is not None and self._handler_waiter.done():
                self._handler_waiter = None  # ``shutdown`` has just stopped waiting; aiohttp would resolve it again.

    def _end_by_passing(self) -> None:
        """Pass it on once what was written has left, unless more has come by then, which is answered first."""
        if self.transport is None or not self.idle or self._half:
            return
        if self.transport.get_write_buffer_size():
            self._loop.call_later(FLUSH_SECONDS, self._end_by_passing)
            return
        if not self._passed_on():
            self.force_close()
        self._tell_answered()

    def _tell_answered(self) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        server = cast("_Server", self._manager)
        if server.most is not None:  # Elsewhere clients may have connections ready that nothing came over yet.
            self._header_timer = self._loop.call_later(HEADER_SECONDS, self._give_up)
        server.made_room(transport)

    def data_received(self, data: bytes) -> None:
        if self._begun is not None:
            data = self._begun + data
            if data.startswith(PREFACE):
                if self.transport is not None:  # Else it is being closed.
                    self._hand_over(data)
                return
            self._begun = data if PREFACE.startswith(data) else None
        if self._begun is None:
            super().data_received(data)
            if len(self._messages) > 1:
                self._pipelined = True
        waiter, parser = self._waiter, self._parser
        heads, half = (parser.heads, parser.half) if isinstance(parser, RequestParser) else (0, False)
        waits = self._request_count == 0 or (waiter is not None and not waiter.done())  # Still no complete header.
        if self._header_timer is not None and (heads != self._heads or not (waits or half)):
            self._header_timer.cancel()
            self._header_timer = None
        if self._header_timer is None and (waits or half):
            self._header_timer = self._loop.call_later(HEADER_SECONDS, self._give_up)
        self._heads = heads

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
        self._tell_answered()
        super().connection_lost(exc)

    def _hand_over(self, data: bytes) -> None:
        transport = cast("asyncio.Transport", self.transport)
        self.transport = None  # So that it is not closed.
        self.connection_lost(None)
        hand_over(transport, self._http2(), data)

    def _give_up(self) -> None:
        self._header_timer = None
        if self._waiter is not None and not self._waiter.done():
            self.force_close()
        elif isinstance(self._parser, RequestParser) and self._parser.half:  # Behind a request that is being answered.
            self._header_timer = self._loop.call_later(HEADER_SECONDS, self._give_up)


def _complaint(exc: BaseException | None, message: str) -> str:
    """Say in one line what the parser did not like."""
    line = message.partition("\n")[0].rstrip(" :")
    if isinstance(exc, BadHttpMethod):
        line += "; this port speaks HTTP/1.1, and verbs are those that are registered for HTTP"
    return line


class _Server(web.Server):
    """aiohttp's low-level server with the connections above."""

    http2: Loading | None = None
    most: int | None = None  # Connections at once.
    pass_on: Callable[[int], bool] | None = None  # Gives a connection to another process, by its descriptor.
    _told_at = -math.inf

    def made_room(self, transport: asyncio.BaseTransport) -> None:
        """Have as many connections as there may be, now that there is one more; tell if the process may have few more.

        The idle ones that are the oldest go, so that who is silent keeps nobody out.
        """
        if self.most is not None:
            alive = [each for each in self.connections if isinstance(each, _Connection) and each.alive]
            idle = [each for each in alive if each.idle]
            for each in idle[: max(0, len(alive) - self.most)]:
                each.force_close()
        opened = transport.get_extra_info("socket")
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # A number is the lowest that is free. The event loop resets what it has none for, and says nothing.
        if opened is None or opened.fileno() < limit - FEW_DESCRIPTORS or limit == resource.RLIM_INFINITY:
            return
        if self._told_at + TOLD_SECONDS < (now := asyncio.get_running_loop().time()):
            self._told_at = now
            text = (
                "file descriptors run out: %d may be open (ulimit -n), fewer than %d are left; more clients are reset"
            )
            logger.warning(text, limit, FEW_DESCRIPTORS)

    def __call__(self) -> web.RequestHandler:
        connection = _Connection(self, loop=self._loop, **self._kwargs)
        if self.http2 is not None:
            connection.may_become(self.http2)
        return connection

    async def drain(self, seconds: float) -> None:
        """Close idle connections, and the others once they are answered or the time is over."""
        waiters = [conn.until_answered() for conn in self.connections if isinstance(conn, _Connection)]
        busy = [waiter for waiter in waiters if waiter is not None]
        if busy and seconds > 0:
            await asyncio.wait(busy, timeout=seconds)
        self.pre_shutdown()
        # What is cut off gets a moment; none at all would be no limit to aiohttp.
        await self.shutdown(CLOSING_SECONDS if seconds > 0 else AT_ONCE)


class HTTPServer:
    """Listens on TCP addresses or a socket file."""

    def __init__(
        self,
        handler: Handler,
        *,
        max_body_bytes: int,
        max_header_bytes: int,
        load_http2: Callable[[Handler], Connections] | None = None,
        max_connections: int | None = None,
    ) -> None:
        """Prepare.

        Args:
            handler: The router, and the stages around it; it raises for broken connections alone.
            max_body_bytes: Largest body that ``request.read`` takes.
            max_header_bytes: Largest header section.
            load_http2: Loads what serves connections of HTTP/2 with the same handler; None refuses them.
            max_connections: At once; the idle one that is the oldest is closed for one more.
        """
        self._max_connections = max_connections
        self._load_http2 = load_http2
        self._handler = handler
        self._max_body_bytes = max_body_bytes
        self._max_header_bytes = max_header_bytes

    def connections(self) -> _Server:
        """Make what serves connections, for whoever listens."""
        limit = self._max_body_bytes

        def make_request(
            message: object, payload: object, protocol: object, writer: object, task: object
        ) -> web.BaseRequest:
            return Request(
                message,  # type: ignore[arg-type]  # aiohttp's own values, passed through
                payload,  # type: ignore[arg-type]
                protocol,  # type: ignore[arg-type]
                writer,  # type: ignore[arg-type]
                task,  # type: ignore[arg-type]
                asyncio.get_running_loop(),
                client_max_size=limit,
            )

        server = _Server(
            self._handler,  # type: ignore[arg-type]  # our responses are what the protocol asks of one
            request_factory=make_request,
            handler_cancellation=True,
            keepalive_timeout=IDLE_SECONDS,
            access_log=None,
            max_line_size=self._max_header_bytes,
            max_field_size=self._max_header_bytes,
        )
        server.most = self._max_connections
        return server

    @asynccontextmanager
    async def listening(
        self,
        hosts: Sequence[str],
        port: int,
        socket_path: Path | None,
        drain: Callable[[], float],
        sockets: Sequence[socket.socket] = (),
        passing: Passing | None = None,
    ) -> AsyncIterator[int]:
        """Accept connections; give the port.

        Leaving accepts no more and lets open requests finish.

        Args:
            hosts: Addresses; of port 0 the first address picks and the others follow.
            port: TCP port.
            socket_path: A socket file instead.
            drain: Gives the seconds open requests may take at the end.
            sockets: Listen already, in place of all that; they are closed here at the end.
            passing: Passes connections to other processes; None = there is none.
        """
        server = self.connections()
        runner = web.ServerRunner(server, shutdown_timeout=CLOSING_SECONDS)
        await runner.setup()
        name = f"http {place_of(sockets[0])}" if sockets else ""
        async with AsyncExitStack() as passed, task_group() as tasks:
            if self._load_http2 is not None:
                server.http2 = Loading(partial(self._load_http2, self._handler), tasks)
            ends: list[Callable[[], None]] = []
            try:
                if sockets:
                    make: Callable[[], asyncio.Protocol] = server
                    if passing is not None:
                        entrance = passing.entrance(name, server, lambda: len(server.connections))
                        make = await passed.enter_async_context(entrance)
                    ends = [await serve_at(each, make) for each in sockets]
                    port = port_of(sockets[0])
                elif socket_path is not None:
                    ends = [await listen_at(socket_path, server)]
                else:
                    for host in hosts:
                        port = await _listen(runner, host, port, optional=host == IPV6_LOOPBACK and len(hosts) > 1)
                yield port
            finally:
                for end in ends:
                    end()
                for site in list(runner.sites):
                    await site.stop()
                seconds = drain()
                server.pass_on = None if passing is None else passing.leaving(name)
                async with asyncio.TaskGroup() as draining:
                    draining.create_task(server.drain(seconds), name="http-drain")
                    if server.http2 is not None:
                        draining.create_task(server.http2.drain(seconds), name="http2-drain")
                await runner.cleanup()


async def _listen(runner: web.ServerRunner, host: str, port: int, *, optional: bool) -> int:
    """Listen on one more address; give the port. A machine without IPv6 goes without its loopback."""
    try:
        await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
    except OSError as error:
        if not optional or error.errno == errno.EADDRINUSE:
            number = error.errno or 0  # Of a look-up that failed it is below zero.
            why = os.strerror(number) if number > 0 else error.strerror or error
            raise ConfigError(
                f"cannot listen on {host}, port {port}: {why}; --dapr-http-port and --dapr-listen-addresses set others"
            ) from error
        logger.debug("not listening on %s: %s", host, error)
        return port
    return port or int(runner.addresses[0][1])
