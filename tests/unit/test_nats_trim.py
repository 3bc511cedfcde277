"""What may be purged from a stream: only what every group has handled."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokers.nats import NatsBroker
from brokers.nats._trim import floors, share
from mesh.address import Address, Kind, matches
from mesh.broker import Message, SubscribeOptions, Topology
from tests.support.eventually import eventually
from tests.support.nats import NatsServer, find_nats_server


@pytest.mark.parametrize(
    ("consumers", "expected"),
    [
        ([], {}),
        ([("m.n.t.s.*.a", 7)], {"m.n.t.s.*.a": 7}),
        ([("m.n.t.s.*.a", 7), ("m.n.t.s.*.a", 3)], {"m.n.t.s.*.a": 3}),
        ([("m.n.t.s.*.a", 7), ("m.n.t.s.*.b", 3)], {"m.n.t.s.*.a": 7, "m.n.t.s.*.b": 3}),
        ([("m.n.t.s.*.a", 7), ("m.n.t.s.*.>", 3)], {"m.n.t.s.*.a": 3, "m.n.t.s.*.>": 3}),
        (
            [("m.n.t.s.*.a.b", 7), ("m.n.t.s.*.a.*", 5), ("m.n.t.s.*.c.*", 0)],
            {"m.n.t.s.*.a.b": 5, "m.n.t.s.*.a.*": 5, "m.n.t.s.*.c.*": 0},
        ),
        (
            [("m.n.t.s.*.a", 9), ("m.n.t.s._.a", 4), ("m.n.t.s.0.a", 6)],
            {"m.n.t.s.*.a": 4, "m.n.t.s._.a": 4, "m.n.t.s.0.a": 6},
        ),
        ([("m.n.t.s.*.a", 9), ("m.n.t.s.*.a", 0)], {"m.n.t.s.*.a": 0}),
    ],
)
def test_floors(consumers: list[tuple[str, int]], expected: dict[str, int]) -> None:
    assert floors(consumers) == expected


def test_floors_of_thousands() -> None:
    """The event loop waits for it; comparing each with each would take minutes."""
    consumers = [(f"mesh.n.topic.p.*.rooms.{number}.said", number) for number in range(10_000)]
    began = time.process_time()
    found = floors([*consumers, ("mesh.n.topic.p.*.rooms.*.said", 5_000)])
    assert found["mesh.n.topic.p.*.rooms.7000.said"] == 5_000
    assert floors(consumers) == dict(consumers)
    assert time.process_time() - began < 20


filters = st.sampled_from(
    [f"m.n.t.s.{each}" for each in ("1.a", "*.a", "2.b", "*.b", "1.*", "*.*", ">", "1.>", "*.a.>", "1.a.b", "*.*.b")]
)
subjects = st.sampled_from([f"m.n.t.s.{each}" for each in ("1.a", "2.a", "1.b", "1.a.b", "2.a.b", "1.b.b", "1.a.b.c")])


@given(st.lists(st.tuples(filters, st.integers(0, 9)), max_size=5), subjects, st.integers(1, 9))
def test_nothing_is_purged_that_a_group_has_yet_to_handle(
    consumers: list[tuple[str, int]], subject: str, sequence: int
) -> None:
    purged = any(matches(each, subject) and sequence <= floor for each, floor in floors(consumers).items())
    needed = any(matches(each, subject) and sequence > floor for each, floor in consumers)
    assert not (purged and needed)


@pytest.mark.skipif(find_nats_server() is None, reason="nats-server is not installed")
async def test_trim_on_a_server(tmp_path_factory: pytest.TempPathFactory) -> None:
    address = Address(Kind.TOPIC, "mesh.t.topic.p", "a", "a")
    handled: list[bytes] = []

    async def handle(delivery: object) -> None:
        handled.append(delivery.message.body)  # type: ignore[attr-defined]
        await delivery.ack()  # type: ignore[attr-defined]

    async with NatsServer(tmp_path_factory.mktemp("nats")) as server, NatsBroker.from_url(server.url) as broker:
        await broker.declare(Topology(address.space))
        connection = broker._connection
        trimmer = broker._trimmer

        async def stored() -> int:
            info = await connection.api("STREAM.INFO.mesh_t_topic_p")
            return int(info["state"]["messages"])  # type: ignore[index,call-overload]

        for number in range(5):
            await broker.publish(address, Message({}, b"%d" % number))
        await trimmer.trim("mesh_t_topic_p")
        assert await stored() == 5, "without a group, all is kept"
        async with (
            broker.subscribe(address, SubscribeOptions("g"), handle),
            broker.subscribe(address, SubscribeOptions("h", ordered=True), handle),
        ):

            async def trimmed() -> None:
                await trimmer.trim("mesh_t_topic_p")
                assert await stored() == 0

            await eventually(trimmed)
        assert len(handled) == 10
        for number in range(3):
            await broker.publish(address, Message({}, b"%d" % number))
        await trimmer.trim("mesh_t_topic_p")
        assert await stored() == 3


@pytest.mark.parametrize(
    ("own", "handled", "total", "expected"),
    [(1, 0, 1, 1.0), (17, 0, 17, 1.0), (1, 0, 1000, 0.001), (1, 90, 1000, 0.01), (1, 10**6, 1000, 1.0), (1, 0, 0, 1.0)],
)
def test_share(own: int, handled: int, total: int, expected: float) -> None:
    assert share(own, handled, total) == pytest.approx(expected)


NODES, LOOKS = 40, 30


@pytest.mark.skipif(find_nats_server() is None, reason="nats-server is not installed")
async def test_what_trimming_reads_does_not_grow_with_the_nodes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """All of them together read the list of consumers about once a minute, as one alone does."""
    space = "mesh.t.topic.p"
    dice, asked = random.Random(5), Counter[str]()

    async def handle(delivery: object) -> None:
        await delivery.ack()  # type: ignore[attr-defined]

    async with NatsServer(tmp_path_factory.mktemp("nats")) as server, AsyncExitStack() as stack:
        brokers = [await stack.enter_async_context(NatsBroker.from_url(server.url)) for _ in range(NODES)]
        await brokers[0].declare(Topology(space))
        for number, broker in enumerate(brokers):
            at = Address(Kind.TOPIC, space, f"t{number}", f"t{number}")
            await stack.enter_async_context(broker.subscribe(at, SubscribeOptions(f"g{number}"), handle))

            async def api(
                subject: str, request: Any = None, *, refusable: bool = False, call: Any = broker._connection.api
            ) -> Any:
                asked[subject.split(".")[1] if subject.startswith("CONSUMER.LIST") else subject.split(".")[0]] += 1
                return await call(subject, request, refusable=refusable)

            broker._connection.api = api  # type: ignore[method-assign]
            broker._trimmer._dice = dice.random
        for _ in range(LOOKS):
            for broker in brokers:
                for stream in broker._trimmer.streams:
                    await broker._trimmer.look(stream)
        assert asked["STREAM"] == NODES * LOOKS, "each looks how many consumers there are, and purges nothing"
        assert LOOKS / 2 < asked["LIST"] < LOOKS * 2


@pytest.mark.skipif(find_nats_server() is None, reason="nats-server is not installed")
async def test_who_handles_much_trims_beside_many_who_do_not(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Groups that nobody uses any more must not let a stream fill up."""
    space = "mesh.t.topic.p"
    address = Address(Kind.TOPIC, space, "a", "a")

    async def handle(delivery: object) -> None:
        await delivery.ack()  # type: ignore[attr-defined]

    async with NatsServer(tmp_path_factory.mktemp("nats")) as server, NatsBroker.from_url(server.url) as broker:
        await broker.declare(Topology(space))
        for number in range(20):
            unused = Address(Kind.TOPIC, space, f"unused{number}", "")
            async with broker.subscribe(unused, SubscribeOptions("g"), handle):
                pass
        trimmer = broker._trimmer
        trimmer._dice = lambda: 0.99
        stream = "mesh_t_topic_p"
        async with broker.subscribe(address, SubscribeOptions("g"), handle):
            await trimmer.look(stream)
            for number in range(250):
                await broker.publish(address, Message({}, b"%d" % number))

            async def handled() -> None:
                info = await broker._connection.api(f"CONSUMER.LIST.{stream}")
                floors = [each["ack_floor"]["stream_seq"] for each in info["consumers"]]  # type: ignore[attr-defined]
                assert max(floors) == 250

            await eventually(handled)
            await trimmer.look(stream)
            info = await broker._connection.api(f"STREAM.INFO.{stream}")
            assert info["state"]["messages"] == 0  # type: ignore[index,call-overload]
