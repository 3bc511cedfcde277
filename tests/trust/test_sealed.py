"""What is sealed: the broker carries it, and reads none of it; what somebody makes of it on the way is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mesh import address
from mesh.address import Address
from mesh.broker import Message
from mesh.calls.exchange import Exchange, Request
from mesh.calls.link import SEALED_HEADER
from mesh.errors import (
    BrokerUnavailableError,
    DeadlineExceededError,
    NoResponderError,
    StreamBrokenError,
    UnprovenError,
)
from mesh.trust import sealing
from mesh.trust.credential import decoded, encoded
from mesh.trust.folder import Folder
from mesh.trust.guard import PROOF_HEADER, Guard
from mesh.trust.identity import Identity
from tests.support.eventually import eventually
from tests.support.hostile import NAMESPACE, STOCK, Mesh, Sent, Tapped, soon

SECRET = b"the combination is 1-2-3-4"
HIDDEN = "/orders/of-somebody"
ORDER = Message({"ce-source": "shop", "mesh-http": f'["POST","{HIDDEN}"]'}, SECRET)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path / "trust").running(seal=True) as mesh:
        yield mesh


class Ran:
    """A handler that notes what it ran, and answers with it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, request: Request) -> None:
        assert request.headers["mesh-http"] == ORDER.headers["mesh-http"]
        self.bodies.append(request.body)
        await request.reply({"mesh-http": f'[200,"{HIDDEN}"]'}, b"done " + request.body)


async def echo(request: Request) -> None:
    await request.begin({"mesh-http": HIDDEN})
    async for part in request.parts():
        await request.write(part)
    await request.end({"last": HIDDEN})


async def works(mesh: Mesh, to: Address = STOCK) -> None:
    """Check that a call is answered."""
    reply = await mesh.caller.request(to, ORDER, soon())
    assert (reply.body, reply.headers["mesh-http"]) == (b"done " + SECRET, f'[200,"{HIDDEN}"]')


async def streamed(mesh: Mesh, body: bytes) -> bytes:
    """Send a body in parts, and read it back."""

    async def upload() -> AsyncIterator[bytes]:
        yield body

    reply = await mesh.caller.request(STOCK, Message(ORDER.headers, b""), soon(), upload())
    got = b"".join([part async for part in reply.parts()])
    assert reply.last["last"] == HIDDEN
    return got


def text_of(sent: list[Sent]) -> bytes:
    """Give all that a broker sees of frames."""
    return repr([(message.headers, message.body) for _, message, _ in sent]).encode()


def readable(*brokers: Tapped) -> bool:
    """Tell whether a broker can read something."""
    text = b"".join(text_of(each.sent) for each in brokers)
    return SECRET in text or HIDDEN.encode() in text


async def refused(mesh: Mesh, labels: tuple[str, ...]) -> None:
    def check() -> None:
        assert mesh.counts[labels], mesh.counts

    await eventually(check)


@pytest.mark.parametrize("seals", [True, False])
async def test_calls_and_streams_are_read_by_both_ends_alone(tmp_path: Path, seals: bool) -> None:
    async with Mesh(tmp_path / "trust").running(seal=seals) as mesh:
        async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
            for _ in range(3):
                await works(mesh)
        async with mesh.callee.serve(STOCK, "stock", echo):
            body = SECRET * 40_000  # Several parts, and more than is granted at first.
            assert await streamed(mesh, body) == body
    assert ran.bodies == [SECRET] * 3
    assert mesh.counts.keys() <= {("asked",)}
    assert readable(mesh.caller_broker) == readable(mesh.callee_broker) == (not seals)


@pytest.mark.parametrize("seals", ["shop", "stock"])
async def test_the_option_of_one_end(tmp_path: Path, seals: str) -> None:
    """Who asks for it has both ways sealed; who answers for it, the answers."""
    mesh = Mesh(tmp_path / "trust")
    async with mesh.running():
        for exchange, name in ((mesh.caller, "shop"), (mesh.callee, "stock")):
            exchange.guard = mesh.guard(name, seal=name == seals)
        async with mesh.callee.serve(STOCK, "stock", Ran()):
            for _ in range(2):
                await works(mesh)
    assert not readable(mesh.callee_broker)
    assert readable(mesh.caller_broker) == (seals == "stock")


async def test_what_fails_says_so_to_its_caller_alone(mesh: Mesh) -> None:
    async def fail(request: Request) -> None:
        raise StreamBrokenError(HIDDEN)

    async with mesh.callee.serve(STOCK, "stock", fail):
        with pytest.raises(StreamBrokenError, match=HIDDEN):
            await mesh.caller.request(STOCK, ORDER, soon())
    assert not readable(mesh.caller_broker, mesh.callee_broker)


async def test_a_node_that_calls_itself(mesh: Mesh) -> None:
    async with mesh.caller.serve(own := address.app(NAMESPACE, "shop"), "shop", Ran()):
        for _ in range(3):
            await works(mesh, own)
    assert not readable(mesh.caller_broker)


async def test_no_nonce_comes_twice(mesh: Mesh) -> None:
    async with mesh.callee.serve(STOCK, "stock", Ran()):
        for _ in range(5):
            await works(mesh)
    async with mesh.callee.serve(STOCK, "stock", echo):
        await streamed(mesh, SECRET * 40_000)
    for broker in (mesh.caller_broker, mesh.callee_broker):
        given = [message.headers[SEALED_HEADER] for _, message, _ in broker.sent if message.body]
        nonces = [decoded(each)[: sealing.NONCE_BYTES] for each in given]
        assert len(nonces) > 5
        assert len(set(nonces)) == len(nonces)


def _flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


ALTERED: dict[str, Callable[[Message], Message]] = {
    "ciphertext": lambda message: Message(message.headers, _flipped(message.body)),
    "shortened": lambda message: Message(message.headers, message.body[:-1]),
    "keys": lambda message: Message(
        {**message.headers, SEALED_HEADER: encoded(_flipped(decoded(message.headers[SEALED_HEADER])))}, message.body
    ),
    "not sealed": lambda message: Message(
        {name: value for name, value in message.headers.items() if name != SEALED_HEADER}, SECRET
    ),
    "in the open beside it": lambda message: Message({**message.headers, "mesh-http": '["GET","/"]'}, message.body),
}


@pytest.mark.parametrize("altered", ALTERED)
@pytest.mark.parametrize("proven", ["by signature", "by mac"])
async def test_an_altered_call(mesh: Mesh, altered: str, proven: str) -> None:
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        if proven == "by mac":
            await works(mesh)
        mesh.caller_broker.held = lambda message: bool(message.body)
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(works(mesh))
            to, message, reply_to = await mesh.caller_broker.kept.get()
            assert message.headers[PROOF_HEADER][0] == ("s" if proven == "by signature" else "m")
            count = len(ran.bodies)
            await mesh.evil.send(to, ALTERED[altered](message), reply_to)
            await refused(mesh, ("request", "invalid"))
            assert len(ran.bodies) == count
            await mesh.evil.send(to, message, reply_to)  # As it was, it is taken, and once.
            await call
            await mesh.evil.send(to, message, reply_to)
            await refused(mesh, ("request", "replayed"))
        assert len(ran.bodies) == count + 1


async def test_what_is_sealed_for_one_call_is_of_no_use_for_another(mesh: Mesh) -> None:
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        await works(mesh)
        mesh.caller_broker.held = lambda message: bool(message.body)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(2):
                tasks.create_task(works(mesh))
            first, second = [await mesh.caller_broker.kept.get() for _ in range(2)]
            sealed = {**second[1].headers, SEALED_HEADER: first[1].headers[SEALED_HEADER]}
            for headers in (second[1].headers, sealed):
                await mesh.evil.send(second[0], Message(headers, first[1].body), second[2])
            await refused(mesh, ("request", "invalid"))
            for each in (first, second):
                await mesh.evil.send(*each)
    assert len(ran.bodies) == 3


async def test_what_is_sealed_by_one_cannot_be_sent_as_somebody_s_own(mesh: Mesh) -> None:
    """It is to be opened by the keys of its sender and its reader: those of another sender are others."""
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        await works(mesh)
        order = next(message for _, message, _ in mesh.caller_broker.sent if message.body)
        seen = {name: value for name, value in order.headers.items() if name in ("mesh-deadline", SEALED_HEADER)}
        sent, _ = mesh.guard("evil").ask(STOCK, Message(seen, order.body), mesh.evil.inbox)
        await mesh.evil.send(STOCK, sent, mesh.evil.inbox)
        await refused(mesh, ("request", "invalid"))
        await works(mesh)
    assert len(ran.bodies) == 2


@pytest.mark.parametrize("sealed", ["", "!", "AAAA", "0", "keys", "short key", "long key", "A" * 60_000])
async def test_a_proven_caller_that_seals_wrongly(mesh: Mesh, sealed: str) -> None:
    guard = mesh.callee.guard
    assert guard is not None
    if sealed == "keys":
        sealed = encoded(b"n" * sealing.NONCE_BYTES + guard.own.id + b"k" * 48)
    evil = mesh.guard("evil")
    if sealed in ("short key", "long key"):
        nonce, key = evil.own.nonce(), b"k" * (16 if sealed == "short key" else 40)
        reader = evil.peers.get(guard.own.header)
        assert reader is not None
        sealed = encoded(nonce + guard.own.id + evil.own.box(reader).to.encrypt(nonce, key, None))
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        headers = {"mesh-deadline": str(int(soon() * 1000)), SEALED_HEADER: sealed}
        sent, _ = evil.ask(STOCK, Message(headers, b"nothing"), mesh.evil.inbox)
        await mesh.evil.send(STOCK, sent, mesh.evil.inbox)
        await eventually(lambda: _some(mesh.evil.got))
        await works(mesh)
    assert ran.bodies == [SECRET]


@pytest.mark.parametrize("mode", [None, "strict"])
async def test_nobody_guesses_where_one_node_is_asked(tmp_path: Path, mode: str | None) -> None:
    """Who may send to inboxes, as all must, may not therefore ask: that is for the rights on the address."""
    seal = mode is not None
    async with (
        Mesh(tmp_path / "trust").running(mode, mode, seal=seal) as mesh,
        mesh.callee.serve(STOCK, "stock", ran := Ran()),
    ):
        await works(mesh)
        headers = {**ORDER.headers, "mesh-deadline": str(int(soon() * 1000))}
        for token in ("serve-0", "serve-1", "serve-", "serve", ""):
            await mesh.evil.send(f"{mesh.callee.inbox}.{token}", Message(headers, b"guessed"), mesh.evil.inbox)
        await works(mesh)
        assert ran.bodies == [SECRET] * 2
        assert mesh.evil.got == []


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "cannot prove itself"])
async def test_who_is_asked_alone_and_serves_no_longer_sends_its_caller_back(
    mesh: Mesh, leaves: bool, others: int
) -> None:
    """To the address, where another one serves, or nobody does. Meanwhile it ends what it has begun."""
    gate, began = asyncio.Event(), asyncio.Event()
    bodies: list[bytes] = []

    async def waits(request: Request) -> None:
        bodies.append(request.body)
        began.set()
        await gate.wait()
        await request.reply({}, b"first")

    async def answer(caller: Exchange) -> bytes:
        try:
            return (await caller.request(STOCK, Message(ORDER.headers, b"second"), soon())).body
        except NoResponderError:
            return b"nobody"

    async def no_longer() -> None:
        await mesh.evil.send(STOCK, Message({}, b""), mesh.evil.inbox)
        assert mesh.evil.got  # That nobody serves it.

    async with (
        Tapped(mesh.make()) as other_broker,
        Exchange(other_broker, guard=mesh.guard("stock", seal=True)) as other,
        asyncio.TaskGroup() as tasks,
        AsyncExitStack() as others_serving,
    ):
        serving = AsyncExitStack()
        await serving.enter_async_context(mesh.callee.serve(STOCK, "stock", waits))
        first = tasks.create_task(mesh.caller.request(STOCK, ORDER, soon()))
        await began.wait()
        tapped = Tapped(mesh.make())
        tapped.held = lambda message: tapped.sent[-1][0] != STOCK
        broker = await others_serving.enter_async_context(tapped)
        caller = await others_serving.enter_async_context(Exchange(broker, guard=mesh.guard("shop", seal=True)))
        second = tasks.create_task(answer(caller))
        held = await tapped.kept.get()
        tapped.held = lambda message: False
        if leaves:
            left = tasks.create_task(serving.aclose())
        else:
            assert mesh.callee.guard is not None
            standing = mesh.callee.guard.standing
            standing.proven.clear()
            standing.ended.set()
        await eventually(no_longer)
        if others:
            await others_serving.enter_async_context(other.serve(STOCK, "stock", Ran()))
        await broker.send(*held)
        assert await second == (b"done second" if others else b"nobody")
        gate.set()
        assert (await first).body == b"first"
        await (left if leaves else serving.aclose())
    assert bodies == [SECRET]


async def test_a_connection_that_breaks_when_one_node_is_asked_does_not_make_it_run_twice(mesh: Mesh) -> None:
    """An adapter may say that of a frame to an inbox which arrived."""

    class Breaking(Tapped):
        async def send(self, to: str | Address, message: Message, reply_to: str = "") -> None:
            await super().send(to, message, reply_to)
            if isinstance(to, str) and ".serve-" in to:
                raise BrokerUnavailableError("it broke off")

    async with (
        mesh.callee.serve(STOCK, "stock", ran := Ran()),
        Breaking(mesh.make()) as broker,
        Exchange(broker, guard=mesh.guard("shop", seal=True)) as caller,
    ):
        with pytest.raises(StreamBrokenError, match="the connection to the broker broke off"):
            await caller.request(STOCK, ORDER, soon())
        await eventually(lambda: _some(ran.bodies))
    assert ran.bodies == [SECRET]


def _some(found: Sequence[object]) -> None:
    assert found


@pytest.mark.parametrize("lost", ["a part", "the order of parts", "the end"])
async def test_a_stream_that_is_not_as_it_was_sent(tmp_path: Path, lost: str) -> None:
    mesh = Mesh(tmp_path / "trust")
    async with mesh.running(seal=True):
        for exchange in (mesh.caller, mesh.callee):
            exchange.ping_interval, exchange.silence_limit = 0.1, 1.0
        async with mesh.callee.serve(STOCK, "stock", echo):
            frames = {"a part": ("0",), "the order of parts": ("0", "1"), "the end": ()}[lost]
            kind = "end" if lost == "the end" else "data"

            def held(message: Message) -> bool:
                sequence = message.headers.get("mesh-seq")
                return message.headers.get("mesh-frame") == kind and (not frames or sequence in frames)

            mesh.callee_broker.held = held
            async with asyncio.TaskGroup() as tasks:
                call = tasks.create_task(_breaks(mesh))
                if lost == "the order of parts":
                    both = [await mesh.callee_broker.kept.get() for _ in range(2)]
                    for each in reversed(both):
                        await mesh.evil.send(*each)
                await call
    assert not readable(mesh.caller_broker, mesh.callee_broker)


async def _breaks(mesh: Mesh) -> None:
    with pytest.raises(StreamBrokenError):
        await streamed(mesh, SECRET * 40_000)


async def test_a_callee_that_has_restarted_is_sealed_to_anew(mesh: Mesh) -> None:
    for began in (0.0, None, 0.0):
        callee = mesh.guard("stock", began=began, seal=True)
        async with (
            Tapped(mesh.make()) as broker,
            Exchange(broker, guard=callee) as exchange,
            exchange.serve(STOCK, "stock", ran := Ran()),
        ):
            for _ in range(3):
                await works(mesh)
        assert len(ran.bodies) == 3
    assert not readable(mesh.caller_broker)


@pytest.mark.parametrize("instances", [2, 20])
async def test_each_of_several_instances_is_sealed_to(mesh: Mesh, instances: int) -> None:
    """More than a request is sealed to at once: who cannot open it says so, and has it sealed to itself."""
    ran = [Ran() for _ in range(instances)]
    async with AsyncExitStack() as stack:
        brokers = [Tapped(mesh.make()) for _ in ran]
        for broker, each in zip(brokers, ran, strict=True):
            await stack.enter_async_context(broker)
            exchange = Exchange(broker, guard=mesh.guard("stock", seal=True))
            await stack.enter_async_context(exchange)
            await stack.enter_async_context(exchange.serve(STOCK, "stock", each))
        for _ in range(2 * instances):
            await works(mesh)
    assert [len(each.bodies) for each in ran] == [2] * instances
    assert not readable(mesh.caller_broker, *brokers)
    asked = [message for to, message, _ in mesh.caller_broker.sent if not message.body and to == STOCK]
    assert len(asked) == 1  # Only who knows nobody has to ask for somebody first.


async def test_certificates_are_renewed_in_the_midst(mesh: Mesh) -> None:
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        for name, exchange in (("shop", mesh.caller), ("stock", mesh.callee)) * 3:
            await works(mesh)
            guard = exchange.guard
            assert guard is not None
            identity = Identity("public", NAMESPACE, name)
            guard.take(Folder(mesh.folder).issue(identity), identity)
            await works(mesh)
    assert len(ran.bodies) == 12
    assert not readable(mesh.caller_broker, mesh.callee_broker)


async def test_who_was_not_asked_is_sealed_nothing(mesh: Mesh) -> None:
    """A node of the mesh that says it cannot open it, by its own name or without a proof, gets no body to open."""
    mesh.callee_broker.held = lambda message: message.headers.get("mesh-frame") == "prove"
    evil = mesh.guard("evil")
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()), asyncio.TaskGroup() as tasks:
        call = tasks.create_task(works(mesh))
        honest = await mesh.callee_broker.kept.get()
        to, asked, reply_to = mesh.caller_broker.sent[-1]
        assert (to, asked.body) == (STOCK, b"")
        await mesh.evil.send(
            reply_to, evil.refusal(STOCK.text, asked, reply_to, {"mesh-frame": "prove"}), mesh.evil.inbox
        )
        await refused(mesh, ("answer", "invalid"))
        await mesh.evil.send(reply_to, Message({"mesh-frame": "prove"}, b""), mesh.evil.inbox)
        await refused(mesh, ("answer", "missing"))
        assert len(mesh.caller_broker.sent) == 1
        # One that says so in the callee's name, from elsewhere, gets what it cannot open.
        await mesh.evil.send(reply_to, honest[1], mesh.evil.inbox)
        await eventually(lambda: _some([each for each in mesh.evil.got if each.message and each.message.body]))
        sealed = [each.message for each in mesh.evil.got if each.message and each.message.body]
        assert SECRET not in text_of([("", each, "") for each in sealed])
        for guard in (evil, mesh.guard("stock")):  # Nor who has the name, and not the process's key.
            assert not _opens(guard, mesh.caller.guard, sealed[0])
        await mesh.evil.send(*next(each for each in mesh.caller_broker.sent if each[1] is sealed[0]))
        await mesh.evil.send(STOCK, sealed[0], mesh.caller_broker.sent[-1][2])
        await call
    assert ran.bodies == [SECRET]
    assert not readable(mesh.caller_broker, mesh.callee_broker)


def _opens(guard: Guard, sender: Guard | None, message: Message) -> bool:
    assert sender is not None
    peer = guard.peers.get(sender.own.header)
    assert peer is not None
    try:
        return sealing.open_request(guard.own, peer, message) is not None
    except UnprovenError:
        return False


async def test_permissive_seals_to_who_has_an_identity(tmp_path: Path) -> None:
    """Who has none is sent it in the open, however often it is one of several."""
    mesh = Mesh(tmp_path / "trust")
    async with mesh.running("permissive", "permissive", seal=True):
        async with mesh.callee.serve(STOCK, "stock", Ran()):
            await works(mesh)
            assert not readable(mesh.caller_broker, mesh.callee_broker)
        async with Tapped(mesh.make()) as broker, Exchange(broker) as plain, plain.serve(STOCK, "stock", ran := Ran()):
            for _ in range(2):
                await works(mesh)
    assert ran.bodies == [SECRET] * 2


async def test_permissive_hears_no_open_answer_to_what_is_sealed(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path / "trust")
    async with (
        mesh.running("permissive", "strict", seal=True),
        mesh.callee.serve(STOCK, "stock", ran := Ran()),
        asyncio.TaskGroup() as tasks,
    ):
        await works(mesh)
        mesh.callee_broker.held = lambda message: True
        call = tasks.create_task(works(mesh))
        answer = await mesh.callee_broker.kept.get()
        for kind in ({}, {"mesh-frame": "head"}, {"mesh-frame": "abort"}, {"mesh-frame": "busy"}):
            await mesh.evil.send(answer[0], Message(dict(kind), b"forged"), mesh.evil.inbox)
        await refused(mesh, ("answer", "missing"))
        assert not call.done()
        await mesh.evil.send(*answer)
        await call
    assert ran.bodies == [SECRET] * 2


async def test_who_is_made_to_ask_in_the_open_counts_that(tmp_path: Path) -> None:
    """In permissive mode a node of the broker can say in the callee's place that it proves nothing."""
    mesh = Mesh(tmp_path / "trust")
    async with (
        mesh.running("permissive", "permissive", seal=True),
        mesh.callee.serve(STOCK, "stock", Ran()),
        asyncio.TaskGroup() as tasks,
    ):
        await works(mesh)
        assert (mesh.counts["asked",], mesh.counts["downgrade",]) == (1, 0)
        mesh.callee_broker.held = lambda message: True
        call = tasks.create_task(works(mesh))
        answer = await mesh.callee_broker.kept.get()
        mesh.callee_broker.held = lambda message: False
        await mesh.evil.send(answer[0], Message({"mesh-frame": "prove"}, b""))
        await call
        assert mesh.counts["downgrade",] == 1


@pytest.mark.parametrize(("mode", "seal"), [(None, False), ("permissive", False), ("permissive", True)])
async def test_nobody_unproven_says_where_a_request_goes(tmp_path: Path, mode: str | None, seal: bool) -> None:
    """Whoever sees where a call waits can send there, and would else be sent its body."""
    mesh = Mesh(tmp_path / "trust")
    async with (
        mesh.running(mode, mode, seal=seal),
        mesh.callee.serve(STOCK, "stock", ran := Ran()),
        asyncio.TaskGroup() as tasks,
    ):
        await works(mesh)
        mesh.callee_broker.held = lambda message: True
        call = tasks.create_task(works(mesh))
        answer = await mesh.callee_broker.kept.get()
        mesh.callee_broker.held = lambda message: False
        await mesh.evil.send(answer[0], Message({"mesh-frame": "prove"}, b""), mesh.evil.inbox)
        await mesh.callee_broker.send(*answer)  # Proven, and there before the call goes on.
        await call
        assert mesh.evil.inbox not in [to for to, *_ in mesh.caller_broker.sent]
    assert mesh.evil.got == []
    assert set(ran.bodies) == {SECRET}


async def test_strict_sends_nothing_in_the_open_to_who_has_no_identity(mesh: Mesh) -> None:
    """Whatever that one says; and its caller is told why nothing came of it."""
    async with Tapped(mesh.make()) as broker, Exchange(broker) as plain, plain.serve(STOCK, "stock", ran := Ran()):
        with pytest.raises(DeadlineExceededError, match="is not proven"):
            await mesh.caller.request(STOCK, ORDER, time.time() + 2)
    assert ran.bodies == []
    assert mesh.counts["answer", "missing"]
    assert not readable(mesh.caller_broker)
