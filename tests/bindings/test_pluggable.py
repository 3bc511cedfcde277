"""Bindings of third parties: what they are told, that they come back, and that their streams break."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mesh.blocks.binding_contract import BindingError, BindingEvent, InputBinding, Reading
from mesh.blocks.bindings import INVOKE
from mesh.errors import ConfigError
from mesh.registry import Registry
from mesh.resources.component import Secret, SecretRef
from tests.support.bindings import INPUTS, call
from tests.support.eventually import eventually
from tests.support.nodes import ask, component, node, unique
from tests.support.pluggable_server import PluggableServer, folder, pluggable


def bound(**settings: Any) -> Any:
    return component("out", "bindings.plugged", **settings)


async def test_a_program_that_comes_back(tmp_path: Path) -> None:
    """It is told the settings again; meanwhile a call fails, and may be made again."""
    async with pluggable(tmp_path) as server, node("memory:", unique("plugged"), bound(host="h")) as runtime:
        assert (await ask(runtime, INVOKE, "out", call("create", b"1"))).data == b"1"
        await server.kill()
        with pytest.raises(BindingError, match="nobody listens there") as raised:
            await ask(runtime, INVOKE, "out", call("create"))
        assert raised.value.retryable
        await server.start()
        assert (await ask(runtime, INVOKE, "out", call("create", b"2"))).data == b"2"
        # As an input and as an output, each time.
        assert server.inits() == [("out", {"host": "h"})] * 4


async def test_its_words_are_told_without_its_secrets(tmp_path: Path) -> None:
    """With the status; what it says for good is not to be repeated."""
    secret = Secret("p4ss", SecretRef("logins", "one"))
    async with pluggable(tmp_path), node("memory:", unique("plugged"), bound(login=secret)) as runtime:
        for status, again in (("NOT_FOUND", False), ("UNKNOWN", False), ("UNAVAILABLE", True)):
            with pytest.raises(BindingError, match=rf"as you wish: \*\*\* \({status}\)") as raised:
                await ask(runtime, INVOKE, "out", call("create", status=status))
            assert raised.value.retryable is again


@pytest.mark.parametrize(
    ("services", "direction", "capabilities"),
    [
        (["InputBinding", "OutputBinding"], "", ["INPUT_BINDING", "OUTPUT_BINDING"]),
        (["InputBinding", "OutputBinding"], "output", ["OUTPUT_BINDING"]),
        (["InputBinding"], "", ["INPUT_BINDING"]),
        (["OutputBinding"], "input, output", ["OUTPUT_BINDING"]),
        (["OutputBinding"], "input", None),
        (["SecretStore"], "", None),
    ],
)
async def test_what_it_is(
    tmp_path: Path, services: Sequence[str], direction: str, capabilities: Sequence[str] | None
) -> None:
    """By its services, and by `direction`."""
    async with pluggable(tmp_path, services=services):
        if capabilities is None:
            with pytest.raises(ConfigError, match="has no service"):
                async with node("memory:", unique("plugged"), bound(direction=direction)):
                    pass
        else:
            async with node("memory:", unique("plugged"), bound(direction=direction)) as runtime:
                assert list(runtime.description.components[0].capabilities) == capabilities


async def test_answers_go_back(tmp_path: Path) -> None:
    """The application's body with an event's id, or why it was not taken."""
    kind = INPUTS["pluggable"]
    failures = [BindingError("the application answered 500")]

    async def handle(event: BindingEvent) -> bytes:
        if failures:
            raise failures.pop()
        return b"thanks"

    def told() -> None:
        file = tmp_path / "answers"
        assert [json.loads(line) for line in file.read_text().splitlines()] == [
            ["", "the application answered 500"],
            ["thanks", ""],
        ]

    async with kind.serve(tmp_path) as served:
        adapter = Registry().load(kind.type).from_component(component("in", kind.type))  # type: ignore[attr-defined]
        async with adapter, adapter.reading(Reading("in", "app", handle)):
            await served.emit(b"one")
            await eventually(lambda: _exists(tmp_path / "answers"))
            await eventually(told)


def _exists(file: Path) -> None:
    assert file.exists()


@pytest.mark.parametrize("how", ["break", "kill"])
async def test_a_stream_that_breaks(tmp_path: Path, how: str) -> None:
    """It ends who reads it, with the reason; then it is read again."""
    with folder() as sockets:
        async with PluggableServer(tmp_path, sockets / "plugged.sock") as server:
            adapter: Any = Registry().load("bindings.plugged").from_component(bound())  # type: ignore[attr-defined]
            assert isinstance(adapter, InputBinding)
            got: list[bytes] = []

            async def handle(event: BindingEvent) -> bytes:
                got.append(event.data)
                return b""

            def there() -> None:
                assert got

            async def until(data: bytes) -> None:
                await adapter.invoke(call("emit", data))
                await eventually(there)

            async with adapter:
                with pytest.raises(BindingError, match="broke off") as raised:
                    async with adapter.reading(Reading("in", "app", handle)):
                        await until(b"one")
                        if how == "break":
                            await adapter.invoke(call("emit", b"break"))
                        else:
                            await server.kill()
                        await eventually(_never)
                assert raised.value.retryable
                if how == "kill":
                    with pytest.raises(BindingError, match="nobody listens"):
                        async with adapter.reading(Reading("in", "app", handle)):
                            pass
                    await server.start()
                got.clear()
                async with adapter.reading(Reading("in", "app", handle)):
                    await until(b"two")
                assert got == [b"two"]


def _never() -> None:
    raise AssertionError("it goes on")
