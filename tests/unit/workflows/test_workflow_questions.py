"""What another node says of a workflow, which may be anything."""

from __future__ import annotations

import msgspec
import pytest

from mesh.blocks.workflow_questions import Tell, encoded, question_of
from mesh.errors import EventError
from mesh.workflows.events import Failure
from mesh.workflows.messages import ChildDone, Raise


def _nested() -> bytes:
    deep = encoded(Tell(ChildDone("x", 1, "app", None, Failure("a", "b"))))
    one, end = encoded(Failure("T", "m"))[:-2], b"\xc0\xc2"
    return deep[: -len(encoded(Failure("a", "b")))] + one * 20_000 + b"\xc0" + b"\xc2" * 20_000 + end


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        encoded(["sing"]),
        encoded(Tell(Raise("name"))).replace(b"name", b"na\xffe"),
        _nested(),
    ],
    ids=["empty", "none", "unknown", "no text", "deep"],
)
def test_a_malformed_question_is_an_event_error(body: bytes) -> None:
    with pytest.raises(EventError, match="malformed"):
        question_of(body)


def test_a_question_as_it_was_asked() -> None:
    question = Tell(Raise("go", "1", "t"))
    assert question_of(encoded(question)) == question
    assert msgspec.msgpack.decode(encoded(question))[0] == "tell"
