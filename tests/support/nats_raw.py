"""A client of NATS that knows its protocol and nothing else, to meet ours with."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["RawMessage", "RawNats", "Stored"]

ANSWERED_WITHIN = 30.0


@dataclass
class RawMessage:
    """What a subscription got."""

    subject: str
    reply: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Stored:
    """A message as it stands in a stream; the header block is as it was sent."""

    subject: str
    block: bytes
    body: bytes

    @property
    def headers(self) -> dict[str, str]:
        return _headers(self.block)


def _headers(block: bytes) -> dict[str, str]:
    lines = block.decode().split("\r\n")
    status = lines[0].removeprefix("NATS/1.0").strip().partition(" ")
    found = {"Status": status[0], "Description": status[2]} if status[0] else {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            found[name] = value.strip()
    return found


class RawNats(asyncio.Protocol):
    """One connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._numbers = itertools.count(1)
        self._takers: dict[str, Callable[[RawMessage], object]] = {}
        self._inbox = f"_INBOX.raw{id(self):x}"
        self._buffer = b""
        self._closed = asyncio.Event()
        self.refused: list[str] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_connection(lambda: self, "127.0.0.1", self._port)
        self._transport.write(b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\n')
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._transport.close()
        await self._closed.wait()
        assert not self.refused

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n")) >= 0:
            verb, *rest = self._buffer[:end].decode().split()
            start = end + 2
            if verb in ("MSG", "HMSG"):
                whole = int(rest.pop())
                split = start + (int(rest.pop()) if verb == "HMSG" else 0)
                stop = start + whole
                if len(self._buffer) < stop + 2:
                    return
                headers = _headers(self._buffer[start:split]) if split > start else {}
                reply = rest[2] if len(rest) > 2 else ""
                message = RawMessage(rest[0], reply, headers, self._buffer[split:stop])
                self._buffer = self._buffer[stop + 2 :]
                if (take := self._takers.get(rest[1])) is not None:
                    take(message)
                continue
            self._buffer = self._buffer[start:]
            if verb == "PING":
                self._transport.write(b"PONG\r\n")
            elif verb == "-ERR":
                self.refused.append(" ".join(rest))

    def send(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        """Send, without a confirmation."""
        if headers is None:
            self._transport.write(f"PUB {subject} {reply} {len(body)}\r\n".encode() + body + b"\r\n")
            return
        block = "".join(["NATS/1.0\r\n", *(f"{name}: {value}\r\n" for name, value in headers.items()), "\r\n"]).encode()
        sizes = f"{len(block)} {len(block) + len(body)}"
        self._transport.write(f"HPUB {subject} {reply} {sizes}\r\n".encode() + block + body + b"\r\n")

    def subscribe(self, subject: str, take: Callable[[RawMessage], object], queue: str = "") -> str:
        """Subscribe; gives what ends it."""
        number = str(next(self._numbers))
        self._takers[number] = take
        self._transport.write(f"SUB {subject} {queue} {number}\r\n".encode())
        return number

    async def unsubscribe(self, number: str) -> None:
        """Unsubscribe; what the server sent before is taken still."""
        self._transport.write(f"UNSUB {number}\r\n".encode())
        await self.request("$JS.API.INFO")
        del self._takers[number]

    async def request(self, subject: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> RawMessage:
        """Send, and wait for the answer."""
        answer: asyncio.Future[RawMessage] = asyncio.get_running_loop().create_future()
        inbox = f"{self._inbox}.{next(self._numbers)}"
        number = self.subscribe(inbox, answer.set_result)
        self._transport.write(f"UNSUB {number} 1\r\n".encode())
        self.send(subject, body, headers, inbox)
        async with asyncio.timeout(ANSWERED_WITHIN):
            try:
                return await answer
            finally:
                del self._takers[number]

    async def api(self, subject: str, request: Mapping[str, object] | None = None) -> Any:
        """Call JetStream; errors are given as the server says them."""
        body = b"" if request is None else json.dumps(request).encode()
        return json.loads((await self.request(f"$JS.API.{subject}", body)).body)

    async def stream(self, name: str, *subjects: str, **settings: object) -> None:
        """Make a stream."""
        made = await self.api(f"STREAM.CREATE.{name}", {"name": name, "subjects": subjects, **settings})
        assert "error" not in made, made

    async def store(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None) -> Any:
        """Publish into a stream; gives its answer."""
        ack = json.loads((await self.request(subject, body, headers)).body)
        assert "error" not in ack, ack
        return ack

    async def stored(self, stream: str) -> list[Stored]:
        """Give all that is in a stream."""
        state = (await self.api(f"STREAM.INFO.{stream}"))["state"]
        found = []
        for number in range(state["first_seq"], state["last_seq"] + 1):
            answer = await self.api(f"STREAM.MSG.GET.{stream}", {"seq": number})
            if "message" in answer:
                told = answer["message"]
                block, body = (base64.b64decode(told.get(name, "")) for name in ("hdrs", "data"))
                found.append(Stored(told["subject"], block, body))
        return found
