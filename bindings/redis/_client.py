"""Commands to one server, to the primary that Sentinels name, or to a cluster; what was not done is sent again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha1
from typing import Protocol, cast

from redis.crc import key_slot

from bindings.redis._lanes import Lanes
from bindings.redis._settings import START_SHARE, Address
from bindings.redis._wire import Dial, LostError, RefusedError, Reply, Socket, Word, Words
from mesh.steps import Steps
from mesh.tasks import task_group

__all__ = ["Client", "Command", "Script", "slot_of"]

SLOTS = 16384
AT_ONCE = 1000
MAX_REDIRECTS = 16
START_WAIT = 0.1
# It answers, but cannot serve just now.
NOT_NOW = frozenset({"LOADING", "BUSY", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN", "READONLY", "NOREPLICAS"})
MOVES = frozenset({"MOVED", "ASK"})
# It will refuse us the next time as well.
NOT_US = frozenset({"WRONGPASS", "NOAUTH", "NOPERM", "DENIED", "ERR"})


def slot_of(key: bytes) -> int:
    """Give the slot of a cluster that a key is in."""
    return key_slot(key)


@dataclass(frozen=True, slots=True)
class Command:
    """A command.

    Attributes:
        words: Of it.
        key: Where it goes in a cluster; empty goes anywhere.
        again: Whether it may be sent again although it may have been done: it only reads.
        script: The text that ``EVALSHA`` stands for.
    """

    words: Words
    key: bytes = b""
    again: bool = False
    script: str = ""


class Script:
    """A script, sent by its digest, and as a text to a server that does not know it."""

    def __init__(self, text: str, *, reads: bool = False) -> None:
        """Take the text; ``reads`` when it changes nothing."""
        self._text = text
        self._digest = sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._reads = reads

    def of(self, keys: Sequence[bytes], *arguments: str | bytes | int) -> Command:
        """Make the command for some keys."""
        words = ("EVALSHA", self._digest, len(keys), *keys, *arguments)
        return Command(words, keys[0], self._reads, self._text)


def _parts(commands: Sequence[Command]) -> Iterator[list[Command]]:
    """Part commands into those that may be under way at once: they may overtake each other."""
    part: list[Command] = []
    written: set[bytes] = set()
    for command in commands:
        if len(part) == AT_ONCE or (command.key in written and not command.again):
            yield part
            part, written = [], set()
        part.append(command)
        written.add(command.key)
    yield part


class _Place(Protocol):
    """Where commands go."""

    async def start(self) -> None:
        """Find whether somebody is there."""

    def submit(self, command: Command) -> asyncio.Future[Reply]:
        """Send a command."""

    async def follow(self, command: Command, error: RefusedError | LostError) -> asyncio.Future[Reply] | None:
        """Learn from an error; give the reply of a command that was sent elsewhere because of it."""

    def dials(self) -> Sequence[Address | None]:
        """Give each server that holds keys, as `Dial.open` takes it."""

    async def learn(self) -> None:
        """Find out anew which servers hold keys."""

    def at(self, server: Address | None) -> Lanes:
        """Give the connections to one of them."""


class _Server:
    """One server, or the primary that Sentinels name."""

    def __init__(self, dial: Dial, tasks: asyncio.TaskGroup) -> None:
        self._lanes = Lanes(dial.open, dial.settings, tasks)

    async def start(self) -> None:
        await self._lanes.submit(("PING",))

    def submit(self, command: Command) -> asyncio.Future[Reply]:
        return self._lanes.submit(command.words)

    async def follow(self, command: Command, error: RefusedError | LostError) -> asyncio.Future[Reply] | None:
        if isinstance(error, RefusedError) and error.reply_code in MOVES:
            raise RefusedError("it is a node of a cluster, which needs redisType: cluster", "ERR")
        return None

    def dials(self) -> Sequence[Address | None]:
        return (None,)

    async def learn(self) -> None:
        """Each new connection finds the server anew."""

    def at(self, server: Address | None) -> Lanes:
        return self._lanes

    def close(self) -> None:
        self._lanes.close()


class _Cluster:
    """The primaries of a cluster, by slot."""

    def __init__(self, dial: Dial, tasks: asyncio.TaskGroup) -> None:
        self._dial = dial
        self._tasks = tasks
        self._lanes: dict[Address, Lanes] = {}
        self._slots: list[Address | None] = [None] * SLOTS
        self._asking: asyncio.Lock = asyncio.Lock()
        self._asked = 0

    async def start(self) -> None:
        await self.learn()

    async def learn(self) -> None:
        await self._refresh(self._asked)

    def at(self, address: Address | None) -> Lanes:
        assert address is not None
        lanes = self._lanes.get(address)
        if lanes is None:

            async def dial() -> Socket:
                return await self._dial.open(address)

            lanes = self._lanes[address] = Lanes(dial, self._dial.settings, self._tasks)
        return lanes

    def submit(self, command: Command) -> asyncio.Future[Reply]:
        address = self._slots[key_slot(command.key)]
        if address is None:
            address = next((each for each in self._slots if each is not None), self._dial.settings.addresses[0])
        return self.at(address).submit(command.words)

    async def follow(self, command: Command, error: RefusedError | LostError) -> asyncio.Future[Reply] | None:
        asked = self._asked
        if isinstance(error, LostError) or error.reply_code == "CLUSTERDOWN":
            await self._refresh(asked)
            return None
        if error.reply_code not in MOVES:
            return None
        slot, _, place = str(error).removeprefix(f"{error.reply_code} ").partition(" ")
        host, _, port = place.rpartition(":")
        address = (host or self._dial.settings.addresses[0][0], int(port))
        if error.reply_code == "ASK":
            return self.at(address).submit(command.words, asking=True)
        self._slots[int(slot)] = address
        return self.at(address).submit(command.words)

    async def _refresh(self, asked: int) -> None:
        """Learn where slots are, from the first node that tells; somebody else may have just done it."""
        async with self._asking:
            if self._asked != asked:
                return
            failure: Exception = LostError("no node of the cluster answers", sent=False)
            for address in dict.fromkeys((*self.dials(), *self._dial.settings.addresses)):
                try:
                    told = await self.at(address).submit(("CLUSTER", "SLOTS"))
                except (LostError, RefusedError) as error:
                    failure = error
                    continue
                self._learn(cast("list[list[object]]", told), address[0])
                return
            raise failure

    def _learn(self, told: list[list[object]], asked_host: str) -> None:
        self._asked += 1
        slots: list[Address | None] = [None] * SLOTS
        for first, last, primary, *_ in told:
            host, port = cast("tuple[bytes, int]", tuple(cast("list[object]", primary)[:2]))
            address = (host.decode() if host else asked_host, port)
            for slot in range(cast("int", first), cast("int", last) + 1):
                slots[slot] = address
        self._slots = slots
        known = {*slots, *self._dial.settings.addresses}
        for address in [each for each in self._lanes if each not in known]:
            self._lanes.pop(address).close()

    def dials(self) -> Sequence[Address]:
        return tuple(dict.fromkeys(each for each in self._slots if each is not None))

    def close(self) -> None:
        for lanes in self._lanes.values():
            lanes.close()


class Client(Steps):
    """Sends commands; entering looks whether somebody is there.

    Attributes:
        dial: Opens a connection that is not shared.
        cluster: Whether keys are on several servers.
    """

    def __init__(self, dial: Dial, start_within: float) -> None:
        """Prepare.

        Args:
            dial: Opens connections.
            start_within: Seconds that entering may take.
        """
        super().__init__()
        self.dial = dial
        self.cluster = dial.settings.kind == "cluster"
        self._start_within = start_within * START_SHARE

    @property
    def shown(self) -> str:
        """Where it points, without credentials."""
        return self.dial.settings.shown

    async def _enter(self) -> None:
        """Wait for the server.

        Raises:
            LostError: It did not answer in time.
            RefusedError: It refuses us.
        """
        tasks = await self._stack.enter_async_context(task_group())
        place = _Cluster(self.dial, tasks) if self.cluster else _Server(self.dial, tasks)
        self._place: _Place = place
        self._stack.callback(place.close)
        reason = ""
        try:
            async with asyncio.timeout(self._start_within):
                while True:
                    try:
                        return await place.start()
                    except LostError as error:
                        reason = f": {error}"
                    except RefusedError as error:
                        if error.reply_code in NOT_US:
                            raise
                        reason = f": {error}"
                    await asyncio.sleep(START_WAIT)
        except TimeoutError:
            text = f"{self.shown} did not answer within {self._start_within:g} s{reason}"
            raise LostError(text, sent=False) from None

    def servers(self) -> Sequence[Address | None]:
        """Give each server that holds keys, as `Dial.open` takes it."""
        return self._place.dials()

    async def learn_servers(self) -> None:
        """Find out anew which servers hold keys; raises as `run` does."""
        await self._place.learn()

    async def scan(self, server: Address | None, options: Words) -> AsyncIterator[list[bytes]]:
        """Give the names of a server's keys, some more than once; raises as `run` does."""
        cursor: Word = b"0"
        attempts = 0
        while True:
            try:
                reply = await self._place.at(server).submit(("SCAN", cursor, *options))
            except LostError:
                attempts += 1
                if attempts > self.dial.settings.retries:
                    raise
                cursor = b"0"  # It may be another server now, or the same with its keys in another order.
                continue
            cursor, names = cast("tuple[bytes, list[bytes]]", reply)
            yield names
            if cursor == b"0":
                return

    async def run(self, command: Command) -> Reply:
        """Send a command and return its reply.

        Raises:
            RefusedError: The server answered with an error.
            LostError: There is no connection, or it broke; ``sent`` says whether the command may have been done.
        """
        try:
            return await self._place.submit(command)
        except (RefusedError, LostError) as error:
            return await self._repeat(command, error)

    async def run_all(self, commands: Sequence[Command]) -> list[Reply | RefusedError | LostError]:
        """Send several, in order where they write to the same key; give what each came to."""
        results: list[Reply | RefusedError | LostError] = []
        for part in _parts(commands):
            for command, sent in [(each, self._place.submit(each)) for each in part]:
                try:
                    results.append(await sent)
                except (RefusedError, LostError) as error:
                    results.append(await self._last(command, error))
        return results

    async def _last(self, command: Command, error: RefusedError | LostError) -> Reply | RefusedError | LostError:
        try:
            return await self._repeat(command, error)
        except (RefusedError, LostError) as last:
            return last

    async def _repeat(self, command: Command, error: RefusedError | LostError) -> Reply:
        """Send a command again, as far as that does no harm."""
        settings = self.dial.settings
        attempts = redirects = 0
        while True:
            wait = 0.0
            if isinstance(error, RefusedError) and error.reply_code == "NOSCRIPT" and command.script:
                command = replace(command, words=("EVAL", command.script, *command.words[2:]), script="")
            elif isinstance(error, RefusedError) and error.reply_code in MOVES:
                redirects += 1
                if redirects > MAX_REDIRECTS:
                    raise error
            else:
                lost = isinstance(error, LostError)
                may = (command.again or not error.sent) if isinstance(error, LostError) else error.reply_code in NOT_NOW
                if not may or attempts >= settings.retries:
                    raise error
                wait = 0.0 if lost and attempts == 0 else min(settings.most_wait, settings.least_wait * 2**attempts)
                attempts += 1
            if wait:
                await asyncio.sleep(wait)
            try:
                elsewhere = await self._place.follow(command, error)
                return await (elsewhere or self._place.submit(command))
            except (RefusedError, LostError) as another:
                error = another
