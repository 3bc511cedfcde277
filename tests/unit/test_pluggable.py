"""What is shown of a component's words, and calls that wait for its connection."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import grpc
import pytest

from bindings.pluggable._connection import Connection, Failed
from bindings.pluggable._hidden import hiding
from bindings.pluggable._messages import message
from mesh.resources.component import MetadataEntry, Secret
from tests.support.eventually import eventually


@pytest.mark.parametrize(
    ("name", "value", "told", "shown"),
    [
        pytest.param("host", Secret("s3cr;t"), "no login with s3cr;t: s3cr;t", "no login with ***: ***", id="secret"),
        pytest.param("host", Secret("x"), "no x", "no ***", id="short secret"),
        pytest.param("host", Secret(""), "no host", "no host", id="empty secret"),
        pytest.param("Password", "hunter2", "bad hunter2", "bad ***", id="by name"),
        pytest.param("accountKey", "YWJj/w==", "bad YWJj%2Fw%3D%3D", "bad ***", id="quoted"),
        pytest.param("token", 'a"b\nc', 'bad "a\\"b\\nc"', 'bad "***"', id="escaped"),
        pytest.param(
            "connectionString", "a=1;b=2", "cannot parse 'a=1;b=2'", "cannot parse '***'", id="connection string"
        ),
        pytest.param("server", "Host=h;Pwd=hunter2;X=y", "hunter2 at Host=h", "*** at Host=h", id="part of a string"),
        pytest.param(
            "url", "redis://me:p%40ss@h:1/0", "redis://me:p@ss@h:1: no", "redis://me:***@h:1: no", id="URL, read"
        ),
        pytest.param("url", "redis://me:p%40ss@h:1/0", "p%40ss at h", "*** at h", id="URL, as it is"),
        pytest.param("host", "db.example", "no host db.example", "no host db.example", id="no secret"),
        pytest.param("keyPrefix", "name", "no name", "no name", id="no secret either"),
        pytest.param("tokenAuth", "true", "is true", "is true", id="a switch"),
    ],
)
def test_secrets_of_its_settings_are_not_shown(name: str, value: str | Secret, told: str, shown: str) -> None:
    assert hiding([MetadataEntry("other", "told"), MetadataEntry(name, value)])(told) == shown


def test_longer_secrets_are_found_first() -> None:
    """One may be a part of another."""
    entries = [MetadataEntry("password", "word"), MetadataEntry("token", "password1")]
    assert hiding(entries)("password1, word") == "***, ***"


async def test_calls_that_wait_for_one_attempt_share_its_failure() -> None:
    """The last of many does not wait for as many attempts; a later call makes another one."""
    attempts = 0
    go = asyncio.Event()

    async def initialise(connection: Connection) -> None:
        nonlocal attempts
        attempts += 1
        await go.wait()
        raise Failed(f"refused {attempts}", grpc.StatusCode.INVALID_ARGUMENT, sent=True)

    async def call() -> Failed:
        with pytest.raises(Failed) as raised:
            await connection.call("StateStore", "Ping", message("PingRequest")())
        return raised.value

    with tempfile.TemporaryDirectory(prefix="socket") as folder:
        path = Path(folder, "it.sock")
        connection = Connection(path, "it", "StateStore", initialise)
        async with await asyncio.start_unix_server(lambda _, writer: writer.close(), path):
            async with asyncio.TaskGroup() as tasks:
                calls = [tasks.create_task(call()) for _ in range(5)]
                await eventually(lambda: _is(attempts == 1))
                go.set()
            assert {str(each.result()) for each in calls} == {"refused 1"}
            assert {(each.result().code.name, each.result().sent) for each in calls} == {("INVALID_ARGUMENT", False)}
            assert str(await call()) == "refused 2"
        await connection.close()


def _is(true: bool) -> None:
    assert true
