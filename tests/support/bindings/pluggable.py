"""Rows of what a program of a third party is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from bindings.pluggable._connection import Connection
from bindings.pluggable._messages import message
from tests.support.bindings.rows import InputKind, OutputKind, ServedInput, ServedOutput, call, gives, nothing
from tests.support.pluggable_server import pluggable

__all__ = ["INPUTS", "OUTPUTS"]


async def _known(connection: Connection) -> None:
    """Tell it nothing: what it is asked needs no settings."""


@asynccontextmanager
async def _calls(directory: Path) -> AsyncIterator[ServedOutput]:
    calls = (
        (call("create", b'{"a":1}', key="k"), gives(b'{"a":1}', key="k", did="create")),
        (call("create", b"\x00\xff"), gives(b"\x00\xff")),
        (call("nothing"), nothing),
    )
    async with pluggable(directory, services=("OutputBinding",)):
        yield ServedOutput({}, calls, call("create", status="NOT_FOUND"))


@asynccontextmanager
async def _events(directory: Path) -> AsyncIterator[ServedInput]:
    async with pluggable(directory, services=("InputBinding", "OutputBinding")) as server:
        connection = Connection(server.path, "source", "OutputBinding", _known)

        async def emit(event: bytes) -> None:
            await connection.call("OutputBinding", "Invoke", message("InvokeRequest")(data=event, operation="emit"))

        try:
            yield ServedInput({}, emit)
        finally:
            await connection.close()


OUTPUTS: Mapping[str, OutputKind] = {"pluggable": OutputKind("bindings.plugged", _calls)}
INPUTS: Mapping[str, InputKind] = {"pluggable": InputKind("bindings.plugged", _events)}
