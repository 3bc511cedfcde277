"""Datastore's REST interface as Google's documentation says, written by hand: the real one cannot be had here."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from tests.support.hand_servers import GoogleServer

__all__ = ["DatastoreServer"]

MAX_ENTITY = 1_048_572
MAX_INDEXED = 1500
MAX_MUTATIONS = 500
MAX_REPLY = 4 * 1024 * 1024

Refusal = tuple[int, str, str]


class DatastoreServer(GoogleServer):
    """Entities by kind and name, each with its version.

    A transaction remembers the versions that it read, and is aborted where they are others at its end.

    Attributes:
        entities: What was stored.
        anybody: Whether it asks for no token, as an emulator.
        transactions: The versions that those read which have not ended.
        aborts: So many requests of transactions are aborted.
        loses: The operation that is done, but whose answer does not arrive.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.entities: dict[tuple[str, str], tuple[Mapping[str, Any], int]] = {}
        self.anybody = False
        self.transactions: dict[str, dict[tuple[str, str], int]] = {}
        self.aborts = 0
        self.loses = ""
        self._versions = itertools.count(1_700_000_000_000_000)

    @property
    def settings(self) -> Mapping[str, str]:
        """Of a component that uses it."""
        return {
            "type": "service_account",
            "project_id": "shop",
            "client_email": "robot@shop.test",
            "private_key": self.private_key,
            "token_uri": f"http://127.0.0.1:{self.port}/token",
            "endpoint": f"http://127.0.0.1:{self.port}",
        }

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.anybody and "Authorization" not in request.headers:
            return await self._served(request)
        return await super()._answer(request)

    async def _served(self, request: web.BaseRequest) -> web.StreamResponse:
        path, _, operation = request.path.partition(":")
        if path != "/v1/projects/shop" or request.method != "POST":
            return self._error(404, "NOT_FOUND", "The project shop2 does not exist or it does not contain a database")
        body = orjson.loads(await request.content.read())
        try:
            match operation:
                case "lookup":
                    told = self._lookup(body["keys"], body.get("readOptions", {}).get("transaction"))
                case "beginTransaction":
                    told = {"transaction": base64.b64encode(b"%d" % next(self._versions)).decode()}
                    self.transactions[told["transaction"]] = {}
                case "rollback":
                    self._ended(body["transaction"])
                    told = {}
                case "commit":
                    told = self._commit(body)
                case _:
                    return self._error(404, "NOT_FOUND", "Method not found.")
        except _RefusedError as error:
            return self._error(*error.refusal)
        if operation == self.loses and request.transport is not None:
            request.transport.abort()
        return web.json_response(told)

    def _key(self, key: Mapping[str, Any]) -> tuple[str, str]:
        [part] = key["path"]
        if key["partitionId"] != {"projectId": "shop"}:
            raise _RefusedError(400, "INVALID_ARGUMENT", "mismatched databases within request")
        name = part["name"]
        if not 0 < len(name.encode()) <= 1500 or (name.startswith("__") and name.endswith("__")):
            raise _RefusedError(400, "INVALID_ARGUMENT", "The key path element name is invalid.")
        return part["kind"], name

    def _ended(self, transaction: str) -> dict[tuple[str, str], int]:
        if transaction not in self.transactions:
            raise _RefusedError(
                400, "INVALID_ARGUMENT", "The referenced transaction has expired or is no longer valid."
            )
        return self.transactions.pop(transaction)

    def _lookup(self, keys: Sequence[Mapping[str, Any]], transaction: str | None) -> dict[str, Any]:
        told: dict[str, list[Any]] = {"found": [], "missing": [], "deferred": []}
        if transaction is not None:
            self._abort(self.aborts)
        size = 0
        for key in keys:
            entity, version = self.entities.get(self._key(key), (None, 0))
            if size > MAX_REPLY:
                told["deferred"].append(key)
                continue
            if transaction is not None:
                self.transactions[transaction][self._key(key)] = version
            if entity is None:
                told["missing"].append({"entity": {"key": key}, "version": str(next(self._versions))})
            else:
                size += len(orjson.dumps(entity))
                told["found"].append({"entity": entity, "version": str(version)})
        return {name: value for name, value in told.items() if value}

    def _commit(self, body: Mapping[str, Any]) -> dict[str, Any]:
        mutations = [self._checked(each) for each in body.get("mutations", ())]
        if len(mutations) > MAX_MUTATIONS:
            raise _RefusedError(400, "INVALID_ARGUMENT", "cannot write more than 500 entities in a single call")
        if body["mode"] == "TRANSACTIONAL":
            read = self._ended(body["transaction"])
            now = {key: self.entities.get(key, (None, 0))[1] for key in read}
            self._abort(self.aborts or read != now)
        elif len({key for key, _ in mutations}) != len(mutations):
            raise _RefusedError(400, "INVALID_ARGUMENT", "cannot apply multiple mutations to the same entity")
        version = next(self._versions)
        for key, entity in mutations:
            if entity is None:
                self.entities.pop(key, None)
            else:
                self.entities[key] = entity, version
        return {"mutationResults": [{"version": str(version)} for _ in mutations], "indexUpdates": 0}

    def _abort(self, whether: object) -> None:
        if whether:
            self.aborts = max(0, self.aborts - 1)
            raise _RefusedError(409, "ABORTED", "too much contention on these datastore entities. please try again.")

    def _checked(self, mutation: Mapping[str, Any]) -> tuple[tuple[str, str], Mapping[str, Any] | None]:
        ((operation, given),) = mutation.items()
        if operation == "delete":
            return self._key(given), None
        assert operation == "upsert"
        for name, value in given["properties"].items():
            data = base64.b64decode(value["blobValue"]) if "blobValue" in value else value["stringValue"].encode()
            if len(data) > MAX_INDEXED and not value.get("excludeFromIndexes"):
                told = f'The value of property "{name}" is longer than {MAX_INDEXED} bytes.'
                raise _RefusedError(400, "INVALID_ARGUMENT", told)
            if len(data) + len(name) > MAX_ENTITY:
                raise _RefusedError(400, "INVALID_ARGUMENT", "entity is too big")
        return self._key(given["key"]), given


class _RefusedError(Exception):
    def __init__(self, *refusal: Any) -> None:
        self.refusal: Refusal = refusal  # type: ignore[assignment]
        super().__init__(refusal)
