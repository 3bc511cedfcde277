"""Notifications by any of the services that the library Apprise knows."""

from __future__ import annotations

import asyncio
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import apprise

from bindings._data import text_of
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingError, Invoke
from mesh.resources.settings import LIMIT, choice, setting

__all__ = ["AppriseBinding"]

MAX_THREADS = 8
KINDS = ("info", "success", "warning", "failure")
FORMATS = ("text", "markdown", "html")
_STATUS = re.compile(r"\berror=([0-9]{3})\b")
_TAGGED = re.compile(r"([\w-]+(?:,[\w-]+)*)=([a-z][a-z0-9+.-]*://.*)", re.IGNORECASE)

# What these log holds URLs, and so secrets: it goes nowhere. What failed is told by our errors.
for _name in ("apprise", "urllib3.connectionpool"):
    logging.getLogger(_name).propagate = False
    logging.getLogger(_name).addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class AppriseSettings:
    """What is read of a component."""

    urls: str = setting(
        "urls",
        "URLs of Apprise with blanks or line breaks between, each perhaps after tags: `team=slack://…`.",
        required=True,
        secret=True,
        aliases=("url",),
        example="mailto://user:password@example.com",
    )
    title: str = setting("title", "Title of what says none.", default="")
    kind: str = setting("type", "What kind of news it is.", choice(*KINDS), default="info")
    form: str = setting("format", "How the text is written.", choice(*FORMATS), default="text")
    seconds: float = setting("timeout", "How long all of it may take.", LIMIT, default=30.0)


class AppriseBinding(ComponentAdapter):
    """Services that take notifications."""

    title = "Notifies people by chat, mail, push or text message: by what Apprise knows."
    tested = "its `json://`, at a server in tests; the services that it knows are tested by Apprise"
    settings: ClassVar[type[AppriseSettings]] = AppriseSettings
    operations = ("create", "notify")

    def __init__(self, settings: AppriseSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._idle: list[apprise.Apprise] = []  # A thread takes one, for what Apprise knows is not made for several.
        self._threads: ThreadPoolExecutor
        self._free = asyncio.Semaphore(MAX_THREADS)

    async def _enter(self) -> None:
        self._threads = ThreadPoolExecutor(MAX_THREADS, "apprise")
        # What a cancelled call left behind ends by the limit that the library was given.
        self._stack.callback(self._threads.shutdown, wait=False, cancel_futures=True)
        loop = asyncio.get_running_loop()
        self._idle.append(await loop.run_in_executor(self._threads, self._load))  # It reads hundreds of plugins.

    def _load(self) -> apprise.Apprise:
        settings: AppriseSettings = self._settings
        services = apprise.Apprise(asset=apprise.AppriseAsset(storage_mode="memory"))
        for number, each in enumerate(settings.urls.split(), start=1):
            tagged = _TAGGED.fullmatch(each)
            tags, url = (tagged[1].split(","), tagged[2]) if tagged else (None, each)
            if not services.add(url, tag=tags):
                raise self._problem(f"the URL that stands at place {number} is none that Apprise can use", "urls")
        return services

    async def invoke(self, asked: Invoke) -> None:
        """Notify: the data are the text."""
        settings: AppriseSettings = self._settings
        kind = _word(asked, "type", KINDS) or settings.kind
        form = _word(asked, "format", FORMATS) or settings.form
        tags = [each.strip() for each in asked.metadata.get("tags", "").split(",") if each.strip()]
        title = asked.metadata.get("title") or settings.title
        try:
            body = text_of(asked.data).decode()
        except UnicodeDecodeError:
            raise BindingError("the data are no text") from None
        if not body and not title:
            raise BindingError("the data are missing: the text of the notification")

        def notify() -> apprise.AppriseResult:
            try:
                services = self._idle.pop()
            except IndexError:
                services = self._load()
            try:
                return services.notify(body, title, kind, body_format=form, tag=tags or "all", timeout=settings.seconds)
            finally:
                self._idle.append(services)

        await self._free.acquire()
        try:
            running = self._threads.submit(notify)
        except BaseException:
            self._free.release()
            raise
        loop = asyncio.get_running_loop()
        running.add_done_callback(lambda _: _released(loop, self._free))
        _judge(await asyncio.wrap_future(running), tags)


def _released(loop: asyncio.AbstractEventLoop, free: asyncio.Semaphore) -> None:
    """Let the next call have the thread; called by the thread, which a cancelled call does not end."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(free.release)


def _word(asked: Invoke, name: str, known: tuple[str, ...]) -> str:
    word = asked.metadata.get(name, "").strip().lower()
    if word and word not in known:
        raise BindingError(f"{name} is {' or '.join(known)}")
    return word


def _judge(result: apprise.AppriseResult, tags: list[str]) -> None:
    """Raise an error that names the services which failed, without their URLs."""
    if result.status is apprise.AppriseResultStatus.SUCCESS:
        return
    if result.status is apprise.AppriseResultStatus.NOMATCH:
        raise BindingError(f"no URL has the tags {', '.join(tags)}")
    failed, retryable = [], False
    for each in result:
        if each.status is apprise.AppriseResultStatus.SUCCESS:
            continue
        said = [found[1] for attempt in each.attempts for log in attempt.logs if (found := _STATUS.search(log.message))]
        status = int(said[-1]) if said else 0
        retryable |= not status or status == 429 or status >= 500
        late = each.status is apprise.AppriseResultStatus.TIMEOUT
        failed.append(f"{each.name} ({'in time' if late else status or 'not reached'})")
    reached = len(list(result)) - len(failed)
    raise BindingError(
        f"{len(failed)} of {len(failed) + reached} services have not taken it: {', '.join(failed)}"[:500],
        retryable=retryable and not reached,  # Else those that have it would get it again.
    )
