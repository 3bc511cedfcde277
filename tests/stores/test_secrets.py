"""One suite for all secret stores."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mesh.blocks.secrets import BULK, GET, MULTIPLE_VALUES, Bulk, Get
from mesh.errors import ConfigError, DeadlineExceededError, SecretError, SecretStoreAwayError
from mesh.node.runtime import Runtime
from mesh.resources.component import Component, MetadataEntry, SecretRef
from tests.support.eventually import eventually
from tests.support.nodes import MemoryMesh, ask, node, unique
from tests.support.secret_stores import SECRETS, SecretKind, ServedSecrets

TABLE = SECRETS
pytestmark = pytest.mark.asyncio(loop_scope="module")
VALUE = "p\N{LATIN SMALL LETTER A WITH DIAERESIS}ss w\N{SNOWMAN}rd \"'\\ {}\n$x"


class Store:
    """A store as one application sees it."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    @property
    def several(self) -> bool:
        """Whether a secret may have several values."""
        component: Any = self.runtime.services["secrets"].components["store"]  # type: ignore[attr-defined]
        return MULTIPLE_VALUES in component.capabilities

    async def get(self, name: str, seconds: float | None = None, **metadata: str) -> Mapping[str, str]:
        deadline = None if seconds is None else time.time() + seconds
        return await ask(self.runtime, GET, "store", Get(name, metadata), deadline=deadline)  # type: ignore[no-any-return]

    async def bulk(self) -> Mapping[str, Mapping[str, str]]:
        return await ask(self.runtime, BULK, "store", Bulk())  # type: ignore[no-any-return]


@asynccontextmanager
async def opened(served: ServedSecrets, kind: SecretKind) -> AsyncIterator[Store]:
    """A node that has the store."""
    async with node("memory:", unique("secrets"), served.component("store", kind.type)) as runtime:
        yield Store(runtime)


def named() -> str:
    """A name that every store takes."""
    return unique("secret").lower()


async def put(served: ServedSecrets, kind: SecretKind, name: str, value: str) -> tuple[Mapping[str, str], str]:
    """Write a secret; gives what is read of it, and its version."""
    several = kind.type.endswith(("vault", "kubernetes")) and "azure" not in kind.type
    several = several or bool({"multiValued", "multipleKeyValuesPerSecret"} & served.settings.keys())
    values = {"user": "orders", "password": value} if several else {"value": value}
    version = await served.put(name, values)
    return values if several else {name: value}, version


async def test_one_secret(served: ServedSecrets, kind: SecretKind) -> None:
    """With one value, or with all of them where the store says that it has several."""
    name = named()
    expected, _ = await put(served, kind, name, VALUE)
    async with opened(served, kind) as store:
        assert await store.get(name) == expected
        assert store.several == (len(expected) > 1)


async def test_no_such_secret(served: ServedSecrets, kind: SecretKind) -> None:
    """Trying again is of no use; names that would lead elsewhere are of no secret either."""
    await put(served, kind, named(), "v")
    async with opened(served, kind) as store:
        if kind.type == "secretstores.local.env":
            assert await store.get("none") == {"none": ""}
            return
        for name in ("none", "../none", "a/../none", "%2e", "none?x=y", "n\N{SNOWMAN}ne"):
            with pytest.raises(SecretError) as raised:
                await store.get(name)
            assert not raised.value.retryable, name


async def test_all_secrets(served: ServedSecrets, kind: SecretKind) -> None:
    """More than a page of them."""
    expected = {}
    for number in range(12):
        name = named()
        expected[name], _ = await put(served, kind, name, f"value {number}")
    async with opened(served, kind) as store:
        found = await store.bulk()
    assert {name: found.get(name) for name in expected} == expected


async def test_versions(served: ServedSecrets, kind: SecretKind) -> None:
    """The newest one, unless another is asked for."""
    if not kind.versions:
        pytest.skip("keeps no versions")
    name = named()
    old, first = await put(served, kind, name, "old")
    new, second = await put(served, kind, name, "new")
    async with opened(served, kind) as store:
        assert await store.get(name) == new
        assert await store.get(name, version_id=first) == old
        assert await store.get(name, version_id=second) == new
        with pytest.raises(SecretError) as raised:
            await store.get(name, version_id="9" * len(first) if len(first) > 1 else "999")
        assert not raised.value.retryable


async def test_a_large_value(served: ServedSecrets, kind: SecretKind) -> None:
    """As large as the store takes, up to 64 KiB."""
    name = named()
    expected, _ = await put(served, kind, name, "x" * kind.largest)
    async with opened(served, kind) as store:
        assert await store.get(name) == expected


async def test_what_a_store_refuses(served: ServedSecrets, kind: SecretKind) -> None:
    """No permission is final; too many requests, or a failure, are for now."""
    if served.refuse is None:
        pytest.skip("cannot be told to refuse")
    name = named()
    await put(served, kind, name, "v")
    async with opened(served, kind) as store:
        try:
            for status, again in ((403, False), (429, True), (503, True)):
                served.refuse(status)
                for asking in (store.get(name), store.bulk()):
                    with pytest.raises(SecretError, match=str(status)) as raised:
                        await asking
                    assert raised.value.retryable is again
        finally:
            served.refuse(0)
        assert await store.get(name)


async def test_a_server_that_is_killed(served: ServedSecrets, kind: SecretKind) -> None:
    """The same call may succeed later, says the error; and it does when the server is back."""
    if served.machine is None:
        pytest.skip("has no server")
    name = named()
    expected, _ = await put(served, kind, name, "v")
    async with opened(served, kind) as store:
        assert await store.get(name) == expected
        await served.machine.kill()
        assert served.proxy is not None
        served.proxy.cut()
        for asking in (store.get(name), store.bulk()):
            with pytest.raises(SecretStoreAwayError) as raised:
                await asking
            assert raised.value.retryable
        await served.machine.start()
        await put(served, kind, name, "v")  # What it kept in memory is gone.

        async def works() -> None:
            assert await store.get(name) == expected

        await eventually(works)


async def test_a_server_that_is_away_at_the_start(served: ServedSecrets, kind: SecretKind) -> None:
    """The start ends within its time, and says why."""
    if served.machine is None:
        pytest.skip("has no server")
    await served.machine.kill()
    try:
        with pytest.raises(ConfigError, match="component store: "):
            async with opened(served, kind):
                pass
    finally:
        await served.machine.start()


async def test_a_server_that_stalls(served: ServedSecrets, kind: SecretKind) -> None:
    """An operation ends at its deadline, or when who asks gives up; the next one is not kept from its answer."""
    if served.proxy is None:
        pytest.skip("has no server")
    name = named()
    expected, _ = await put(served, kind, name, "v")
    async with opened(served, kind) as store:
        assert await store.get(name) == expected
        served.proxy.delay(3.0)
        try:
            with pytest.raises((DeadlineExceededError, SecretStoreAwayError)):
                await store.get(name, 0.5)
            async with asyncio.TaskGroup() as tasks:
                asking = [tasks.create_task(store.get(name)) for _ in range(20)]
                assert not (await asyncio.wait(asking, timeout=0.1))[0]
                for each in asking:
                    each.cancel()
        finally:
            served.proxy.delay(0)
        assert await store.get(name) == expected


async def test_nothing_secret_is_logged(
    served: ServedSecrets, kind: SecretKind, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even at the most talkative level, whatever the libraries would write."""
    name = named()
    value = "the-value-of-a-secret"
    await put(served, kind, name, value)
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        async with opened(served, kind) as store:
            await store.get(name)
            assert name in await store.bulk()
            with pytest.raises(SecretError) as raised:
                await store.get("no/secret")
                raise SecretError("variables that are not set are empty")
    told = caplog.text + str(raised.value)
    secret = served.settings.get("vaultToken") or kind.secret
    assert value not in told
    assert not secret or secret not in told


async def test_a_component_refers_to_a_secret(served: ServedSecrets, kind: SecretKind, tmp_path: Any) -> None:
    """A setting of another component is read from the store."""
    name = named()
    file = tmp_path / "inner.json"
    file.write_text('{"inner": "found"}')
    expected, _ = await put(served, kind, name, str(file))
    key = next(key for key, value in expected.items() if value == str(file))
    entry = MetadataEntry("secretsFile", SecretRef(name, key))
    inner = Component("inner", "secretstores.local.file", (entry,), auth_secret_store="store")
    async with node("memory:", unique("secrets"), inner, served.component("store", kind.type)) as runtime:
        assert await ask(runtime, GET, "inner", Get("inner")) == {"inner": "found"}


async def test_a_host_has_the_store(served: ServedSecrets, kind: SecretKind) -> None:
    """Others need neither its address nor its credentials; its errors reach them as they are."""
    name = named()
    expected, _ = await put(served, kind, name, VALUE)
    mesh, namespace = MemoryMesh(), unique("secrets")
    store = served.component("store", kind.type, placement="backbone")
    async with (
        node("memory:", namespace, store, app_id="host", registry=mesh),
        node("memory:", namespace, app_id="asker", registry=mesh) as runtime,
    ):
        asker = Store(runtime)
        assert await asker.get(name) == expected
        assert (await asker.bulk())[name] == expected
        if served.machine is not None:
            await served.machine.kill()
            try:
                with pytest.raises(SecretStoreAwayError):
                    await asker.get(name)
            finally:
                await served.machine.start()
