"""The life of one application and its gateway: start, readiness, the first end, the other's end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.client import GatewayUnreachableError, grpc_endpoint, request
from gateway.cli.options import to_arguments
from gateway.cli.output import Console, Stream
from gateway.cli.processes import Child, Start, exit_code, exit_text, first_of, started
from gateway.config import CLOSE_SECONDS
from gateway.notify import VARIABLES
from gateway.runs import Run, find_run, list_runs, set_app_pid
from mesh.errors import MeshError
from mesh.tasks import task_group

if TYPE_CHECKING:
    from gateway.cli.app_spec import AppSpec
    from gateway.cli.guard import Guard
    from gateway.cli.voice import Voice
    from gateway.config import GatewayConfig

__all__ = ["LaunchError", "Surroundings", "gateway_grace", "run_app"]

_READY_WITHIN = 30.0
_GATEWAY_MARGIN = 3.0  # For the end of the process itself, on a busy machine.
_FIRST_POLL, _LAST_POLL = 0.01, 0.1
_APP_GRACE = 5.0
_LAST_OUTPUT_WITHIN = 0.5
_OUTBOUND, _READY = "/v1.0/healthz/outbound", "/v1.0/healthz"
# What a gateway logs, as text or JSON, when it can not start yet.
_WAITING = re.compile(r'waiting for the backbone(?:[^"\\]|\\.)*')
_OTHER_FAMILY = {"127.0.0.1": "::1", "::1": "127.0.0.1"}
_PATIENCE = 1.0  # Most applications listen before anybody has to be told that they do not.
# An application that was told to end may say so.
_TOLD_TO_END = (0, *(128 + number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)))


class LaunchError(MeshError):
    """A gateway or an application could not be started."""

    code = "LAUNCH_FAILED"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all applications of one ``mesh run`` share.

    Attributes:
        console: For people.
        voice: What is said there.
        guard: Ends what we leave behind.
        environ: Our environment.
        stop: Set when everything is to end.
        hurry: Set when nothing is to be waited for any more.
        gateways: Whose API answers: they know what a signal means.
    """

    console: Console
    voice: Voice
    guard: Guard
    environ: Mapping[str, str]
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    gateways: set[Child] = field(default_factory=set)

    def pass_on(self, number: int) -> None:
        """Send a signal to the gateways, and to nothing else."""
        for each in self.gateways:
            each.send(number)


@dataclass(frozen=True, slots=True)
class _Side:
    """The gateway or the application, and what it writes.

    Attributes:
        kept_out: Whether another program had its port: who answers there is not it.
    """

    child: Child
    stream: Stream
    kept_out: bool = False


async def run_app(spec: AppSpec, around: Surroundings) -> int:
    """Run an application and its gateway until one of them ends, or all are to stop; give the exit code.

    Raises:
        LaunchError: One of the two did not start.
    """
    stream = Stream("GATEWAY", spec.app_id, spec.gateway_log, around.console)
    around.voice.begins(spec)
    start = Start("gateway", _gateway_command(spec), around.environ, Path.cwd())
    try:
        async with started(start, stream, around.guard) as child:
            gateway = _Side(child, stream)
            run = await _ready(gateway, spec, around)
            if run is None:
                await child.end(gateway_grace(spec), around.hurry)
                return 0
            around.gateways.add(child)
            around.voice.gateway_ready(spec, run)
            if spec.command:
                return await _with_app(spec, around, gateway, run)
            around.voice.alone(spec, run)
            return await _until_over(spec, around, run, gateway, None)
    except OSError as error:
        raise LaunchError(f"cannot start the gateway of {spec.app_id}: {error}") from error


async def _ready(gateway: _Side, spec: AppSpec, around: Surroundings) -> Run | None:
    """Wait until the API answers; None when everything is to stop before."""
    deadline = time.monotonic() + _READY_WITHIN
    pause = _FIRST_POLL
    told = gateway.stream.target.console
    while not around.stop.is_set():
        if not told and (waiting := _WAITING.search(gateway.stream.last_lines())):
            told = True
            around.voice.note(f"{spec.app_id}: {waiting[0]}")
        if gateway.child.ended.is_set():
            await gateway.child.last_output(_LAST_OUTPUT_WITHIN)
            how = exit_text(gateway.child.returncode or 0)
            raise LaunchError(f"the gateway of {spec.app_id} did not start ({how}){gateway.stream.last_lines()}")
        late = time.monotonic() > deadline  # Before it is asked, so that nobody's slowness takes its last chance.
        run = find_run(spec.config.home, gateway.child.pid)
        missing = await asyncio.to_thread(_missing, run) if run else f"{spec.config.home / 'run'} has no entry of it"
        if run is not None and not missing:
            return run
        if late:
            what = f"the gateway of {spec.app_id} is not ready after {_READY_WITHIN:.0f} s: {missing}"
            raise LaunchError(what + gateway.stream.last_lines())
        await _within(pause, first_of(gateway.child.ended, around.stop))
        pause = min(pause * 2, _LAST_POLL)
    return None


async def _with_app(spec: AppSpec, around: Surroundings, gateway: _Side, run: Run) -> int:
    if taken := await asyncio.to_thread(_listens, spec.config):
        others = (each for each in list_runs(spec.config.home) if each.pid != run.pid)
        around.voice.taken(spec, next((each.app_id for each in others if each.app_port == run.app_port), None))
    stream = Stream("APP", spec.app_id, spec.app_log, around.console, asks=spec.stdin == "keyboard")
    environment = _app_environment(spec, run, around.environ)

    def over() -> bool:
        return around.stop.is_set() or gateway.child.ended.is_set()

    start = Start("app", spec.command, environment, spec.directory, spec.stdin, over)
    try:
        async with started(start, stream, around.guard) as child:
            set_app_pid(spec.config.home, run.pid, child.pid)
            around.voice.app_started(spec, run, child.pid)
            await asyncio.to_thread(_tell_app_pid, run, child.pid)
            return await _until_over(spec, around, run, gateway, _Side(child, stream, taken))
    except FileNotFoundError as error:
        what = spec.command[0] if spec.directory.is_dir() else f"the folder {spec.directory}"
        raise LaunchError(f"cannot start {spec.app_id}: {what} is not found") from error
    except OSError as error:
        raise LaunchError(f"cannot start {spec.app_id}: {spec.command[0]}: {error.strerror or error}") from error


async def _until_over(spec: AppSpec, around: Surroundings, run: Run, gateway: _Side, app: _Side | None) -> int:
    """Wait for the first end, report it, end the other, and give the exit code."""
    if spec.config.app_port is None:
        # What only calls out may have ended before anybody could ask.
        around.voice.up(spec, run)
    async with task_group() as tasks:
        announcing = tasks.create_task(_announce(spec, around.voice, run, app), name=f"announce-{spec.app_id}")
        await first_of(gateway.child.ended, around.stop, *((app.child.ended,) if app else ()))
        announcing.cancel()
    app_ended = app is not None and await _reported(around.voice.app_ended, spec, app)
    gateway_ended = not app_ended and await _reported(around.voice.gateway_ended, spec, gateway)
    gateway_failed = gateway_ended and bool(gateway.child.returncode)
    if app_ended or gateway_ended:
        around.voice.stopping(None)
    await gateway.child.end(gateway_grace(spec), around.hurry)
    if not gateway_ended:
        around.voice.stopped("Dapr")
    if app is None:
        return int(gateway_failed)
    await app.child.end(_APP_GRACE, around.hurry)
    if not app_ended:
        around.voice.stopped("App")
    code = exit_code(app.child.returncode or 0)
    if not app_ended and not gateway_ended:
        code = around.voice.stopped_code(code)
    if app_ended or code not in _TOLD_TO_END:
        return code
    return int(gateway_failed)


async def _announce(spec: AppSpec, voice: Voice, run: Run, app: _Side | None) -> None:
    """Say once that the application is waited for, once if it listens elsewhere, and once that both are ready."""
    patience = time.monotonic() + _PATIENCE
    told: str | None = None
    pause = _FIRST_POLL
    if spec.config.app_port is None or (app is not None and app.kept_out):
        return
    while await asyncio.to_thread(_missing, run, _READY):
        if not told and time.monotonic() > patience and not await asyncio.to_thread(_listens, spec.config):
            elsewhere = await asyncio.to_thread(_elsewhere, spec.config)
            if told is None or elsewhere:
                voice.waiting(spec, elsewhere)
            told = elsewhere
        await asyncio.sleep(pause)
        pause = min(pause * 2, _PATIENCE / 4)
    voice.up(spec, run)


async def _reported(say: Callable[[AppSpec, int, str], None], spec: AppSpec, side: _Side) -> bool:
    """Say how one of the two ended, if it has."""
    if not side.child.ended.is_set():
        return False
    await side.child.last_output(_LAST_OUTPUT_WITHIN)
    say(spec, side.child.returncode or 0, side.stream.last_lines())
    return True


def gateway_grace(spec: AppSpec) -> float:
    """Give the seconds after which a gateway that was told to end is killed: more than it takes itself."""
    return spec.config.drain + CLOSE_SECONDS + _GATEWAY_MARGIN


def _gateway_command(spec: AppSpec) -> list[str]:
    labels = {"cliPID": str(os.getpid()), "appCommand": " ".join(spec.command), **spec.labels}
    given = tuple(f"{name}={value}" for name, value in labels.items() if value)
    # 0 and less ask for a free port, which the gateway finds itself, so that nobody takes it in between.
    # Whoever reads the gateway's lines has read what there is to say of old names.
    options = replace(
        spec.options,
        label=given,
        dapr_http_port=max(spec.options.dapr_http_port or 0, 0),
        dapr_grpc_port=max(spec.options.dapr_grpc_port or 0, 0),
        metrics_port=max(spec.options.metrics_port or 0, 0),
        app_protocol=spec.config.app_protocol,
        app_ssl=False,
    )
    # -P: a folder named `gateway` where we are called is not ours.
    return [sys.executable, "-P", "-m", "gateway", *to_arguments(options)]


def _app_environment(spec: AppSpec, run: Run, environ: Mapping[str, str]) -> dict[str, str]:
    config = spec.config
    # A metrics port of an outer run is not this gateway's, and what systemd is told is told by the gateway.
    inherited = {k: v for k, v in environ.items() if k not in {"DAPR_METRICS_PORT", "APP_PORT", *VARIABLES}}
    facts = {
        "APP_ID": config.app_id,
        "APP_PROTOCOL": config.app_protocol,
        "APP_CHANNEL_ADDRESS": config.app_host,
        "DAPR_HTTP_PORT": str(run.http_port),
        "DAPR_GRPC_PORT": str(run.grpc_port),
        "DAPR_GRPC_ENDPOINT": grpc_endpoint(run),
    }
    if config.app_port is not None:
        facts["APP_PORT"] = str(config.app_port)
    if run.metrics_port:
        facts["DAPR_METRICS_PORT"] = str(run.metrics_port)
    # `python` of a tutorial is ours where the machine has only a `python3`.
    path = os.pathsep.join((environ.get("PATH", os.defpath), str(Path(sys.executable).parent)))
    # Or Python would keep its lines back, since it does not write to a terminal.
    return {**inherited, "PATH": path, "PYTHONUNBUFFERED": "1", **facts, **spec.environment}


def _missing(run: Run, path: str = _OUTBOUND) -> str:
    """Tell why the gateway is not ready, by its own answer; empty when it is."""
    try:
        status, answer = request(run, "GET", path, timeout=2.0)
    except GatewayUnreachableError as error:
        return str(error)
    except TimeoutError:
        return f"it does not answer {path}"
    return (
        "" if status == HTTPStatus.NO_CONTENT else f"it answers {path} with {status} {answer.decode(errors='replace')}"
    )


def _listens(config: GatewayConfig, host: str | None = None) -> bool:
    """Tell whether anybody listens where the application is to, or on the same port of another host."""
    if config.app_port is None:
        return False
    try:
        with socket.create_connection((host or config.app_host.strip("[]"), config.app_port), 1.0):
            return True
    except OSError:
        return False


def _elsewhere(config: GatewayConfig) -> str:
    """Give the loopback address of the other family if somebody listens there: `localhost` may mean either."""
    host = _OTHER_FAMILY.get(config.app_host.strip("[]"), "")
    return host if host and _listens(config, host) else ""


def _tell_app_pid(run: Run, app_pid: int) -> None:
    try:
        request(run, "PUT", "/v1.0/metadata/appPID", str(app_pid).encode(), headers={"Content-Type": "text/plain"})
    except (GatewayUnreachableError, TimeoutError):
        # If the gateway has ended, that is reported by whoever waits for it.
        return


async def _within(seconds: float, what: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(seconds):
            await what
    except TimeoutError:
        return
