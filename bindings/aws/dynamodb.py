"""``state.aws.dynamodb``: state in a DynamoDB table, laid out as the Dapr runtime lays it out.

An item has the attributes ``key`` (or what ``partitionKey`` names), ``value``, a text, ``etag``, a random number as
text, and, where ``ttlAttributeName`` names it, the Unix time in seconds at which it expires. A value that is no UTF-8
is kept as bytes.

Source: Dapr 1.18, the DynamoDB state store.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from aiohttp import ClientConnectorError
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
)

from bindings.remote import RemoteStateStore, conditional, conflict, merged, uncertain
from brokers.clients.aws import LIBRARY_ERRORS, AWSAdapter, AWSSettings, broken, busy, code_of, reason_of
from mesh.errors import FeatureNotSupportedError, MeshError, Problem, StateError, StateLimitError
from mesh.resources.component import Component
from mesh.resources.settings import setting
from mesh.store import MAX_PARALLEL, Item, Stored, smallest

__all__ = ["DynamoDBStateStore"]

MAX_TRANSACTION = 100
MAX_WRITES = 25
MAX_READS = 100
ATTEMPTS = 4
FIRST_WAIT_SECONDS = 0.05
_NOT_SENT = (
    ConnectTimeoutError,
    CredentialRetrievalError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
)
_PROBE = "brokermesh"


def _was_not_sent(error: Exception) -> bool:
    if isinstance(error, EndpointConnectionError):  # The library raises it for a connection that broke later, too.
        return isinstance(error.kwargs.get("error"), ClientConnectorError)
    return isinstance(error, _NOT_SENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamoDBSettings(AWSSettings):
    """Settings of ``state.aws.dynamodb``."""

    table: str = setting("table", "The name of the table, which must be there.", required=True, example="state")
    ttl: str | None = setting(
        "ttlAttributeName",
        "The attribute that the table's TTL is set to; without it values cannot expire.",
        example="expiration",
    )
    key: str = setting("partitionKey", "The table's partition key, a text.", default="key")


class DynamoDBStateStore(AWSAdapter, RemoteStateStore):
    """State in a DynamoDB table, whose items have their etags as an attribute."""

    settings = DynamoDBSettings
    service = "dynamodb"
    failed = away = StateError
    attempts = 1  # What fails is repeated here: a write with a condition that was done would conflict with itself.
    tested = "the DynamoDB interface of moto; not run against the real service"
    capabilities: Sequence[str] = ("ETAG", "TRANSACTIONAL", "TTL", "ACTOR", "KEYS")
    capabilities_with: ClassVar[Mapping[str, str]] = {"TTL": "`ttlAttributeName`"}
    max_transaction = MAX_TRANSACTION
    batch = MAX_WRITES

    def __init__(self, settings: DynamoDBSettings) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self._key, self._ttl, self._table = settings.key, settings.ttl, settings.table
        if not settings.ttl:
            self.capabilities = tuple(each for each in self.capabilities if each != "TTL")

    def _wrong(self, component: Component) -> Iterator[Problem]:
        yield from super()._wrong(component)
        names = [each for each in (self._key, self._ttl) if each]
        if len({*names, "value", "etag"}) != len(names) + 2:
            yield component.problem("partitionKey and ttlAttributeName must be names of their own")

    async def _enter(self) -> None:
        await super()._enter()
        await self.check()  # A table that is missing, or has another key, is told at start.

    async def check(self) -> None:
        """Ask whether the table answers."""
        await self.get(_PROBE, strong=False)

    @property
    def _shown(self) -> str:
        return f"the DynamoDB table {self._table!r}"

    async def _ask(self, operation: str, items: Sequence[Item] = (), **arguments: Any) -> dict[str, Any]:
        """Send a request; what the service did not do, or may do twice without harm, is sent again when it fails."""
        wait = FIRST_WAIT_SECONDS
        again = "ClientRequestToken" in arguments or not any(conditional(item) for item in items)
        for left in reversed(range(ATTEMPTS)):
            try:
                return cast("dict[str, Any]", await getattr(self._client, operation)(**arguments))
            except ClientError as error:
                if left and (busy(error) or (again and broken(error))):
                    await asyncio.sleep(wait)
                    wait *= 2
                    continue
                raise self._refused(operation, error, items) from None
            except LIBRARY_ERRORS as error:
                failed = self._failed(operation, error)
                raise (failed if _was_not_sent(error) else uncertain(failed, items)) from None
        raise AssertionError("the last attempt raises or returns")

    def _refused(self, operation: str, error: ClientError, items: Sequence[Item]) -> StateError:
        code = code_of(error)
        reasons = {each.get("Code") for each in cast("dict[str, Any]", error.response).get("CancellationReasons", ())}
        if code == "ConditionalCheckFailedException" or "ConditionalCheckFailed" in reasons:
            return conflict(items)
        if code == "ValidationException" or "ValidationError" in reasons:
            return StateLimitError(f"{self._shown} refused: {reason_of(error)}")
        failed = self._failed(operation, error)
        return uncertain(failed, items) if broken(error) else failed

    def _failed(self, operation: str, error: Exception) -> StateError:
        return cast("StateError", self._error(operation.replace("_", " "), error))

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        """Read an item; ``strong`` is DynamoDB's consistent read."""
        answer = await self._ask("get_item", TableName=self._table, Key=self._at(key), ConsistentRead=strong)
        return self._stored(answer.get("Item"))

    async def get_many(
        self,
        keys: Sequence[str],
        *,
        parallelism: int = MAX_PARALLEL,
        metadata: Mapping[str, str] | None = None,
        strong: bool = False,
    ) -> Sequence[Stored | MeshError | None]:
        """Read several in few requests."""
        distinct = list(dict.fromkeys(keys))
        found: dict[str, Stored | MeshError | None] = {}
        for start in range(0, len(distinct), MAX_READS):
            found |= await self._read(distinct[start : start + MAX_READS], strong=strong)
        return [found.get(key) for key in keys]

    async def _read(self, keys: Sequence[str], *, strong: bool) -> Mapping[str, Stored | MeshError | None]:
        waiting: Mapping[str, Any] = {self._table: {"Keys": [self._at(key) for key in keys], "ConsistentRead": strong}}
        found: dict[str, Stored | MeshError | None] = {}
        wait = FIRST_WAIT_SECONDS
        try:
            for _ in range(len(keys)):  # Each answer has one at least, or the table is too busy.
                answer = await self._ask("batch_get_item", RequestItems=waiting)
                read = answer.get("Responses", {}).get(self._table, ())
                found |= {each[self._key]["S"]: self._stored(each) for each in read}
                waiting = answer.get("UnprocessedKeys") or {}
                if not waiting:
                    return found
                if not read:
                    await asyncio.sleep(wait)
                    wait = min(2 * wait, 1.0)
            raise StateError(f"{self._shown} is too busy")
        except StateLimitError as error:
            if len(keys) == 1:
                return {keys[0]: error}
            return {key: value for each in keys for key, value in (await self._read([each], strong=strong)).items()}
        except StateError as error:
            return {**dict.fromkeys(keys, error), **found}

    async def keys(self, prefix: str, after: str, limit: int) -> Sequence[str]:
        """List keys; DynamoDB has no order, so each page reads the whole table, 1 MiB a request."""
        return await smallest(self._scan(prefix), after, limit)

    async def _scan(self, prefix: str) -> AsyncIterator[str]:
        """Give the live keys that begin with a prefix, in any order."""
        alive = {"#ttl": self._ttl} if self._ttl else {}
        parts = ["begins_with(#key, :prefix)"] * bool(prefix)
        parts += ["(attribute_not_exists(#ttl) OR #ttl > :now)"] * bool(alive)
        arguments: dict[str, Any] = {"FilterExpression": " AND ".join(parts)} if parts else {}
        values = {":prefix": {"S": prefix}} if prefix else {}
        if alive:
            values[":now"] = {"N": str(int(time.time()))}
        if values:
            arguments["ExpressionAttributeValues"] = values
        names = {"#key": self._key, **alive}
        while True:
            answer = await self._ask(
                "scan",
                TableName=self._table,
                ConsistentRead=True,
                ProjectionExpression="#key",
                ExpressionAttributeNames=names,
                **arguments,
            )
            for each in answer.get("Items", ()):
                yield each[self._key]["S"]
            if not answer.get("LastEvaluatedKey"):
                return
            arguments["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    async def write(self, items: Sequence[Item]) -> None:
        """Write all, or nothing, in one transaction."""
        if len(items) > MAX_TRANSACTION:
            raise StateLimitError(f"a transaction in DynamoDB has at most {MAX_TRANSACTION} items, not {len(items)}")
        requests = [self._request(key, *each) for key, each in merged(items).items()]
        if len(requests) == 1 and "ConditionCheck" not in requests[0]:
            ((kind, arguments),) = requests[0].items()
            await self._ask("put_item" if kind == "Put" else "delete_item", items, **arguments)
        elif requests:
            token = secrets.token_hex(16)  # The service does a transaction once, however often it is sent.
            await self._ask("transact_write_items", items, TransactItems=requests, ClientRequestToken=token)

    async def write_batch(self, items: Sequence[Item]) -> None:
        """Write several items in one request."""
        assert not any(conditional(item) for item in items)
        requests = [
            {"DeleteRequest": {"Key": self._at(item.key)}}
            if item.value is None
            else {"PutRequest": {"Item": self._laid_out(item)}}
            for item in items
        ]
        waiting: Mapping[str, Any] = {self._table: requests}
        wait = FIRST_WAIT_SECONDS
        for _ in range(len(items) + ATTEMPTS):
            waiting = (await self._ask("batch_write_item", items, RequestItems=waiting)).get("UnprocessedItems") or {}
            if not waiting:
                return
            await asyncio.sleep(wait)
            wait = min(2 * wait, 1.0)
        raise StateError(f"{self._shown} is too busy")

    def _at(self, key: str) -> dict[str, Any]:
        return {self._key: {"S": key}}

    def _request(self, key: str, conditions: Sequence[Item], written: Item | None) -> dict[str, Any]:
        arguments: dict[str, Any] = {"TableName": self._table}
        if conditions:
            arguments |= self._condition(conditions)
        if written is None:
            return {"ConditionCheck": {**arguments, "Key": self._at(key)}}
        if written.value is None:
            return {"Delete": {**arguments, "Key": self._at(key)}}
        return {"Put": {**arguments, "Item": self._laid_out(written)}}

    def _condition(self, items: Sequence[Item]) -> dict[str, Any]:
        """Say what must hold; what has expired may still be there, and counts as gone."""
        names: dict[str, str] = {}
        values: dict[str, Any] = {}
        parts = []
        if self._ttl:
            names["#ttl"], values[":now"] = self._ttl, {"N": str(int(time.time()))}
        for index, item in enumerate(items):
            if item.etag is None:
                names["#key"] = self._key
                parts.append(f"(attribute_not_exists(#key){' OR #ttl <= :now' if self._ttl else ''})")
            else:
                names["#etag"], values[f":etag{index}"] = "etag", {"S": item.etag}
                alive = " AND (attribute_not_exists(#ttl) OR #ttl > :now)" if self._ttl else ""
                parts.append(f"(#etag = :etag{index}{alive})")
        made = {"ConditionExpression": " AND ".join(parts), "ExpressionAttributeNames": names}
        return {**made, "ExpressionAttributeValues": values} if values else made

    def _laid_out(self, item: Item) -> dict[str, Any]:
        assert item.value is not None
        try:
            value: dict[str, Any] = {"S": item.value.decode()}
        except UnicodeDecodeError:
            value = {"B": item.value}
        made = {**self._at(item.key), "value": value, "etag": {"S": str(secrets.randbits(64))}}
        if item.ttl is not None:
            if not self._ttl:
                raise FeatureNotSupportedError("state.aws.dynamodb without ttlAttributeName", "expiry (ttlInSeconds)")
            made[self._ttl] = {"N": str(int(time.time()) + max(1, math.ceil(item.ttl)))}
        return made

    def _stored(self, item: Mapping[str, Any] | None) -> Stored | None:
        if not item:
            return None
        expires_at = float(item[self._ttl]["N"]) if self._ttl and "N" in item.get(self._ttl, {}) else None
        if expires_at is not None and expires_at <= time.time():  # DynamoDB deletes it hours later.
            return None
        value = item.get("value", {})
        data = value["S"].encode() if "S" in value else bytes(value.get("B", b""))
        return Stored(data, item.get("etag", {}).get("S", ""), expires_at)
