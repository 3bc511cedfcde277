"""What a node with all rights on the broker tries: it is refused, counted, and nothing else is harmed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import orjson
import pytest

from mesh import address
from mesh.broker import Frame, Message
from mesh.calls.exchange import Exchange, Request
from mesh.calls.request import ERROR_HEADER
from mesh.errors import DeadlineExceededError, NoResponderError, UnprovenError
from mesh.operation import Caller
from mesh.trust.folder import Folder
from mesh.trust.guard import PROOF_HEADER, Guard, Session
from mesh.trust.identity import Identity, TrustSettings
from mesh.trust.replays import Replays
from tests.support.eventually import eventually
from tests.support.hostile import NAMESPACE, STOCK, Mesh, Sent, Tapped, soon

ORDER = Message({"ce-source": "shop", "mesh-http": '["POST","/order"]'}, b"one")


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path / "trust").running() as mesh:
        yield mesh


class Ran:
    """A handler that notes what it ran, and for whom."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.callers: list[Identity | None] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, request: Request) -> None:
        self.bodies.append(request.body)
        self.callers.append(request.caller)
        await self.gate.wait()
        await request.reply({}, b"done " + request.body)


async def works(mesh: Mesh, ran: Ran) -> None:
    """Check that an honest call is answered as ever."""
    before = len(ran.bodies)
    reply = await mesh.caller.request(STOCK, ORDER, soon())
    assert (reply.body, len(ran.bodies)) == (b"done one", before + 1)
    assert ran.callers[-1] == Identity("public", NAMESPACE, "shop")


async def refused(mesh: Mesh, labels: tuple[str, ...], count: int = 1) -> None:
    def check() -> None:
        assert mesh.counts[labels] >= count, mesh.counts

    await eventually(check)


def deadline(message: Message, until: float | None = None) -> Message:
    return Message({**message.headers, "mesh-deadline": str(int((until or soon()) * 1000))}, message.body)


def another_root(mesh: Mesh, app_id: str) -> Guard:
    """Make a guard whose certificate says everything right, by a root of its own."""
    folder = Folder(mesh.folder.parent / "evil")
    folder.init("public")
    identity = Identity("public", NAMESPACE, app_id)
    made = mesh.guard("evil")
    made.take(folder.issue(identity), identity)
    return made


async def test_each_call_is_by_who_it_says(mesh: Mesh) -> None:
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        for _ in range(5):
            await works(mesh, ran)
    assert not mesh.counts


async def test_another_app_s_name_without_a_proof(mesh: Mesh) -> None:
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        await mesh.evil.send(STOCK, deadline(ORDER), mesh.evil.inbox)
        await refused(mesh, ("request", "missing"))
        await eventually(lambda: _answered(mesh.evil.got))
        await works(mesh, ran)
    assert ran.bodies == [b"one"]


def _answered(got: list[Frame]) -> None:
    assert got
    message = got[0].message
    assert message is not None
    assert orjson.loads(message.headers[ERROR_HEADER])["code"] == UnprovenError.code


async def test_another_app_s_name_by_a_root_that_nobody_trusts(mesh: Mesh) -> None:
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        evil = another_root(mesh, "shop")
        sent, _ = evil.ask(STOCK, deadline(ORDER), mesh.evil.inbox)
        await mesh.evil.send(STOCK, sent, mesh.evil.inbox)
        await refused(mesh, ("request", "invalid"))
        await works(mesh, ran)
    assert len(ran.bodies) == 1


async def test_another_app_s_name_beside_one_s_own_proof(mesh: Mesh) -> None:
    """What it says to be does not count: the block compares it with what is proven."""
    claims: list[str] = []

    async def handle(request: Request) -> None:
        with pytest.raises(UnprovenError, match="asks in the name of app id shop"):
            request.check_caller("shop")
        request.check_caller("evil")
        claims.append(str(request.caller))
        await request.reply({})

    async with mesh.callee.serve(STOCK, "stock", handle):
        sent, _ = mesh.guard("evil").ask(STOCK, deadline(ORDER), mesh.evil.inbox)
        await mesh.evil.send(STOCK, sent, mesh.evil.inbox)
        await eventually(lambda: _equal(claims, ["spiffe://public/ns/default/evil"]))


def _equal(one: object, another: object) -> None:
    assert one == another


@pytest.mark.parametrize("proven", ["by signature", "by mac"])
async def test_a_call_that_is_sent_again_does_not_run_again(mesh: Mesh, proven: str) -> None:
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        for _ in range(1 if proven == "by signature" else 2):
            await works(mesh, ran)
        to, message, reply_to = [each for each in mesh.caller_broker.sent if each[0] == STOCK][-1]
        assert message.headers[PROOF_HEADER][0] == ("s" if proven == "by signature" else "m")
        count = len(ran.bodies)
        for where in (reply_to, reply_to, f"{mesh.evil.broker.inbox}.{reply_to.rpartition('.')[2]}"):
            await mesh.evil.send(to, message, where)
        await refused(mesh, ("request", "replayed"), 3)
        assert len(ran.bodies) == count
        # Under another token it is another request, which nobody has made.
        await mesh.evil.send(to, message, mesh.evil.inbox)
        await refused(mesh, ("request", "invalid"))
        assert len(ran.bodies) == count
        await works(mesh, ran)


@pytest.mark.parametrize("instances", [1, 3])
async def test_what_was_made_before_a_node_began_is_not_taken_again(mesh: Mesh, instances: int) -> None:
    """A node that has restarted remembers nothing: who calls it is asked to prove that it calls this process."""
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        await works(mesh, ran)
    before = mesh.caller_broker.sent.copy()
    async with AsyncExitStack() as stack:
        brokers = [Tapped(mesh.make()) for _ in range(instances)]
        for each in brokers:
            broker = await stack.enter_async_context(each)
            exchange = await stack.enter_async_context(Exchange(broker, guard=mesh.guard("stock", began=None)))
            await stack.enter_async_context(exchange.serve(STOCK, "stock", ran))
        for _ in range(instances):
            await _send_again(mesh, before)
        await eventually(lambda: _equal([_asked(each) for each in brokers], [1] * instances))
        mesh.caller_broker.sent.clear()
        for _ in range(5):
            await works(mesh, ran)
        if instances == 1:
            await _send_again(mesh, mesh.caller_broker.sent.copy())  # What was made for this process as well.
            await refused(mesh, ("request", "replayed"), 5)
    assert len(ran.bodies) == 6


async def _send_again(mesh: Mesh, sent: list[Sent]) -> None:
    for to, message, reply_to in sent:
        if to == STOCK:
            await mesh.evil.send(to, message, reply_to)


def _asked(broker: Tapped) -> int:
    return [message.headers.get("mesh-frame") for _, message, _ in broker.sent].count("prove")


async def test_a_call_beyond_what_is_remembered_goes_elsewhere_or_again(mesh: Mesh) -> None:
    guard = mesh.callee.guard
    assert guard is not None
    guard._replays = Replays(150.0, most=3)
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        ran.gate.clear()
        mesh.caller_broker.held = lambda message: message.body == b"late"
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(mesh.caller.request(STOCK, ORDER, soon()))
            await eventually(lambda: _equal(ran.bodies, [b"one"]))
            late = tasks.create_task(_told_to_go(mesh))
            to, message, reply_to = await mesh.caller_broker.kept.get()
            flood = mesh.guard("shop")
            for number in range(8):
                where = f"{mesh.evil.broker.inbox}.flood{number}00"
                sent, _ = flood.ask(STOCK, deadline(Message({}, b"flood")), where)
                await mesh.evil.send(STOCK, sent, where)
            crowded = "request", "crowded"  # Those of one millisecond count as made before.
            await eventually(lambda: _equal(len(ran.bodies) + mesh.counts[crowded], 9))
            count = mesh.counts[crowded]
            order = next(each for each in mesh.caller_broker.sent if each[1].body == b"one")
            await mesh.evil.send(*order)  # It runs here: who waits for it is not told to go elsewhere.
            await refused(mesh, crowded, count + 1)
            await mesh.evil.send(to, message, reply_to)
            await late
            ran.gate.set()
            assert (await running).body == b"done one"
        over = time.time()
        await eventually(lambda: _differ(int(time.time() * 1000), int(over * 1000)))
        await works(mesh, ran)
    assert b"late" not in ran.bodies


async def _told_to_go(mesh: Mesh) -> None:
    with pytest.raises(NoResponderError, match="busy"):
        await mesh.caller.request(STOCK, Message({}, b"late"), soon())


def _differ(one: object, another: object) -> None:
    assert one != another


ALTERED: dict[str, Callable[[Message], Message]] = {
    "body": lambda message: Message(message.headers, b"two"),
    "header": lambda message: Message({**message.headers, "mesh-http": '["POST","/cancel"]'}, message.body),
    "one more header": lambda message: Message({**message.headers, "ce-extra": "1"}, message.body),
    "one header less": lambda message: Message(
        {name: value for name, value in message.headers.items() if name != "mesh-http"}, message.body
    ),
    "deadline": lambda message: deadline(message, time.time() + 90),
    "proof": lambda message: Message(
        {**message.headers, PROOF_HEADER: f"{message.headers[PROOF_HEADER][0]}AAAA"}, message.body
    ),
    "no base64": lambda message: Message({**message.headers, PROOF_HEADER: "s!"}, message.body),
    "empty proof": lambda message: Message({**message.headers, PROOF_HEADER: ""}, message.body),
    "time": lambda message: Message({**message.headers, "mesh-made": "x"}, message.body),
    "credential": lambda message: Message({**message.headers, "mesh-identity": "AAAA"}, message.body),
    "huge credential": lambda message: Message({**message.headers, "mesh-identity": "A" * 60_000}, message.body),
}


@pytest.mark.parametrize("altered", ALTERED)
@pytest.mark.parametrize("proven", ["by signature", "by mac"])
async def test_an_altered_call(mesh: Mesh, altered: str, proven: str) -> None:
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        if proven == "by mac":
            await works(mesh, ran)
        mesh.caller_broker.held = lambda message: "mesh-http" in message.headers
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(mesh.caller.request(STOCK, ORDER, soon()))
            to, message, reply_to = await mesh.caller_broker.kept.get()
            count = len(ran.bodies)
            await mesh.evil.send(to, ALTERED[altered](message), reply_to)
            # With another proof it may be proven to others: who sent that is asked for a signature, and nobody else.
            asked = (altered, proven) == ("proof", "by mac")
            await refused(mesh, ("answer", "invalid") if asked else ("request", "invalid"))
            await mesh.evil.send(to, message, reply_to)  # As it was, it is still taken.
            assert (await call).body == b"done one"
        assert len(ran.bodies) == count + 1
        mesh.caller_broker.held = lambda message: False
        await works(mesh, ran)


async def test_a_call_for_another_address(mesh: Mesh) -> None:
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        sent, _ = mesh.guard("shop").ask(address.app(NAMESPACE, "other"), deadline(ORDER), mesh.evil.inbox)
        await mesh.evil.send(STOCK, sent, mesh.evil.inbox)
        await refused(mesh, ("request", "invalid"))
        await works(mesh, ran)
    assert len(ran.bodies) == 1


@pytest.mark.parametrize("off", [-130.0, 40.0])
async def test_a_call_of_another_time(mesh: Mesh, off: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was kept for long, or was made for later, is not taken, whatever its deadline."""
    now = time.time()
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: now + off)
            sent, _ = mesh.guard("shop").ask(STOCK, deadline(ORDER, now + 600), mesh.evil.inbox)
        await mesh.evil.send(STOCK, sent, mesh.evil.inbox)
        await refused(mesh, ("request", "invalid"))
        await works(mesh, ran)
    assert len(ran.bodies) == 1


async def test_a_call_whose_deadline_is_over(mesh: Mesh) -> None:
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        sent, _ = mesh.guard("shop").ask(STOCK, deadline(ORDER, time.time() - 1), mesh.evil.inbox)
        await mesh.evil.send(STOCK, sent, mesh.evil.inbox)
        await eventually(lambda: _equal(mesh.callee.expired, 1))
        await works(mesh, ran)
    assert len(ran.bodies) == 1


def forged(mesh: Mesh, link: str) -> list[Message]:
    """Make what could end a call, or answer it, without being who was asked."""
    evil = mesh.guard("evil")
    kinds = ({}, {"mesh-frame": "busy"}, {"mesh-frame": "abort"}, {"mesh-frame": "prove"}, {"mesh-frame": "head"})
    plain = [Message(dict(kind), b"forged") for kind in kinds]
    session = mesh.caller.links[link.rpartition(".")[2]].session
    assert session is not None
    peer = evil.peers.get(mesh.caller.guard.own.header)  # type: ignore[union-attr]  # The caller proves who it is.
    own = Session(evil, evil.own, None, session.digest, peer)
    return [*plain, *(own.seal(each) for each in plain), evil.tell(link, plain[0])]


async def test_answers_by_who_was_not_asked(mesh: Mesh) -> None:
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        ran.gate.clear()
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(mesh.caller.request(STOCK, ORDER, soon()))
            await eventually(lambda: _equal(len(ran.bodies), 1))
            link = mesh.caller_broker.sent[-1][2]
            answers = forged(mesh, link)
            for each in answers:
                await mesh.evil.send(link, each, mesh.evil.inbox)
            await refused(mesh, ("answer", "invalid"), 6)
            assert mesh.counts["answer", "missing"] == 5
            assert not call.done()
            ran.gate.set()
            assert (await call).body == b"done one"
        await works(mesh, ran)
    assert len(ran.bodies) == 2


async def test_two_trust_domains_on_one_broker(mesh: Mesh, caplog: pytest.LogCaptureFixture) -> None:
    """The refusal is by a stranger: the log of the caller says whose, and what was called, whatever else is refused."""
    guard = mesh.callee.guard
    assert guard is not None
    folder, identity = Folder(mesh.folder.parent / "other"), Identity("other", NAMESPACE, "stock")
    folder.init("other")
    mesh.callee.guard = other = Guard(TrustSettings("strict", "other", folder.path))
    other.take(folder.issue(identity), identity)
    caller = mesh.caller.guard
    assert caller is not None
    caller.refuse("request", "elsewhere", "missing", "it is not proven")
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        with pytest.raises(DeadlineExceededError):
            await mesh.caller.request(STOCK, ORDER, time.time() + 0.5)
    assert not ran.bodies
    said = f"answer at {STOCK.text}: {identity} is not of the trust domain public; the call waits for another until its"
    assert said in caplog.text


async def test_an_answer_that_nobody_asked_for(mesh: Mesh) -> None:
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        await works(mesh, ran)
        to, message, _ = mesh.callee_broker.sent[-1]
        for _ in range(3):
            await mesh.evil.send(to, message)
        await works(mesh, ran)


async def test_an_answer_to_another_s_request(mesh: Mesh) -> None:
    """A node asks in its own name, and has the answer go to who waits for another one."""
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        ran.gate.clear()
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(mesh.caller.request(STOCK, ORDER, soon()))
            await eventually(lambda: _equal(len(ran.bodies), 1))
            link = mesh.caller_broker.sent[-1][2]
            sent, _ = mesh.guard("evil").ask(STOCK, deadline(Message({}, b"two")), link)
            await mesh.evil.send(STOCK, sent, link)
            await eventually(lambda: _equal(ran.bodies, [b"one", b"two"]))
            ran.gate.set()
            assert (await call).body == b"done one"
        assert ran.callers[1] == Identity("public", NAMESPACE, "evil")


async def test_a_token_cannot_be_used_up_by_another(mesh: Mesh) -> None:
    """Tokens can be guessed; a call under one that another has used is another call."""
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        await works(mesh, ran)
        inbox, _, token = mesh.caller_broker.sent[-1][2].rpartition(".")
        evil = mesh.guard("evil")
        for number in range(1, 4):
            guess = f"{inbox}.{token[:-1]}{int(token[-1], 16) + number:x}"
            sent, _ = evil.ask(STOCK, deadline(Message({}, b"two")), guess)
            await mesh.evil.send(STOCK, sent, guess)
        await eventually(lambda: _equal(ran.bodies.count(b"two"), 3))
        await works(mesh, ran)


async def test_a_call_is_not_given_up_by_another(mesh: Mesh) -> None:
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        ran.gate.clear()
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(mesh.caller.request(STOCK, ORDER, soon()))
            await eventually(lambda: _equal(len(ran.bodies), 1))
            token = mesh.caller_broker.sent[-1][2].rpartition(".")[2]
            where = address.members(STOCK)
            message = Message({"mesh-frame": "given-up"}, orjson.dumps({"calls": [token]}))
            for each in (message, mesh.guard("evil").tell(where.text, message)):
                await mesh.evil.broker.broadcast(where, each)
            await refused(mesh, ("told", "missing"))
            ran.gate.set()
            assert (await call).body == b"done one"


async def test_frames_that_name_too_much_are_of_no_use(mesh: Mesh) -> None:
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()):
        ran.gate.clear()
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(mesh.caller.request(STOCK, ORDER, soon()))
            await eventually(lambda: _equal(len(ran.bodies), 1))
            token, where = mesh.caller_broker.sent[-1][2].rpartition(".")[2], address.members(STOCK)
            many = [f"mesh-{number}" for number in range(200)]
            ask = {"inbox": mesh.evil.broker.inbox, "at": 0, "calls": [(each, 0, True) for each in many]}
            here = {"node": "x" * 513, "address": STOCK.text, "new": True}
            frames = {
                "given-up": ({"calls": [token, *many]}, {"calls": ["x" * 513]}, {"calls": {token: 1}}),
                "ask": ({**ask, "calls": [*ask["calls"], ("x", 0, True)]}, {**ask, "inbox": "x" * 513}),  # type: ignore[misc]
                "here": (here,),
                "bye": (here,),
            }
            told = [(kind, each) for kind, bodies in frames.items() for each in bodies]
            for kind, body in [*told, ("ask", {**ask, "calls": [("last", 0, True)]})]:
                guard = mesh.guard("shop" if kind in ("ask", "given-up") else "stock")
                message = Message({"mesh-frame": kind}, orjson.dumps(body))
                await mesh.evil.broker.broadcast(where, guard.tell(where.text, message))
            by = f"{Identity('public', NAMESPACE, 'shop')} "
            await eventually(lambda: _equal(mesh.callee.taken.knows("last", by), another=True))
            assert not [each for each in many if mesh.callee.taken.knows(each, by)]
            members = mesh.callee._serving[0].members
            assert not members._heard
            assert not members._left
            ran.gate.set()
            assert (await call).body == b"done one"
        await works(mesh, ran)


async def test_nobody_else_says_that_a_call_was_not_taken(tmp_path: Path) -> None:
    """Who waits would send it again, and it would run twice."""
    running = Mesh(tmp_path / "trust").running(ask_after=0.2)
    async with running as mesh, mesh.callee.serve(STOCK, "stock", ran := Ran()):
        ran.gate.clear()
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(mesh.caller.request(STOCK, ORDER, soon()))
            await eventually(lambda: _equal(len(ran.bodies), 1))
            link = mesh.caller.links[token := mesh.caller_broker.sent[-1][2].rpartition(".")[2]]
            await eventually(lambda: _equal(link.waiting is not None, True))
            to = f"{mesh.caller.inbox}.told"
            body = {"node": "x", "address": STOCK.text, "at": 0, "none": [token], "known_for": 1e6, "members": []}
            message = Message({"mesh-frame": "told"}, orjson.dumps({**body, "left": {}}))
            for each in (message, mesh.guard("evil").tell(to, message), another_root(mesh, "stock").tell(to, message)):
                await mesh.evil.send(to, each)
            await refused(mesh, ("told", "missing"))
            await refused(mesh, ("told", "invalid"))
            ran.gate.set()
            assert (await call).body == b"done one"
        assert ran.bodies == [b"one"]


async def test_a_component_is_answered_by_its_hosts_alone(tmp_path: Path) -> None:
    store = address.component(NAMESPACE, "store", "abc")
    async with Mesh(tmp_path / "trust").running(hosts=frozenset({"stock"})) as mesh:
        evil = Exchange(mesh.evil_broker, guard=mesh.guard("evil"))
        async with evil, evil.serve(store, "g", Ran(), recoverable=False), asyncio.TaskGroup() as tasks:
            call = tasks.create_task(mesh.caller.request(store, ORDER, soon()))
            await refused(mesh, ("answer", "invalid"))
            assert not call.done()
            call.cancel()
        async with mesh.callee.serve(store, "g", Ran(), recoverable=False):
            assert (await mesh.caller.request(store, ORDER, soon())).body == b"done one"


async def test_frames_of_others_in_a_stream(mesh: Mesh) -> None:
    """Parts, credit, ends and failures of somebody else change nothing, nor do earlier ones that are sent again."""
    more = asyncio.Event()

    async def upload() -> AsyncIterator[bytes]:
        yield b"a" * 100_000
        await more.wait()
        yield b"b" * 100_000

    async def echo(request: Request) -> None:
        await request.begin({})
        async for part in request.parts():
            await request.write(part)
        await request.end({"last": "1"})

    async with mesh.callee.serve(STOCK, "stock", echo):
        reply = await mesh.caller.request(STOCK, Message({}, b""), soon(), upload())
        parts = reply.parts()
        got = await anext(parts)
        ends = [next(iter(each.links.values())).address for each in (mesh.caller, mesh.callee)]
        kinds = [
            {"mesh-frame": "data", "mesh-seq": "1"},
            {"mesh-frame": "end", "mesh-seq": "1"},
            {"mesh-frame": "abort", "mesh-reason": "evil"},
            {"mesh-frame": "credit", "mesh-credit": "1000000000"},
            {"mesh-frame": "ping", "mesh-seq": "9", "mesh-credit": "0"},
        ]
        for end in ends:
            for kind in kinds:
                await mesh.evil.send(end, Message(kind, b"evil"), mesh.evil.inbox)
        for broker, end in ((mesh.caller_broker, ends[1]), (mesh.callee_broker, ends[0])):
            for to, message, reply_to in list(broker.sent):
                if to == end and message.headers.get("mesh-frame") in ("credit", "ping"):
                    await mesh.evil.send(end, message, reply_to)
        await refused(mesh, ("answer", "missing"), 10)
        more.set()
        async for part in parts:
            got += part
    assert got == b"a" * 100_000 + b"b" * 100_000
    assert reply.last["last"] == "1"


async def test_an_answer_is_taken_by_who_has_forgotten_whom_it_asked(mesh: Mesh) -> None:
    """As at each renewal of a certificate, in the middle of a call."""
    async with mesh.callee.serve(STOCK, "stock", ran := Ran()), asyncio.TaskGroup() as tasks:
        for _ in range(2):
            await works(mesh, ran)  # From the second on by a secret, and with short credentials.
        ran.gate.clear()
        asking = tasks.create_task(mesh.caller.request(STOCK, ORDER, soon()))
        await eventually(lambda: _equal(len(ran.bodies), 3))
        guard = mesh.caller.guard
        assert guard is not None
        guard.peers._known.clear()
        guard._met.clear()
        ran.gate.set()
        assert (await asking).body == b"done one"
        await works(mesh, ran)


async def test_a_flood_harms_nobody(mesh: Mesh) -> None:
    async with mesh.callee.serve(STOCK, "stock", ran := Ran(), max_in_flight=2):
        await works(mesh, ran)
        junk = [
            deadline(Message({}, b"x" * 100_000)),
            deadline(Message({PROOF_HEADER: "sAAAA", "mesh-identity": "AAAA", "mesh-made": "1"}, b"")),
            Message({"mesh-deadline": "soon"}, b""),
            Message({"mesh-deadline": "9" * 400}, b""),
            Message({"mesh-frame": "open"}, b""),
        ]
        for number in range(2000):
            await mesh.evil.send(STOCK, junk[number % len(junk)], mesh.evil.inbox)
        for where in (mesh.caller.inbox, mesh.callee.inbox):
            for kind in ("told", "here", "data", "credit", "nothing"):
                await mesh.evil.send(f"{where}.{kind}", Message({"mesh-frame": kind}, b"{"), mesh.evil.inbox)
        for kind in ("ask", "here", "bye", "given-up"):
            for body in (b"", b"{}", b"[]", b'{"calls": 1}'):
                await mesh.evil.broker.broadcast(address.members(STOCK), Message({"mesh-frame": kind}, body))
        await works(mesh, ran)
        await refused(mesh, ("request", "missing"), 400)
    assert len(ran.bodies) == 2


async def test_permissive_takes_what_is_not_proven_as_claimed(tmp_path: Path) -> None:
    running = Mesh(tmp_path / "trust").running(caller=None, callee="permissive")
    async with running as mesh, mesh.callee.serve(STOCK, "stock", ran := Ran()):
        assert (await mesh.caller.request(STOCK, ORDER, soon())).body == b"done one"
        assert ran.callers == [None]
        sent, _ = mesh.guard("evil").ask(STOCK, deadline(ORDER), mesh.evil.inbox)
        await mesh.evil.send(STOCK, Message(sent.headers, b"altered"), mesh.evil.inbox)
        await refused(mesh, ("request", "invalid"))
    assert len(ran.bodies) == 1


@pytest.mark.parametrize("modes", [("permissive", None), ("permissive", "strict"), ("strict", "permissive")])
async def test_a_mesh_is_changed_node_by_node(tmp_path: Path, modes: tuple[str, str | None]) -> None:
    running = Mesh(tmp_path / "trust").running(*modes)
    async with running as mesh, mesh.callee.serve(STOCK, "stock", ran := Ran()):
        for _ in range(3):
            assert (await mesh.caller.request(STOCK, ORDER, soon())).body == b"done one"
    assert {each and each.app_id for each in ran.callers} == {None if modes[1] is None else "shop"}


async def test_who_proves_nothing_is_told_so(tmp_path: Path) -> None:
    async with Mesh(tmp_path / "trust").running(caller=None) as mesh, mesh.callee.serve(STOCK, "stock", Ran()):
        reply = await mesh.caller.request(STOCK, ORDER, soon())
    assert orjson.loads(reply.headers[ERROR_HEADER])["code"] == "IDENTITY_NOT_PROVEN"


def test_a_proven_caller_is_its_identity() -> None:
    assert Caller.proven_by(Identity("prod", "ns", "shop")) == Caller("ns", "shop", proven=True, trust_domain="prod")
