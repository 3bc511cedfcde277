"""Answers on many objects at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import orjson
import pytest

from bindings import _objects
from bindings._objects import each_at_once
from mesh.blocks.binding_contract import BindingError


async def answer(results: Sequence[Mapping[str, str]]) -> bytes:
    async def work(result: Mapping[str, str]) -> Mapping[str, str]:
        if "error" in result:
            raise BindingError(result["error"])
        return result

    done = await each_at_once(results, 3, work, lambda result: {"key": result["key"]})
    assert isinstance(done.data, bytes)
    return done.data


@pytest.mark.parametrize("part", [1, 2, 7, 1000])
async def test_long_data_are_as_short_ones(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_objects, "PART", part)
    texts = ["", "a", "ab", '\\"\n' * 5, "東京" * 9, "\U0001f600" * 9, "\x00\x1f" * 4]
    results: list[dict[str, str]] = [{"key": str(index), "data": text} for index, text in enumerate(texts)]
    results += [{"key": "e", "error": "no such object"}, {"key": "f", "filePath": "x"}]
    for some in ([], results[:1], results):
        assert await answer(some) == orjson.dumps(some)


async def test_others_have_their_turns_while_long_data_are_written() -> None:
    turns, done = 0, asyncio.Event()

    async def count() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(count())
        await answer([{"key": "k", "data": "a" * (20 * _objects.PART)}])
        done.set()
    assert turns >= 20
