"""The benchmark: its command line, and that a run which lost or repeated something has no figures."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.backbone_report import BackboneResults
from bench.backbones import Measured
from bench.clients import Round
from bench.measure import Row, Sample
from bench.native import ADAPTER, CLIENTS, client_of
from bench.native.adapter import Adapter


def test_help_names_every_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "--backbone {nats,redis,kafka,rabbitmq,all}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("words", [["--backbone", "zeromq"], ["--only", "publish,fly"], ["--rounds", "3"]])
def test_unknown_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert words[1].rpartition(",")[2] in capsys.readouterr().err


def test_a_broken_run_writes_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(*_: object) -> Measured:
        raise OSError("no server")

    monkeypatch.setattr("bench.__main__.measure", nobody)
    page = tmp_path / "page.md"
    assert main(["--backbone", "redis", "--quick", "--results", str(page)]) == 1
    assert not page.exists()


@pytest.mark.parametrize("path", [ADAPTER, *(path for paths in CLIENTS.values() for path in paths)])
def test_every_client_can_be_made(path: str) -> None:
    titles = [client_of(each).title for paths in CLIENTS.values() for each in paths]
    assert titles.count(client_of(path).title) == (path != ADAPTER)


def test_a_round_publishes_and_consumes_the_same() -> None:
    async def run() -> None:
        async with Adapter("memory:", "orders") as client:
            each = Round(client)
            for count in (200, 1):
                told = await each.run({"count": count})
                assert len(told["publish"]["latencies"]) == count
                assert told["consume"]["seconds"] > 0

    asyncio.run(run())


def test_a_round_that_gets_something_twice_fails() -> None:
    class Repeating(Adapter):
        async def publish(self, headers: Mapping[str, str], body: bytes) -> None:
            await super().publish(headers, body)
            await super().publish({**headers, "ce-id": "again"}, body)

    async def run() -> None:
        async with Repeating("memory:", "orders") as client:
            with pytest.raises(RuntimeError, match="of 20 messages"):
                await Round(client).run({"count": 20})

    asyncio.run(run())


def _row(work: str, variant: str, rate: float, *, p50: float = 1.0, cpu: float = 10.0) -> Row:
    return Row(work, variant, [Sample(100, rate, (p50, p50, p50), {variant: cpu})], {variant: 50.0})


def test_goals_are_met_or_missed() -> None:
    rows = [
        _row("redis publish", "adapter", 90),
        _row("redis publish", "redis-py", 100),
        _row("redis consume", "adapter", 70),
        _row("redis consume", "redis-py", 100),
        _row("redis HTTP deliver", "gateway", 1000, cpu=200),
        _row("redis invoke at 500/s", "gateways over redis", 500, p50=3),
        _row("redis invoke at 500/s", "gateways over nats", 500, p50=2),
    ]
    results = BackboneResults([Measured("redis", rows, (0.1, 0.2))], {"date": "today"})
    assert [(goal.value, goal.met) for goal in results.goals] == [(90, True), (70, False), (5000, True), (1.5, True)]
    assert results.markdown().count("**missed**") == 1
