"""Frames: between live nodes, at once, at most once."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress

import pytest

from mesh import address
from mesh.address import MAX_NAME_BYTES
from mesh.broker import Broker, Frame, Message
from mesh.errors import BrokerError, FeatureNotSupportedError, MessageTooLargeError
from tests.support.contract import Place, no_tasks_besides, text
from tests.support.eventually import eventually

STRICT = ("nats", "redis", "kafka")  # On others an address alone says less, or reaches nobody.


class Sink:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def __call__(self, frame: Frame) -> None:
        self.frames.append(frame)

    @property
    def bodies(self) -> list[bytes]:
        return [frame.message.body for frame in self.frames if frame.message is not None]

    async def holds(self, count: int) -> None:
        def check() -> None:
            assert len(self.frames) >= count

        await eventually(check)


@pytest.mark.requires("frames")
async def test_frame_to_a_served_address_carries_what_was_given(broker: Broker, other: Broker, place: Place) -> None:
    served, answers = Sink(), Sink()
    broker.on_frame(answers)
    headers = {"Mixed-Case": "a: b", "empty": "", "Status": "503", "x": "y"}
    async with other.serve(place.app(), "g", served):
        await broker.send(place.app(), Message(headers, bytes(range(256))), f"{broker.inbox}.t1")
        await broker.send(place.app(), Message({}, b""))
        await served.holds(2)
        first, second = served.frames
        assert first.message is not None
        assert (dict(first.message.headers), first.message.body) == (headers, bytes(range(256)))
        assert first.reply_to == f"{broker.inbox}.t1"
        assert second.message is not None
        assert (dict(second.message.headers), second.message.body, second.reply_to) == ({}, b"", "")
        await other.send(first.reply_to, Message(headers, b""), f"{other.inbox}.t2")
        await answers.holds(1)
    [answer] = answers.frames
    assert answer.message is not None
    assert (answer.token, answer.reply_to) == ("t1", f"{other.inbox}.t2")
    assert (dict(answer.message.headers), answer.message.body) == (headers, b"")


@pytest.mark.requires("frames")
async def test_an_answer_goes_to_inboxes_alone(broker: Broker, other: Broker, place: Place) -> None:
    """Who is asked sends with its own rights; who asks must not say what to."""
    served, answers, meant = Sink(), Sink(), place.app()
    strict = broker.features.name in STRICT
    broker.on_frame(answers)
    others = [meant.text, f"{meant.text}.t1", f"{place.topic().space}._.orders", "$JS.API.STREAM.NAMES", "0-cast.t1"]
    async with other.serve(meant, "g", served):
        for number, each in enumerate(others, 1):
            await broker.send(meant, text("asked"), each)
            await served.holds(number)
        for frame in list(served.frames):
            assert not strict or frame.reply_to == ""
            if frame.reply_to:
                with suppress(BrokerError):
                    await other.send(frame.reply_to, text("harm"))
        for each in others:
            with pytest.raises(BrokerError, match="inbox") if strict else suppress(BrokerError):
                await other.send(each, text("harm"))
        await broker.send(meant, text("last"), f"{broker.inbox}.t1")
        await served.holds(len(others) + 1)
        assert served.bodies == [*[b"asked"] * len(others), b"last"]
        await other.send(served.frames[-1].reply_to, text("answer"))

        def answered() -> None:
            assert answers.bodies == [b"answer"]

        await eventually(answered)


@pytest.mark.requires("frames")
async def test_the_longest_names_are_served(broker: Broker, other: Broker) -> None:
    served, where = Sink(), address.app("é" * (MAX_NAME_BYTES // 2), "ö" * (MAX_NAME_BYTES // 2))
    async with other.serve(where, "ü" * (MAX_NAME_BYTES // 2), served):
        await broker.send(where, text("x"), f"{broker.inbox}.t1")
        await served.holds(1)


@pytest.mark.requires("frames")
async def test_nobody_serving_is_told_at_once(broker: Broker, place: Place) -> None:
    answers = Sink()
    broker.on_frame(answers)
    await broker.send(place.app(), text("x"), f"{broker.inbox}.t1")
    await answers.holds(1)
    assert answers.frames == [Frame(None, "t1", "")]


@pytest.mark.requires("frames")
async def test_nobody_serving_any_more_is_told_at_once(broker: Broker, other: Broker, place: Place) -> None:
    answers = Sink()
    broker.on_frame(answers)
    async with other.serve(place.app(), "g", Sink()):
        pass
    await broker.send(place.app(), text("x"), f"{broker.inbox}.t1")
    await answers.holds(1)
    assert answers.frames[0].message is None


@pytest.mark.requires("frames")
async def test_members_of_a_group_compete_and_groups_do_not(broker: Broker, other: Broker, place: Place) -> None:
    one, two, another = Sink(), Sink(), Sink()
    async with (
        broker.serve(place.app(), "g", one),
        other.serve(place.app(), "g", two),
        other.serve(place.app(), "h", another),
    ):
        for number in range(200):
            await broker.send(place.app(), text(number))

        def check() -> None:
            assert len(one.frames) + len(two.frames) == 200
            assert len(another.frames) == 200

        await eventually(check)
    assert sorted(map(int, one.bodies + two.bodies)) == list(range(200))
    assert one.frames
    assert two.frames


@pytest.mark.requires("frames")
async def test_frames_between_two_nodes_keep_their_order(broker: Broker, other: Broker, place: Place) -> None:
    inbox = Sink()
    other.on_frame(inbox)
    for number in range(2000):
        await broker.send(f"{other.inbox}.t", text(number))
    await inbox.holds(2000)
    assert [int(body) for body in inbox.bodies] == list(range(2000))


@pytest.mark.requires("frames")
async def test_addresses_are_apart(broker: Broker, other: Broker, place: Place) -> None:
    one, two = Sink(), Sink()
    async with broker.serve(place.app("a"), "g", one), broker.serve(place.app("a.b"), "g", two):
        await other.send(place.app("a"), text("one"))
        await other.send(place.app("a.b"), text("two"))
        await one.holds(1)
        await two.holds(1)
    assert (one.bodies, two.bodies) == ([b"one"], [b"two"])


@pytest.mark.requires("frames")
async def test_largest_frame_passes_and_a_larger_one_is_refused(broker: Broker, other: Broker, place: Place) -> None:
    sink = Sink()
    limit = other.features.max_message_bytes
    async with broker.serve(place.app(), "g", sink):
        await other.send(place.app(), Message({}, bytes(limit)), f"{other.inbox}.t")
        with pytest.raises(MessageTooLargeError):
            await other.send(place.app(), Message({}, bytes(limit + 1)), f"{other.inbox}.t")
        await other.send(place.app(), text("x"))
        await sink.holds(2)
    assert [len(body) for body in sink.bodies] == [limit, 1]


@pytest.mark.requires("frames")
async def test_leaving_serve_drops_nothing_that_was_routed_here(broker: Broker, other: Broker, place: Place) -> None:
    sink, answers = Sink(), Sink()
    other.on_frame(answers)
    sending = True
    sent = 0

    async def send() -> None:
        nonlocal sent
        while sending:
            await other.send(place.app(), text(sent), f"{other.inbox}.t")
            sent += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        async with broker.serve(place.app(), "g", sink):
            tasks.create_task(send())
            await sink.holds(100)
        heard = len(sink.frames)
        sending = False

    def check() -> None:
        assert heard + len(answers.frames) == sent

    await eventually(check)
    assert len(sink.frames) == heard


@pytest.mark.requires("frames")
async def test_rolling_hand_over_loses_no_frame(broker: Broker, other: Broker, place: Place) -> None:
    sender = await place.connect()
    sink, answers = Sink(), Sink()
    sender.on_frame(answers)
    sent = 0
    going = True

    async def send() -> None:
        nonlocal sent
        while going:
            await sender.send(place.app(), text(sent), f"{sender.inbox}.t")
            sent += 1
            await asyncio.sleep(0.0001)

    serving = AsyncExitStack()
    await serving.enter_async_context(broker.serve(place.app(), "g", sink))
    sending = asyncio.ensure_future(send())
    for turn in range(20):
        following = AsyncExitStack()
        await following.enter_async_context((other, broker)[turn % 2].serve(place.app(), "g", sink))
        await serving.aclose()
        serving = following
    going = False
    await sending
    await sink.holds(sent)
    await serving.aclose()
    assert answers.frames == []
    assert len(set(sink.bodies)) == len(sink.bodies) == sent


@pytest.mark.requires("frames")
async def test_broadcast_reaches_every_listener_and_no_other(broker: Broker, other: Broker, place: Place) -> None:
    here, there, late = Sink(), Sink(), Sink()
    async with broker.listen(place.nodes(), here), other.listen(place.nodes(), there):
        for number in range(50):
            await broker.broadcast(place.nodes(), Message({"n": str(number)}, b"x"))
        await here.holds(50)
        await there.holds(50)
    for sink in (here, there):
        assert [frame.message.headers["n"] for frame in sink.frames if frame.message] == [str(n) for n in range(50)]
    async with broker.listen(place.nodes(), late):
        await broker.broadcast(place.nodes(), text("late"))
        await late.holds(1)
    assert (len(here.frames), len(there.frames), len(late.frames)) == (50, 50, 1)
    await broker.broadcast(place.nodes(), text("to nobody"))


@pytest.mark.requires("frames")
async def test_cancelled_serve_and_listen_leave_nothing_behind(broker: Broker, other: Broker, place: Place) -> None:
    before = asyncio.all_tasks()
    sink = Sink()

    async def serve() -> None:
        async with broker.serve(place.app(), "g", sink), broker.listen(place.nodes(), sink):
            await asyncio.Event().wait()

    for turns in [*range(12), 20, 50]:
        serving = asyncio.ensure_future(serve())
        for _ in range(turns):
            await asyncio.sleep(0)
        serving.cancel()
        await asyncio.wait([serving])
        assert serving.cancelled()
    await no_tasks_besides(before)
    answers = Sink()
    other.on_frame(answers)
    await other.send(place.app(), text("x"), f"{other.inbox}.t")
    await answers.holds(1)
    assert answers.frames[0].message is None
    await broker.check()


@pytest.mark.requires("frames")
async def test_error_in_the_body_of_serve_comes_out_as_it_is(broker: Broker, place: Place) -> None:
    with pytest.raises(ValueError, match="mine"):
        async with broker.serve(place.app(), "g", Sink()), broker.listen(place.nodes(), Sink()):
            raise ValueError("mine")


@pytest.mark.lacks("frames")
async def test_frames_are_refused(broker: Broker, place: Place) -> None:
    """A broker that has none says so, and does not pretend."""
    broker.on_frame(Sink())
    for sending in (broker.send(place.app(), text("x")), broker.broadcast(place.nodes(), text("x"))):
        with pytest.raises(FeatureNotSupportedError):
            await sending
    with pytest.raises(FeatureNotSupportedError):
        async with broker.serve(place.app(), "g", Sink()):
            pytest.fail("entered")
    with pytest.raises(FeatureNotSupportedError):
        async with broker.listen(place.nodes(), Sink()):
            pytest.fail("entered")
