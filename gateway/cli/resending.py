"""Sends what a recording holds: in its rhythm or as fast as it is taken, a bounded number at once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Protocol, Self

import aiohttp
from yarl import URL

from gateway.cli.client import ANY, GatewayUnreachableError, api_token
from gateway.replaying.comparison import Answer
from gateway.replaying.recording import Recorded, Recording
from gateway.replaying.replay import Replayed, replay
from gateway.replaying.resending import Resend, Skipped
from gateway.runs import Run
from mesh.tasks import task_group
from mesh.urls import in_url

__all__ = ["MAX_IN_FLIGHT", "Plan", "Planned", "Senders", "Told", "send_all"]

MAX_IN_FLIGHT = 32
MAX_ANSWER_BYTES = 1024 * 1024
CONNECT_SECONDS = 5.0
One = Callable[["Planned"], Coroutine[Any, Any, None]]
_UNSAID = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


@dataclass(frozen=True, slots=True, order=True)
class Planned:
    """One that is to be sent.

    Attributes:
        began: When what was recorded began, Unix time in seconds.
        line: Its line in the recording.
        at: Where that begins, in bytes.
        source: The app id of who asked then.
    """

    began: float
    line: int
    at: int
    source: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be sent, and how.

    Attributes:
        recording: The file, open.
        steps: In the order of their beginnings.
        to: The app id of whom it goes to; "" = where it went.
        headers: Further ones of calls.
        ignored: Paths of answers that are not compared.
        speed: How many times as fast as it was recorded; 0 = as fast as it is taken.
        seconds: That each may take.
    """

    recording: Recording
    steps: Sequence[Planned]
    to: str
    headers: Sequence[tuple[str, str]]
    ignored: Sequence[tuple[str, ...]]
    speed: float
    seconds: float


class Told(Protocol):
    """Who is told what came of it."""

    def done(self, recorded: Recorded, came: Replayed | Skipped | TimeoutError) -> None:
        """Take what came of one."""

    def late(self, seconds: float) -> None:
        """Take how far one is behind the rhythm."""


class Senders:
    """Whose gateways send; use it as a context manager.

    Attributes:
        default: The one that sends for applications that do not run here.
        instead: Those applications, as far as something of theirs was sent.
    """

    def __init__(self, default: Run, runs: Sequence[Run]) -> None:
        """Prepare.

        Args:
            default: See the attribute.
            runs: Those that send for their own applications.
        """
        self.default = default
        self.instead: set[str] = set()
        self._runs = {each.app_id: each for each in runs}
        self._stack = AsyncExitStack()
        self._open: dict[str, _Sender] = {}

    async def __aenter__(self) -> Self:
        """Connect to none yet."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close all connections."""
        await self._stack.aclose()

    async def send(self, made: Resend) -> Answer:
        """Send a request by the gateway of who asked then.

        Raises:
            GatewayUnreachableError: It does not answer.
        """
        run = self._runs.get(made.source, self.default)
        if self._runs and made.source and made.source not in self._runs:
            self.instead.add(made.source)
        if run.app_id not in self._open:
            sender = self._open[run.app_id] = _Sender(run)
            await self._stack.enter_async_context(sender.session)
        return await self._open[run.app_id].send(made)


class _Sender:
    """A client of one gateway, which sends what it is told and nothing else."""

    def __init__(self, run: Run) -> None:
        self._run = run
        path = run.socket
        connector = (
            aiohttp.TCPConnector(limit=MAX_IN_FLIGHT)
            if path is None
            else aiohttp.UnixConnector(path=path, limit=MAX_IN_FLIGHT)
        )
        self._url = (
            f"http://{in_url(ANY.get(run.host, run.host))}:{run.http_port}" if path is None else "http://localhost"
        )
        self._token = api_token()
        self.session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_UNSAID,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        )

    async def send(self, made: Resend) -> Answer:
        headers = [*made.headers, *([("dapr-api-token", self._token)] if self._token else [])]
        try:
            async with self.session.request(
                made.verb,
                URL(self._url + made.path, encoded=True),
                headers=headers,
                data=made.body or None,
                allow_redirects=False,
            ) as response:
                body, cut = await _read(response.content)
                return Answer(response.status, response.headers.get("Content-Type", ""), body, cut)
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            text = f"the gateway of {self._run.app_id} does not answer: {str(error) or type(error).__name__}"
            raise GatewayUnreachableError(text) from error


async def _read(content: aiohttp.StreamReader) -> tuple[bytes, bool]:
    """Read a body, or its beginning; tells whether it is longer."""
    parts: list[bytes] = []
    size = 0
    async for part in content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            return b"".join(parts)[:MAX_ANSWER_BYTES], True
    return b"".join(parts), False


async def send_all(plan: Plan, senders: Senders, told: Told) -> None:
    """Send all of it; raises ``GatewayUnreachableError`` once a gateway does not answer, and sends no more."""
    async with senders:
        room = asyncio.Semaphore(MAX_IN_FLIGHT)

        async def one(step: Planned) -> None:
            recorded = plan.recording.again(step.line, step.at)
            came: Replayed | Skipped | TimeoutError
            try:
                async with asyncio.timeout(plan.seconds):
                    came = await replay(
                        recorded.sight, senders.send, to=plan.to, headers=plan.headers, ignored=plan.ignored
                    )
            except TimeoutError as error:
                came = error
            told.done(recorded, came)

        if plan.speed:
            await _in_rhythm(plan, room, one, told)
        else:
            await _in_order(plan, room, one)


async def _in_rhythm(plan: Plan, room: asyncio.Semaphore, one: One, told: Told) -> None:
    """Begin each when it is due, and there is room."""
    loop = asyncio.get_running_loop()
    began, first = loop.time(), plan.steps[0].began
    async with task_group() as tasks:
        for step in plan.steps:
            due = began + (step.began - first) / plan.speed
            await asyncio.sleep(max(0.0, due - loop.time()))
            await room.acquire()
            told.late(loop.time() - due)
            task = tasks.create_task(one(step), name=f"replay-{step.line}")
            task.add_done_callback(lambda _: room.release())


async def _in_order(plan: Plan, room: asyncio.Semaphore, one: One) -> None:
    """Begin each once the one before of the same source is done."""
    by_source: dict[str, list[Planned]] = defaultdict(list)
    for step in plan.steps:
        by_source[step.source].append(step)

    async def all_of(steps: Sequence[Planned]) -> None:
        for step in steps:
            async with room:
                await one(step)

    async with task_group() as tasks:
        for source, steps in by_source.items():
            tasks.create_task(all_of(steps), name=f"replay-{source}")
