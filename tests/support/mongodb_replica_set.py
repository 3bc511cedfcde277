"""A MongoDB replica set of one member, written by hand from MongoDB's documentation: a real one cannot be had here.

It knows the commands and operators that ``state.mongodb`` uses. What it has of MongoDB's own is what its documentation
promises of sessions: a transaction sees what there was at its start, one that writes what another has written since
fails with a transient error, other writes wait for it, and a write that is sent again is done once.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import bson
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS

__all__ = ["ReplicaSet"]

Document = dict[str, Any]
_OPTIONS: CodecOptions[Document] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)
_MESSAGE, _QUERY, _REPLY = 2013, 2004, 1
_COMPARED: Mapping[str, Callable[[Any, Any], bool]] = {
    "$gt": lambda ours, other: ours > other,
    "$gte": lambda ours, other: ours >= other,
    "$lt": lambda ours, other: ours < other,
    "$lte": lambda ours, other: ours <= other,
}


class Refused(Exception):
    """A command fails with a code."""

    def __init__(self, code: int, text: str, *labels: str) -> None:
        super().__init__(text)
        self.told: Document = {"ok": 0.0, "code": code, "errmsg": text, "errorLabels": list(labels)}


@dataclass
class Transaction:
    """One that is open."""

    number: int
    began: dict[str, Document]
    now: dict[str, Document]
    written: set[str] = field(default_factory=set)


class ReplicaSet:
    """Keeps what it was given, also while it does not listen.

    Attributes:
        documents: Of the one collection, by key.
        port: Where it listens on 127.0.0.1.
        commands: The names of all that came, but for those of the connection.
        indexes: As they were made.
        fails: Given the name of a command that was done, gives what is answered instead; None = the true answer.
    """

    def __init__(self) -> None:
        self.documents: dict[str, Document] = {}
        self.port = 0
        self.commands: list[str] = []
        self.indexes: list[Document] = []
        self.fails: Callable[[str], Document | None] = lambda name: None
        self._numbers = itertools.count(1)
        self._open: dict[bytes, Transaction] = {}
        self._done: dict[bytes, tuple[int, Document]] = {}
        self._ended = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.kill()

    async def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """Listen no more; transactions that are open are lost."""
        self._open.clear()
        if self._server is not None:
            self._server.close()
            for writer in self._writers:
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    length, number, _, kind = struct.unpack("<4i", await reader.readexactly(16))
                    command = _command(kind, await reader.readexactly(length - 16))
                    told = bson.encode(await self._answer(command))
                    if kind == _QUERY:
                        body = struct.pack("<iqii", 8, 0, 0, 1) + told
                    else:
                        body = struct.pack("<ib", 0, 0) + told
                    answers = _REPLY if kind == _QUERY else _MESSAGE
                    writer.write(struct.pack("<4i", 16 + len(body), next(self._numbers), number, answers) + body)
                    await writer.drain()
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, command: Document) -> Document:
        name = next(iter(command))
        if name.lower() in ("hello", "ismaster"):
            return self._hello()
        self.commands.append(name)
        session = bytes(command["lsid"]["id"]) if "lsid" in command else b""
        number = command.get("txnNumber")
        try:
            if number is not None and "autocommit" not in command:
                done = self._done.get(session)
                if done is None or done[0] != number:
                    done = self._done[session] = number, await self._do(name, command, None)
                told = done[1]
            elif number is not None:
                told = await self._in_transaction(name, command, session)
            else:
                told = await self._do(name, command, None)
        except Refused as error:
            told = error.told
        return self.fails(name) or {"ok": 1.0, **told}

    def _hello(self) -> Document:
        own = f"127.0.0.1:{self.port}"
        return {
            "ok": 1.0,
            "helloOk": True,
            "ismaster": True,
            "isWritablePrimary": True,
            "setName": "rs0",
            "setVersion": 1,
            "hosts": [own],
            "me": own,
            "primary": own,
            "minWireVersion": 0,
            "maxWireVersion": 21,
            "maxBsonObjectSize": 16 * 1024 * 1024,
            "maxMessageSizeBytes": 48_000_000,
            "maxWriteBatchSize": 100_000,
            "logicalSessionTimeoutMinutes": 30,
        }

    async def _in_transaction(self, name: str, command: Document, session: bytes) -> Document:
        number = command["txnNumber"]
        if command.get("startTransaction"):
            self._open[session] = Transaction(number, dict(self.documents), dict(self.documents))
        found = self._open.get(session)
        if name == "commitTransaction" and self._done.get(session, (0, {}))[0] == number:
            return {}
        if found is None or found.number != number:
            raise Refused(251, "no such transaction", "TransientTransactionError")
        if name not in ("commitTransaction", "abortTransaction"):
            try:
                told = await self._do(name, command, found)
            except Refused:
                await self._end(session)
                raise
            if "writeErrors" in told:
                await self._end(session)
            return told
        if name == "commitTransaction":
            for key in found.written:
                if key in found.now:
                    self.documents[key] = found.now[key]
                else:
                    self.documents.pop(key, None)
            self._done[session] = number, {}
        await self._end(session)
        return {}

    async def _end(self, session: bytes) -> None:
        self._open.pop(session, None)
        async with self._ended:
            self._ended.notify_all()

    async def _do(self, name: str, command: Document, within: Transaction | None) -> Document:
        match name:
            case "ping" | "endSessions":
                return {}
            case "createIndexes":
                self.indexes += command["indexes"]
                return {"numIndexesBefore": 1, "numIndexesAfter": 2}
            case "find":
                documents = self.documents if within is None else within.now
                found = [each for each in documents.values() if _matches(each, command["filter"])]
                for path, direction in reversed(command.get("sort", {}).items()):
                    found.sort(key=lambda each, path=path: _rank(_at(each, path)), reverse=direction < 0)  # type: ignore[misc]
                begin = command.get("skip", 0)
                page = found[begin : begin + command["limit"]] if command.get("limit") else found[begin:]
                return {"cursor": {"id": bson.Int64(0), "ns": "daprStore.daprCollection", "firstBatch": page}}
            case "update" | "delete":
                told: Document = {"n": 0, "nModified": 0, "upserted": [], "writeErrors": []}
                for index, each in enumerate(command[f"{name}s"]):
                    await self._write(each, index, told, within)
                return {key: value for key, value in told.items() if value != []}
            case _:
                raise Refused(59, f"no such command: {name}")

    async def _write(self, asked: Document, index: int, told: Document, within: Transaction | None) -> None:
        """Change the one document that a filter names."""
        key = asked["q"]["_id"]
        if within is None:
            async with self._ended:
                await self._ended.wait_for(lambda: not any(key in each.written for each in self._open.values()))
            documents = self.documents
        else:
            others = any(key in each.written for each in self._open.values() if each is not within)
            if others or self.documents.get(key) is not within.began.get(key):
                raise Refused(112, "WriteConflict error", "TransientTransactionError")
            documents = within.now
        there = documents.get(key)
        if there is not None and _matches(there, asked["q"]):
            if "u" in asked:
                documents[key] = {**there, **asked["u"]["$set"]}
                told["nModified"] += 1
            else:
                del documents[key]
            told["n"] += 1
        elif "u" in asked and asked.get("upsert"):
            if there is not None:
                error = {"index": index, "code": 11000, "errmsg": "E11000 duplicate key error"}
                told["writeErrors"].append(error)
                return
            equal = {name: value for name, value in asked["q"].items() if not isinstance(value, dict)}
            documents[key] = {**equal, **asked["u"]["$set"]}
            told["n"] += 1
            told["upserted"].append({"index": index, "_id": key})
        else:
            return
        if within is not None:
            within.written.add(key)


def _command(kind: int, body: bytes) -> Document:
    """Read a message: a document, and sequences of documents that belong to it."""
    if kind == _QUERY:
        return bson.decode(body[body.index(b"\0", 4) + 9 :], _OPTIONS)
    found: Document = {}
    at = 4
    while at < len(body):
        (size,) = struct.unpack_from("<i", body, at + 1)
        part = body[at + 1 : at + 1 + size]
        if body[at] == 0:
            found = {**bson.decode(part, _OPTIONS), **found}
        else:
            name, _, documents = part[4:].partition(b"\0")
            found[name.decode()] = bson.decode_all(documents, _OPTIONS)
        at += 1 + size
    return found


def _at(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _rank(value: Any) -> tuple[int, Any]:
    """Give a value's place in the order of all: null, numbers, texts, times, then what is not compared here."""
    match value:
        case None:
            return 0, 0
        case int() | float():
            return 1, value
        case str():
            return 2, value.encode()
        case DatetimeMS():
            return 3, int(value)
        case _:
            return 4, 0


def _matches(document: Document, condition: Document) -> bool:
    return all(_holds(document, name, wanted) for name, wanted in condition.items())


def _holds(document: Document, name: str, wanted: Any) -> bool:
    if name in ("$and", "$or"):
        each: Iterable[bool] = (_matches(document, one) for one in wanted)
        return all(each) if name == "$and" else any(each)
    found = _at(document, name)
    if not isinstance(wanted, dict):
        return bool(found == wanted)
    for operator, other in wanted.items():
        if operator in _COMPARED:
            ours, theirs = _rank(found), _rank(other)
            if ours[0] != theirs[0] or not _COMPARED[operator](ours[1], theirs[1]):
                return False
        elif operator == "$in":
            if found not in other:
                return False
        elif (found == other) is not {"$eq": True, "$ne": False}[operator]:
            return False
    return True
