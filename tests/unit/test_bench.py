"""The benchmark: its command line, and that a run which lost or repeated something has no figures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
from aiohttp import ClientSession

from bench.__main__ import main
from bench.backbone_report import BackboneResults
from bench.bare import serving
from bench.clients import Round
from bench.components import BACKBONE, DRIVER, HANDLER, NEAREST, PARTS, Measured
from bench.components_report import ComponentResults
from bench.measure import Row, Sample
from bench.native import ADAPTER, CLIENTS, client_of
from bench.native.adapter import Adapter
from bench.stores import SQLite3, answered
from bench.watch_and_guard import OFF, SAMPLED, SIGNED, TRACED, WATCHED, WatchResults
from bench.works import EVENT


def test_help_names_every_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "--backbone {nats,redis,kafka,rabbitmq,all}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "words",
    [
        ["--backbone", "zeromq"],
        ["--only", "publish,fly"],
        ["--only", "publish,watch"],
        ["--rounds", "3"],
        ["--components", "redis,paper"],
    ],
)
def test_unknown_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert words[1].rpartition(",")[2] in capsys.readouterr().err


def test_a_run_is_about_backbones_or_components(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--backbone", "redis", "--components"])
    assert "--backbone, --components and --workflows are runs of their own" in capsys.readouterr().err


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
        _row("redis HTTP publish", "gateway", 1000),
        _row("redis HTTP publish", "native layout", 800),
        _row("redis HTTP deliver", "gateway", 1000, cpu=200),
        _row("redis HTTP deliver", "native layout", 950),
        _row("redis invoke at 500/s", "gateways over redis", 500, p50=3),
        _row("redis invoke at 500/s", "gateways over nats", 500, p50=2),
    ]
    results = BackboneResults([Measured("redis", rows, (0.1, 0.2))], {"date": "today"})
    layouts = [(80, False), (95, True)]
    assert [(goal.value, goal.met) for goal in results.goals] == [
        (90, True), (70, False), *layouts, (5000, True), (1.5, True)
    ]  # fmt: skip
    assert results.markdown().count("**missed**") == 2


def test_goals_of_components_are_met_or_missed() -> None:
    def rows(work: str, near: float, handler: float, driver: float | None, added: float) -> list[Row]:
        return [
            _row(work, NEAREST, 100, cpu=near),
            _row(work, HANDLER, 100, cpu=handler),
            *([] if driver is None else [_row(work, DRIVER, 100, cpu=driver)]),
            _row(f"{work} at 200/s", NEAREST, 200, p50=1.0),
            _row(f"{work} at 200/s", BACKBONE, 200, p50=1.0 + added),
        ]

    redis = [
        *rows("redis save", 80, 25, 50, 0.25),
        *rows("redis get", 160, 25, 50, 0.75),
        *rows("redis transaction", 40, 25, 50, 0.25),
    ]
    measured = [
        Measured("redis", redis, (0.1, 0.2)),
        Measured("secrets", rows("secret", 60, 25, None, 0.5), (0.3, 0.4)),
    ]
    results = ComponentResults(measured, {"date": "today"})
    save, get = [(1, True), (0.25, True), (12500, True)], [(2, False), (0.75, False), (6250, False)]
    rest = [(0.5, True), (0.25, True), (2, False), (0.5, True)]
    assert [(goal.value, goal.met) for goal in results.goals] == [*save, *get, *rest]
    page = results.markdown()
    assert page.count("**missed**") == 4
    assert "redis 0.1, 0.2; secrets 0.3, 0.4" in page


def test_goals_of_watching_and_guarding_are_met_or_missed() -> None:
    def row(work: str, variant: str, *rounds: tuple[float, ...]) -> Row:
        samples = [Sample(100, 1.0, (), {f"{variant} {place}": cpu for place, cpu in enumerate(of)}) for of in rounds]
        return Row(work, variant, samples, {variant: 50.0})

    cpus = {OFF: (100.0, 200.0), WATCHED: (104.0, 212.0), TRACED: (105.0, 214.0), SAMPLED: (164.0, 273.0)}
    odd = (1.0, 1.0)  # A round that is not like the others.
    rows = [row("invoke", variant, of, odd, of) for variant, of in cpus.items()]
    rows.append(row("invoke", SIGNED, (164.0, 272.5), odd, (164.0, 272.5)))
    results = WatchResults(rows, {"date": "today"}, (0.1, 0.2))
    found = [(pytest.approx(goal.value), goal.met) for goal in results.goals]
    assert found == [(100 * 16 / 300, False), (60, True), (61, False), (120.5, False)]
    assert ("invoke", TRACED, "callee", 2) in results.added
    page = results.markdown()
    assert page.count("**missed**") == 3
    assert f"| invoke | {SIGNED} | caller | 60.0 µs |" in page


def test_a_bare_store_answers_what_a_gateway_would(tmp_path: Path) -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            store = await SQLite3.open({"file": str(tmp_path / "bare.db")}, stack)
            port = await stack.enter_async_context(serving(partial(answered, store)))
            client = await stack.enter_async_context(ClientSession(f"http://127.0.0.1:{port}"))
            for work in PARTS["sqlite"].works:
                call = next(work.calls("bare"))
                async with client.request(
                    "GET" if call.body is None else "POST", call.path, data=call.body
                ) as response:
                    assert response.status == work.status
                    if work.body is not None:
                        assert (await response.json(), "ETag" in response.headers) == (work.body, True)
            await store.save([], ["order-0"])
            assert json.loads((await store.get("order-0-b"))[0]) == json.loads(EVENT)

    asyncio.run(run())
