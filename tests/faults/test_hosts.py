"""A host of components that is killed in the middle: an error that may be repeated, never a hang."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from mesh.blocks.crypto import UNWRAP_KEY, WRAP_KEY, UnwrapKey, WrapKey
from mesh.blocks.state import GET, SAVE, Get, Save
from mesh.errors import DeadlineExceededError, MeshError, NoResponderError, NotConfiguredError
from mesh.node.runtime import Runtime
from mesh.store import Item
from tests.support.crypto_keys import write_keys
from tests.support.eventually import eventually
from tests.support.host_process import host_process
from tests.support.nats import NatsServer, find_nats_server
from tests.support.nodes import ask, node

pytestmark = pytest.mark.skipif(find_nats_server() is None, reason="nats-server is not installed")

STORE = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: store, annotations: {{mesh.placement: backbone}}}}
spec:
  type: state.sqlite
  version: v1
  metadata: [{{name: connectionString, value: "{file}"}}]
"""


KEYS = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: vault, annotations: {{mesh.placement: backbone}}}}
spec:
  type: crypto.dapr.localstorage
  version: v1
  metadata: [{{name: path, value: "{file}"}}]
"""


def host(
    tmp_path: Path, url: str, app_id: str, template: str = STORE, file: str = "state.db"
) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """Run one with a component."""
    return host_process(tmp_path, url, "hosts", template.format(file=tmp_path / file), app_id)


async def until_answered(asker: Runtime) -> None:
    async def answered() -> None:
        try:
            await ask(asker, SAVE, "store", Save([Item("k", b"1")]), deadline=time.time() + 2)
        except (NotConfiguredError, NoResponderError, DeadlineExceededError) as error:
            raise AssertionError(str(error)) from error

    await eventually(answered, within=90.0)


async def test_a_host_is_killed_with_an_operation_in_flight(tmp_path: Path) -> None:
    """It is stopped first, so that the operation is in flight for certain."""
    async with NatsServer(tmp_path / "nats") as server, node(server.url, "hosts", app_id="asker") as asker:
        async with host(tmp_path, server.url, "one") as one:
            await until_answered(asker)
            os.kill(one.pid, signal.SIGSTOP)
            asking = asyncio.ensure_future(ask(asker, GET, "store", Get("k"), deadline=time.time() + 3))
            await asyncio.wait([asking], timeout=0.5)
            assert not asking.done()
            one.kill()
            started = time.monotonic()
            with pytest.raises(MeshError) as raised:
                await asking
            assert raised.value.retryable
            assert time.monotonic() - started < 20
        async with host(tmp_path, server.url, "two"):
            await until_answered(asker)
            stored = await ask(asker, GET, "store", Get("k"))
            assert stored.value == b"1"


async def test_hosts_restart_one_after_the_other(tmp_path: Path) -> None:
    """Two of them: every operation in between is done."""
    async with NatsServer(tmp_path / "nats") as server, node(server.url, "hosts", app_id="asker") as asker:
        done = 0
        stopping = asyncio.Event()

        async def keep_asking() -> None:
            nonlocal done
            while not stopping.is_set():
                assert (await ask(asker, GET, "store", Get("k"), deadline=time.time() + 20)).value == b"1"
                done += 1

        async def more() -> None:
            before = done

            def check() -> None:
                assert done > before + 20

            await eventually(check, within=40.0)

        async with host(tmp_path, server.url, "one") as one:
            await until_answered(asker)
            async with asyncio.TaskGroup() as tasks, host(tmp_path, server.url, "two"):
                asking = tasks.create_task(keep_asking())
                await more()
                one.terminate()
                await one.wait()
                await more()
                async with host(tmp_path, server.url, "three"):
                    await more()
                    stopping.set()
                    await asking


async def test_a_host_of_keys_is_killed(tmp_path: Path) -> None:
    """What it was asked fails with an error that may be repeated; then the other one answers, by the same keys."""
    keys = tmp_path / "keys"
    keys.mkdir()
    write_keys(keys)
    wrap = WrapKey(bytes(range(32)), "A256KW", "symkey.json")

    async def answered(asker: Runtime) -> None:
        try:
            await ask(asker, WRAP_KEY, "vault", wrap, deadline=time.time() + 2)
        except (NotConfiguredError, NoResponderError, DeadlineExceededError) as error:
            raise AssertionError(str(error)) from error

    async with (
        NatsServer(tmp_path / "nats") as server,
        node(server.url, "hosts", app_id="asker") as asker,
        host(tmp_path, server.url, "one", KEYS, "keys") as one,
    ):
        await eventually(lambda: answered(asker), within=90.0)
        wrapped = await ask(asker, WRAP_KEY, "vault", wrap)
        os.kill(one.pid, signal.SIGSTOP)
        asking = asyncio.ensure_future(ask(asker, WRAP_KEY, "vault", wrap, deadline=time.time() + 3))
        await asyncio.wait([asking], timeout=0.5)
        assert not asking.done()
        async with host(tmp_path, server.url, "two", KEYS, "keys"):
            one.kill()
            with pytest.raises(MeshError) as raised:
                await asking
            assert raised.value.retryable
            await eventually(lambda: answered(asker), within=90.0)
            unwrap = UnwrapKey(wrapped.wrapped_key, "A256KW", "symkey.json")

            async def unwrapped() -> None:  # The server may not have noticed the death yet when one has answered.
                try:
                    again = await ask(asker, UNWRAP_KEY, "vault", unwrap)
                except DeadlineExceededError as error:
                    raise AssertionError(str(error)) from error
                assert again.plaintext_key == wrap.plaintext_key

            await eventually(unwrapped, within=90.0)
