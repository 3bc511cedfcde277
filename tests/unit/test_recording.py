"""Recordings as files: what is read, and what is said of what is none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.replaying.recording import MAX_LINE_BYTES, Recording, beginning
from mesh.errors import ConfigError
from mesh.tap.sight import Content, Dropped, Seen, Sight
from mesh.tap.wire import as_event

SIGHT = Sight(
    id="n-1",
    time=1_700_000_000.5,
    seconds=0.25,
    seen=Seen.ASKED,
    block="invocation",
    method="invoke",
    target="orders",
    source="shop",
    app="shop",
    node="n",
    outcome="ok",
    details={"verb": "POST", "path": "/new", "status": 200},
    request=Content((("content-type", "application/json"),), "application/json", 10, b'{"a": 1e2}'),
    reply=Content((), "", 2, b"\xff\x00"),
)
LINE = orjson.dumps(as_event("default", SIGHT, SIGHT.time))
HEAD = orjson.dumps(beginning("default", 1_700_000_000.0, {"app": ["orders"], "values": "true"}))


def _file(folder: Path, *lines: bytes, end: bytes = b"\n") -> Path:
    file = folder / "r.jsonl"
    file.write_bytes(b"\n".join(lines) + end)
    return file


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """To the byte, bodies that are JSON in another form or no text among them; empty lines are passed over."""
    with Recording(_file(tmp_path, HEAD, b"", LINE, LINE)) as recording:
        found = list(recording)
        assert [(each.line, each.sight) for each in found] == [(3, SIGHT), (4, SIGHT)]
        assert found[0].began == SIGHT.time - SIGHT.seconds
        assert found[1].event == orjson.loads(LINE)
        assert recording.again(found[1].line, found[1].at) == found[1]
        assert (recording.dropped, recording.cut) == (0, False)


def test_lines_alone_are_a_recording(tmp_path: Path) -> None:
    """As of the HTTP route; also without a last line end."""
    with Recording(_file(tmp_path, LINE, end=b"")) as recording:
        assert [each.sight for each in recording] == [SIGHT]
        assert not recording.cut


def test_one_that_was_broken_off_is_read_up_to_there(tmp_path: Path) -> None:
    with Recording(_file(tmp_path, HEAD, LINE, LINE[:40], end=b"")) as recording:
        assert [each.line for each in recording] == [2]
        assert recording.cut


def test_what_was_left_out_is_counted(tmp_path: Path) -> None:
    dropped = orjson.dumps(as_event("default", Dropped("shop", "n", 12), 1.0))
    with Recording(_file(tmp_path, dropped, LINE, dropped)) as recording:
        for _ in range(2):
            assert len(list(recording)) == 1
            assert recording.dropped == 24


def _without(*path: str) -> bytes:
    event = orjson.loads(LINE)
    at = event
    for name in path[:-1]:
        at = at[name]
    del at[path[-1]]
    return orjson.dumps(event)


def _with(value: object, *path: str) -> bytes:
    event: dict[str, Any] = orjson.loads(LINE)
    at = event
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    return orjson.dumps(event)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "is no JSON"),
        (b"[]", "a JSON object is wanted"),
        (b"{}", "type: None is not what a tap tells"),
        (_with("com.example.order", "type"), "type: 'com.example.order' is not what a tap tells"),
        (_with([], "data"), "data: an object is wanted"),
        (_without("data", "from"), "data.from: is missing"),
        (_without("id"), "id: is missing"),
        (_with("yesterday", "time"), "time: Invalid isoformat string: 'yesterday'"),
        (_with("heard", "data", "seen"), "data.seen: 'heard' is none of asked, hosted"),
        (_with("1", "data", "seconds"), "data.seconds: a number is wanted, not '1'"),
        (_with(1, "data", "target"), "data.target: text is wanted, not 1"),
        (_with([], "data", "details"), "data.details: an object is wanted, not []"),
        (_with([], "data", "request"), "data.request: an object is wanted"),
        (_with({}, "data", "request", "headers"), "data.request.headers: a list of pairs"),
        (_with("x", "data", "reply", "base64"), "data.reply.base64: "),
        (_with("x", "data", "reply", "size"), "data.reply.size: a whole number is wanted, not 'x'"),
        (_with(1, "data", "request", "text"), "data.request.text: text is wanted, not 1"),
    ],
)
def test_a_wrong_line_is_named(line: bytes, said: str, tmp_path: Path) -> None:
    """File, line and field."""
    file = _file(tmp_path, HEAD, LINE, line, LINE)
    with Recording(file) as recording, pytest.raises(ConfigError, match=re.escape(f"{file}:3: {said}")):
        list(recording)


def test_a_line_without_an_end_is_not_read_for_ever(tmp_path: Path) -> None:
    with (
        Recording(_file(tmp_path, b" " * (MAX_LINE_BYTES + 1))) as recording,
        pytest.raises(ConfigError, match=":1: is longer than 16 MiB"),
    ):
        list(recording)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.jsonl: No such file"):
        Recording(tmp_path / "none.jsonl")


def test_a_file_that_changed_is_noticed(tmp_path: Path) -> None:
    """Between reading what there is and sending it."""
    file = _file(tmp_path, HEAD, LINE)
    with Recording(file) as recording:
        (found,) = recording
        file.write_bytes(HEAD + b"\n" + HEAD + b"\n")
        with pytest.raises(ConfigError, match=":2: has changed since it was read"):
            recording.again(found.line, found.at)
