"""Membership in a consumer group: join, share out the partitions, stay, commit, leave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import Any

import orjson
from aiokafka import errors as kafka
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest

from brokers.kafka._cluster import LATEST, Cluster, error_of
from mesh.errors import BrokerError, BrokerUnavailableError

__all__ = ["Lost", "Membership", "NewRound", "Solo", "share_out"]

PROTOCOL = "mesh"
HEARTBEATS = 6  # In one session.
# A first round lasts as long as the broker says (3 s), again for whoever comes meanwhile, and no longer than this.
REBALANCE_WAIT = 4.0
_LOST = (kafka.UnknownMemberIdError, kafka.IllegalGenerationError)
_ELSEWHERE = (kafka.NotCoordinatorForGroupError, kafka.GroupCoordinatorNotAvailableError)
_ANEW = (*_ELSEWHERE, kafka.GroupLoadInProgressError, kafka.RebalanceInProgressError)


class Lost(Exception):
    """The group goes on without this member: it must join anew, and owns nothing."""


class NewRound(Exception):
    """The group shares out its partitions anew."""


class Membership:
    """One member of one group."""

    def __init__(self, cluster: Cluster, group: str, topic: str) -> None:
        self._cluster = cluster
        self._group = group
        self._topic = topic
        self._purpose = cluster.purpose("group")
        self._coordinator: int | None = None
        self._member = ""
        self._generation = -1
        self._poked_until = 0.0
        self._poked = asyncio.Event()
        self._interrupted = False
        self.alone = False

    @property
    def joined(self) -> bool:
        """Whether this member belongs to a generation."""
        return self._generation >= 0

    @property
    def known(self) -> bool:
        """Whether the group may know this member."""
        return bool(self._member)

    def interrupt(self) -> None:
        """Let `stay` return."""
        self._interrupted = True
        self._poked.set()

    def poke(self) -> None:
        """Look soon whether there is a new round."""
        self._poked_until = time.monotonic() + 0.5
        self._poked.set()

    async def _call(self, request: object, wait: float = 0.0) -> Any:
        if self._coordinator is None:
            found = await self._cluster.ask(FindCoordinatorRequest(self._group, 0))
            failure = error_of(found.error_code)
            if failure is not None:
                if failure.retriable or issubclass(failure, _ANEW):
                    raise self._cluster.unavailable(str(failure()))
                raise BrokerError(f"Kafka has no place for group {self._group!r}: {failure.__name__}")
            if found.coordinator_id not in self._cluster.nodes():
                await self._cluster.refresh()
            self._coordinator = found.coordinator_id
        try:
            return await self._cluster.call(self._coordinator, request, self._purpose, wait=wait)
        except BrokerUnavailableError:
            self._coordinator = None
            raise

    def _check(self, code: int) -> None:
        failure = error_of(code)
        if failure is None:
            return
        if issubclass(failure, _LOST):
            self.reset()
            raise Lost
        if failure is kafka.RebalanceInProgressError:
            raise NewRound
        if issubclass(failure, _ELSEWHERE):
            self._coordinator = None
        if failure.retriable or issubclass(failure, _ANEW):
            raise self._cluster.unavailable(str(failure()))
        raise BrokerError(f"group {self._group!r} on Kafka at {self._cluster.shown}: {failure.__name__}")

    def reset(self) -> None:
        """Forget the membership."""
        self._member, self._generation = "", -1

    async def join(self, owned: Collection[int]) -> set[int]:
        """Take part in a round; give the partitions that are this member's now."""
        while True:
            try:
                return await self._join(owned)
            except NewRound:
                continue

    async def _join(self, owned: Collection[int]) -> set[int]:
        session = self._cluster.config.session_timeout
        wait = max(REBALANCE_WAIT, 2 * session / HEARTBEATS)  # Every member looks for a new round within it.
        mine = ConsumerProtocolMemberMetadata(0, [self._topic], orjson.dumps(sorted(owned))).encode()
        while True:
            request = JoinGroupRequest(
                self._group,
                int(session * 1000),
                int(wait * 1000),
                self._member,
                None,
                "consumer",
                [(PROTOCOL, mine)],
            )
            joined = await self._call(request, wait + session)
            if error_of(joined.error_code) is kafka.MemberIdRequired:
                self._member = joined.member_id
                continue
            break
        self._check(joined.error_code)
        self._member = joined.member_id
        generation = joined.generation_id
        shares: list[tuple[str, bytes]] = []
        self.alone = False
        if joined.leader_id == self._member:
            members = {
                each[0]: set(orjson.loads(ConsumerProtocolMemberMetadata.decode(each[-1]).user_data or b"[]"))
                for each in joined.members
            }
            self.alone = len(members) == 1
            if not self._cluster.partitions(self._topic):
                await self._cluster.refresh(self._topic)
            shares = [
                (member, ConsumerProtocolMemberAssignment(0, [(self._topic, sorted(share))], b"").encode())
                for member, share in share_out(self._cluster.partitions(self._topic), members).items()
            ]
        synced = await self._call(SyncGroupRequest(self._group, generation, self._member, None, shares), wait)
        self._check(synced.error_code)
        self._generation = generation
        assignment = ConsumerProtocolMemberAssignment.decode(synced.member_assignment)
        return {each.partition for each in assignment.partitions()}

    async def stay(self) -> None:
        """Give signs of life until the group has a new round; returns only when interrupted.

        Raises:
            NewRound: Join again.
            Lost: Join anew.
        """
        interval = self._cluster.config.session_timeout / HEARTBEATS
        self._interrupted = False
        while True:
            poked = time.monotonic() < self._poked_until
            self._poked.clear()
            try:
                async with asyncio.timeout(0.02 if poked else interval):
                    await self._poked.wait()
            except TimeoutError:
                pass
            if self._interrupted:
                return
            await self.beat()

    async def beat(self) -> None:
        """Give one sign of life."""
        try:
            response = await self._call(HeartbeatRequest(self._group, self._generation, self._member))
            self._check(response.error_code)
        except BrokerUnavailableError:
            await self._cluster.pause()

    async def commit(self, offsets: Mapping[int, tuple[int, str]]) -> None:
        """Store offsets with their notes."""
        parts = [(partition, offset, note) for partition, (offset, note) in offsets.items()]
        request = OffsetCommitRequest(self._group, self._generation, self._member, -1, [(self._topic, parts)])
        response = await self._call(request)
        for _, results in response.topics:
            for _, code in results:
                self._check(code)

    async def committed(self, partitions: Collection[int]) -> dict[int, tuple[int, str]]:
        """Read offsets with their notes; what was never committed is missing."""
        response = await self._call(OffsetFetchRequest(self._group, [(self._topic, sorted(partitions))]))
        self._check(getattr(response, "error_code", 0))
        found: dict[int, tuple[int, str]] = {}
        for _, results in response.topics:
            for partition, offset, note, code in results:
                self._check(code)
                if offset >= 0:
                    found[partition] = offset, note or ""
        return found

    async def leave(self) -> None:
        """Leave the group; others take over at once."""
        if self._member:
            member = self._member
            self.reset()
            await self._call(LeaveGroupRequest(self._group, member))

    async def close(self) -> None:
        """Close the connection."""
        await self._cluster.drop(self._purpose)


class Solo:
    """Stands for a group that lasts as long as its only member: Kafka need not know it."""

    alone = True
    known = joined = False

    def __init__(self, cluster: Cluster, topic: str) -> None:
        self._cluster = cluster
        self._topic = topic

    async def join(self, owned: Collection[int]) -> set[int]:
        """Take every partition."""
        self.known = self.joined = True
        return set(range(self._cluster.partitions(self._topic)))

    async def committed(self, partitions: Collection[int]) -> dict[int, tuple[int, str]]:
        """Begin with what comes now."""
        latest = await self._cluster.offsets(self._topic, dict.fromkeys(partitions, LATEST))
        return {partition: (offset, "") for partition, offset in latest.items()}

    async def commit(self, offsets: Mapping[int, tuple[int, str]]) -> None:
        """Nobody comes after this member."""

    async def stay(self) -> None:
        """Nothing changes."""
        await asyncio.Event().wait()

    def poke(self) -> None:
        """There is no round to look for."""

    interrupt = poke

    async def leave(self) -> None:
        """Be gone."""
        self.known = self.joined = False

    async def close(self) -> None:
        """There is no connection."""


def share_out(count: int, members: Mapping[str, set[int]]) -> dict[str, set[int]]:
    """Give everybody as many partitions as the others; whoever had one keeps it if that is fair."""
    names = sorted(members, key=lambda name: (-len(members[name]), name))
    most, extra = divmod(count, len(names))
    room = {name: most + (index < extra) for index, name in enumerate(names)}
    shares: dict[str, set[int]] = {name: set() for name in names}
    free = set(range(count))
    for name in names:
        for partition in sorted(members[name] & free)[: room[name]]:
            shares[name].add(partition)
            free.discard(partition)
    for name in names:
        while len(shares[name]) < room[name]:
            shares[name].add(free.pop())
    return shares
