"""Who reads a source, and the application's gateway, are killed: what the source accepted reaches the application."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tests.faults.conftest import Figures
from tests.http.harness import App, Got, component
from tests.support.bindings import INPUTS, InputKind, ServedInput
from tests.support.eventually import eventually
from tests.support.mesh import GatewayProcess
from tests.support.nats import NatsServer

WORK_SECONDS = 0.02  # So that something is in hand whenever a process is killed.
PAUSE_SECONDS = 0.05
ENOUGH = 15
ANYWHERE = '"annotations":{"mesh.placement":"backbone"}'
WAITING = 100  # Events, beyond which a source gets no more until some have come: each has to come in the end.


@asynccontextmanager
async def emitting(served: ServedInput, app: App) -> AsyncIterator[set[bytes]]:
    """Have the source have events until this is left; gives those that it accepted once it was read.

    Of some sources a new reader gets what comes from then on, and nothing tells when that is.
    """
    accepted: set[bytes] = set()
    left = asyncio.Event()  # Clients lose a cancellation that comes together with an answer, and would go on for ever.

    async def emit() -> None:
        for number in itertools.count():
            data, is_read = b"event %d" % number, any(got.method == "POST" for got in app.got)
            await served.emit(data)
            if is_read:
                accepted.add(data)
            await asyncio.sleep(PAUSE_SECONDS)
            while len(accepted) - len(app.got) > WAITING and not left.is_set():
                await asyncio.sleep(PAUSE_SECONDS)
            if left.is_set():
                return

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(emit())
        try:
            yield accepted
        finally:
            left.set()


async def working(got: Got, request: web.BaseRequest) -> web.Response:
    await asyncio.sleep(WORK_SECONDS)
    return web.Response()


@pytest.mark.slow  # What a killed gateway had in hand is given up after a silence.
@pytest.mark.parametrize("kind", INPUTS.values(), ids=INPUTS)
async def test_killed_while_events_come(
    kind: InputKind, tmp_path: Path, mesh_home: Path, nats_server: NatsServer, figures: Figures
) -> None:
    """First the host, then the gateway of the application, which has no such component; each is started again."""
    (tmp_path / "source").mkdir()
    (tmp_path / "resources").mkdir()
    async with App() as app, kind.serve(tmp_path / "source") as served:
        settings = {**served.settings, "direction": "input"}
        text = component("in", kind.type, **settings).replace('"name":"in"', f'"name":"in",{ANYWHERE}', 1)
        (tmp_path / "resources" / "in.yaml").write_text(text)
        app.answers["/in"] = working

        async def more() -> None:
            count = len(app.got)
            await eventually(lambda: _longer(app, count + (ENOUGH if served.data else 2)), served.within)

        host_words = ("--resources-path", str(tmp_path / "resources"))
        environ = {"NAMESPACE": "bindings"}
        async with (
            GatewayProcess("host", mesh_home, backbone=nats_server.url, arguments=host_words, environ=environ) as host,
            GatewayProcess("app", mesh_home, app=app.port, backbone=nats_server.url, environ=environ) as gateway,
        ):
            await _reads(served, app)
            async with emitting(served, app) as accepted:
                await more()
                for killed in (host, gateway):
                    await killed.kill()
                    await killed.start()
                    await more()
            await eventually(lambda: _all_there(app, served, accepted), served.within)
            figures.note(accepted=len(accepted) if served.data else "-", came=len(app.got))


async def _reads(served: ServedInput, app: App) -> None:
    """Wait for the reader: to a new one of some sources nothing comes that was there before it."""
    numbers = itertools.count()

    async def comes() -> None:
        await served.emit(b"before %d" % next(numbers))
        await eventually(lambda: _longer(app, 1), within=1.0)

    await eventually(comes, served.within)


def _longer(app: App, count: int) -> None:
    assert len(app.got) >= count


def _all_there(app: App, served: ServedInput, accepted: set[bytes]) -> None:
    missing = accepted - {served.read(got.body) for got in app.got} if served.data else ()
    assert not missing, f"{len(missing)} events are missing: {sorted(missing)[:5]}"
