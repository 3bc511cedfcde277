"""``state.gcp.firestore``: state in Firestore in Datastore mode, laid out as the Dapr runtime lays it out.

An entity of the kind ``DaprState`` (or what ``entity_kind`` names), whose name is the key, has the property ``Value``,
a text. A value that is no UTF-8 is kept as a blob. Etags are the versions of entities.

Google has no client of asyncio for Datastore mode, so this asks its REST interface.

Source: Dapr 1.18, the Firestore state store; Datastore's REST reference, v1.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from bindings.remote import PARALLEL, RemoteStateStore, conditional, conflict, merged, must_be_absent, uncertain
from brokers.clients.gcp import Access, GCPAdapter, GCPSettings
from brokers.clients.http import Answer, HTTPService
from mesh.errors import InvalidEtagError, MeshError, StateError, StateLimitError
from mesh.resources.settings import BOOLEAN, Kind, check_port, setting
from mesh.store import MAX_PARALLEL, Item, Stored

__all__ = ["FirestoreStateStore"]

URL = "https://datastore.googleapis.com"
MAX_TRANSACTION = 500
MAX_READS = 100
MAX_KEY_BYTES = 1500
MAX_INDEXED_BYTES = 1500
ATTEMPTS = 5
FIRST_WAIT_SECONDS = 0.05
_ETAG = re.compile(r"[0-9]{1,19}")
_RESERVED = re.compile(r"__.*__", re.DOTALL)


def _url(text: str) -> str:
    found = re.fullmatch(r"(https?://)?([^\s/@?#]+?)/?", text)
    if found is None:
        raise ValueError("is host:port, or an http:// or https:// URL without credentials and without a path")
    url = f"{found[1] or 'http://'}{found[2]}"
    check_port(url)
    return url


def _kind(text: str) -> str:
    if len(text.encode()) > MAX_KEY_BYTES or _RESERVED.fullmatch(text):
        raise ValueError(f"has at most {MAX_KEY_BYTES} bytes, and not two underscores at both ends")
    return text


@dataclass(frozen=True, slots=True)
class FirestoreSettings(GCPSettings):
    """Settings of ``state.gcp.firestore``."""

    kind: str = setting(
        "entity_kind", "Kind of the entities.", Kind("kind", _kind), default="DaprState", aliases=("entityKind",)
    )
    no_index: bool = setting(
        "noIndex", "Whether values are not indexed; those of more than 1,500 bytes never are.", BOOLEAN, default=False
    )
    endpoint: str = setting(
        "endpoint",
        "URL of the service, or host and port of an emulator, where nobody logs in.",
        Kind("URL, or host:port", _url),
        default=URL,
        aliases=("connectionEndpoint",),
    )


class FirestoreStateStore(GCPAdapter, RemoteStateStore):
    """State in Firestore in Datastore mode, as entities of one kind."""

    settings = FirestoreSettings
    tested = "a server written by hand from Google's documentation; not run against the real service"
    capabilities: Sequence[str] = ("ETAG", "TRANSACTIONAL", "ACTOR")
    max_transaction = MAX_TRANSACTION
    batch = MAX_PARALLEL
    _service: HTTPService
    _partition: Mapping[str, str]

    def __init__(self, settings: Any) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self._access = Access(settings, StateError, StateError)

    async def _enter(self) -> None:
        """Connect, and see that the project has such a database, and that the credentials may read it."""
        settings = self._settings
        alone = settings.client_email is None and settings.endpoint.startswith("http://")
        if not alone:
            await self._access.open()
        if self._access.project is None:
            raise self._problem("no project is known: set project_id")
        headers = _nobody if alone else self._access.headers
        service = HTTPService("Firestore", settings.endpoint, headers, StateError)
        self._service = await self._stack.enter_async_context(service)
        self._partition = {"projectId": self._access.project}
        await self.check()

    async def _ask(self, operation: str, body: Mapping[str, Any]) -> Answer:
        return await self._service.post(f"/v1/projects/{self._access.project}:{operation}", body)

    async def _done(self, operation: str, body: Mapping[str, Any]) -> Any:
        answer = await self._ask(operation, body)
        if answer.status != 200 or not isinstance(answer.body, dict):
            raise _refused(answer)
        return answer.body

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        """Read an entity; every read is strong."""
        return (await self._read([key])).get(key)

    async def get_many(
        self,
        keys: Sequence[str],
        *,
        parallelism: int = MAX_PARALLEL,
        metadata: Mapping[str, str] | None = None,
        strong: bool = False,
    ) -> Sequence[Stored | MeshError | None]:
        """Read many in one request."""
        found: dict[str, Stored | MeshError | None] = {}
        distinct = list(dict.fromkeys(keys))
        parts = iter([distinct[start : start + MAX_READS] for start in range(0, len(distinct), MAX_READS)])

        async def work() -> None:
            for part in parts:
                found.update(await self._tried_reading(part))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(PARALLEL, parallelism)):
                tasks.create_task(work(), name="state-get-many")
        return [found.get(key) for key in keys]

    async def _tried_reading(self, keys: Sequence[str]) -> Mapping[str, Stored | MeshError | None]:
        try:
            return await self._read(keys)
        except StateLimitError as error:
            if len(keys) == 1:
                return {keys[0]: error}
            return {key: value for each in keys for key, value in (await self._tried_reading([each])).items()}
        except MeshError as error:
            return dict.fromkeys(keys, error)

    async def _read(self, keys: Sequence[str], transaction: str | None = None) -> dict[str, Stored]:
        """Read entities; a request may leave some for another one."""
        waiting: Sequence[Any] = [self._at(key) for key in keys]
        options = {"readOptions": {"transaction": transaction}} if transaction else {}
        found: dict[str, Stored] = {}
        for _ in range(len(keys)):
            told = await self._done("lookup", {"keys": waiting, **options})
            try:
                found |= {each["entity"]["key"]["path"][0]["name"]: _stored(each) for each in told.get("found") or ()}
            except (AttributeError, LookupError, TypeError, ValueError):
                raise StateError("what Firestore answered is no entity of a state store") from None
            waiting = told.get("deferred") or ()
            if not waiting:
                return found
        raise StateError("Firestore is too busy")

    async def write(self, items: Sequence[Item]) -> None:
        """Write all, or nothing."""
        if len(items) > MAX_TRANSACTION:
            raise StateLimitError(f"a transaction in Firestore has at most {MAX_TRANSACTION} items, not {len(items)}")
        by_key = merged(items)
        mutations = [self._mutation(written) for _, written in by_key.values() if written is not None]
        guarded = {key: conditions for key, (conditions, _) in by_key.items() if conditions}
        if not guarded and len(mutations) <= 1:
            await self.write_batch(items)
            return
        for item in items:
            if item.etag is not None and not _ETAG.fullmatch(item.etag):
                raise InvalidEtagError(f"invalid etag value: {item.etag}")
        wait = FIRST_WAIT_SECONDS
        for left in reversed(range(ATTEMPTS)):
            if await self._transact(guarded, mutations, items):
                return
            if left:
                await asyncio.sleep(wait)
                wait *= 2
        raise StateError("Firestore is too busy: others write the same keys; nothing was done")

    async def _transact(
        self, guarded: Mapping[str, Sequence[Item]], mutations: Sequence[Any], items: Sequence[Item]
    ) -> bool:
        """Write if the conditions hold; gives False when another transaction was in the way, and nothing was done."""
        begun = await self._done("beginTransaction", {"transactionOptions": {"readWrite": {}}})
        transaction = str(begun.get("transaction"))
        if guarded:
            try:
                found = await self._read(list(guarded), transaction)
            except StateError as error:
                if isinstance(error.__cause__, _AbortedError):
                    return False
                raise
            if not all(_holds(item, found.get(key)) for key, conditions in guarded.items() for item in conditions):
                # Else it would hold on to what it read until its time is over.
                with suppress(StateError):
                    await self._ask("rollback", {"transaction": transaction})
                raise conflict(items)
        body = {"mode": "TRANSACTIONAL", "transaction": transaction, "mutations": mutations}
        try:
            answer = await self._ask("commit", body)
        except StateError as error:
            raise uncertain(error, items) from None
        if answer.status == 200:
            return True
        refused = _refused(answer)
        if isinstance(refused.__cause__, _AbortedError):
            return False
        raise refused

    async def write_batch(self, items: Sequence[Item]) -> None:
        """Write several items in one request."""
        assert not any(conditional(item) for item in items)
        mutations = [self._mutation(written) for _, written in merged(items).values() if written is not None]
        if mutations:
            await self._done("commit", {"mode": "NON_TRANSACTIONAL", "mutations": mutations})

    def _at(self, key: str) -> dict[str, Any]:
        if not 0 < len(key.encode()) <= MAX_KEY_BYTES or _RESERVED.fullmatch(key):
            raise StateLimitError(
                f"Firestore takes keys of 1 to {MAX_KEY_BYTES} bytes with their prefix, not with __ at both ends"
            )
        return {"partitionId": self._partition, "path": [{"kind": self._settings.kind, "name": key}]}

    def _mutation(self, item: Item) -> dict[str, Any]:
        if item.value is None:
            return {"delete": self._at(item.key)}
        try:
            value: dict[str, Any] = {"stringValue": item.value.decode()}
        except UnicodeDecodeError:
            value = {"blobValue": base64.b64encode(item.value).decode()}
        if self._settings.no_index or len(item.value) > MAX_INDEXED_BYTES:
            value["excludeFromIndexes"] = True
        return {"upsert": {"key": self._at(item.key), "properties": {"Value": value}}}


class _AbortedError(Exception):
    """Another transaction was in the way: the cause of an error of the store."""


async def _nobody() -> Mapping[str, str]:
    return {}


def _refused(answer: Answer) -> StateError:
    told = answer.body.get("error") if isinstance(answer.body, dict) else None
    status = told.get("status") if isinstance(told, dict) else None
    kind = StateLimitError if status == "INVALID_ARGUMENT" else StateError
    refused = kind(f"Firestore answered {answer.reason()}")
    if status == "ABORTED":
        refused.__cause__ = _AbortedError()
    return refused


def _holds(item: Item, stored: Stored | None) -> bool:
    return stored is None if must_be_absent(item) else stored is not None and stored.etag == item.etag


def _stored(found: Mapping[str, Any]) -> Stored:
    value = found["entity"].get("properties", {}).get("Value", {})
    data = base64.b64decode(value["blobValue"]) if "blobValue" in value else str(value.get("stringValue", "")).encode()
    return Stored(data, str(found.get("version", "")))
