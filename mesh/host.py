"""Components on the backbone: a node that has one answers for it, so that the others need neither driver nor password.

An operation travels as a request to the component's address: its arguments are the body (MessagePack, decoded
strictly into the method's type), its caller stands in the headers. The host runs it through a pipeline of its own,
with the same functions as for its own application, and checks the component's scopes by the caller's app id. Of a
method that is ``streamed``, bytes in parts follow the arguments, and the result (``mesh/flow.py``).

Hosts whose settings are equal compete for operations. Hosts whose settings differ are never mixed: the address has
a fingerprint of the settings in it, secrets left out. A node learns it when it first needs the component: whether
there is a host is answered at once (a request), and all fingerprints are asked for by a broadcast to the hosts.
Different ones that admit the caller are an error that names them. Hosts that differ in their scopes alone are of two
groups as well: an operation never comes to one that does not admit its caller.

A name that this node's own files have for other applications is nobody's: no host is asked, since another component of
that name is not what its user speaks of.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec

from mesh import address
from mesh.broker import Broker, Frame, Message
from mesh.calls.exchange import Exchange, Reply
from mesh.error_wire import read_error
from mesh.errors import (
    BrokerUnavailableError,
    DeadlineExceededError,
    EventError,
    HostsDifferError,
    HostsGoneError,
    MeshError,
    MessageTooLargeError,
    NoResponderError,
    StreamBrokenError,
    UnprovenError,
)
from mesh.event import required_headers
from mesh.flow import IDLE_SECONDS, Flow, joined_to, parted, prefixed
from mesh.operation import Caller, Method, Operation
from mesh.resources.component import Component, EnvRef, SecretRef
from mesh.telemetry import BAGGAGE

__all__ = [
    "CALLER_HEADER",
    "ERROR_HEADER",
    "EVENT_TYPE",
    "FOLLOWED_HEADER",
    "HOSTS_GROUP",
    "Answer",
    "Found",
    "Hosts",
    "Question",
    "decoded",
    "fingerprint",
    "is_secret_name",
    "joined",
]

logger = logging.getLogger(__name__)

EVENT_TYPE = "mesh.component."
CALLER_HEADER = "mesh-caller"
ERROR_HEADER = "mesh-error"
FOLLOWED_HEADER = "mesh-followed"  # Bytes in parts come behind the value.
HOSTS_GROUP = "hosts"
FIND_SECONDS = 2.0
OTHERS_SECONDS = 0.1
ABSENT_SECONDS = 0.25
GONE_SECONDS = 60.0
MAX_KNOWN = 1000
MAX_BODY_BYTES = 64 * 1024 * 1024
LISTEN_AGAIN = 0.5
_SECRET_NAME = re.compile(r"(password|passphrase|secret|token|credentials?|privatekey|accesskey|saskey)$")


def fingerprint(component: Component, resolved: Component) -> str:
    """Tell settings apart without telling secrets, and hosts that admit others.

    Of a reference to a secret counts what it refers to, of a setting that is named as one (``redisPassword``) nothing,
    or the variable. Scopes stand behind a dash: who asks may choose among hosts that differ in them alone.

    Args:
        component: As it was loaded.
        resolved: With its references closed and its templates expanded.
    """
    told: list[tuple[str, str]] = []
    for raw, closed in zip(component.metadata, resolved.metadata, strict=True):
        name = raw.name.casefold()
        secret = is_secret_name(name)
        match raw.value:
            case SecretRef(name=of, key=key):
                told.append((name, f"secret {component.auth_secret_store}/{of}/{key}"))
            case EnvRef(variable=variable) if secret:
                told.append((name, f"variable {variable}"))
            case _:
                told.append((name, "" if secret else closed.text() or ""))
    settings = _digest([component.type, component.version, *(text for pair in sorted(told) for text in pair)])
    return f"{settings}-{_digest(sorted(set(component.scopes)))}" if component.scopes else settings


def is_secret_name(name: str) -> bool:
    """Tell whether a setting is named as a secret is."""
    return _SECRET_NAME.search(name.casefold()) is not None


def _digest(parts: Sequence[str]) -> str:
    told = "\0".join(parts).encode("utf-8", "surrogatepass")  # A variable may hold any bytes.
    return hashlib.blake2s(told, digest_size=8).hexdigest()


def _settings_of(fingerprint: str) -> str:
    return fingerprint.partition("-")[0]


@dataclass(frozen=True, slots=True)
class Found:
    """A component that another node has.

    Attributes:
        fingerprint: Of its settings.
        capabilities: What metadata tells of it.
    """

    fingerprint: str
    capabilities: tuple[str, ...] = ()


class Question(msgspec.Struct):
    """Who has a component? Answered at ``address.asker`` of the asking node."""

    node: str
    number: int
    block: str
    name: str
    app_id: str


class Answer(msgspec.Struct):
    """A host's answer; without a fingerprint, it does not answer for this caller; a fresh one was changed just now."""

    number: int
    fingerprint: str
    capabilities: list[str]
    host: str
    fresh: bool = False


@dataclass(slots=True)
class _Asked:
    name: str
    answers: list[Answer] = field(default_factory=list)
    answered: asyncio.Event = field(default_factory=asyncio.Event)


_answer = msgspec.msgpack.Decoder(Answer)


class Hosts:
    """What this node knows of components that others host; enter it after the exchange."""

    def __init__(self, broker: Broker, exchange: Exchange, namespace: str, node_id: str) -> None:
        """Know nothing yet."""
        self._broker = broker
        self._exchange = exchange
        self._namespace = namespace
        self._node_id = node_id
        self._known: dict[tuple[str, str, str], tuple[Found | None, float]] = {}
        self._gone: dict[tuple[str, str, str], float] = {}
        self._finding: dict[tuple[str, str, str], asyncio.Lock] = {}
        self._withheld: frozenset[str] = frozenset()
        self._told: dict[tuple[str, str], str] = {}
        self._numbers = itertools.count(1)
        self._asked: dict[int, _Asked] = {}
        self._tasks = asyncio.TaskGroup()
        self._listening: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._heard = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Begin; the backbone hears nothing of it before something is asked."""
        await self._tasks.__aenter__()
        self._listening = self._tasks.create_task(self._listen(), name="hosts-listen")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop listening."""
        if self._listening is not None:
            self._listening.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def _listen(self) -> None:
        await self._wanted.wait()
        while True:
            try:
                async with self._broker.listen(address.asker(self._namespace, self._node_id), self._receive):
                    self._heard.set()
                    await asyncio.Event().wait()
            except MeshError as error:
                logger.warning("cannot listen to hosts of components, trying again: %s", error)
                await asyncio.sleep(LISTEN_AGAIN)

    @property
    def used(self) -> Sequence[tuple[str, str, str]]:
        """Whose components were found: block, name, and the app ids of their hosts."""
        return [(block, name, told) for (block, name), told in self._told.items()]

    def withhold(self, names: frozenset[str]) -> None:
        """Ask nobody for these from here on: this node's files have them for other applications."""
        if names and names != self._withheld:
            logger.info("components that are for other applications by their scopes: %s", ", ".join(sorted(names)))
        self._withheld = names

    async def find(self, block: str, name: str, caller: Caller) -> Found | None:
        """Find a component's hosts; None when nobody has it for this caller.

        What was found is kept until its hosts are gone, that there is nobody for a quarter of a second.

        Raises:
            HostsDifferError: Hosts with different settings would answer.
            HostsGoneError: There is a host, and it does not answer.
            BrokerError: The backbone could not be asked.
        """
        if name in self._withheld:
            return None
        key = block, name, caller.app_id
        known = self._known.get(key)
        if known is not None and time.monotonic() < known[1]:
            return known[0]
        finding = self._finding.setdefault(key, asyncio.Lock())
        try:
            async with asyncio.timeout(FIND_SECONDS * 2), finding:  # Whoever waited finds the answer.
                known = self._known.get(key)
                if known is not None and time.monotonic() < known[1]:
                    return known[0]
                found = await self._find(block, name, caller)
        except TimeoutError:
            raise DeadlineExceededError(f"nobody said within {FIND_SECONDS * 2:g} s who has {name}") from None
        finally:
            self._finding.pop(key, None)
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[key] = found, float("inf") if found is not None else time.monotonic() + ABSENT_SECONDS
        return found

    async def _find(self, block: str, name: str, caller: Caller) -> Found | None:
        try:
            where = address.component(self._namespace, name)
            await self._exchange.request(where, Message({"ce-type": EVENT_TYPE}, b""), time.time() + FIND_SECONDS)
        except NoResponderError:
            return None
        self._wanted.set()
        await self._heard.wait()
        number = next(self._numbers)
        asked = self._asked[number] = _Asked(name)
        question = Question(self._node_id, number, block, name, caller.app_id)
        try:
            body = msgspec.msgpack.encode(question)
            await self._broker.broadcast(address.hosts(self._namespace), Message({}, body))
            try:
                async with asyncio.timeout(FIND_SECONDS):
                    await asked.answered.wait()
            except TimeoutError:
                raise HostsGoneError(f"the hosts of component {name} do not say who they are") from None
            await asyncio.sleep(OTHERS_SECONDS)  # Whoever has other settings answers about as fast.
        finally:
            del self._asked[number]
        admitting = [answer for answer in asked.answers if answer.fingerprint]
        if not admitting:
            return None
        # While hosts change one after the other, whoever has changed says what they will all be.
        admitting = [answer for answer in admitting if answer.fresh] or admitting
        first = admitting[0]
        settings = _settings_of(first.fingerprint)
        if any(_settings_of(answer.fingerprint) != settings for answer in admitting):
            hosts = " and ".join(sorted({answer.host for answer in admitting}))
            raise HostsDifferError(name, f"component {name} is configured differently by its hosts, {hosts}")
        self._tell(block, name, {answer.host for answer in admitting} - {caller.app_id})
        return Found(first.fingerprint, tuple(first.capabilities))

    def _tell(self, block: str, name: str, hosts: set[str]) -> None:
        """Say once who has a component, and again when others have it."""
        told = ", ".join(sorted(hosts))
        if not hosts or self._told.get((block, name)) == told:
            return
        if len(self._told) >= MAX_KNOWN:
            self._told.clear()
        self._told[block, name] = told
        what = "secret store" if block == "secrets" else f"{block} store"
        logger.info("%s %s is another node's: %s", what, name, told)

    def _receive(self, frame: Frame) -> None:
        if frame.message is None:
            return
        try:
            answer = _answer.decode(frame.message.body)
        except msgspec.DecodeError:
            return
        asked = self._asked.get(answer.number)
        if asked is not None and len(asked.answers) < MAX_KNOWN and self._is_host(asked.name, answer, frame.message):
            asked.answers.append(answer)
            asked.answered.set()

    def _is_host(self, name: str, answer: Answer, message: Message) -> bool:
        """Tell whether it is by somebody who may answer for the component, in its own name, where that is proven."""
        guard = self._exchange.guard
        if guard is None:
            return True
        try:
            teller = guard.told(address.asker(self._namespace, self._node_id).text, message)
        except UnprovenError:
            return False
        if teller is None:
            return True
        at = address.component(self._namespace, name)
        if guard.may_answer(at, teller) and teller.app_id == answer.host:
            return True
        guard.refuse("told", at.text, "invalid", f"{teller} may not say that {answer.host} has it")
        return False

    async def ask(self, operation: Operation, missing: Callable[[str], MeshError]) -> object:
        """Have a host do what is asked, by ``operation.deadline``.

        Args:
            operation: What is asked.
            missing: Makes the error for a component that nobody has.

        Raises:
            HostsGoneError: Its hosts went within the last minute; it did not run.
            StreamBrokenError: A host left with it; the outcome is unknown.
            DeadlineExceededError: No answer in time, as when a host dies with it; the outcome is unknown.
            MeshError: What the host raised.
        """
        try:
            return await self._found_and_asked(operation, missing)
        except StreamBrokenError as error:
            if operation.body is not None and operation.body.error is not None:
                raise operation.body.error from None  # It is the caller's own, as it would be here.
            text = f"a host of component {operation.target} left with it, and may have done it: {error}"
            raise StreamBrokenError(text) from None

    async def _found_and_asked(self, operation: Operation, missing: Callable[[str], MeshError]) -> object:
        method, caller = operation.method, operation.context.caller
        key = method.block, operation.target, caller.app_id
        for _ in range(2):
            found = await self.find(*key[:2], caller)
            if found is None:
                break
            where = address.component(self._namespace, operation.target, found.fingerprint)
            try:
                reply = await self._ask(where, operation)
            except NoResponderError:  # Its hosts are gone, or came back with other settings.
                self._known.pop(key, None)
                if len(self._gone) >= MAX_KNOWN:
                    self._gone.clear()
                self._gone[key] = time.monotonic()
            else:
                operation.sent = True
                return await (_flow(reply, method) if method.streamed else _read(reply, method))
        raise self.gone(*key[:2], caller) or missing(operation.target)

    def gone(self, block: str, name: str, caller: Caller) -> HostsGoneError | None:
        """Make the error for a component whose hosts went within the last minute; None when it had none."""
        if (
            name in self._withheld
            or time.monotonic() - self._gone.get((block, name, caller.app_id), -GONE_SECONDS) >= GONE_SECONDS
        ):
            return None
        return HostsGoneError(f"no host of component {name} is on the mesh now")

    async def _ask(self, where: address.Address, operation: Operation) -> Reply:
        method, context = operation.method, operation.context
        body, until = msgspec.msgpack.encode(operation.arguments), operation.deadline
        identity = f"{self._node_id}-{next(self._numbers)}"
        headers = required_headers(identity, context.caller.app_id, f"{EVENT_TYPE}{method}")
        headers[CALLER_HEADER] = address.encode_token(context.caller.app_id)
        if context.traceparent:
            headers["ce-traceparent"] = context.traceparent
            if context.tracestate:
                headers["ce-tracestate"] = context.tracestate.strip()
        if context.baggage:
            headers[BAGGAGE] = context.baggage.strip()
        if method.streamed:
            body = prefixed(body)
            until = min(until, time.time() + IDLE_SECONDS)  # What may last is not waited for that long.
        followed = operation.body is not None
        if followed:
            headers[FOLLOWED_HEADER] = "1"
        whole = len(body) <= self._exchange.part_bytes and not followed
        message = Message(headers, body if whole else b"")
        while True:
            try:
                stream = None if whole else joined_to(body, operation.body)
                ask = self._exchange.request
                return await ask(where, message, operation.deadline, stream, watched=method.streamed)
            except BrokerUnavailableError:  # It was not sent.
                if not await self._exchange.comeback.by(until):
                    raise


async def _flow(reply: Reply, method: Method) -> Flow:
    stack = AsyncExitStack()
    stack.push_async_callback(reply.aclose)
    try:
        _raise_from(reply)
        value, rest = await parted(reply.parts())
        result = decoded(value, method.result)
    except BaseException:
        await stack.aclose()
        raise
    return Flow(result, rest if FOLLOWED_HEADER in reply.headers else None, stack)


def _raise_from(reply: Reply) -> None:
    problem = reply.headers.get(ERROR_HEADER)
    if problem is not None:
        raise read_error(problem)


async def _read(reply: Reply, method: Method) -> object:
    try:
        _raise_from(reply)
        body = reply.body if not reply.streamed else await joined(reply.parts())
    finally:
        await reply.aclose()
    return decoded(body, method.result)


async def joined(parts: AsyncIterator[bytes]) -> bytes:
    """Read a whole body; raises ``MessageTooLargeError``."""
    joined: list[bytes] = []
    size = 0
    async for part in parts:
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise MessageTooLargeError(size, MAX_BODY_BYTES)
        joined.append(part)
    return b"".join(joined)


def decoded(body: bytes, kind: Any) -> object:
    """Read what another node sent; raises ``EventError``."""
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise EventError(f"another node sent what this one cannot read: {error}") from None
