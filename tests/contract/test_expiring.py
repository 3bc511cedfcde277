"""Groups that end when nobody uses them, until somebody wants them to last."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brokers.nats import NatsBroker
from brokers.redis import RedisBroker
from mesh.address import decode_token
from mesh.broker import Broker, Delivery, SubscribeOptions, Topology
from mesh.errors import BrokerError
from tests.support.contract import Inbox, Place, text
from tests.support.eventually import eventually
from tests.support.nats import NatsServer, find_nats_server

WEEK, DAY, SOON = 7 * 24 * 3600.0, 24 * 3600.0, 3.0


async def groups(place: Place, broker: Broker) -> dict[str, float | None] | None:
    """Give the groups of this test's topics, and after how many seconds each expires; None where none ever does."""
    space = place.topic().space
    if isinstance(broker, RedisBroker):
        await broker._spaces.trim(space)
        found: Any = await broker._commands.call("HGETALL", f"{space}:groups")
        pairs = dict(zip(found[::2], found[1::2], strict=True))
        keys = {gid: f"{space}:e:{gid.decode()}" for gid in pairs}
        lives: dict[bytes, Any] = {gid: await broker._commands.call("GET", key) for gid, key in keys.items()}
        return {
            gid.decode().split()[0]: int(lives[gid] or 0) / 1000 if int(kind) >= 4 else None
            for gid, kind in pairs.items()
        }
    if isinstance(broker, NatsBroker):
        listed: Any = await broker._connection.api(f"CONSUMER.LIST.{space.replace('.', '_')}")
        return {
            decode_token(each["name"].rpartition("-")[0]): seconds / 1e9 if seconds else None
            for each in listed["consumers"]
            for seconds in [each["config"].get("inactive_threshold")]
        }
    return None


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param([WEEK], WEEK, id="the first says when"),
        pytest.param([WEEK, DAY], WEEK, id="a second one does not change it"),
        pytest.param([WEEK, None], None, id="whoever wants it to last takes it away"),
        pytest.param([None, WEEK], None, id="a group that lasts does not expire"),
        pytest.param([WEEK, None, WEEK], None, id="and nobody gives it back"),
    ],
)
async def test_how_long_a_group_that_nobody_uses_is_kept(
    place: Place, broker: Broker, said: list[float | None], expected: float | None
) -> None:
    """Whoever it is, it goes on where the one before it was."""
    options = SubscribeOptions("g")
    inbox = Inbox()
    for number, seconds in enumerate(said):
        async with broker.subscribe(place.topic(), replace(options, expires=seconds), inbox):
            await broker.publish(place.topic(), text(number))
            await inbox.holds(number + 1)
        await broker.publish(place.topic("other"), text("kept for those who come"))
    assert inbox.bodies == [str(number).encode() for number in range(len(said))]
    found = await groups(place, broker)
    assert found is None or found == {"g": expected}


async def test_members_at_once_that_differ(place: Place, broker: Broker, other: Broker) -> None:
    """The one that wants the group to last wins, though the other was there first and stays."""
    lasting, inbox = SubscribeOptions("g"), Inbox()
    async with broker.subscribe(place.topic(), replace(lasting, expires=WEEK), inbox):
        async with other.subscribe(place.topic(), lasting, inbox):
            await broker.publish(place.topic(), text("x"))
            await inbox.holds(1)
        await broker.publish(place.topic(), text("y"))
        await inbox.holds(2)
    found = await groups(place, broker)
    assert found is None or found == {"g": None}


async def test_what_nobody_uses_ends_and_nothing_else(place: Place, broker: Broker) -> None:
    """What lasts goes on where it was, and a member is one for as long as it is busy."""
    hold = asyncio.Event()

    async def settle(delivery: Delivery) -> None:
        while not hold.is_set():
            await delivery.extend()
            await asyncio.sleep(0.05)
        await delivery.ack()

    brief = SubscribeOptions("used", expires=SOON, max_in_flight=1, ack_wait=2.0)
    kept, busy = Inbox(), Inbox(settle)
    async with broker.subscribe(place.topic(), brief, busy):
        await place.begin(broker, SubscribeOptions("kept", expires=SOON))
        async with broker.subscribe(place.topic(), SubscribeOptions("kept"), kept):
            await broker.publish(place.topic(), text("before"))
            await kept.holds(1)
        await busy.holds(1)
        for number in range(20):
            await place.begin(broker, SubscribeOptions("brief", expires=SOON), f"room-{number}")

        async def only_those_that_are_used() -> None:
            found = await groups(place, broker)
            assert found is None or found == {"kept": None, "used": SOON}

        await eventually(only_those_that_are_used)
        await broker.publish(place.topic(), text("after"))
        hold.set()
        await busy.holds(2)
    async with broker.subscribe(place.topic(), SubscribeOptions("kept"), kept):
        await kept.holds(2)
    assert kept.bodies == busy.bodies == [b"before", b"after"]


async def test_as_many_groups_as_there_may_be(place: Place, broker: Broker) -> None:
    """Those that are there go on, and one more is told what to do."""
    if not isinstance(broker, NatsBroker):
        pytest.skip("only NATS bounds them")
    inbox, stream = Inbox(), place.topic().space.replace(".", "_")
    lasting, brief = SubscribeOptions("lasting"), SubscribeOptions("brief", expires=WEEK)
    async with broker.subscribe(place.topic(), lasting, inbox):
        await place.begin(broker, brief)
        found: Any = await broker._connection.api(f"STREAM.INFO.{stream}")
        await broker._connection.api(f"STREAM.UPDATE.{stream}", {**found["config"], "max_consumers": 2})
        for options in (replace(lasting, group="more"), replace(brief, group="more")):
            with pytest.raises(BrokerError, match=rf"nats stream edit {stream} --max-consumers"):
                await place.begin(broker, options)
        await broker.publish(place.topic(), text("x"))
        await inbox.holds(1)
    await broker.declare(Topology(place.topic().space))
    for options in (lasting, brief, replace(brief, expires=None)):
        async with broker.subscribe(place.topic(), options, inbox):
            pass
    assert await groups(place, broker) == {"lasting": None, "brief": None}


ACCOUNT = """accounts { A { jetstream { max_consumers: 50 }, users: [{ user: a, password: b }] } }
no_auth_user: a
"""


@pytest.mark.skipif(find_nats_server() is None, reason="nats-server is not installed")
@pytest.mark.parametrize(
    ("config", "most"), [("", 10_000), (ACCOUNT, -1)], ids=["by itself", "with an account's limit"]
)
async def test_how_many_groups_a_stream_on_nats_has_room_for(tmp_path: Path, config: str, most: int) -> None:
    """A stream that is there keeps what somebody else has said."""
    topology, stream = Topology("mesh.t.topic.p"), "mesh_t_topic_p"
    async with NatsServer(tmp_path, config=config) as server, NatsBroker.from_url(server.url) as broker:

        async def room() -> int:
            found: Any = await broker._connection.api(f"STREAM.INFO.{stream}")
            return found["config"]["max_consumers"]  # type: ignore[no-any-return]

        await broker.declare(topology)
        assert await room() == most
        await broker.declare(topology)
        found: Any = await broker._connection.api(f"STREAM.INFO.{stream}")
        await broker._connection.api(f"STREAM.UPDATE.{stream}", {**found["config"], "max_consumers": 30})
        await broker.declare(topology)
        assert await room() == 30
