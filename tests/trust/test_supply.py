"""What somebody who reads and writes all that goes over the broker gets of an operator and its gateways: nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519

from brokers.memory import MemoryBroker, MemoryHub
from mesh import address
from mesh.broker import Message
from mesh.calls.exchange import Exchange, Request
from mesh.errors import ConfigError, DeadlineExceededError, StreamBrokenError, UnprovenError
from mesh.supply import answering as serving
from mesh.supply.answering import Answering
from mesh.supply.asking import Operator, Who
from mesh.supply.folder import Folder
from mesh.supply.names import OPERATOR
from mesh.supply.sealing import Change, Envelope, Key, KeyPair, statement
from mesh.supply.wire import (
    MAX_ANSWER_BYTES,
    MAX_ASK_BYTES,
    MAX_TOKEN,
    SUPPLY_HEADER,
    Answer,
    Ask,
    Document,
    Report,
    Reported,
)
from mesh.trust.folder import Issued
from mesh.trust.identity import Identity
from tests.support.supply import DOMAIN, Table, component, operating, root

CONTROL, NAMESPACE, SECONDS = "mesh-system", "shop", 10.0
Altered = Callable[[str, bytes], tuple[str, bytes]]


def unaltered(kind: str, body: bytes) -> tuple[str, bytes]:
    return kind, body


class Between:
    """Carries what a gateway and an operator say, on brokers of their own, and may keep and change all of it.

    Attributes:
        asked: What the gateway said: kind and body.
        answered: What the operator said.
        asks: Makes what the operator is sent.
        answers: Makes what the gateway is sent.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.asked: list[tuple[str, bytes]] = []
        self.answered: list[tuple[str, bytes]] = []
        self.asks = self.answers = unaltered
        self.gateway: Exchange
        self.answering: Answering
        self._operator: Exchange

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Between]:
        here, there = MemoryHub(), MemoryHub()
        async with (
            MemoryBroker(there) as operators,
            operating(operators, self.table) as self.answering,
            MemoryBroker(there) as one,
            MemoryBroker(here) as other,
            MemoryBroker(here) as asking,
            Exchange(one) as self._operator,
            Exchange(other) as carrying,
            Exchange(asking) as self.gateway,
            carrying.serve(address.supply(CONTROL), "evil", self._carry, recoverable=False),
        ):
            yield self

    async def say(self, kind: str, body: bytes) -> tuple[str, bytes]:
        """Say something to the operator; gives what it says."""
        message = Message({SUPPLY_HEADER: kind}, body)
        reply = await self._operator.request(address.supply(CONTROL), message, time.time() + SECONDS)
        return reply.headers[SUPPLY_HEADER], b"".join([part async for part in reply.parts()])

    async def _carry(self, request: Request) -> None:
        body = b"".join([part async for part in request.parts()])
        self.asked.append((request.headers[SUPPLY_HEADER], body))
        answered = await self.say(*self.asks(request.headers[SUPPLY_HEADER], body))
        self.answered.append(answered)
        kind, body = self.answers(*answered)
        await request.reply({SUPPLY_HEADER: kind}, body)


@pytest.fixture
async def between() -> AsyncIterator[Between]:
    table = Table(CONTROL)
    table.documents[NAMESPACE] = [component("store", NAMESPACE, "state.redis", redisPassword="written-in-it")]
    table.secrets = {"login": {"password": b"of-a-secret"}}
    async with Between(table).running() as between:
        yield between


@pytest.fixture
def who(between: Between) -> Who:
    return Who(NAMESPACE, "cart", "cart-0", between.table.admit(NAMESPACE, "cart"))


@pytest.fixture
def operator(between: Between) -> Operator:
    return Operator(CONTROL, DOMAIN, between.table.root.roots)


Ask_ = Callable[..., Awaitable[Answer]]


@pytest.fixture
def ask(between: Between, who: Who, operator: Operator) -> Ask_:
    async def asked(**more: object) -> Answer:
        return await operator.ask(between.gateway, who, SECONDS, **more)  # type: ignore[arg-type]

    return asked


async def test_nothing_can_be_read(between: Between, ask: Ask_, who: Who) -> None:
    answer = await ask(report=Report("r", problems=(Reported("Component", "store", text="said-in-a-report"),)))
    assert answer.secrets == between.table.secrets
    seen = b"".join(body for _, body in (*between.asked, *between.answered))
    for secret in (who.token, "written-in-it", "of-a-secret", "said-in-a-report", "store", NAMESPACE):
        assert secret.encode() not in seen


async def test_who_is_trusted_by_nobody_is_no_operator(between: Between, ask: Ask_, who: Who) -> None:
    evil = Table(CONTROL)
    stated = statement(evil.own(), Key(CONTROL, KeyPair().public, time.time(), time.time() + 60))
    between.answers = lambda kind, body: ("key", stated)
    with pytest.raises(UnprovenError, match="no root that is trusted here"):
        await ask()
    assert who.token not in str(between.asked)
    assert [kind for kind, _ in between.asked] == ["key"]


@pytest.mark.parametrize(
    ("namespace", "app_id"), [(NAMESPACE, "cart"), (CONTROL, "cart"), (NAMESPACE, OPERATOR)], ids=str
)
async def test_an_application_is_no_operator(between: Between, ask: Ask_, namespace: str, app_id: str) -> None:
    """Its certificate is by the same root."""
    issued = between.table.root.issue(Identity(DOMAIN, namespace, app_id))
    stated = statement(issued, Key(CONTROL, KeyPair().public, time.time(), time.time() + 60))
    between.answers = lambda kind, body: ("key", stated)
    with pytest.raises(UnprovenError, match="speaks in the name of the operator"):
        await ask()
    assert [kind for kind, _ in between.asked] == ["key"]


async def test_a_key_is_taken_of_nobody_else(between: Between, ask: Ask_) -> None:
    """The operator's chain can be sent by anybody; its key signs what is its own, of its own kind."""
    own, now = between.table.own(), time.time()
    evil = between.table.root.issue(Identity(DOMAIN, CONTROL, OPERATOR))
    forged = statement(Issued(own.chain, evil.key, own.roots), Key(CONTROL, KeyPair().public, now, now + 60))
    other = statement(own, Key("another-system", KeyPair().public, now, now + 60))
    ended = statement(own, Key(CONTROL, KeyPair().public, now - 3600, now - 1))
    ahead = statement(own, Key(CONTROL, KeyPair().public, now + 3600, now + 7200))
    change = statement(own, Change(CONTROL, NAMESPACE, now, 1.0))
    no_key = statement(own, Key(CONTROL, b"short", now, now + 60))
    zero = statement(own, Key(CONTROL, bytes(32), now, now + 60))
    for body in (forged, other, ended, ahead, change, no_key, zero, b"", b"\xc1", bytes(100_000)):
        between.answers = lambda kind, _, body=body: ("key", body)  # type: ignore[misc]
        with pytest.raises(UnprovenError):
            await ask()
    for kind in ("malformed", "unknown", "answer", "anything"):
        between.answers = lambda _, body, kind=kind: (kind, body)  # type: ignore[misc]
        with pytest.raises(UnprovenError):
            await ask()
    assert {kind for kind, _ in between.asked} <= {"key", "ask"}
    between.answers = unaltered
    assert not (await ask()).refused


async def test_an_answer_is_for_its_ask_alone(between: Between, ask: Ask_) -> None:
    first = await ask()
    _, recorded = between.answered[-1]
    between.table.documents[NAMESPACE] = []
    for body in (
        recorded,
        recorded[:-1] + bytes([recorded[-1] ^ 1]),
        b"",
        msgspec.msgpack.encode(first),
        msgspec.msgpack.encode(Answer(refused="go away")),
    ):
        between.answers = lambda kind, real, body=body: (kind, body if kind == "answer" else real)  # type: ignore[misc]
        with pytest.raises(UnprovenError, match="cannot be opened"):
            await ask()
    between.answers = unaltered
    assert (await ask()).documents == ()


async def test_an_ask_that_comes_again_is_refused(between: Between, ask: Ask_) -> None:
    await ask(report=Report("one"))
    recorded = between.asked[-1]
    await ask(report=Report("two"))
    kind, _ = await between.say(*recorded)
    assert kind == "answer"  # Which says, to the one who asked at first, that it is refused.
    assert between.table.reports["cart-0"].revision == "two"


async def test_an_ask_is_of_now(between: Between, who: Who, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = Operator(CONTROL, DOMAIN, between.table.root.roots)
    monkeypatch.setattr(serving, "FRESH_SECONDS", -1.0)
    answer = await operator.ask(between.gateway, who, SECONDS)
    assert "clocks" in answer.refused
    assert answer.documents is None
    assert "cart-0" not in between.table.reports


async def test_nobody_asks_for_another(between: Between, who: Who, operator: Operator) -> None:
    between.table.admit("payments", "ledger")
    between.table.documents["payments"] = [component("money", "payments")]
    for other, reason in (
        (replace(who, pod="ledger-0"), "of no pod of that name"),
        (replace(who, app_id="ledger"), "is of application 'cart'"),
        (replace(who, namespace="payments"), "in namespace 'shop'"),
        (replace(who, token="guessed"), "of no pod"),
        (replace(who, token=""), "no token"),
        (replace(who, token="x" * (MAX_TOKEN + 1)), "too long"),
    ):
        key = ed25519.Ed25519PrivateKey.generate()
        answer = await operator.ask(between.gateway, other, SECONDS, key=key)
        assert reason in answer.refused
        assert (answer.documents, answer.secrets, answer.chain, answer.revision) == (None, {}, (), "")


async def test_no_pod_becomes_the_operator(between: Between, operator: Operator) -> None:
    token = between.table.admit(CONTROL, OPERATOR)
    who = Who(CONTROL, OPERATOR, f"{OPERATOR}-0", token)
    answer = await operator.ask(between.gateway, who, SECONDS, key=ed25519.Ed25519PrivateKey.generate())
    assert "the operator's own name" in answer.refused
    assert answer.chain == ()


async def test_a_key_is_certified_for_who_has_it(between: Between, who: Who, ask: Ask_) -> None:
    """Another one's public key is of no use, with whatever proof was seen of it."""
    await ask(key=ed25519.Ed25519PrivateKey.generate())
    [stated] = [body for kind, body in between.answered if kind == "key"]
    pair = KeyPair()
    key = msgspec.msgpack.decode(msgspec.msgpack.decode(stated)["body"], type=Key)
    seal = pair.to_operator(key)
    victim = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    for proof in (b"", bytes(64), ed25519.Ed25519PrivateKey.generate().sign(b"mesh supply ask 1\0" + seal.bound)):
        pair = KeyPair()
        seal = pair.to_operator(key)
        made = Ask(who.token, who.app_id, who.namespace, who.pod, time.time(), key=victim, proof=proof)
        envelope = Envelope(key.id, pair.public, seal.ask(msgspec.msgpack.encode(made)))
        kind, body = await between.say("ask", msgspec.msgpack.encode(envelope))
        answer = msgspec.msgpack.decode(seal.open_answer(body), type=Answer)
        assert kind == "answer"
        assert "not that of who asks" in answer.refused


async def test_whatever_is_sent_harms_nobody(between: Between, ask: Ask_) -> None:
    await ask()
    good = msgspec.msgpack.decode(between.asked[-1][1], type=Envelope)
    unknown = Envelope(b"12345678", KeyPair().public, good.sealed)
    bad = [
        Envelope(good.to, good.public, b"x" * 100),
        Envelope(good.to, bytes(32), good.sealed),
        Envelope(good.to, b"", b""),
    ]
    said = [await between.say("ask", msgspec.msgpack.encode(each)) for each in (unknown, *bad)]
    assert [kind for kind, _ in said] == ["key", "malformed", "malformed", "malformed"]
    for body in (b"", b"\xc1", b"\x80", b"\x93", msgspec.msgpack.encode({"to": 1})):
        assert (await between.say("ask", body))[0] == "malformed"
    assert (await between.say("ask", bytes(MAX_ASK_BYTES + 1)))[0] == "malformed"
    assert (await between.say("other", b""))[0] == "unknown"
    assert not (await ask()).refused


async def test_an_answer_without_end_is_given_up(between: Between, ask: Ask_) -> None:
    await ask()
    between.answers = lambda kind, body: (kind, bytes(MAX_ANSWER_BYTES + 4096))
    with pytest.raises(UnprovenError, match="more than"):
        await ask()


async def test_a_pod_has_its_share(between: Between, ask: Ask_, operator: Operator) -> None:
    answers = [await ask() for _ in range(int(serving.BURST) + 3)]
    assert "too often" in answers[-1].refused
    assert not answers[0].refused
    other = Who(NAMESPACE, "cart", "cart-1", between.table.admit(NAMESPACE, "cart", "cart-1"))
    assert not (await operator.ask(between.gateway, other, SECONDS)).refused


async def test_who_asks_too_often_recovers(between: Between, ask: Ask_, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused ask takes nothing of a pod's share: who never pauses is answered as often as its share allows."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    answers = []
    for _ in range(int(serving.BURST) + 12):
        answers.append(await ask())
        now += serving.REFILL_SECONDS / 4
    assert sum(not each.refused for each in answers) >= serving.BURST + 4


async def test_what_others_repeat_is_not_of_its_share(between: Between, ask: Ask_) -> None:
    await ask()
    for _ in range(int(serving.BURST) + 3):
        await between.say(*between.asked[-1])
    assert not (await ask()).refused


async def test_what_changes_while_it_is_told_is_told_again(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has heard of the first change may have asked before the second one."""
    told, said = asyncio.Queue[str](), list[str]()
    broker = between.answering._exchange.broker
    broadcast = broker.broadcast

    async def broadcasting(to: str, message: Message) -> None:
        await broadcast(to, message)
        if not said:
            said.append(to)
            between.answering.changed(NAMESPACE)
        told.put_nowait(to)

    monkeypatch.setattr(broker, "broadcast", broadcasting)
    between.answering.changed(NAMESPACE)
    async with asyncio.timeout(SECONDS):
        for _ in range(2):
            assert await told.get() == address.supplied(CONTROL, NAMESPACE)


async def test_what_is_of_others_never_goes_out(between: Between, ask: Ask_) -> None:
    between.table.documents[NAMESPACE].append(component("money", "payments"))
    answer = await ask()
    assert "of another namespace, payments" in answer.refused
    assert answer.documents is None


async def test_an_operator_that_fails_tells_only_its_log(
    between: Between, ask: Ask_, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(pod: object) -> None:
        raise RuntimeError("of-a-secret is wrong")

    monkeypatch.setattr(between.table, "supplied", fails)
    answer = await ask()
    assert answer == Answer(refused="the operator failed; its log says how")
    assert any(record.levelname == "ERROR" for record in caplog.records)
    caplog.clear()
    monkeypatch.undo()
    assert not (await ask()).refused


async def test_a_certificate_of_another_is_none(between: Between, ask: Ask_, monkeypatch: pytest.MonkeyPatch) -> None:
    async def issue(pod: object, key: ed25519.Ed25519PublicKey) -> Sequence[x509.Certificate]:
        return (between.table.root.certify(Identity(DOMAIN, "payments", "ledger"), key),)

    monkeypatch.setattr(between.table, "issue", issue)
    answer = await ask(key=ed25519.Ed25519PrivateKey.generate())
    assert "not of spiffe://cluster.example/ns/shop/cart" in answer.refused
    assert answer.chain == ()


async def test_only_the_operator_has_gateways_ask(between: Between, operator: Operator) -> None:
    """What it told them once moves nobody twice, nor later, nor others."""
    own, now = between.table.own(), time.time()
    told = statement(own, Change(CONTROL, NAMESPACE, now, 5.0))
    assert operator.heard(told, NAMESPACE) == 5.0
    assert operator.heard(told, NAMESPACE) is None
    evil, app = Table(CONTROL).own(), between.table.root.issue(Identity(DOMAIN, NAMESPACE, "cart"))
    for body in (
        statement(evil, Change(CONTROL, NAMESPACE, now + 1, 5.0)),
        statement(app, Change(CONTROL, NAMESPACE, now + 1, 5.0)),
        statement(own, Change(CONTROL, "payments", now + 1, 5.0)),
        statement(own, Change("another-system", NAMESPACE, now + 1, 5.0)),
        statement(own, Change(CONTROL, NAMESPACE, now - 600, 5.0)),
        statement(own, Change(CONTROL, NAMESPACE, now + 600, 5.0)),
        statement(own, Key(CONTROL, KeyPair().public, now, now + 60)),
        b"",
        bytes(100_000),
    ):
        assert operator.heard(body, NAMESPACE) is None
    assert operator.heard(statement(own, Change(CONTROL, NAMESPACE, now + 1, 1e9)), NAMESPACE) == 60.0


async def test_roots_are_followed_while_they_are_replaced(
    between: Between, ask: Ask_, operator: Operator, tmp_path: Path
) -> None:
    table, first = between.table, between.table.root.roots
    folder = Folder(tmp_path / "supply", (), first)
    folder.take(await ask())
    table.rotate()
    folder.take(await ask())
    operator.roots = folder.roots()
    assert len(operator.roots) == 2
    table.trust_newest()
    folder.take(await ask())
    operator.roots = folder.roots()
    assert list(operator.roots) == list(table.root.roots)
    # A gateway that is started anew goes by what it was told last, unless it is told another beginning.
    assert list(Folder(tmp_path / "supply", (), first).roots()) == list(table.root.roots)
    others = root().roots
    assert list(Folder(tmp_path / "supply", (), others).roots()) == list(others)
    with pytest.raises(UnprovenError, match="no root that is trusted here"):
        await Operator(CONTROL, DOMAIN, first).ask(between.gateway, Who(NAMESPACE, "cart", "cart-0", "t"), SECONDS)


async def test_a_silent_operator_is_waited_for_in_time(between: Between, who: Who, operator: Operator) -> None:
    gate = asyncio.Event()

    async def waits(token: str, pod: str) -> None:
        await gate.wait()

    between.table.authenticate = waits  # type: ignore[assignment,method-assign]
    with pytest.raises((DeadlineExceededError, StreamBrokenError)):  # By whose clock it is over.
        await operator.ask(between.gateway, who, 0.5)
    gate.set()


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "..", "", "A", "a\0b", "x" * 300])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    folder = Folder(tmp_path / "supply", (), root().roots)
    bad = Document("Component", name, NAMESPACE, "")
    with pytest.raises(ConfigError, match="cannot be the name"):
        folder.take(Answer(revision="r", documents=(component("store", NAMESPACE), bad)))
    assert list((tmp_path / "supply").iterdir()) == []
    assert not folder.revision


def test_what_is_written_is_this_users_alone(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "supply", ("seen",), root().roots)
    documents = (
        component("store", NAMESPACE),
        Document("Configuration", "seen", NAMESPACE, "a"),
        Document("Configuration", "other", NAMESPACE, "b"),
    )
    assert folder.take(Answer(revision="r", documents=documents, secrets={"login": {"password": b"p"}}))
    files = {each.name: each.stat().st_mode & 0o777 for each in folder.path.iterdir()}
    assert files == dict.fromkeys(
        ("component-store.yaml", "configuration-seen.yaml", "secrets.json", "state.json"), 0o600
    )
    assert folder.path.stat().st_mode & 0o777 == 0o700
    again = Folder(folder.path, ("seen",), root().roots)
    assert (again.revision, again.documents) == ("r", folder.documents)
    secrets = {"login": {"password": b"p"}}
    assert not again.take(Answer(revision="r2", documents=documents, secrets=secrets))
    assert again.take(Answer(revision="r3", documents=documents))  # Secrets went.
    assert again.take(Answer(revision="r4", documents=documents[:1]))
    assert not (folder.path / "configuration-seen.yaml").exists()
    assert Folder(folder.path, ("other",), root().roots).revision == ""  # It would be without its Configuration.
