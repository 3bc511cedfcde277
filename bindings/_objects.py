"""What the bindings of object stores have in common.

A store puts, opens and removes one object; here stand what calls of it are, streams, base64, files of the host, and
many objects at once.
"""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar
from uuid import uuid4

import orjson

from bindings._data import text_of
from bindings._parts import Budget, Files, decoded, encoded, once
from mesh.blocks.binding_contract import BindingError, Invoke, Invoked, Streamed
from mesh.resources.settings import BOOLEAN, setting
from mesh.tasks import task_group
from mesh.values import parse_bool, parse_duration

__all__ = [
    "Put",
    "BulkBinding",
    "ObjectBinding",
    "base64_setting",
    "at_once",
    "each_at_once",
    "file_root_setting",
    "flag",
    "integer",
    "options",
    "required",
    "text",
    "time_to_live",
]

MAX_ITEMS = 10_000
MAX_AT_ONCE = 32
AT_ONCE = 10
PART = 1024 * 1024
TRACE = ("traceparent", "tracestate", "baggage")

Put = Mapping[str, Any]


def base64_setting(name: str) -> Any:
    """Declare ``decodeBase64`` or ``encodeBase64``."""
    told = {
        "decodeBase64": "Whether what is written is base64, and is stored decoded.",
        "encodeBase64": "Whether what is read is given as base64.",
    }
    return setting(name, told[name], BOOLEAN, default=False)


def file_root_setting() -> Any:
    """Declare the folder that calls may name files in."""
    return setting(
        "fileRoot",
        "Folder of the host in which calls may name files to read and write; without it none may be named.",
        example="/var/lib/uploads",
    )


@dataclass(frozen=True, slots=True)
class _Item:
    """One of many objects.

    Attributes:
        name: Its name; empty = one is made up.
        file: A file of the host; None = none.
        data: What is written, if no file is.
        metadata: What is said of it besides.
    """

    name: str
    file: str | None
    data: str | None
    metadata: dict[str, str]


class ObjectBinding:
    """An adapter to objects that have names.

    Attributes:
        named: The metadata that name an object.
        operations: As of an ``OutputBinding``.
        streamed: As of a ``StreamingBinding``.
    """

    named: ClassVar[str] = "key"
    operations: ClassVar[Sequence[str]]
    streamed: ClassVar[Sequence[str]] = ("create", "get")
    _settings: Any

    def _further(self) -> Mapping[str, Callable[[Invoke], Awaitable[Invoked | None]]]:
        """Give what does the operations besides ``create``, ``get`` and ``delete``."""
        return {}

    @property
    def _files(self) -> Files:
        return Files(getattr(self._settings, "file_root", None))

    async def _put(self, name: str, parts: AsyncIterator[bytes], metadata: Mapping[str, str]) -> Put:
        """Write an object, whole or not at all, and give what is told of it."""
        raise NotImplementedError

    async def _open(self, name: str, metadata: Mapping[str, str]) -> Streamed:
        """Begin to read an object."""
        raise NotImplementedError

    async def _remove(self, name: str, metadata: Mapping[str, str]) -> None:
        raise NotImplementedError

    async def invoke(self, asked: Invoke) -> Invoked | None:
        """Do what is asked; what is read is held in memory, up to a limit."""
        match asked.operation:
            case "create":
                return Invoked(await self._create(asked, once(self._written(asked.data))))
            case "get":
                found = await self._get(asked)
                return Invoked(await Budget().held(found), found.metadata)
            case "delete":
                await self._remove(required(asked, self.named), asked.metadata)
                return None
            case operation:
                return await self._further()[operation](asked)

    async def stream(self, asked: Invoke, parts: AsyncIterator[bytes]) -> Streamed:
        """Write or read an object of any size."""
        if asked.operation == "create":
            answer = await self._create(asked, parts)
            return Streamed(once(answer), len(answer))
        return await self._get(asked)

    def _written(self, data: bytes) -> bytes:
        """Give what is written of the data of a call."""
        return text_of(data)

    async def _create(self, asked: Invoke, parts: AsyncIterator[bytes]) -> bytes:
        metadata = {name: value for name, value in asked.metadata.items() if name not in TRACE}
        if path := metadata.pop("filePath", ""):
            async with aclosing(self._files.read(path)) as read:
                return orjson.dumps(await self._stored(metadata, read))
        return orjson.dumps(await self._stored(metadata, parts))

    async def _stored(self, metadata: Mapping[str, str], parts: AsyncIterator[bytes]) -> Put:
        name = metadata.get(self.named) or str(uuid4())
        if not self._flag("decodeBase64", "decode", metadata):
            return await self._put(name, parts, metadata)
        async with aclosing(decoded(parts)) as plain:
            return await self._put(name, plain, metadata)

    async def _get(self, asked: Invoke) -> Streamed:
        found = await self._open(required(asked, self.named), asked.metadata)
        if self._flag("encodeBase64", "encode", asked.metadata):
            found = await encoded(found)
        if path := asked.metadata.get("filePath"):
            await self._files.write(path, found.parts)
            return Streamed(metadata={**found.metadata, "filePath": path})
        return found

    def _flag(self, name: str, field: str, metadata: Mapping[str, str]) -> bool:
        """Tell whether something is wanted: by the metadata of a call, else by the settings."""
        return flag(metadata, name, default=bool(getattr(self._settings, field, False)))


class BulkBinding(ObjectBinding):
    """One that takes many objects at once; one that fails has an ``error`` among the results.

    Attributes:
        source: The member of an item that names the file to write from.
        names: The member that names what is deleted.
    """

    source: ClassVar[str] = "filePath"
    names: ClassVar[str] = "keys"

    def _further(self) -> Mapping[str, Callable[[Invoke], Awaitable[Invoked | None]]]:
        return {"bulkGet": self._bulk_get, "bulkCreate": self._bulk_create, "bulkDelete": self._bulk_delete}

    async def _found(self, prefix: str) -> Sequence[str]:
        """Give the names of objects that begin so; raises ``BindingError`` where there are too many."""
        raise NotImplementedError

    async def _held(self, name: str, budget: Budget) -> str:
        """Read an object into the answer."""
        raise NotImplementedError

    async def _delete_many(self, names: Sequence[str], data: Mapping[str, Any], at_once: int) -> Invoked:
        async def remove(name: str) -> Put:
            await self._remove(name, {"deleteSnapshots": text(data, "deleteSnapshots")})
            return {self.named: name}

        return await each_at_once(names, at_once, remove, lambda name: {self.named: name})

    async def _bulk_get(self, asked: Invoke) -> Invoked:
        data = options(asked)
        items = self._items(data, "filePath", may_lack=bool(text(data, "prefix")))
        if prefix := text(data, "prefix"):
            folder = text(data, "destinationDir")
            if not folder:
                raise BindingError("a prefix needs a destinationDir")
            names = await self._found(prefix)
            items += [
                _Item(name, posixpath.join(folder, name.removeprefix(prefix).lstrip("/")), None, {}) for name in names
            ]
        if any(not item.name for item in items):
            raise BindingError(f"an item of the data has no {self.named}")
        budget = Budget()

        async def read(item: _Item) -> Put:
            if item.file is None:
                return {self.named: item.name, "data": await self._held(item.name, budget)}
            found = await self._open(item.name, {})
            if self._flag("encodeBase64", "encode", {}):
                found = await encoded(found)
            await self._files.write(item.file, found.parts)
            return {self.named: item.name, "filePath": item.file}

        return await each_at_once(items, at_once(data), read, lambda item: {self.named: item.name})

    async def _bulk_create(self, asked: Invoke) -> Invoked:
        data = options(asked)

        async def write(item: _Item) -> Put:
            if item.file is None and item.data is None:
                raise BindingError(f"it has neither data nor {self.source}")
            parts = once((item.data or "").encode()) if item.file is None else self._files.read(item.file)
            name = item.name or str(uuid4())
            async with aclosing(parts):
                return {self.named: name, **await self._stored({**item.metadata, self.named: name}, parts)}

        return await each_at_once(
            self._items(data, self.source), at_once(data), write, lambda item: {self.named: item.name}
        )

    async def _bulk_delete(self, asked: Invoke) -> Invoked:
        data = options(asked)
        names = data.get(self.names) or []
        if not isinstance(names, list) or not all(isinstance(each, str) and each for each in names):
            raise BindingError(f"{self.names} of the data are names")
        if prefix := text(data, "prefix"):
            names = [*names, *await self._found(prefix)]
        elif not names:
            raise BindingError(f"the data have no {self.names}")
        _few(names)
        return await self._delete_many(names, data, at_once(data))

    def _items(self, data: Mapping[str, Any], file: str, *, may_lack: bool = False) -> list[_Item]:
        given = data.get("items") or []
        if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
            raise BindingError("items of the data are objects")
        if not given and not may_lack:
            raise BindingError("the data have no items")
        _few(given)
        return [_item(each, self.named, file) for each in given]


def _item(given: Mapping[str, Any], named: str, file: str) -> _Item:
    if wrong := next((name for name, value in given.items() if not isinstance(value, str | None)), None):
        raise BindingError(f"{wrong} of an item of the data is no text")
    texts = {name: value for name, value in given.items() if value is not None}
    of_itself = (named, file, "data")
    metadata = {name: value for name, value in texts.items() if name not in of_itself}
    return _Item(texts.get(named, ""), texts.get(file) or None, texts.get("data"), metadata)


def _few(items: Sequence[object]) -> None:
    if len(items) > MAX_ITEMS:
        raise BindingError(f"there are more than {MAX_ITEMS} objects at once")


def at_once(data: Mapping[str, Any]) -> int:
    """Read how many are done at once."""
    return min(integer(data, "concurrency", least=1) or AT_ONCE, MAX_AT_ONCE)


async def each_at_once(
    items: Sequence[Any], at_once: int, work: Callable[[Any], Awaitable[Put]], named: Callable[[Any], Put]
) -> Invoked:
    """Do something to each, so many at once.

    Args:
        items: What.
        at_once: How many.
        work: Does it, and gives its result.
        named: Gives what begins the result of one that failed.
    """
    results: list[Sequence[bytes]] = [()] * len(items)
    waiting = iter(enumerate(items))

    async def run() -> None:
        for index, item in waiting:
            try:
                result = await work(item)
            except BindingError as error:
                result = {**named(item), "error": str(error)}
            results[index] = await _written(result)

    async with task_group() as tasks:
        for _ in range(min(at_once, len(items))):
            tasks.create_task(run(), name="binding-bulk")
    ends = (b",",) * (len(results) - 1) + (b"",)
    written = chain.from_iterable((*result, end) for result, end in zip(results, ends, strict=False))
    return Invoked(b"".join((b"[", *written, b"]")))


async def _written(result: Put) -> Sequence[bytes]:
    """Write a result as JSON: long data in parts, so that others have their turns; all at once may take seconds."""
    data = result.get("data", "")
    if len(data) <= PART:
        return [orjson.dumps(result)]
    rest = {name: value for name, value in result.items() if name != "data"}
    parts = [orjson.dumps({**rest, "data": ""})[:-2]]
    for begin in range(0, len(data), PART):
        parts.append(orjson.dumps(data[begin : begin + PART])[1:-1])
        await asyncio.sleep(0)
    return [*parts, b'"}']


def options(asked: Invoke) -> Mapping[str, Any]:
    """Read data that are an object; nothing is an empty one."""
    given = text_of(asked.data)
    try:
        data = orjson.loads(given) if given else {}
    except orjson.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        raise BindingError(f"the data of {asked.operation} are no JSON object")
    return data


def required(asked: Invoke, name: str) -> str:
    """Read metadata that must be there."""
    value = asked.metadata.get(name)
    if not value:
        raise BindingError(f"the metadata {name} are missing")
    return value


def flag(given: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    """Read metadata that are true or false."""
    try:
        return parse_bool(given[name], words=True) if given.get(name) else default
    except ValueError as error:
        raise BindingError(f"{name} {error}") from None


def text(data: Mapping[str, Any], name: str) -> str:
    """Read a text of the data; none is an empty one."""
    value = data.get(name)
    if value is not None and not isinstance(value, str):
        raise BindingError(f"{name} of the data is no text")
    return value or ""


def integer(data: Mapping[str, Any], name: str, *, least: int = 0) -> int | None:
    """Read a whole number of the data."""
    value = data.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise BindingError(f"{name} of the data is no whole number of {least} or more")
    return value


def time_to_live(given: str, name: str, most: int) -> int:
    """Read how long a URL is valid, in seconds."""
    try:
        seconds = int(parse_duration(given))
    except ValueError as error:
        raise BindingError(f"{name}: {error}") from None
    if not 1 <= seconds <= most:
        raise BindingError(f"{name} is between a second and {most // 86_400} days")
    return seconds
