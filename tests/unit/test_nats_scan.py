"""What a scan makes of answers of NATS that no real server gives on request: of one that lags, of long lists."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from brokers.nats import _scan
from brokers.nats._client import Answer, Connection
from brokers.nats._scan import Found, Scanner

SPACE = "$KV.s.t."


class Servers:
    """A leader with messages, and replicas that have less: how far behind each next answer is, stands in ``lags``."""

    def __init__(self, subjects: list[str]) -> None:
        self.client = SimpleNamespace(max_payload=1024 * 1024)
        self.sequence = 0
        self.messages: dict[str, int] = {}
        self.lags: list[int] = []
        self.asked: list[list[str]] = []
        self.offsets: list[int] = []
        self.from_leader: list[str] = []
        self.page = 100_000
        self.most = 10_000
        self.before_list: Callable[[], None] = lambda: None
        for subject in subjects:
            self.write(subject)

    def write(self, subject: str) -> None:
        self.sequence += 1
        self.messages[subject] = self.sequence

    async def api(self, subject: str, request: dict[str, Any]) -> dict[str, object]:
        assert subject == "STREAM.INFO.S"
        self.before_list()
        offset, space = request["offset"], request["subjects_filter"].removesuffix(">")
        self.offsets.append(offset)
        found = sorted(each for each in self.messages if each.startswith(space))
        part = dict.fromkeys(found[offset : offset + self.page], 1)
        return {"state": {"last_seq": self.sequence, "subjects": part or None}, "total": len(found)}

    async def gather(self, subject: str, body: bytes) -> tuple[list[Answer], Answer]:
        assert subject == "$JS.API.DIRECT.GET.S"
        wanted = orjson.loads(body)["multi_last"]
        self.asked.append(wanted)
        upto = self.sequence - (self.lags.pop(0) if self.lags else 0)
        there = [each for each in wanted if self.messages.get(each, upto + 1) <= upto]
        if not there:
            return [], Answer({"Status": "404"}, b"")
        given = there[: self.most]
        answers = [Answer({"Nats-Subject": each, "Nats-Sequence": str(self.messages[each])}, b"v") for each in given]
        end = {"Status": "204", "Nats-UpTo-Sequence": str(upto), "Nats-Num-Pending": str(len(there) - len(given))}
        return answers, Answer(end, b"")

    async def read(self, subject: str) -> Found | None:
        self.from_leader.append(subject)
        sequence = self.messages.get(subject)
        return None if sequence is None else (sequence, {}, b"v")


def names(count: int) -> list[str]:
    return [f"{SPACE}{number:04}" for number in range(count)]


def scanner(servers: Servers) -> Scanner:
    return Scanner(cast("Connection", servers), "S", servers.read)


async def scanned(scan: Scanner, limit: int, after: str = "") -> list[str]:
    found: list[str] = []
    place: str | None = after
    while place is not None:
        messages, place = await scan.scan(SPACE, place, limit)
        found += [subject for subject, _ in messages]
    return found


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scan, "LAG_WAIT", 0.0)


async def test_a_replica_that_lags_is_asked_again() -> None:
    servers = Servers(names(10))
    servers.lags = [3, 1]
    assert await scanned(scanner(servers), 100) == names(10)
    assert (len(servers.asked), servers.from_leader) == (3, [])


async def test_replicas_that_go_on_to_lag_are_not_believed() -> None:
    servers = Servers(names(10))
    servers.lags = [3] * 1000
    messages, _ = await scanner(servers).scan(SPACE, "", 100)
    assert [(subject, found[0]) for subject, found in messages] == list(servers.messages.items())
    assert sorted(servers.from_leader) == names(10)
    assert len(servers.asked) == _scan.LAG_TRIES


async def test_what_a_replica_leaves_out_is_read_from_the_leader() -> None:
    """It was overwritten while the replica read, or is gone."""
    servers = Servers(names(10))
    gather = servers.gather

    async def without_one(subject: str, body: bytes) -> tuple[list[Answer], Answer]:
        answers, end = await gather(subject, body)
        return [each for each in answers if not each.headers["Nats-Subject"].endswith("7")], end

    servers.gather = without_one  # type: ignore[method-assign]
    assert await scanned(scanner(servers), 100) == names(10)
    assert servers.from_leader == [f"{SPACE}0007"]


async def test_a_replica_that_has_none_of_them() -> None:
    servers = Servers(names(3))
    servers.lags = [3]
    assert await scanned(scanner(servers), 100) == names(3)
    assert sorted(servers.from_leader) == names(3)


async def test_an_answer_that_is_cut_short_is_continued() -> None:
    servers = Servers(names(10))
    servers.most = 4
    assert await scanned(scanner(servers), 100) == names(10)
    assert [len(each) for each in servers.asked] == [10, 6, 2]


async def test_pages_go_on_with_the_list_of_the_first() -> None:
    servers = Servers(names(100))
    assert await scanned(scanner(servers), 7) == names(100)
    assert servers.offsets == [0]


async def test_another_scan_begins_anew() -> None:
    servers = Servers(names(10))
    scan = scanner(servers)
    _, place = await scan.scan(SPACE, "", 5)
    servers.write(f"{SPACE}0004x")
    assert place == f"{SPACE}0004"
    assert (await scan.scan(SPACE, f"{SPACE}0003", 2))[0][1][0] == f"{SPACE}0004x"
    servers.write(f"{SPACE}9999")
    assert await scanned(scan, 100) == sorted(servers.messages)


async def test_lists_that_are_kept_are_few_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scan, "KEEP_SECONDS", 0.05)
    servers = Servers(names(100))
    scan = scanner(servers)
    for number in range(20):
        await scan.scan(SPACE, f"{SPACE}{number:04}", 1)
        assert len(scan._left) <= _scan.KEPT_LISTS
    await asyncio.sleep(0.2)
    assert not scan._left


@pytest.mark.parametrize("limit", [1, 7, 30, 1000])
async def test_a_list_in_parts(limit: int) -> None:
    servers = Servers(names(100))
    servers.page = 30
    assert await scanned(scanner(servers), limit) == names(100)
    assert await scanned(scanner(servers), limit, f"{SPACE}0070") == names(100)[71:]


@pytest.mark.parametrize("limit", [1, 7, 30])
async def test_a_list_in_parts_of_which_some_are_deleted_meanwhile(limit: int) -> None:
    """Then others stand at a place before their own, and none is missed."""
    servers = Servers(names(100))
    servers.page = 30

    def delete_some() -> None:
        if servers.offsets:  # Not before the first list.
            for subject in sorted(servers.messages)[:10]:
                if subject < names(100)[50]:
                    del servers.messages[subject]

    servers.before_list = delete_some
    found = await scanned(scanner(servers), limit)
    assert found == sorted(set(found))
    assert set(names(100)[50:]) <= set(found)
