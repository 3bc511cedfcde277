"""A worker over HTTP that is as little as one can be: an asyncio protocol, which gives back what it is given.

Of a history it counts what has completed, and asks again for all that its workflow wants (docs/workflow-http.md).
"""

from __future__ import annotations

import asyncio
import re

import orjson
import uvloop

from bench.peer import control

DECLARED = orjson.dumps({"workflows": ["chain", "fan", "wait"], "activities": ["echo"]})
MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RUN, _ECHO = b"/workflow/run/", b"/workflow/activity/echo"


def _ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def _calls(count: int) -> bytes:
    return b",".join(b'{"activity":"echo","input":%d}' % number for number in range(count))


class App:
    """What the connections share."""

    def __init__(self) -> None:
        self.tasks = self.turns = self.ended = 0
        self._fans: dict[int, bytes] = {}

    def answer(self, path: bytes, body: bytes) -> bytes:
        """Answer a request."""
        if path == _ECHO:
            self.tasks += 1
            return _ok(body)
        if path.startswith(_RUN):
            return _ok(self._turn(path[len(_RUN) :], orjson.loads(body)))
        return _ok(DECLARED) if path == b"/dapr/config" else MISSING

    def _turn(self, workflow: bytes, turn: dict) -> bytes:
        self.turns += 1
        size, kinds = turn["input"], [event["event"] for event in turn["history"]]
        if workflow == b"wait":
            end = "raised" in kinds
            return b'{"actions":[{"wait":"go"}]%b}' % (b',"complete":%d' % size if end else b"")
        done = kinds.count("completed")
        if workflow == b"fan":
            asked = self._fans.get(size) or self._fans.setdefault(size, _calls(size))
        else:
            asked = _calls(min(done + 1, size))
        if done < size:
            return b'{"actions":[%b]}' % asked
        self.ended += 1
        return b'{"actions":[%b],"complete":%d}' % (asked, size)

    async def told(self, _question: dict[str, object]) -> dict[str, object]:
        """Say what it has done."""
        return {"tasks": self.tasks, "turns": self.turns, "ended": self.ended}


class _Protocol(asyncio.Protocol):
    def __init__(self, app: App) -> None:
        self._app = app
        self._data = b""
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        data = self._data + data if self._data else data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(data, 0, end + 2)
            size = end + 4 + (int(found[1]) if found is not None else 0)
            if len(data) < size:
                break
            path = data[data.find(b" ") + 1 : data.find(b" HTTP/")]
            self._transport.write(self._app.answer(path, data[end + 4 : size]))
            data = data[size:]
        self._data = data


async def main() -> None:
    """Serve until the run is over."""
    app = App()
    server = await asyncio.get_running_loop().create_server(lambda: _Protocol(app), "127.0.0.1", 0)
    await control(server.sockets[0].getsockname()[1], app.told)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
