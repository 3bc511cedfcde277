"""Where a node's certificate comes from, and that it is renewed: by this node, or by whoever gives it."""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from mesh.conditions import Conditions
from mesh.errors import ConfigError
from mesh.tasks import task_group
from mesh.telemetry import Observer, nobody
from mesh.trust.certificates import read_certificates, read_key
from mesh.trust.folder import Folder, Issued
from mesh.trust.guard import Guard
from mesh.trust.identity import Identity, TrustSettings, target_of

if TYPE_CHECKING:
    from mesh.registry import Registry

__all__ = ["guarding"]

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0

_Seen = tuple[tuple[int, int, int] | None, ...]


class _Kept(Protocol):
    """What a node proves itself by, and is kept fresh."""

    async def first(self) -> Issued: ...

    async def renewed(self) -> Issued | None: ...

    def ending(self) -> str: ...


@asynccontextmanager
async def guarding(
    settings: TrustSettings,
    namespace: str,
    app_id: str,
    registry: Registry,
    observer: Observer = nobody,
    conditions: Conditions | None = None,
) -> AsyncIterator[Guard]:
    """Give a node's guard, whose certificate and roots are kept fresh while it is entered; raises ``ConfigError``."""
    identity = Identity(settings.trust_domain, namespace, app_id)
    async with AsyncExitStack() as stack:
        source: _Kept
        if settings.socket:
            from mesh.trust.workload import following

            api = registry.workload_api()(target_of(settings.socket))
            source = await stack.enter_async_context(following(api, settings.socket, identity))
        elif settings.secret is not None:
            from mesh.trust.secret import IssuedBySecret

            source = IssuedBySecret(settings.secret, identity, registry)
        else:
            source = _Source(settings, identity)
        guard = Guard(settings, observer)
        guard.take(await source.first(), identity)
        logger.info("this node proves to be %s, and is %s with others", identity, settings.mode)
        for key in await asyncio.to_thread(settings.open_keys):
            logger.warning("other users of this machine can read or replace %s: chmod 600 %s", key, key)
        tasks = await stack.enter_async_context(task_group())
        condition = (conditions or Conditions()).of("identity", app_id)
        keeping = tasks.create_task(_keep(source, guard, identity), name="trust-keep")
        watching = tasks.create_task(guard.standing.watch(guard, condition), name="trust-watch")
        try:
            yield guard
        finally:
            keeping.cancel()
            watching.cancel()


async def _keep(source: _Kept, guard: Guard, identity: Identity) -> None:
    told = warned = ""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            issued = await source.renewed()
            if issued is not None:
                guard.take(issued, identity)
                logger.info("the certificate of %s, or who is trusted, is renewed", identity)
            told = ""
        except (ConfigError, OSError) as error:
            if str(error) != told:
                told = str(error)
                logger.warning("the certificate of %s is not renewed, the former one is used: %s", identity, error)
        if (end := source.ending()) != warned:
            warned = end
            if end:
                text = "the certificate of %s ends at %s: then nothing is published, stored, called or answered by it"
                logger.warning(text, identity, end)


class _Source:
    """Reads files; all functions block that are not asynchronous."""

    def __init__(self, settings: TrustSettings, identity: Identity) -> None:
        self._settings, self._identity = settings, identity
        self._seen: _Seen = ()
        self._renew_at: datetime.datetime | None = None
        self._issued: Issued

    @property
    def _files(self) -> tuple[Path, ...]:
        settings = self._settings
        if settings.folder is not None:
            folder = Folder(settings.folder)
            return folder.roots_file, folder.key_file
        return cast("tuple[Path, ...]", (settings.certificate, settings.key, settings.roots))

    async def first(self) -> Issued:
        """As `read`, and does not block."""
        return await asyncio.to_thread(self.read)

    async def renewed(self) -> Issued | None:
        """As `changed`, and does not block."""
        return await asyncio.to_thread(self.changed)

    def read(self) -> Issued:
        """Read, or issue, what the node proves itself by; raises ``ConfigError``."""
        seen = tuple(_state(each) for each in self._files)
        settings = self._settings
        try:
            if settings.folder is not None:
                issued = Folder(settings.folder).issue(self._identity)
                self._renew_at = issued.half()
            else:
                chain, key, roots = self._files
                certificates = read_certificates(chain.read_bytes(), str(chain))
                trusted = read_certificates(roots.read_bytes(), str(roots))
                issued = Issued(certificates, read_key(key.read_bytes(), str(key)), trusted)
        except OSError as error:
            raise ConfigError(f"{error.filename}: {error.strerror}") from None
        self._check(issued)
        self._issued, self._seen = issued, seen  # What is of no use now may be when it is looked at again.
        return issued

    def ending(self) -> str:
        """Give when the certificate in use ends, once that is near; else nothing."""
        return self._issued.ending()

    def _check(self, issued: Issued) -> None:
        issued.check(self._identity, str(self._files[0]), str(self._files[1]))

    def changed(self) -> Issued | None:
        """Read again what has changed, or is half over."""
        seen = tuple(_state(each) for each in self._files)
        due = self._renew_at is not None and datetime.datetime.now(datetime.UTC) >= self._renew_at
        if not due and seen == self._seen:
            return None
        if self._settings.folder is not None and not due:
            # Others may not have seen a new root yet: what the former one has issued is used as long as it is trusted.
            kept = replace(self._issued, roots=Folder(self._settings.folder).roots())
            with suppress(ConfigError):
                self._check(kept)
                self._issued, self._seen = kept, seen
                return kept
        return self.read()


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
