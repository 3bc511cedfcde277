"""Files that appear, change and go: what is told of them, once, also of what happened while nobody looked."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from mesh.blocks.binding_contract import BindingError, BindingEvent, Reading
from mesh.errors import ConfigError
from mesh.key_value import MemoryKeyValue
from mesh.registry import Registry
from mesh.store import KeyValueStateStore, StateStore
from tests.support.eventually import eventually
from tests.support.nodes import component
from tests.support.sharing import entered


class Taken:
    """An application that takes files; the first ones not."""

    def __init__(self, refused: int = 0) -> None:
        self.got: list[BindingEvent] = []
        self.refused = refused

    async def handle(self, event: BindingEvent) -> bytes:
        if self.refused:
            self.refused -= 1
            raise BindingError("the application answered 500")
        self.got.append(event)
        return b""

    def told(self) -> list[tuple[str, str]]:
        return sorted((event.metadata["event"], event.metadata["fileName"]) for event in self.got)

    async def until(self, *expected: tuple[str, str]) -> None:
        def check() -> None:
            assert self.told() == sorted(expected)

        await eventually(check)


def store() -> StateStore:
    return KeyValueStateStore(MemoryKeyValue())


@asynccontextmanager
async def opened(root: Path, records: StateStore | None, **settings: str) -> AsyncIterator[Any]:
    settings = {"path": str(root), "settle": "50ms", **settings}
    adapter: Any = Registry().load("bindings.files").from_component(component("in", "bindings.files", **settings))  # type: ignore[attr-defined]
    async with entered(adapter, records):
        yield adapter


@asynccontextmanager
async def reading(root: Path, app: Taken, records: StateStore | None = None, **settings: str) -> AsyncIterator[None]:
    """Have files told to an application."""
    async with (
        opened(root, records or store(), **settings) as adapter,
        adapter.reading(Reading("in", "app", app.handle)),
    ):
        yield


async def test_what_happened_while_nobody_looked(tmp_path: Path) -> None:
    """It is told at the next start; and what was told is not."""
    records, app = store(), Taken()
    for name in ("stays", "changes", "goes"):
        (tmp_path / name).write_text(name)
    async with reading(tmp_path, app, records):
        await app.until(("added", "changes"), ("added", "goes"), ("added", "stays"))
        (tmp_path / "changes").write_text("as nobody has seen it")
        await app.until(("added", "changes"), ("added", "goes"), ("added", "stays"), ("changed", "changes"))
    (tmp_path / "changes").write_text("once more")
    (tmp_path / "goes").unlink()
    (tmp_path / "new").write_text("new")
    app = Taken()
    async with reading(tmp_path, app, records):
        await app.until(("changed", "changes"), ("deleted", "goes"), ("added", "new"))
        (tmp_path / "new").unlink()
        await app.until(("changed", "changes"), ("deleted", "goes"), ("added", "new"), ("deleted", "new"))


async def test_what_is_told_of_a_file(tmp_path: Path) -> None:
    """In metadata; and in a JSON object, or the bytes in its place, up to a size."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "ä b").write_bytes(b"12345")
    for settings, data in (
        ({}, None),
        ({"content": "true"}, b"12345"),
        ({"content": "true", "maxContentSize": "4"}, b""),
    ):
        app = Taken()
        async with reading(tmp_path, app, **settings):
            await app.until(("added", "sub/ä b"))
        [event] = app.got
        assert event.metadata["size"] == "5"
        assert event.metadata["modified"].endswith("Z")
        assert ("contentLeftOut" in event.metadata) is (data == b"")
        if data is None:
            assert orjson.loads(event.data) == {**event.metadata, "size": 5}
        else:
            assert event.data == data


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["a.csv", "b.txt", "sub/c.csv"]),
        ({"recursive": "false"}, ["a.csv", "b.txt"]),
        ({"patterns": "*.csv, *.json"}, ["a.csv", "sub/c.csv"]),
        ({"patterns": "sub/*"}, ["sub/c.csv"]),
    ],
)
async def test_which_files(tmp_path: Path, settings: dict[str, str], expected: list[str]) -> None:
    """By their names and places; hidden ones and links never."""
    (tmp_path / "root" / "sub").mkdir(parents=True)
    for name in ("a.csv", "b.txt", ".hidden.csv", "sub/c.csv"):
        (tmp_path / "root" / name).write_text("x")
    (tmp_path / "outside.csv").write_text("secret")
    (tmp_path / "root" / "link.csv").symlink_to(tmp_path / "outside.csv")
    app = Taken()
    async with reading(tmp_path / "root", app, **settings):
        await app.until(*(("added", each) for each in expected))


async def test_files_that_were_taken_are_deleted_or_moved(tmp_path: Path) -> None:
    """After they were taken, and not before; nothing is told of that, and nothing is overwritten."""
    for after, more in (("delete", {}), ("move", {"moveTo": "done"})):
        app, root = Taken(refused=1), tmp_path / after
        root.mkdir()
        async with reading(root, app, after=after, **more):
            for count in (1, 2):
                (root / "a.txt").write_text(f"{count}")
                await app.until(*[("added", "a.txt")] * count)
                await eventually(lambda file=root / "a.txt": _gone(file))  # type: ignore[misc]
        moved = sorted(file.read_text() for file in (root / "done").glob("*")) if more else ["1", "2"]
        assert moved == ["1", "2"]
        assert len(app.got) == 2


def _gone(file: Path) -> None:
    assert not file.exists()


async def test_what_was_not_taken_comes_again(tmp_path: Path) -> None:
    """Here, and at the next start."""
    records, app = store(), Taken(refused=1)
    (tmp_path / "a").write_text("a")
    async with reading(tmp_path, app, records):
        await app.until(("added", "a"))
    app = Taken(refused=10_000)
    (tmp_path / "b").write_text("b")
    async with reading(tmp_path, app, records):
        await eventually(lambda: _refused(app))
    app = Taken()
    async with reading(tmp_path, app, records):
        await app.until(("added", "b"))


def _refused(app: Taken) -> None:
    assert app.refused < 10_000


async def test_a_file_that_is_being_written(tmp_path: Path) -> None:
    """It counts when it stays as it is."""
    app = Taken()
    async with reading(tmp_path, app, content="true", settle="2s"):
        with (tmp_path / "a").open("wb", buffering=0) as file:
            for _ in range(10):
                file.write(b"part ")
                await asyncio.sleep(0.05)
        await app.until(("added", "a"))
    assert app.got[0].data == b"part " * 10


async def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """It is left out, and those that are being handled meanwhile are not handled again."""
    app, began, go = Taken(), asyncio.Event(), asyncio.Event()
    calls = 0

    async def handle(event: BindingEvent) -> bytes:
        nonlocal calls
        calls += 1
        began.set()
        await go.wait()
        return await app.handle(event)

    def both() -> None:
        assert calls == 2

    async with opened(tmp_path, store()) as adapter, adapter.reading(Reading("in", "app", handle)):
        (tmp_path / "one").write_text("1")
        await began.wait()
        (tmp_path / os.fsdecode(b"bad\xff")).write_text("2")
        (tmp_path / "three").write_text("3")
        await eventually(both)
        go.set()
        await app.until(("added", "one"), ("added", "three"))
    assert calls == 2


async def test_two_hosts_of_one_folder(tmp_path: Path) -> None:
    """One of them tells an application; another application is told for itself."""
    records, one, other = store(), Taken(), Taken()
    async with (
        opened(tmp_path, records, shared="true") as here,
        opened(tmp_path, records, shared="true") as there,
        here.reading(Reading("in", "app", one.handle)),
        there.reading(Reading("in", "app", one.handle)),
        there.reading(Reading("in", "other", other.handle)),
    ):
        names = [f"{number}" for number in range(20)]
        for name in names:
            (tmp_path / name).write_text(name)
        await one.until(*(("added", name) for name in names))
        await other.until(*(("added", name) for name in names))


async def test_a_folder_that_goes_or_is_too_full(tmp_path: Path) -> None:
    """Who reads it is told, and may read again; nothing is taken for deleted."""
    records, app, root = store(), Taken(), tmp_path / "root"
    root.mkdir()
    (root / "a").write_text("a")
    with pytest.raises(BindingError, match="No such file"):
        async with reading(root, app, records):
            await app.until(("added", "a"))
            root.rename(tmp_path / "away")
            await asyncio.Event().wait()
    assert app.told() == [("added", "a")]
    (tmp_path / "away" / "b").write_text("b")
    with pytest.raises(BindingError, match="more than 1 files"):
        async with reading(tmp_path / "away", app, maxFiles="1"):
            await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"after": "move"}, "go together"),
        ({"moveTo": "x"}, "go together"),
        ({"after": "move", "moveTo": "."}, "is another folder"),
        ({"after": "burn"}, "keep or delete or move"),
        ({"events": "made"}, "is some of added"),
    ],
)
async def test_settings(tmp_path: Path, settings: dict[str, str], why: str) -> None:
    """What cannot be meant is refused at start."""
    with pytest.raises(ConfigError, match=why):
        async with opened(tmp_path, None, **settings):
            pass
