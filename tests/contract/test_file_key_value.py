"""The store in a file, which stands in where a backbone has no key/value, keeps the same contract."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bindings.sqlite import FileKeyValue
from mesh.broker import Write
from mesh.errors import StateError
from tests.contract import test_key_value as suite

OF_BROKERS = {"broker", "other", "backend_name"}

# Every test of the suite that needs a store alone.
globals().update(
    {
        name: test
        for name, test in vars(suite).items()
        if name.startswith("test_") and not OF_BROKERS & set(inspect.signature(test).parameters)
    }
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FileKeyValue]:
    async with FileKeyValue(tmp_path / "state" / "store.db") as store:
        yield store


async def test_two_processes_share_a_file(tmp_path: Path) -> None:
    """What one connection writes another sees; what is written stays."""
    path = tmp_path / "store.db"
    async with FileKeyValue(path) as one, FileKeyValue(path) as two:
        await one.apply([Write("k", b"1", 0)])
        entry = await two.get("k")
        assert entry is not None
        await two.apply([Write("k", b"2", entry.revision)])
        assert (await one.get("k")) == (await two.get("k")) != entry
    async with FileKeyValue(path) as later:
        found = await later.get("k")
        assert found is not None
        assert found.value == b"2"


async def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    """The error names the file."""
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StateError, match=r"store\.db"):
        async with FileKeyValue(path):
            pass
