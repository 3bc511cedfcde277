"""What may be purged from a stream: only what every group has handled."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokers.nats import NatsBroker
from brokers.nats._trim import floors, trim
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

        async def stored() -> int:
            info = await connection.api("STREAM.INFO.mesh_t_topic_p")
            return int(info["state"]["messages"])  # type: ignore[index,call-overload]

        for number in range(5):
            await broker.publish(address, Message({}, b"%d" % number))
        await trim(connection, "mesh_t_topic_p")
        assert await stored() == 5, "without a group, all is kept"
        async with (
            broker.subscribe(address, SubscribeOptions("g"), handle),
            broker.subscribe(address, SubscribeOptions("h", ordered=True), handle),
        ):

            async def trimmed() -> None:
                await trim(connection, "mesh_t_topic_p")
                assert await stored() == 0

            await eventually(trimmed)
        assert len(handled) == 10
        for number in range(3):
            await broker.publish(address, Message({}, b"%d" % number))
        await trim(connection, "mesh_t_topic_p")
        assert await stored() == 3
