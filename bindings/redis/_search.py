"""Queries of state with the server's search module.

The module's language differs from the API's: its texts are words that are stemmed, and it sorts by one member. So an
index is asked for all that may match; what does, and in which order, is found by looking at the values themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from bindings.redis._client import Client, Command
from bindings.redis._indexes import Index, Path, narrowed
from bindings.redis._wire import RefusedError, Reply
from mesh.errors import BadArgumentError, StateError
from mesh.query import Filter

__all__ = ["Search"]

MAX_CANDIDATES = 10_000


class Search:
    """The indexes of a component."""

    def __init__(self, client: Client, indexes: Sequence[Index]) -> None:
        """Use an open client."""
        self._client = client
        self._indexes = indexes
        self._fields: dict[str, dict[Path, tuple[str, str]]] = {}
        self._built: set[str] = set()

    async def prepare(self) -> None:
        """Make the indexes that are missing; to one that is there, members are added.

        Raises:
            RefusedError: The server does not let us.
            LostError: It does not answer.
        """
        self._built.clear()
        for index in self._indexes:
            try:
                await self._client.run(_words("FT.CREATE", index.name, "ON", "JSON", "SCHEMA", *index.schema()))
            except RefusedError as error:
                if "already exists" not in str(error):
                    raise
            fields = await self._there(index.name)
            missing = Index("", {path: kind for path, kind in index.kinds.items() if path not in fields})
            if missing.kinds:
                names = iter(range(len(fields), 2 * len(fields) + len(missing.kinds)))
                words = [f"var{next(names)}" if word.startswith("var") else word for word in missing.schema()]
                await self._client.run(_words("FT.ALTER", index.name, "SCHEMA", "ADD", *words))
                fields = await self._there(index.name)
            self._fields[index.name] = fields

    async def _info(self, name: str) -> dict[bytes, Reply]:
        told = cast("list[Reply]", await self._client.run(_words("FT.INFO", name)))
        return dict(zip(cast("list[bytes]", told[::2]), told[1::2], strict=False))

    async def _there(self, name: str) -> dict[Path, tuple[str, str]]:
        """Give name and type of an index's members, by path."""
        found: dict[Path, tuple[str, str]] = {}
        for attribute in cast("list[list[bytes]]", (await self._info(name))[b"attributes"]):
            given = dict(zip(attribute[::2], attribute[1::2], strict=False))
            path = given[b"identifier"].decode().removeprefix("$.data.")
            found[tuple(path.split("."))] = (given[b"attribute"].decode(), given[b"type"].decode())
        return found

    async def candidates(self, condition: Filter | None, name: str) -> list[str]:
        """Give the keys of all values that may match a filter.

        Args:
            condition: The filter.
            name: Of the index; empty for the only one.

        Raises:
            BadArgumentError: There is no such index.
            StateError: There are too many.
        """
        known = [index.name for index in self._indexes]
        name = name or (known[0] if len(known) == 1 else "")
        if name not in self._fields:
            raise BadArgumentError(f"metadata.queryIndexName must be one of queryIndexes: {', '.join(known)}")
        if name not in self._built:
            if float(cast("bytes", (await self._info(name))[b"indexing"])):
                raise StateError(f"{self._client.shown}: the index {name} is still being built")
            self._built.add(name)
        query = narrowed(condition, self._fields[name]) or "*"
        # Without a limit of time: the module's own gives what it has by then, and does not say so.
        limits = ("NOCONTENT", "LIMIT", 0, MAX_CANDIDATES, "TIMEOUT", 0, "DIALECT", 2)
        command = _words("FT.SEARCH", name, query, *limits)
        try:
            reply = await self._client.run(command)
        except RefusedError as error:
            if "no such index" not in str(error).lower():
                raise
            await self.prepare()  # Whoever emptied the database took it away.
            reply = await self._client.run(command)
        count, *keys = cast("list[bytes]", reply)
        if cast("int", count) > MAX_CANDIDATES:
            raise StateError(
                f"{self._client.shown}: over {MAX_CANDIDATES} values may match; ask for less, by members of the index"
            )
        return [key.decode("utf-8", "replace") for key in keys]


def _words(*words: str | int) -> Command:
    return Command(tuple(word.encode() if isinstance(word, str) else word for word in words), again=True)
