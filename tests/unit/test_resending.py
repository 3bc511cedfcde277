"""In which order and rhythm a recording is sent, and how much at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.cli.client import GatewayUnreachableError
from gateway.cli.resending import MAX_IN_FLIGHT, Plan, Planned, Senders, send_all
from gateway.replaying.comparison import Answer
from gateway.replaying.recording import Recorded, Recording
from gateway.replaying.replay import Replayed
from gateway.replaying.resending import Resend
from gateway.runs import Run
from mesh.tap.sight import Content, Seen, Sight
from mesh.tap.wire import as_event
from tests.support import virtual_time


class _Sent(Senders):
    """Notes what is sent, and when; each takes as long as it says."""

    def __init__(self, takes: float, fails: str = "") -> None:
        super().__init__(Run("any", 1), ())
        self.sent: list[tuple[float, str]] = []
        self.under_way = self.most = 0
        self._takes, self._fails = takes, fails

    async def send(self, made: Resend) -> Answer:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        name = dict(made.headers)["name"]
        self.sent.append((asyncio.get_running_loop().time(), name))
        await asyncio.sleep(self._takes)
        self.under_way -= 1
        if name == self._fails:
            raise GatewayUnreachableError("gone")
        return Answer(200)

    @property
    def names(self) -> list[str]:
        return [name for _, name in self.sent]

    @property
    def times(self) -> list[float]:
        return [round(at - self.sent[0][0], 6) for at, _ in self.sent]


class _Told:
    def __init__(self) -> None:
        self.came: list[tuple[str, Any]] = []
        self.latest = 0.0

    def done(self, recorded: Recorded, came: Any) -> None:
        self.came.append((recorded.sight.id, came))

    def late(self, seconds: float) -> None:
        self.latest = max(self.latest, seconds)


def _plan(folder: Path, calls: Sequence[tuple[float, str]], speed: float, seconds: float = 60.0) -> Plan:
    """Record calls: when each began, and who asked; each is named by its number."""
    file = folder / "r.jsonl"
    with file.open("wb") as out:
        for number, (began, source) in enumerate(calls):
            sight = Sight(
                id=str(number),
                time=began + 0.5,
                seconds=0.5,
                seen=Seen.ASKED,
                block="invocation",
                method="invoke",
                target="orders",
                source=source,
                app=source,
                node="n",
                outcome="ok",
                details={"verb": "GET", "path": "/"},
                request=Content((("name", f"{source}{number}"),), "", 0, b""),
            )
            out.write(orjson.dumps(as_event("default", sight, sight.time)) + b"\n")
    recording = Recording(file)
    steps = sorted(Planned(each.began, each.line, each.at, each.sight.source) for each in recording)
    return Plan(recording, steps, "", (), (), speed, seconds)


def _send(plan: Plan, senders: _Sent) -> _Told:
    told = _Told()
    with plan.recording:
        virtual_time.run(send_all(plan, senders, told))
    return told


@pytest.mark.parametrize(("speed", "times"), [(1.0, [0, 1, 5]), (2.0, [0, 0.5, 2.5]), (0.5, [0, 2, 10])])
def test_the_rhythm_is_that_of_the_recording(speed: float, times: list[float], tmp_path: Path) -> None:
    """By when each began, whatever the order of the lines; an answer is not waited for."""
    senders = _Sent(takes=3.0)
    told = _send(_plan(tmp_path, [(105.0, "a"), (100.0, "b"), (101.0, "a")], speed), senders)
    assert senders.names == ["b1", "a2", "a0"]
    assert senders.times == times
    assert [type(came) for _, came in told.came] == [Replayed] * 3
    assert told.latest < 0.001


def test_as_fast_as_it_is_taken_keeps_the_order_of_each_source(tmp_path: Path) -> None:
    """One after the other of one source; those of several beside each other."""
    senders = _Sent(takes=1.0)
    _send(_plan(tmp_path, [(100.0, "a"), (200.0, "b"), (300.0, "a"), (250.0, "b"), (301.0, "a")], 0.0), senders)
    assert [name for name in senders.names if name[0] == "a"] == ["a0", "a2", "a4"]
    assert [name for name in senders.names if name[0] == "b"] == ["b1", "b3"]
    assert senders.times == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("speed", [0.0, 1.0])
def test_so_many_are_under_way_and_no_more(speed: float, tmp_path: Path) -> None:
    """Those that are due later wait, which is told."""
    senders = _Sent(takes=1.0)
    calls = [(100.0, f"s{number}-") for number in range(3 * MAX_IN_FLIGHT)]
    told = _send(_plan(tmp_path, calls, speed), senders)
    assert len(told.came) == len(calls)
    assert senders.most == MAX_IN_FLIGHT
    assert senders.times[-1] == 2.0
    assert told.latest == pytest.approx(2.0 if speed else 0.0, abs=0.01)


def test_one_that_hangs_is_given_up(tmp_path: Path) -> None:
    senders = _Sent(takes=10.0)
    told = _send(_plan(tmp_path, [(100.0, "a"), (101.0, "a")], 0.0, seconds=2.0), senders)
    assert [type(came) for _, came in told.came] == [TimeoutError] * 2
    assert senders.times == [0, 2]


@pytest.mark.parametrize("speed", [0.0, 1.0])
def test_a_gateway_that_is_gone_ends_it(speed: float, tmp_path: Path) -> None:
    senders = _Sent(takes=1.0, fails="a1")
    with pytest.raises(GatewayUnreachableError, match="gone"):
        _send(_plan(tmp_path, [(100.0, "a"), (101.0, "a"), (200.0, "a")], speed), senders)
    assert senders.names == ["a0", "a1"]
