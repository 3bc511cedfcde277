"""The application of a run: as little as an HTTP server can be, so that it is not what is measured.

Deliveries (``/events/…``) are counted and answered 200, or held until the run lets them go; with
a ``sent`` time in them their latency is noted. What came of reminders and jobs is known by its path. Everything else
under ``/echo``, and every call of an actor, gets a small JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from array import array

import uvloop

from bench.peer import control

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
ECHO_BODY = b'{"orderId":"41","status":"stored","total":12.5,"items":["book","pen"]}'
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_SENT = re.compile(rb'"sent": ?(\d+)')


def _json(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


ECHO = _json(ECHO_BODY)


class App:
    """What the connections share."""

    def __init__(self, subscriptions: object, config: object) -> None:
        self.subscriptions = _json(json.dumps(subscriptions).encode())
        self.config = _json(json.dumps(config).encode())
        self.fired: set[bytes] = set()
        self.firings = 0
        self.last_fired = 0.0
        self.counts: dict[bytes, int] = {}
        self.holding = False
        self.timing = False
        self.held: list[asyncio.WriteTransport] = []
        self.latencies = array("d")
        self.waiting: tuple[bytes, int, asyncio.Future[None]] | None = None

    def receive(self, path: bytes, body: bytes, transport: asyncio.WriteTransport) -> None:
        count = self.counts[path] = self.counts.get(path, 0) + 1
        if self.timing:
            sent = _SENT.search(body)
            if sent is not None:
                self.latencies.append(time.perf_counter() - int(sent[1]) / 1e9)
        if self.holding:
            self.held.append(transport)
            return
        transport.write(OK)
        if self.waiting is not None:
            wanted_path, wanted, done = self.waiting
            if path == wanted_path and count >= wanted:
                self.waiting = None
                done.set_result(None)

    def fire(self, path: bytes, transport: asyncio.WriteTransport) -> None:
        self.fired.add(path)
        self.firings += 1
        self.last_fired = time.time()
        transport.write(OK)

    async def answer(self, question: dict[str, object]) -> dict[str, object]:
        if question["do"] == "hold":
            self.counts.clear()
            self.holding = True
        elif question["do"] == "held":
            return {"held": len(self.held)}
        elif question["do"] == "release":  # And say when so many were delivered.
            self.holding = False
            path = str(question["path"]).encode()
            done = asyncio.get_running_loop().create_future()
            self.waiting = (path, int(str(question["count"])), done)
            held, self.held = self.held, []
            for transport in held:
                transport.write(OK)
            async with asyncio.timeout(float(str(question["seconds"]))):
                await done
        elif question["do"] == "time":
            self.counts.clear()
            self.latencies = array("d")
            self.timing = bool(question["on"])
        elif question["do"] == "fired":
            return {"different": len(self.fired), "firings": self.firings, "last": self.last_fired}
        elif question["do"] == "latencies":
            return {"latencies": list(self.latencies)}
        return {"counts": {path.decode(): count for path, count in self.counts.items()}}


class _Protocol(asyncio.Protocol):
    def __init__(self, app: App) -> None:
        self._app = app
        self.parts: list[bytes] = []
        self._size = self._needed = 0
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.parts.append(data)
        self._size += len(data)
        if self._size < self._needed:  # In the middle of a large body.
            return
        data, self._needed = b"".join(self.parts), 0
        while data:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                break
            found = _LENGTH.search(data, 0, end + 2)
            size = end + 4 + (int(found[1]) if found is not None else 0)
            if len(data) < size:
                self._needed = size
                break
            path = data[data.find(b" ") + 1 : data.find(b" HTTP/")]
            if path.startswith(b"/events/"):
                self._app.receive(path, data[end + 4 : size], self._transport)
            elif path.startswith(b"/echo"):
                self._transport.write(ECHO)
            elif b"/method/remind/" in path or path.startswith(b"/job/"):
                self._app.fire(path, self._transport)
            elif path.startswith(b"/actors/"):
                self._transport.write(ECHO)
            elif path == b"/dapr/config":
                self._transport.write(self._app.config)
            elif path == b"/dapr/subscribe":
                self._transport.write(self._app.subscriptions)
            else:
                self._transport.write(MISSING)
            data = data[size:]
        self.parts, self._size = [data] if data else [], len(data)


async def main(options: dict[str, object]) -> None:
    """Serve until the run is over."""
    app = App(options.get("subscriptions", []), options.get("config", {}))
    server = await asyncio.get_running_loop().create_server(lambda: _Protocol(app), "127.0.0.1", 0)
    await control(server.sockets[0].getsockname()[1], app.answer)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(json.loads(sys.argv[2])))
