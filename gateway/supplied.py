"""Has a gateway's resources, secrets and certificate from the operator of its cluster; see ``mesh/supply``.

What comes is written to a folder, from which it is read, reloaded and renewed as from any other. The operator is in no
request's way: while it is away the gateway goes on with what it has, and starts from it.

Several processes may be one gateway (``--workers``) and have one folder. One of them asks, for all.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519

from gateway.config import GatewayConfig
from mesh import __version__, address
from mesh.broker import Broker, Frame
from mesh.calls.exchange import Exchange
from mesh.conditions import Condition
from mesh.errors import BrokerUnavailableError, ConfigError, MeshError, Problem, UnprovenError
from mesh.home import lock_file
from mesh.node.runtime import Runtime
from mesh.registry import Registry
from mesh.supply.asking import Operator, Who
from mesh.supply.folder import Folder, configuration_file
from mesh.supply.wire import MAX_LOADED, MAX_PROBLEMS, MAX_TEXT, Answer, Report, Reported
from mesh.tasks import task_group
from mesh.trust.certificates import BEFORE, read_certificates
from mesh.trust.identity import Identity

__all__ = ["Agent"]

logger = logging.getLogger(__name__)

ASK_SECONDS = 10.0
KNOWN_SECONDS = 2.0
FIRST_WAIT, LONGEST_WAIT = 0.25, 5.0
TELL_SECONDS = 30.0
AGAIN_SECONDS, LONGEST_AGAIN = 5.0, 60.0
GAP_SECONDS = 1.0
INTERVAL, SPREAD = 300.0, 0.2


class Agent:
    """Asks the operator for one gateway.

    Attributes:
        config: Of the gateway, with what it was given; complete once it is ``ready``.
    """

    def __init__(self, config: GatewayConfig, ending: asyncio.Event) -> None:
        """Read what is there from before; blocks.

        Args:
            config: Of the gateway, as its user has told it.
            ending: Set once the process is told to end.

        Raises:
            ConfigError: Nobody could be trusted.
        """
        assert config.supply is not None
        self.config = self._given = config
        self._supply = supply = config.supply
        self._ending = ending
        self._identity = Identity(supply.trust_domain, config.namespace, config.app_id)
        roots = read_certificates(supply.roots.encode(), "MESH_SUPPLY_ROOTS")
        self._roots = roots
        self._folder = self._read()
        self._operator = Operator(supply.control, supply.trust_domain, self._folder.roots())
        self._lock: int | None = None
        self._taken = ""
        self._problems: tuple[Problem, ...] = ()
        self._told = Report()
        self._failures = 0
        self._news = asyncio.Event()
        self._within = 0.0

    def _read(self) -> Folder:
        return Folder(self._supply.folder, self._supply.configurations, self._roots)

    def _asks(self) -> bool:
        """Tell whether it is this process that asks; else look at what the one that does has written. Blocks.

        Raises:
            ConfigError: The folder cannot be used.
        """
        if self._lock is not None:
            return True
        folder = self._supply.folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with suppress(BlockingIOError):
                self._lock = lock_file(folder / ".lock")  # Until the process ends.
        except OSError as error:
            raise ConfigError(
                f"what the operator gives cannot be kept in {folder}: {error.strerror}; MESH_SUPPLY_DIR names a folder "
                "that this user may make and write to"
            ) from None
        self._folder = self._read()
        self._operator.roots = self._folder.roots()
        return self._lock is not None

    async def ready(self) -> bool:
        """Wait until there is something to start with; False = the process was told to end.

        After a start that failed, it waits until something is another one, or it is time to try again.

        Raises:
            ConfigError: There is no backbone that it could ask by.
            BrokerUnavailableError: The backbone refuses this gateway.
        """
        loop = asyncio.get_running_loop()
        again_at = (
            loop.time() + min(AGAIN_SECONDS * 2 ** (self._failures - 1), LONGEST_AGAIN) if self._failures else 0.0
        )
        wait, told, told_at = FIRST_WAIT, "", 0.0
        while not self._ending.is_set():
            problem, changed = await self._asked_apart()
            if self._failures and not changed and loop.time() < again_at:
                wait = AGAIN_SECONDS
            elif self._folder.revision:
                missing = await asyncio.to_thread(self._incomplete)
                if not missing:
                    if problem:
                        logger.warning("the gateway starts with what the operator gave it before: %s", problem)
                    return True
                problem = missing
            if problem and (problem != told or loop.time() - told_at >= TELL_SECONDS):
                told, told_at = problem, loop.time()
                logger.warning("waiting for what the operator of %s gives: %s", self._supply.control, problem)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait * random.uniform(0.5, 1.0)):  # noqa: S311 - it only spreads
                    await self._ending.wait()
            wait = min(wait * 2, LONGEST_WAIT)
        return False

    def failed(self, problems: Sequence[Problem]) -> None:
        """Note why the gateway could not start; the operator is told."""
        self._failures += 1
        self.config = self._given
        self._taken, self._problems = self._folder.revision, tuple(problems)

    def reloaded(self, problems: Sequence[Problem]) -> None:
        """Note what is wrong with what was read last; the operator is told."""
        self._taken, self._problems = self._folder.revision, tuple(problems)
        if self._report() != self._told:
            self._hasten(0.0)

    @asynccontextmanager
    async def following(self, runtime: Runtime) -> AsyncIterator[None]:
        """Keep what there is fresh while it is entered."""
        self._failures, self._taken = 0, self._folder.revision
        absent = "it could not be opened and is left out, as spec.ignoreErrors says; the gateway's log says why"
        self._problems = tuple(each.problem(absent) for each in runtime.absent)
        heard = address.supplied(self._supply.control, self._given.namespace)
        condition = runtime.conditions.of("operator", self._supply.control)
        async with runtime.broker.listen(heard, self._hear), task_group() as tasks:
            following = tasks.create_task(self._follow(runtime.exchange, condition), name="supply-follow")
            try:
                yield
            finally:
                following.cancel()

    def _hear(self, frame: Frame) -> None:
        if frame.message is not None:
            within = self._operator.heard(frame.message.body, self._given.namespace)
            if within is not None:
                self._hasten(within)

    def _hasten(self, within: float) -> None:
        self._within = within
        self._news.set()

    async def _follow(self, exchange: Exchange, condition: Condition) -> None:
        """Ask again and again, until it is cancelled."""
        wait, again = GAP_SECONDS, AGAIN_SECONDS
        while True:
            await asyncio.sleep(min(wait, GAP_SECONDS))
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, wait - GAP_SECONDS)):
                    await self._news.wait()
                    await asyncio.sleep(random.uniform(0.0, self._within))  # noqa: S311 - it only spreads
            self._news.clear()
            try:
                if not await asyncio.to_thread(self._asks):
                    wait = AGAIN_SECONDS
                    continue
                changed = await self._ask(exchange)
            except (MeshError, OSError, TimeoutError) as error:
                condition.fails(f"{str(error) or 'no answer in time'}; the gateway goes on with what it has")
                wait, again = again * random.uniform(0.5, 1.0), min(again * 2, LONGEST_AGAIN)  # noqa: S311 - as above
                continue
            condition.works(repeated=False)
            if not changed:
                self._taken = self._folder.revision
            again = AGAIN_SECONDS
            due = await asyncio.to_thread(self._until_renewal)
            wait = max(1.0, min(INTERVAL * random.uniform(1 - SPREAD, 1 + SPREAD), due))  # noqa: S311 - as above

    async def _asked_apart(self) -> tuple[str, bool]:
        """Ask over a connection of its own; gives why that did not work, and whether any resource is another one."""
        adapter = Registry().backbone(self._given.backbone)
        before = self._folder.revision
        known = bool(before) and not self._failures
        try:
            if not await asyncio.to_thread(self._asks):
                waits = "" if self._folder.revision else "another process of this gateway asks"
                return waits, self._folder.revision != before
            async with asyncio.timeout(KNOWN_SECONDS if known else ASK_SECONDS + KNOWN_SECONDS):
                broker: Broker = adapter.from_url(self._given.backbone)  # type: ignore[attr-defined]  # as in Runtime
                async with broker:
                    if not broker.features.frames:
                        raise ConfigError("the backbone carries no calls, so no operator can be asked (MESH_SUPPLY)")
                    async with Exchange(broker) as exchange:
                        return "", await self._ask(exchange)
        except BrokerUnavailableError as error:
            if not error.retryable:
                raise
            return str(error), False
        except (MeshError, OSError, TimeoutError) as error:
            return str(error) or "no answer in time", False

    async def _ask(self, exchange: Exchange) -> bool:
        """Ask, and write down what is given; tells whether any resource is another one.

        Raises:
            MeshError: It could not be asked, or refuses.
            OSError: A file cannot be read or written.
            TimeoutError: The answer took too long.
        """
        supply, given = self._supply, self._given
        token, due = await asyncio.to_thread(self._look)
        who = Who(given.namespace, given.app_id, supply.pod, token)
        key = ed25519.Ed25519PrivateKey.generate() if due else None
        report = self._report()
        answer = await self._operator.ask(
            exchange, who, ASK_SECONDS, have=self._folder.revision, key=key, report=report
        )
        if answer.refused:
            raise UnprovenError(f"the operator refuses: {answer.refused[:MAX_TEXT]}")
        self._told = report
        changed = await asyncio.to_thread(self._take, answer, key)
        self._operator.roots = self._folder.roots()
        return changed

    def _look(self) -> tuple[str, bool]:
        """Read the token, and whether another certificate is due; blocks. Raises ``ConfigError``."""
        file = self._supply.token_file
        try:
            token = file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the token that tells the operator which pod this is cannot be read: {file}: "
                f"{getattr(error, 'strerror', 'it is no text')}; MESH_SUPPLY_TOKEN_FILE names it"
            ) from None
        if self._supply.trust is None or (self.config is not self._given and self.config.trust is None):
            return token, False
        return token, self._until_renewal() <= 0

    def _until_renewal(self) -> float:
        """Give the seconds until half of the certificate's life is over; none when there is no use in it."""
        if self._supply.trust is None or not self._folder.identities:
            return 0.0 if self.config is self._given else INTERVAL
        issued = self._folder.identity()
        try:
            if issued is None:
                return 0.0
            issued.check(self._identity, "the certificate")
        except ConfigError:
            return 0.0
        leaf = issued.chain[0]
        begin = leaf.not_valid_before_utc + BEFORE  # It counts from before it was issued.
        half = begin + (leaf.not_valid_after_utc - begin) / 2
        return (half - datetime.datetime.now(datetime.UTC)).total_seconds()

    def _take(self, answer: Answer, key: ed25519.Ed25519PrivateKey | None) -> bool:
        """Write down what is given; blocks."""
        folder = self._folder
        if key is not None:
            folder.identities = bool(answer.chain)
            if answer.chain:
                folder.identify(answer.chain, key, answer.roots, self._identity)
        folder.trust(answer.roots)
        return folder.take(answer)

    def _incomplete(self) -> str:
        """Say what is missing for a start with what there is, if anything is; else complete the configuration."""
        supply, given, folder = self._supply, self._given, self._folder
        files = [configuration_file(supply.folder, each) for each in supply.configurations]
        missing = [name for name, file in zip(supply.configurations, files, strict=True) if not file.exists()]
        if missing:
            text = (
                f"there is no Configuration {missing[0]!r} in the namespace {given.namespace}; create it, or take it "
            )
            self._problems = (Problem(text + "from the annotation dapr.io/config"),)
            return text + "from the annotation dapr.io/config"
        trust = given.trust
        if supply.trust is not None:
            if folder.identities:
                certificate, key, roots = folder.certificate
                trust = replace(supply.trust, certificate=certificate, key=key, roots=roots)
            elif supply.identified:
                return "identities are asked for (MESH_TRUST_MODE), and the operator gives none"
        self.config = replace(
            given,
            resource_paths=(*given.resource_paths, supply.folder),
            configuration_files=(*given.configuration_files, *files),
            trust=trust,
        )
        return ""

    def _report(self) -> Report:
        """Say what was made of what there is."""
        problems = tuple(self._reported(each) for each in self._problems[:MAX_PROBLEMS])
        wrong = {(each.kind, each.name) for each in problems}
        known = self._folder.documents.values() if self._taken and not self._failures else ()
        loaded = tuple(f"{kind}/{name}" for kind, name in known if (kind, name) not in wrong)
        return Report(self._taken, loaded[:MAX_LOADED], problems, __version__)

    def _reported(self, problem: Problem) -> Reported:
        file = Path(problem.file) if problem.file else None
        known = self._folder.documents.get(file.name) if file and file.parent == self._supply.folder else None
        if known is None:
            return Reported("", "", problem.path, 0, str(problem)[:MAX_TEXT])
        return Reported(*known, problem.path, problem.line or 0, problem.message[:MAX_TEXT])
