"""The sockets that the parent of workers opens, and how a worker finds those that it was given.

Each worker has a socket of its own on each port, by ``SO_REUSEPORT``: the kernel gives each new client to one of them.
The parent keeps all of them open, so that what waits on the socket of a worker that has gone is taken by the one that
comes in its place. A socket file, and the port of metrics, is one socket that all of them accept from.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from gateway.config import GRPC_PORT, METRICS_PORTS, GatewayConfig, sharing
from gateway.given import Given, Passing, socket_path
from gateway.socket_file import BACKLOG, bound_at
from mesh.errors import ConfigError

__all__ = ["Opened", "given", "opened"]

WHAT = "http", "grpc", "metrics", "public"
Numbers = dict[str, dict[str, list[int]]]
"""By application and what they are for: descriptors."""


@dataclass(slots=True)
class Opened:
    """What the parent has opened.

    Attributes:
        of_slots: By the place of a worker, then by application and ``http``, ``grpc`` or ``metrics``.
    """

    of_slots: list[dict[str, dict[str, list[socket.socket]]]]
    made: list[socket.socket] = field(default_factory=list)

    def close(self) -> None:
        """Close all."""
        for each in self.made:
            each.close()

    def numbers(self, slot: int) -> Numbers:
        """Give the descriptors of one worker."""
        return {
            app_id: {what: [each.fileno() for each in sockets] for what, sockets in by_what.items()}
            for app_id, by_what in self.of_slots[slot].items()
        }


@asynccontextmanager
async def opened(configs: Sequence[GatewayConfig], workers: int) -> AsyncIterator[Opened]:
    """Open everything that the workers listen at; leaving closes it.

    Raises:
        ConfigError: A port is taken, or a socket file cannot be made.
    """
    made = Opened([{each.app_id: {} for each in configs} for _ in range(workers)])
    on_port_of_another = {each.app_id for group in sharing(configs) for each in group[1:]}
    async with AsyncExitStack() as stack:
        stack.callback(made.close)
        for index, config in enumerate(configs):
            if config.app_id not in on_port_of_another:
                for what in ("http", "grpc"):
                    await _open(made, config, what, stack)
            if not index and config.metrics:
                _metrics(made, config)
            if not index and config.public_port is not None:
                host, port = config.public_listen, config.public_port
                _for_all(made, config, "public", host, (port,), "probes; --dapr-public-port")
        yield made


async def _open(made: Opened, config: GatewayConfig, what: str, stack: AsyncExitStack) -> None:
    path = socket_path(config, what)
    if path is not None:
        listening, remove = await bound_at(path)
        stack.callback(remove)
        made.made.append(listening)
        for slot in made.of_slots:
            slot[config.app_id][what] = [listening]
        return
    if what == "http":
        ports: tuple[int, ...] = (config.http_port,)
    else:
        ports = (config.grpc_port,) if config.grpc_port is not None else (GRPC_PORT, 0)
    option = f"--dapr-{what}-port"
    for port in ports:
        try:
            _each(made, config, what, port)
        except OSError as error:
            if port != ports[-1] and error.errno == errno.EADDRINUSE:
                continue
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
            raise ConfigError(f"cannot listen on port {port}: {why}; {option} sets another") from error
        return


def _each(made: Opened, config: GatewayConfig, what: str, port: int) -> None:
    """Open a port at all addresses, once for each worker."""
    for index, host in enumerate(config.listen):
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, where in dict.fromkeys((family, where) for family, *_, where in found):
                # Alone first: another gateway that has the port with this option would share its clients with us.
                alone = _bound(family, (where[0], port, *where[2:]), several=False)
                port = port or int(alone.getsockname()[1])
                alone.close()
                for slot in made.of_slots:
                    one = _bound(family, (where[0], port, *where[2:]), several=True)
                    made.made.append(one)
                    slot[config.app_id].setdefault(what, []).append(one)
        except OSError as error:
            if not index or error.errno == errno.EADDRINUSE:
                raise  # Else it is a machine without IPv6.


def _bound(family: int, where: tuple[object, ...], *, several: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if several:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(where)
        made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def _metrics(made: Opened, config: GatewayConfig) -> None:
    asked = config.metrics_port
    ports = (asked,) if asked is not None else (*METRICS_PORTS, 0)
    _for_all(made, config, "metrics", config.metrics_listen, ports, "metrics; --metrics-port")


def _for_all(made: Opened, config: GatewayConfig, what: str, host: str, ports: Sequence[int], option: str) -> None:
    """Open one socket that all workers accept from, at the first port that is free."""
    for port in ports:
        try:
            family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listening = _bound(family, where, several=False)
        except OSError as error:
            if port != ports[-1] and error.errno == errno.EADDRINUSE:
                continue
            raise ConfigError(f"cannot listen on {host}, port {port}, for {option} sets another: {error}") from error
        made.made.append(listening)
        for slot in made.of_slots:
            slot[config.app_id][what] = [listening]
        return


def given(
    numbers: Numbers, passing: Passing, process: Callable[[], Awaitable[Mapping[str, float]]]
) -> dict[str, Given]:
    """Find the sockets that a worker was given, by application.

    Args:
        numbers: Their descriptors.
        passing: Passes connections to other workers.
        process: Measures all workers together.
    """
    found = {}
    for app_id, by_what in numbers.items():
        http, grpc, metrics, public = ([socket.socket(fileno=each) for each in by_what.get(what, ())] for what in WHAT)
        found[app_id] = Given(http, grpc, metrics, public, passing, process)
    return found
