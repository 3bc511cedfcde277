"""The file of an application's subscriptions: who has it, what is read of it, and how large all of them become."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from mesh.blocks.remembered import FORGET_SECONDS, MAX_BYTES, MAX_FILES, Absence, Memory, Remembered, Subscribed
from mesh.errors import BrokerUnavailableError, ComponentNotFoundError, HostsGoneError, NotConfiguredError

OF = ("default", "app", "127.0.0.1:3000", "here")
ONE = Subscribed("1", "conf", ("a", "ä"), {"m": "x"}, {"a": "0"})
ALL = Subscribed("2", "conf", (), {}, {})


def stored(directory: Path) -> Path:
    [found] = directory.glob("*.json")
    return found


async def remember(directory: Path, *subscriptions: Subscribed, of: tuple[str, ...] = OF) -> None:
    """Have a gateway keep these until it ends."""
    memory = Memory(directory, *of)
    memory.take(make=True)
    await memory.keep(subscriptions, ("0",))
    memory.close()


async def test_what_is_kept_is_taken_by_the_next_one(tmp_path: Path) -> None:
    """As it was, in a file that nobody else can read, once; what is only looked for is not made."""
    directory = tmp_path / "subscriptions"
    assert Memory(directory, *OF).take(make=False) is None
    assert not directory.exists()
    await remember(directory, ONE, ALL)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    memory = Memory(directory, *OF)
    assert memory.take(make=False) == Remembered(OF, (ONE, ALL), ("0",))
    assert memory.take(make=True) is None
    memory.close()
    assert stored(directory)  # Whoever changes nothing keeps it.


async def test_without_subscriptions_there_is_no_file(tmp_path: Path) -> None:
    """Nor is its lock left."""
    await remember(tmp_path, ONE)
    await remember(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", range(len(OF)))
async def test_another_application_has_another_file(tmp_path: Path, number: int) -> None:
    """Another one in anything that tells them apart."""
    await remember(tmp_path, ONE)
    other = Memory(tmp_path, *OF[:number], "other", *OF[number + 1 :])
    assert other.take(make=False) is None
    assert other.take(make=True) == Remembered()
    other.close()


async def test_a_file_is_of_one_gateway(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another one is refused, says so once, and has it when the first has ended."""
    first, second = Memory(tmp_path, *OF), Memory(tmp_path, *OF)
    first.take(make=True)
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            second.take(make=True)
    await second.keep([ALL], ())
    await first.keep([ONE], ())
    first.close()
    assert second.take(make=True) == Remembered(OF, (ONE,))
    second.close()
    assert caplog.text.count("another gateway of this application has its file") == 1


WHOLE = msgspec.json.encode(Remembered(OF, (ONE,)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "it is damaged"),
        (b"\xff\x00", "it is damaged"),
        (b"[]", "it is damaged"),
        (WHOLE[: len(WHOLE) // 2], "it is damaged"),
        (WHOLE.replace(b'"id":"1"', b'"id":1'), "it is damaged"),
        (WHOLE.replace(b'"id":"1",', b""), "it is damaged"),
        (msgspec.json.encode(Remembered(OF, (ONE,), format=2)), "it is of another version"),
        (WHOLE + b" " * MAX_BYTES, "it is of another version"),
        (b"", ""),
    ],
)
async def test_a_file_that_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, reason: str
) -> None:
    """It is as none, which is said, and written anew."""
    await remember(tmp_path, ONE)
    stored(tmp_path).write_bytes(content)
    memory = Memory(tmp_path, *OF)
    assert memory.take(make=False) == Remembered()
    assert reason in caplog.text
    assert bool(caplog.text) is bool(reason)
    await memory.keep([ALL], ())
    memory.close()
    assert msgspec.json.decode(stored(tmp_path).read_bytes(), type=Remembered).subscriptions == (ALL,)


async def test_a_directory_that_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Is said once, and hinders nothing."""
    (tmp_path / "file").write_text("")
    memory = Memory(tmp_path / "file" / "subscriptions", *OF)
    for _ in range(2):
        assert not memory.take(make=True)
        await memory.keep([ONE], ())
    memory.close()
    assert caplog.text.count("may not outlive this gateway") == 1


async def test_what_cannot_be_written_is_written_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At the latest when the gateway ends."""
    memory = Memory(tmp_path, *OF)
    memory.take(make=True)
    await memory.keep([ALL], ())
    blocking = stored(tmp_path).with_suffix(".new")
    blocking.mkdir()
    for known in ({}, {"b": "1"}):
        await memory.keep([ONE, replace(ALL, known=known)], ())
    assert caplog.text.count("may not outlive this gateway") == 1
    blocking.rmdir()
    memory.close()
    found = msgspec.json.decode(stored(tmp_path).read_bytes(), type=Remembered)
    assert found.subscriptions == (ONE, replace(ALL, known={"b": "1"}))


async def test_a_file_has_a_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is too large is left out, and what has room is kept."""
    large = replace(ONE, id="large", known={str(number): "0" * 990 for number in range(1000)})
    await remember(tmp_path, ALL, large, replace(large, id="larger"), ONE)
    assert stored(tmp_path).stat().st_size <= MAX_BYTES
    assert [each.id for each in msgspec.json.decode(stored(tmp_path).read_bytes(), type=Remembered).subscriptions] == [
        "2",
        "large",
        "1",
    ]
    assert caplog.text.count("one of conf has no room") == 1


async def test_there_is_a_number_of_files(tmp_path: Path) -> None:
    """The oldest are removed, but those of gateways that run."""
    held = Memory(tmp_path, "held")
    held.take(make=True)
    await held.keep([ONE], ())
    os.utime(stored(tmp_path), (0, 0))
    for number in range(MAX_FILES + 2):
        (tmp_path / f"{number}.json").write_bytes(WHOLE)
        os.utime(tmp_path / f"{number}.json", (number, number))
    await remember(tmp_path, ONE)
    left = {path.stem for path in tmp_path.glob("*.json")}
    assert MAX_FILES <= len(left) <= MAX_FILES + 1
    assert not {"0", "1", "2"} & left
    assert str(MAX_FILES + 1) in left
    held.close()
    assert Memory(tmp_path, "held").take(make=False) == Remembered(("held",), (ONE,))


GONE, NONE, AWAY = ComponentNotFoundError("c", ""), NotConfiguredError("c", ""), HostsGoneError("")


@pytest.mark.parametrize(
    ("asked", "lasts"),
    [
        ([(GONE, 1)], False),
        ([(GONE, FORGET_SECONDS + 1)], True),
        ([(NONE, FORGET_SECONDS + 1)], True),
        ([(NONE, 1), (GONE, FORGET_SECONDS + 1)], True),
        ([(GONE, FORGET_SECONDS - 1), (AWAY, FORGET_SECONDS), (GONE, FORGET_SECONDS + 1)], False),
        ([(AWAY, FORGET_SECONDS + 1)], False),
        ([(BrokerUnavailableError(""), FORGET_SECONDS * 2)], False),
        ([(RuntimeError(""), FORGET_SECONDS * 2)], False),
    ],
)
def test_a_component_that_is_missing_for_long(asked: list[tuple[Exception, float]], lasts: bool) -> None:
    """Only when nobody has it; one that is away may come back."""
    absence = Absence(0.0)
    assert [absence.lasts(error, now) for error, now in asked][-1] is lasts
