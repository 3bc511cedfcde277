"""A node's certificate by the SPIFFE Workload API, which an agent of SPIRE serves on the same machine.

The agent sends a certificate, its key and the roots, and all of them again whenever one changes. What it sent last is
used for as long as it counts, also while the agent is away.

Source: SPIFFE Workload Endpoint sections 4 and 6; SPIFFE Workload API sections 4 and 5.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from mesh.errors import ConfigError
from mesh.tasks import task_group
from mesh.trust.certificates import read_der
from mesh.trust.folder import Issued
from mesh.trust.identity import Identity

__all__ = ["SVID", "Workload", "WorkloadAPI", "WorkloadAPIError", "following"]

logger = logging.getLogger(__name__)

START_SECONDS = 15.0  # An agent may learn of a registration some seconds after it was made.
FIRST_WAIT = 0.25
LONGEST_WAIT = 15.0
MAX_NAMED = 8


@dataclass(frozen=True, slots=True)
class SVID:
    """What the agent gives for one identity.

    Attributes:
        id: Its SPIFFE id.
        chain: Certificates, the leaf first (DER).
        key: The leaf's (PKCS #8, DER).
        bundle: The roots of its trust domain (DER).
    """

    id: str
    chain: bytes
    key: bytes = field(repr=False)
    bundle: bytes


class WorkloadAPIError(Exception):
    """A stream was refused, or has ended.

    Attributes:
        final: Whether the same would happen again.
    """

    def __init__(self, text: str, *, final: bool = False) -> None:
        self.final = final
        super().__init__(text)


class WorkloadAPI(Protocol):
    """What an adapter implements."""

    def updates(self) -> AsyncGenerator[Sequence[SVID], None]:
        """Follow one stream, whose end is an error; raises ``WorkloadAPIError``."""


@asynccontextmanager
async def following(
    api: AbstractAsyncContextManager[WorkloadAPI], address: str, identity: Identity
) -> AsyncIterator[Workload]:
    """Follow what a Workload API sends while it is entered."""
    async with api as opened, task_group() as tasks:
        workload = Workload(f"the Workload API at {address}", identity)
        task = tasks.create_task(workload.follow(opened), name="trust-follow")
        try:
            yield workload
        finally:
            task.cancel()


class Workload:
    """What the agent sent last, and what is wrong with it, or with the agent."""

    def __init__(self, where: str, identity: Identity) -> None:
        """Know nothing yet."""
        self._where, self._identity = where, identity
        self._sent: Sequence[SVID] | None = None
        self._seen: Sequence[SVID] | None = None
        self._problem: WorkloadAPIError | None = None
        self._news = asyncio.Event()
        self._issued: Issued

    async def follow(self, api: WorkloadAPI) -> None:
        """Read stream after stream, until it is cancelled."""
        wait = FIRST_WAIT
        while True:
            try:
                async with aclosing(api.updates()) as updates:
                    async for self._sent in updates:
                        self._problem, wait = None, FIRST_WAIT
                        self._news.set()
            except WorkloadAPIError as error:
                self._problem = error
                self._news.set()
                if error.final:
                    wait = LONGEST_WAIT  # Another agent may come in its place.
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - it only spreads
            wait = min(wait * 2, LONGEST_WAIT)

    async def first(self) -> Issued:
        """Wait for what this node can prove itself by; raises ``ConfigError``, also when that takes too long."""
        told = f"{self._where} does not answer"
        try:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    await self._news.wait()
                    self._news.clear()
                    try:
                        if (issued := await self.renewed()) is not None:
                            return issued
                    except ConfigError as error:
                        if self._problem is not None and self._problem.final:
                            raise
                        if str(error) != told:
                            told = str(error)
                            logger.warning("waiting for a certificate, %.0f s at most: %s", START_SECONDS, told)
        except TimeoutError:
            raise ConfigError(f"{told} (waited for {START_SECONDS:g} s)") from None

    async def renewed(self) -> Issued | None:
        """As `changed`, and does not block."""
        return await asyncio.to_thread(self.changed)

    def changed(self) -> Issued | None:
        """Give what was sent since then; raises ``ConfigError``: it is of no use, or the agent is away."""
        sent, problem = self._sent, self._problem
        if sent is not None and sent != self._seen:
            self._issued = self._read(sent)
            self._seen = sent  # Not before: what is of no use now may be when it is looked at again.
            return self._issued
        if problem is not None:
            raise ConfigError(f"{self._where}: {problem}")
        return None

    def ending(self) -> str:
        """Give when the certificate in use ends, once that is near; else nothing."""
        return self._issued.ending()

    def _read(self, sent: Sequence[SVID]) -> Issued:
        identity = self._identity
        svid = next((each for each in sent if each.id == str(identity)), None)
        if svid is None:
            named = ", ".join([each.id for each in sent[:MAX_NAMED]] + ["…"] * (len(sent) > MAX_NAMED)) or "none"
            raise ConfigError(
                f"{self._where} gives this process no certificate of {identity}; it gives: {named}. Register that id "
                "for it, or say another --trust-domain, NAMESPACE or --app-id"
            )
        issued = Issued(*read_der(svid.chain, svid.key, svid.bundle, self._where))
        issued.check(identity, self._where)
        return issued
