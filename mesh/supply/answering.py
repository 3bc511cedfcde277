"""The operator's side: says what gateways may have, to whom it is, and tells them when that is another.

What is refused to who cannot be proven says so under the seal, so that nobody else can make it up. Much of what anybody
may send is cheap to refuse: no more asks than `MAX_AUTHENTICATING` wait for the cluster's word, and each pod has its
own share.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from mesh import address
from mesh.broker import Message
from mesh.calls.exchange import Exchange, Request
from mesh.errors import BrokerError, ConfigError, MeshError, UnprovenError
from mesh.supply.names import OPERATOR
from mesh.supply.sealing import Change, Envelope, Key, KeyPair, Seal, proves, statement
from mesh.supply.source import Pod, Source, Supplied
from mesh.supply.wire import (
    MAX_ANSWER_BYTES,
    MAX_ASK_BYTES,
    MAX_DOCUMENTS,
    MAX_LOADED,
    MAX_PROBLEMS,
    MAX_SECRETS,
    MAX_TEXT,
    MAX_TOKEN,
    SUPPLY_HEADER,
    Answer,
    Ask,
    Report,
    Reported,
)
from mesh.tasks import task_group
from mesh.trust.certificates import chain_identity, check_chain
from mesh.trust.folder import Issued
from mesh.trust.identity import Identity

__all__ = ["Answering", "answering"]

logger = logging.getLogger(__name__)

MAX_AT_ONCE = 1024
MAX_AUTHENTICATING = 32
MAX_KEYS = 8
MAX_PODS = 100_000
KEY_SECONDS = 3600.0
FRESH_SECONDS = 120.0
SOURCE_SECONDS = 10.0
GATHER_SECONDS = 0.5
SPREAD_SECONDS = 1.0
BURST, REFILL_SECONDS = 10.0, 1.0
QUIET_SECONDS = 10.0
_asks = msgspec.msgpack.Decoder(Ask)
_envelopes = msgspec.msgpack.Decoder(Envelope)
_pack = msgspec.msgpack.encode


@asynccontextmanager
async def answering(exchange: Exchange, control: str, source: Source) -> AsyncIterator[Answering]:
    """Serve gateways while it is entered.

    Args:
        exchange: Over the backbone; what it proves plays no part.
        control: The operator's own namespace, which gateways are told.
        source: Knows who they are, and what is theirs.

    Raises:
        BrokerUnavailableError: There is no connection at first.
        ConfigError: The operator's certificate is not the operator's.
    """
    found = Answering(exchange, control, source)
    async with task_group() as tasks:
        telling = tasks.create_task(found.tell(), name="supply-tell")
        served = address.supply(control)
        try:
            async with exchange.serve(served, "supply", found.answer, MAX_AT_ONCE, recoverable=False):
                yield found
        finally:
            telling.cancel()


@dataclass(slots=True)
class _Seen:
    """What was heard of a pod.

    Attributes:
        made: When its last ask was made, on its clock.
        room: How many more may follow at once.
        at: When that was so.
    """

    made: float
    room: float
    at: float


class Answering:
    """Answers gateways, and tells them of changes."""

    def __init__(self, exchange: Exchange, control: str, source: Source) -> None:
        """Make no key yet; see `answering`."""
        self._exchange, self._control, self._source = exchange, control, source
        self._own: Issued | None = None
        self._keys: OrderedDict[bytes, tuple[Key, KeyPair]] = OrderedDict()
        self._stated = b""
        self._authenticating = asyncio.Semaphore(MAX_AUTHENTICATING)
        self._pods: OrderedDict[str, _Seen] = OrderedDict()
        self._changed: dict[str, float] = {}
        self._news = asyncio.Event()
        self._told_at = 0.0
        self._logged_at = -QUIET_SECONDS
        self._current()

    def changed(self, namespace: str, within: float = SPREAD_SECONDS) -> None:
        """Have the gateways of a namespace ask soon, if they hear it; changes of half a second are told as one.

        Args:
            namespace: Whose.
            within: Seconds over which they spread their asks; more where all of a mesh are told, at most 60.
        """
        self._changed[namespace] = min(within, self._changed.get(namespace, within))
        self._news.set()

    async def tell(self) -> None:
        """Tell of changes, until it is cancelled; while there is no connection they wait."""
        while True:
            await self._news.wait()
            self._news.clear()
            for namespace, within in list(self._changed.items()):
                self._told_at = max(time.time(), self._told_at + 0.001)
                said = statement(self._source.own(), Change(self._control, namespace, self._told_at, within))
                to = address.supplied(self._control, namespace)
                del self._changed[namespace]  # Before it is told: what changes meanwhile is told again.
                try:
                    async with asyncio.timeout(SOURCE_SECONDS):
                        await self._exchange.broker.broadcast(to, Message({}, said))
                except (BrokerError, TimeoutError):
                    self.changed(namespace, within)
                    break
            await asyncio.sleep(GATHER_SECONDS)

    async def answer(self, request: Request) -> None:
        """Answer one request."""
        kind = request.headers.get(SUPPLY_HEADER)
        if request.streamed or len(request.body) > MAX_ASK_BYTES:
            await request.reply({SUPPLY_HEADER: "malformed"})
        elif kind == "key":
            await request.reply({SUPPLY_HEADER: "key"}, self._current())
        elif kind == "ask":
            await self._answer_ask(request)
        else:
            await request.reply({SUPPLY_HEADER: "unknown"})

    async def _answer_ask(self, request: Request) -> None:
        try:
            envelope = _envelopes.decode(request.body)
        except msgspec.DecodeError:
            await request.reply({SUPPLY_HEADER: "malformed"})
            return
        self._current()
        key = self._keys.get(envelope.to)
        if key is None:  # It is of another operator, or was.
            await request.reply({SUPPLY_HEADER: "key"}, self._stated)
            return
        try:
            seal = key[1].to_gateway(envelope.public, self._control)
            ask = _asks.decode(seal.open_ask(envelope.sealed))
        except (UnprovenError, msgspec.DecodeError):
            await request.reply({SUPPLY_HEADER: "malformed"})
            return
        body = await self._body(ask, seal)
        await request.reply({SUPPLY_HEADER: "answer"}, seal.answer(body))

    async def _body(self, ask: Ask, seal: Seal) -> bytes:
        try:
            async with asyncio.timeout(SOURCE_SECONDS):
                body = _pack(await self._made(ask, seal))
            if len(body) > MAX_ANSWER_BYTES:
                text = (
                    f"what is for {ask.app_id} takes {len(body)} bytes, and more than {MAX_ANSWER_BYTES} are not sent"
                )
                raise ConfigError(f"{text}: give resources scopes")
        except MeshError as error:
            return _pack(Answer(refused=str(error)[:MAX_TEXT]))
        except TimeoutError:
            return _pack(Answer(refused="the operator could not ask the cluster in time"))
        except Exception:
            now = time.monotonic()
            if now - self._logged_at >= QUIET_SECONDS:
                self._logged_at = now
                logger.exception("a gateway could not be answered")
            return _pack(Answer(refused="the operator failed; its log says how"))
        return body

    async def _made(self, ask: Ask, seal: Seal) -> Answer:
        if not 0 < len(ask.token) <= MAX_TOKEN or max(map(len, (ask.pod, ask.namespace, ask.app_id))) > MAX_TEXT:
            raise UnprovenError("there is no token, or it is too long, or a name is")
        async with self._authenticating:
            pod = await self._source.authenticate(ask.token, ask.pod)
        self._admit(pod, ask.made)
        if (pod.namespace, pod.app_id) != (ask.namespace, ask.app_id):
            raise UnprovenError(
                f"the pod {pod.name} is of application {pod.app_id!r} in namespace {pod.namespace!r} by its annotation "
                f"dapr.io/app-id, and its gateway is {ask.app_id!r} in {ask.namespace!r}"
            )
        supplied = await self._source.supplied(pod)
        self._check(pod, supplied)
        chain = await self._chain(pod, ask, seal)
        self._source.report(pod, _bounded(ask.report))
        known = supplied.revision == ask.have
        return Answer(
            revision=supplied.revision,
            documents=None if known else tuple(supplied.documents),
            secrets={} if known else supplied.secrets,
            chain=tuple(map(_der, chain)),
            roots=tuple(map(_der, self._source.own().roots)),
        )

    def _admit(self, pod: Pod, made: float) -> None:
        """Note a pod's ask; raises ``UnprovenError`` for one that came already, is old, or is one of too many."""
        now = time.time()
        if abs(now - made) > FRESH_SECONDS:
            raise UnprovenError(
                f"the ask was made {now - made:.0f} s before it came: it is too old, or the clocks of the pod's node "
                "and the operator's differ"
            )
        seen = self._pods.pop(pod.uid, None)
        if seen is None:
            while len(self._pods) >= MAX_PODS:
                self._pods.popitem(last=False)
            seen = _Seen(0.0, BURST, now)
        room = min(BURST, seen.room + max(0.0, now - seen.at) / REFILL_SECONDS)
        repeated, admitted = made <= seen.made, made > seen.made and room >= 1
        # Only what is admitted takes of its share: neither what others repeat of it, nor what comes too often.
        self._pods[pod.uid] = _Seen(max(seen.made, made), room - 1 if admitted else room, now)
        if repeated:
            raise UnprovenError("an ask of that pod that was made later has come already")
        if not admitted:
            raise UnprovenError("the pod asks too often")

    def _check(self, pod: Pod, supplied: Supplied) -> None:
        """Find what no gateway would take; nothing of others goes out, whatever the source says."""
        if len(supplied.documents) > MAX_DOCUMENTS or len(supplied.secrets) > MAX_SECRETS:
            raise ConfigError(f"the namespace {pod.namespace} has more resources or secrets than a gateway takes")
        for each in supplied.documents:
            if each.namespace != pod.namespace:
                raise ConfigError(f"{each.kind} {each.name} is of another namespace, {each.namespace}")
            if each.problem:
                raise ConfigError(each.problem)

    async def _chain(self, pod: Pod, ask: Ask, seal: Seal) -> Sequence[x509.Certificate]:
        if not ask.key:
            return ()
        key = proves(ask.key, ask.proof, seal)
        if (pod.namespace, pod.app_id) == (self._control, OPERATOR):
            raise UnprovenError(f"{OPERATOR} is the operator's own name; the pod needs another app id")
        chain = await self._source.issue(pod, key)
        if chain is None:
            return ()
        own = self._source.own()
        wanted = Identity(self._operator(own).trust_domain, pod.namespace, pod.app_id)
        if check_chain(chain, own.roots, wanted.trust_domain) != wanted or chain[0].public_key() != key:
            raise ConfigError(f"the certificate that was issued is not of {wanted}, or not for its key")
        return chain

    def _operator(self, own: Issued) -> Identity:
        """Read who the operator is by its certificate; raises ``ConfigError``."""
        found = chain_identity(own.chain[0])
        if (found.namespace, found.app_id) != (self._control, OPERATOR):
            raise ConfigError(f"the operator's certificate is of {found}, not of {OPERATOR} in {self._control}")
        return found

    def _current(self) -> bytes:
        """Give the operator's key as it is signed; a new one is made when half of its life is over."""
        own, now = self._source.own(), time.time()
        last = next(reversed(self._keys.values()), None)
        signed = self._own is not None and (own is self._own or own.chain == self._own.chain)
        if last is None or not signed or now >= last[0].made + KEY_SECONDS / 2 or now < last[0].made - FRESH_SECONDS:
            self._operator(own)
            pair = KeyPair()
            key = Key(self._control, pair.public, now, now + KEY_SECONDS)
            self._keys[key.id] = key, pair
            self._own, self._stated = own, statement(own, key)
        for name in [name for name, (key, _) in self._keys.items() if key.until <= now][:MAX_KEYS]:
            del self._keys[name]
        while len(self._keys) > MAX_KEYS:
            self._keys.popitem(last=False)
        return self._stated


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def _bounded(report: Report) -> Report:
    """Cut what a gateway says of itself, which may be anything."""
    problems = tuple(
        Reported(each.kind[:64], each.name[:253], each.field[:MAX_TEXT], each.line, each.text[:MAX_TEXT])
        for each in report.problems[:MAX_PROBLEMS]
    )
    loaded = tuple(each[:MAX_TEXT] for each in report.loaded[:MAX_LOADED])
    return Report(report.revision[:MAX_TEXT], loaded, problems, report.version[:64])
