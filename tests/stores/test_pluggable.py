"""What only a component in a process of a third party can do: refuse, end, come back, hang, and be something else."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mesh.blocks.secrets import BULK, Bulk
from mesh.blocks.secrets import GET as SECRET
from mesh.blocks.secrets import Get as GetSecret
from mesh.blocks.state import GET, SAVE, Get, Save
from mesh.errors import (
    ConfigError,
    DeadlineExceededError,
    MeshError,
    OutcomeUnknownError,
    SecretError,
    SecretStoreAwayError,
    StateError,
    StateLimitError,
)
from mesh.node.runtime import Runtime
from mesh.resources.component import Secret, SecretRef
from mesh.store import Concurrency, Item, Stored
from tests.support.eventually import eventually
from tests.support.nodes import MemoryMesh, ask, component, node, unique
from tests.support.pluggable_server import PluggableServer, folder, pluggable

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PluggableServer]:
    """A component that tests may end, if they start it again."""
    async with pluggable(tmp_path_factory.mktemp("component"), "Plugged") as server:
        yield server


def opened(*components: Any, **settings: Any) -> Runtime:
    """A node that has it."""
    made = components or (component("store", "state.plugged"), component("vault", "secretstores.plugged"))
    return node("memory:", unique("plugged"), *made, **settings)


async def save(runtime: Runtime, *items: Item, seconds: float | None = None) -> None:
    deadline = None if seconds is None else time.time() + seconds
    await ask(runtime, SAVE, "store", Save(list(items)), deadline=deadline)


async def get(runtime: Runtime, key: str) -> Stored | None:
    return await ask(runtime, GET, "store", Get(key))  # type: ignore[no-any-return]


async def test_what_a_component_is_told(server: PluggableServer) -> None:
    """All that its file says but the keys of encryption, and which component it is."""
    key = Secret("0f" * 16, SecretRef("keys", "first"))
    settings: dict[str, Any] = {"Host": "h", "keyPrefix": "name", "primaryEncryptionKey": key, "without": "TTL"}
    name = unique("störe")
    async with opened(component(name, "state.plugged", version="v3", **settings)) as runtime:
        instance, told = server.inits()[-1]
        assert told == {"Host": "h", "keyPrefix": "name", "without": "TTL"}
        assert instance.startswith("st%C3%B6re")
        opened_store: Any = runtime.services["state"].components[name]  # type: ignore[attr-defined]
        assert list(opened_store.capabilities) == ["ETAG", "TRANSACTIONAL", "ACTOR"]


async def test_what_a_component_refuses(server: PluggableServer) -> None:
    """The start fails with its words."""
    with pytest.raises(ConfigError, match=r"StateStore.Init of .*: refused: no such host \(INVALID_ARGUMENT\)"):
        async with opened(component("store", "state.plugged", refuse="no such host")):
            pass


async def test_its_words_are_told_without_its_secrets(server: PluggableServer) -> None:
    """At start and later, with the status."""
    secret = Secret("p4ss", SecretRef("logins", "one"))
    with pytest.raises(ConfigError, match=r"Init of .*: refused: \*\*\* \(INVALID_ARGUMENT\)") as raised:
        async with opened(component("store", "state.plugged", refuse=secret)):
            pass
    assert "p4ss" not in str(raised.value)
    async with opened(component("vault", "secretstores.plugged", login=secret)) as runtime:
        with pytest.raises(SecretError, match=r"there is no secret \*\*\*1 \(NOT_FOUND\)"):
            await ask(runtime, SECRET, "vault", GetSecret("p4ss1"))


async def test_another_program_gets_the_settings(server: PluggableServer) -> None:
    """It would know nothing of them: it is told before anything else is asked, by however many at once."""
    async with opened() as runtime:
        before = len(server.inits())
        for _ in range(2):
            await save(runtime, Item("k", b"1"))
            await server.restart(kill=True)
            async with asyncio.TaskGroup() as tasks:
                asking = [tasks.create_task(get(runtime, "k")) for _ in range(20)]
            assert {stored.value for each in asking if (stored := each.result())} == {b"1"}
        assert len(server.inits()) == before + 2
        with pytest.raises(SecretError, match="there is no secret none"):
            await ask(runtime, SECRET, "vault", GetSecret("none"))


async def test_a_program_that_is_gone(server: PluggableServer) -> None:
    """Nothing was sent, so that the same may be asked again; it is used once it is back."""
    async with opened() as runtime:
        await save(runtime, Item("gone", b"1"))
        await server.kill()
        try:
            for left in (True, False):
                why = "nobody listens there" if left else "there is no such socket"
                for item in (Item("gone", b"2"), Item("gone", b"2", "1"), Item("gone", None)):
                    with pytest.raises(StateError, match=why) as raised:
                        await save(runtime, item)
                    assert (raised.value.code, raised.value.retryable) == ("STATE_ERROR", True)
                with pytest.raises(SecretStoreAwayError, match=why):
                    await ask(runtime, BULK, "vault", Bulk())
                if left:
                    server.path.unlink()
        finally:
            await server.start()
        stored = await get(runtime, "gone")
        assert stored is not None
        assert stored.value == b"1"


async def test_a_program_that_hangs(server: PluggableServer) -> None:
    """An operation ends at its deadline; the next one is answered when it goes on."""
    async with opened() as runtime:
        await save(runtime, Item("hangs", b"1"))
        with server.hanging():
            with pytest.raises((DeadlineExceededError, MeshError)) as raised:
                await save(runtime, Item("other", b"2"), seconds=0.3)
            assert raised.value.retryable
        stored = await get(runtime, "hangs")
        assert stored is not None
        assert stored.value == b"1"


async def test_a_program_that_ends_with_a_write(server: PluggableServer) -> None:
    """With a condition nobody knows its outcome, and it is not made again."""
    async with opened() as runtime:
        await get(runtime, "k")
        with server.hanging():
            async with asyncio.TaskGroup() as tasks:
                first = Item(unique("first"), b"1", None, Concurrency.FIRST_WRITE)
                writing = tasks.create_task(_raised(save(runtime, first)))
                # It was sent once nothing more is to be done here.
                assert not (await asyncio.wait([writing], timeout=0.3))[0]
                await server.kill()
        error = writing.result()
        await server.start()
        assert isinstance(error, OutcomeUnknownError)


async def _raised(asking: Any) -> MeshError | None:
    try:
        await asking
    except MeshError as error:
        return error
    return None


async def test_a_start_that_hangs(server: PluggableServer) -> None:
    """It has the time that its file says."""
    with server.hanging(), pytest.raises(ConfigError, match=r"its start took longer than 0\.3 s"):
        async with opened(replace(component("store", "state.plugged"), init_timeout=0.3)):
            pass


async def test_large_values(server: PluggableServer) -> None:
    """Those above what the program takes are refused for good, with others that are written."""
    async with opened() as runtime:
        large = bytes(range(256)) * (15 * 1024)
        await save(runtime, *(Item(f"large{number}", large) for number in range(3)))
        stored = await get(runtime, "large2")
        assert stored is not None
        assert stored.value == large
        with pytest.raises(StateLimitError) as raised:
            await save(runtime, Item("too-large", large * 2), Item("small", b"1"))
        assert not raised.value.retryable
        assert await get(runtime, "too-large") is None
        assert await get(runtime, "small") is not None


@pytest.mark.parametrize(
    ("status", "again"),
    [
        ("NOT_FOUND", False),
        ("PERMISSION_DENIED", False),
        ("UNKNOWN", False),
        ("UNIMPLEMENTED", False),
        ("UNAVAILABLE", True),
        ("RESOURCE_EXHAUSTED", True),
        ("DEADLINE_EXCEEDED", True),
        ("INTERNAL", True),
    ],
)
async def test_what_a_status_says(server: PluggableServer, status: str, again: bool) -> None:
    """Whether the same call may succeed later."""
    async with opened() as runtime:
        with pytest.raises(SecretError, match=rf"as you wish \({status}\)") as raised:
            await ask(runtime, SECRET, "vault", GetSecret("any", {"status": status}))
        assert raised.value.retryable is again


async def test_reflection(tmp_path: Path) -> None:
    """The older version, or the newer one; without it nobody knows what a program is."""
    for version in ("v1", "v1alpha", "v1,v1alpha"):
        async with pluggable(tmp_path / version, reflection=version), opened() as runtime:
            assert await get(runtime, "k") is None
    async with pluggable(tmp_path / "none", reflection="none"):
        with pytest.raises(ConfigError, match="has no server reflection"):
            async with opened():
                pass


async def test_a_component_of_another_kind(tmp_path: Path) -> None:
    """It is told what it is."""
    async with pluggable(tmp_path, services=("SecretStore", "InputBinding", "OutputBinding")):
        with pytest.raises(ConfigError) as raised:
            async with opened():
                pass
        [problem] = str(raised.value).splitlines()
        assert "has no service StateStore; it has: InputBinding, OutputBinding, SecretStore" in problem


async def test_without_a_socket() -> None:
    """What is there is named; with the error ignored, the node starts."""
    with folder() as sockets, socket.socket(socket.AF_UNIX) as left:
        left.bind(str(sockets / "left.sock"))
        with pytest.raises(ConfigError, match=f"pluggable components with a socket in {sockets}: left"):
            async with opened(component("store", "state.nobody")):
                pass
        with pytest.raises(ConfigError, match=r"component store: cannot reach .*left.sock: nobody listens there"):
            async with opened(component("store", "state.left")):
                pass


async def test_a_program_that_speaks_something_else() -> None:
    """The start ends in its time, or sooner."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    with folder() as sockets:
        listening = await asyncio.start_unix_server(answer, str(sockets / "web.sock"))
        async with listening:
            with pytest.raises(ConfigError, match="component store: "):
                async with opened(replace(component("store", "state.web"), init_timeout=0.5)):
                    pass


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody whom a socket does not let connect")
async def test_permissions(server: PluggableServer) -> None:
    """Who may not write to the socket is told so."""
    os.chmod(server.path.parent, 0o755)
    os.chmod(server.path, 0o600)
    os.seteuid(65534)
    try:
        with pytest.raises(ConfigError, match="its permissions, or those of its folder, do not let user"):
            async with opened():
                pass
    finally:
        os.seteuid(0)


async def test_others_are_answered(server: PluggableServer) -> None:
    """As for any other component: a node that has no socket needs none."""
    mesh, namespace = MemoryMesh(), unique("plugged")
    store = component("store", "state.plugged", placement="backbone")
    async with (
        node("memory:", namespace, store, app_id="host", registry=mesh),
        node("memory:", namespace, app_id="asker", registry=mesh) as asker,
    ):
        await save(asker, Item("k", b"1"))
        stored = await get(asker, "k")
        assert stored is not None
        assert stored.value == b"1"


async def test_nothing_is_left(server: PluggableServer) -> None:
    """A node that stops closes what it had to the program."""

    def connections() -> int:
        assert server.process is not None
        folder, links = Path(f"/proc/{server.process.pid}/fd"), []
        for each in folder.iterdir():
            with suppress(FileNotFoundError):  # Closed since it was listed.
                links.append(os.readlink(each))
        return sum(link.startswith("socket:") for link in links)

    before = connections()
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(opened())
        assert connections() > before

    async def closed() -> None:
        assert connections() <= before

    await eventually(closed)
