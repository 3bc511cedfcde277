"""What is sent to do again what was seen, and where answers differ."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest

from gateway.replaying.comparison import ABSENT, Answer, compare, outcome_of, path_pattern
from gateway.replaying.replay import Replayed, replay
from gateway.replaying.resending import Kind, Resend, Skipped, kind_of, resend
from mesh.tap.sight import Content, Seen, Sight

JSON = "application/json"
EVENT = "application/cloudevents+json"
ENVELOPE = {
    "specversion": "1.0",
    "id": "e-1",
    "source": "shop",
    "type": "order",
    "pubsubname": "pubsub",
    "topic": "orders",
    "traceparent": "00-11111111111111111111111111111111-2222222222222222-01",
    "traceid": "00-11111111111111111111111111111111-2222222222222222-01",
    "data": {"id": 7},
}


def _content(body: object = b"", *headers: tuple[str, str], kind: str = JSON, **members: Any) -> Content:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return Content(**{"headers": headers, "content_type": kind, "size": len(data), "body": data, **members})


def _sight(**members: Any) -> Sight:
    made: dict[str, Any] = {
        "id": "n-1",
        "time": time.time(),
        "seconds": 0.01,
        "seen": Seen.ASKED,
        "block": "invocation",
        "method": "invoke",
        "target": "orders",
        "source": "shop",
        "app": "shop",
        "node": "n",
        "outcome": "ok",
        "details": {"verb": "POST", "path": "/new", "status": 200},
        "request": _content({"a": 1}),
        "reply": _content({"total": 3}),
    }
    return Sight(**{**made, **members})


def _call(**members: Any) -> Sight:
    return _sight(**members)


def _publish(**members: Any) -> Sight:
    made = {"block": "pubsub", "method": "publish", "target": "pubsub/orders", "reply": None}
    return _sight(**{**made, "details": {"id": "e-1"}, "request": _content(ENVELOPE, kind=EVENT), **members})


def _arrived(**members: Any) -> Sight:
    made = {"block": "pubsub", "method": "deliver", "target": "pubsub/orders", "seen": Seen.ARRIVED, "app": "orders"}
    details = {"id": "e-1", "route": "/take", "attempt": 1}
    request, reply = _content(ENVELOPE, kind=EVENT), _content({"status": "RETRY"})
    return _sight(**{**made, "details": details, "request": request, "reply": reply, "outcome": "retry", **members})


def _made(sight: Sight, to: str = "", *headers: tuple[str, str]) -> Resend:
    made = resend(sight, to, headers)
    assert isinstance(made, Resend), made
    return made


def test_a_call_goes_as_it_went() -> None:
    """Same verb, path, query, fields and bytes; what a gateway or a connection added is not sent."""
    given = (
        ("Content-Type", JSON),
        ("X-Request", "1"),
        ("traceparent", ENVELOPE["traceparent"]),
        ("X-Forwarded-For", "10.0.0.1"),
        ("dapr-caller-app-id", "shop"),
        ("Connection", "keep-alive"),
        ("Host", "orders"),
    )
    details = {"verb": "PUT", "path": "/a%2Fb", "query": "x=1&y", "status": 200}
    made = _made(_call(details=details, request=_content(b'{"a": 1}', *given)))
    assert (made.kind, made.source, made.target, made.verb) == (Kind.CALL, "shop", "orders", "PUT")
    assert made.path == "/v1.0/invoke/orders/method/a%2Fb?x=1&y"
    assert made.body == b'{"a": 1}'
    headers = dict(made.headers)
    assert headers.pop("traceparent").split("-")[1] == made.trace != ENVELOPE["traceparent"].split("-")[1]  # type: ignore[attr-defined]
    assert headers == {"Content-Type": JSON, "X-Request": "1", "meshreplayed": "n-1"}


def test_a_call_goes_to_another_application() -> None:
    made = _made(_call(), "orders v2")
    assert (made.target, made.path) == ("orders v2", "/v1.0/invoke/orders%20v2/method/new")


def test_a_hidden_header_is_left_out_and_named() -> None:
    """Unless its value is given."""
    sight = _call(request=_content(b"", ("Authorization", "(hidden)"), ("a", "b")))
    made = _made(sight)
    assert made.withheld == ("authorization",)
    assert "authorization" not in {name.lower() for name, _ in made.headers}
    made = _made(sight, "", ("authorization", "Bearer x"))
    assert made.withheld == ()
    assert ("authorization", "Bearer x") in made.headers


def test_an_event_is_published_anew() -> None:
    """Under another id and in another trace; the mark tells which it was."""
    made = _made(_publish())
    assert (made.kind, made.path, made.target) == (Kind.EVENT, "/v1.0/publish/pubsub/orders", "pubsub/orders")
    event = orjson.loads(made.body)
    assert event.pop("id") != "e-1"
    assert event == {"specversion": "1.0", "source": "shop", "type": "order", "data": {"id": 7}, "meshreplayed": "e-1"}
    assert dict(made.headers)["content-type"] == EVENT


def test_a_raw_event_is_published_raw() -> None:
    request = _content(b"\xff\x00", ("rawPayload", "true"), kind="application/octet-stream")
    sight = _publish(request=request, target="pubsub/a/b")
    made = _made(sight)
    assert made.path == "/v1.0/publish/pubsub/a%2Fb?metadata.rawPayload=true"
    assert made.body == b"\xff\x00"


def test_what_was_asked_of_a_publish_is_asked_again() -> None:
    """But for attributes, which are in the event."""
    asked = (("partitionKey", "a&b"), ("cloudevent.id", "x"), ("ttlInSeconds", "9"))
    made = _made(_publish(request=_content(ENVELOPE, *asked, kind=EVENT)))
    assert made.path == "/v1.0/publish/pubsub/orders?metadata.partitionKey=a%26b&metadata.ttlInSeconds=9"


def test_a_hidden_parameter_is_left_out_and_named() -> None:
    made = _made(_call(details={"verb": "GET", "path": "/x", "query": "a=1&api-key=(hidden)&b", "status": 200}))
    assert made.path == "/v1.0/invoke/orders/method/x?a=1&b"
    assert made.withheld == ("?api-key",)


def test_an_event_that_arrived_is_posted_as_it_came() -> None:
    """With its id, since an application may answer with it."""
    made = _made(_arrived(), "orders-v2")
    assert (made.kind, made.target, made.path) == (Kind.DELIVERY, "orders-v2", "/v1.0/invoke/orders-v2/method/take")
    assert orjson.loads(made.body) == {**ENVELOPE, "meshreplayed": "n-1"}
    assert dict(made.headers)["content-type"] == EVENT


@pytest.mark.parametrize(
    ("sight", "to", "why"),
    [
        (_call(hidden=True), "", "its values are hidden: shop"),
        (_call(request=None), "", "was not recorded"),
        (_call(request=Content(None, JSON, 4)), "", "was not recorded"),
        (_call(request=_content(b"ab", size=9, cut=True)), "", "--max-body"),
        (_call(request=Content((), JSON, -1)), "", "streamed"),
        (_call(details={"verb": "POST", "path": "/s/M", "grpc": True}), "", "gRPC"),
        (_call(target="https://example.com"), "orders-v2", "outside of the mesh"),
        (_arrived(), "", "--to"),
        (_call(block="durable", method="accept"), "", "durable call"),
        (_publish(method="bulk_publish"), "", "several events"),
        (_arrived(details={"id": "e-1", "route": "/take", "bulk": True}), "orders-v2", "in a batch"),
        (_arrived(details={"id": "e-1"}), "orders-v2", "not handed over"),
        (_sight(block="state", method="get"), "", "neither a call nor an event"),
        (_call(seen=Seen.ARRIVED), "", "neither a call nor an event"),
        (_call(details={"verb": "GET / HTTP/1.1", "path": "/new"}), "", "none that HTTP has"),
        (_call(details={"verb": "GET", "path": "/new\r\nHost: b"}), "", "none that HTTP has"),
        (_call(request=_content({}, ("a b", "c"))), "", "its header 'a b'"),
        (_call(request=_content({}, ("x-a", "b\r\nx-c: d"))), "", "its header 'x-a'"),
    ],
)
def test_what_cannot_be_sent_says_why(sight: Sight, to: str, why: str) -> None:
    made = resend(sight, to)
    assert isinstance(made, Skipped)
    assert why in made.reason


def test_a_body_that_is_empty_can_be_sent() -> None:
    """One that is not there is no stream."""
    assert _made(_call(request=Content((), "", 0))).body == b""


def _differences(sight: Sight, answer: Answer, *ignored: str) -> list[tuple[str, object, object]]:
    kind = kind_of(sight)
    assert kind is not None
    found = compare(kind, sight, answer, [path_pattern(each) for each in ignored])
    return [(each.path, each.recorded, each.replayed) for each in found.differences]


def _answer(body: object = b"", status: int = 200) -> Answer:
    return Answer(status, JSON, body if isinstance(body, bytes) else orjson.dumps(body))


def test_equal_answers_have_no_difference() -> None:
    """How JSON is written is none."""
    assert _differences(_call(), _answer(b'{ "total" : 3 }')) == []


@pytest.mark.parametrize(
    ("was", "now", "found"),
    [
        ({"total": 3}, {"total": 4}, [("body.total", 3, 4)]),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3, 4]}}, [("body.a.b.1", 2, 3), ("body.a.b.2", ABSENT, 4)]),
        ({"a": 1, "b": 2}, {"b": 2, "c": 3}, [("body.a", 1, ABSENT), ("body.c", ABSENT, 3)]),
        ({"a.b": 1}, {"a.b": 2}, [(r"body.a\.b", 1, 2)]),
        ({"a": 1}, {"a": True}, [("body.a", 1, True)]),
        ([1], {"a": 1}, [("body", [1], {"a": 1})]),
        (b"one", b"two", [("body", "one", "two")]),
        (b"", b"two", [("body", ABSENT, "two")]),
        (b"\xff", b"\xfe\xfe", [("body", "(1 bytes)", "(2 bytes)")]),
        (None, {"a": None}, [("body", None, {"a": None})]),
    ],
)
def test_bodies_differ_where_they_do(was: object, now: object, found: list[tuple[str, object, object]]) -> None:
    assert _differences(_call(reply=_content(was)), _answer(now)) == found


def test_depth_and_number_of_differences_are_bounded() -> None:
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    other: Any = 2
    for _ in range(200):
        other = [other]
    ((path, _, _),) = _differences(_call(reply=_content(deep)), _answer(other))
    assert path.count(".") == 99
    assert len(_differences(_call(reply=_content([0] * 500)), _answer([1] * 500))) == 100


def test_what_is_ignored_is_not_told() -> None:
    was, now = {"at": 1, "items": [{"id": 1, "n": 1}, {"id": 2, "n": 2}]}, {"at": 2, "items": [{"id": 3, "n": 1}]}
    sight = _call(reply=_content(was))
    assert _differences(sight, _answer(now), "body.at", "body.items.*.id") == [
        ("body.items.1", {"id": 2, "n": 2}, ABSENT)
    ]
    assert _differences(sight, _answer(now, 500), "body", "status") == []


@pytest.mark.parametrize("text", ["", "total", "body..a", "body."])
def test_a_path_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no path of an answer"):
        path_pattern(text)


def _failure(code: str, status: int = 500) -> Answer:
    return _answer({"errorCode": code, "message": "failed at 12:00"}, status)


def test_failures_are_compared_by_their_code() -> None:
    """Their texts have times and nodes in them."""
    away = _call(outcome="APP_AWAY", details={"verb": "POST", "path": "/new"}, reply=None)
    assert _differences(away, _failure("ERR_DIRECT_INVOKE")) == []
    assert _differences(away, _answer({"ok": True})) == [
        ("status", 500, 200),
        ("outcome", "ERR_DIRECT_INVOKE", "ok"),
    ]
    found = _differences(_call(), _failure("ERR_DIRECT_INVOKE"))
    assert found[:2] == [("status", 200, 500), ("outcome", "ok", "ERR_DIRECT_INVOKE")]


def test_an_application_may_answer_with_an_error_code_of_its_own() -> None:
    assert outcome_of(Kind.CALL, _answer({"errorCode": "OUT_OF_STOCK", "message": "no"}, 409)) == "ok"
    assert outcome_of(Kind.CALL, _answer(b'["errorCode"]', 500)) == "ok"


def test_a_publish_is_compared_by_its_outcome() -> None:
    assert _differences(_publish(), Answer(204)) == []
    found = _differences(_publish(), _failure("ERR_PUBSUB_NOT_FOUND", 404))
    assert found == [("status", 204, 404), ("outcome", "ok", "ERR_PUBSUB_NOT_FOUND")]


def test_what_comes_of_an_event_is_compared() -> None:
    """By what the answer says, as a gateway reads it."""
    assert _differences(_arrived(), _answer({"status": "RETRY"})) == []
    assert _differences(_arrived(), _answer({"status": "SUCCESS"})) == [
        ("outcome", "retry", "success"),
        ("body.status", "RETRY", "SUCCESS"),
    ]
    assert _differences(_arrived(reply=None, outcome="CIRCUIT_OPEN"), _answer(b"", 500)) == []
    assert _differences(_arrived(reply=None), _answer(b"", 404)) == [("outcome", "retry", "drop")]


def test_what_is_not_known_is_not_compared() -> None:
    for reply in (_content(b"{", cut=True, size=9), Content((), JSON, -1)):
        found = compare(Kind.CALL, _call(reply=reply), _answer({"total": 9}))
        assert found.differences == ()
        assert found.unknown
    found = compare(Kind.CALL, _call(), Answer(200, JSON, b"{", cut=True))
    assert (found.differences, found.unknown) == ((), "the answer is longer than what is kept of it")


async def test_one_is_sent_and_compared() -> None:
    sent: list[Resend] = []

    async def send(made: Resend) -> Answer:
        sent.append(made)
        return _answer({"total": 4})

    came = await replay(_call(), send, to="orders-v2", headers=[("a", "b")], ignored=[path_pattern("status")])
    assert isinstance(came, Replayed)
    assert came.sent is sent[0]
    assert (came.outcome, came.failed) == ("ok", False)
    assert [each.described() for each in came.compared.differences] == [
        {"path": "body.total", "recorded": 3, "replayed": 4}
    ]
    assert isinstance(await replay(_call(hidden=True), send), Skipped)
    assert len(sent) == 1
