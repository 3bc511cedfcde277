"""Taps at one node: what is wanted, what is hidden, and that all of it is bounded."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec
import orjson
import pytest

from mesh import address, pipeline
from mesh.access import Gate, TapRights
from mesh.actors.host import Turn, TurnAnswer, TurnKind
from mesh.actors.observed import ObservedHost
from mesh.blocks.crypto import ENCRYPT, Encrypt, Encrypted
from mesh.blocks.invocation import INVOKE, Call
from mesh.blocks.invocation import Answer as CallAnswer
from mesh.blocks.secrets import GET as GET_SECRET
from mesh.blocks.secrets import Get as GetSecret
from mesh.blocks.state import GET, SAVE, Get, Save
from mesh.blocks.telling import Telling
from mesh.broker import Message
from mesh.errors import BadArgumentError, MeshError
from mesh.node.description import collect
from mesh.node.runtime import Runtime
from mesh.operation import Caller, Context, Operation
from mesh.passing import Part, Passing, Taps
from mesh.resources.configuration import AccessControl, AccessPolicy, Configuration, ConfigurationSpec, TapAccess
from mesh.store import Item
from mesh.tap import tapping as asking
from mesh.tap import watch as at_node
from mesh.tap import watches
from mesh.tap.content import HIDDEN, content, is_secret
from mesh.tap.rates import MAX_EDGES, Counted
from mesh.tap.sight import BUCKETS, OTHERS, Content, Dropped, Edge, Rates, Refused, Seen, Sight
from mesh.tap.tapping import _Queue
from mesh.tap.wanted import Names, Wanted, compiled
from mesh.tap.watch import Place, Question, Told, Watch
from mesh.telemetry import nobody
from mesh.workflows import observed
from mesh.workflows.actions import Answer
from mesh.workflows.events import Failure
from mesh.workflows.worker import Ref, TaskResult, TaskWork, TurnWork
from tests.support.eventually import eventually
from tests.support.nodes import MemoryMesh, ask, component, node
from tests.support.tapped import App, serving, tapping

ALL = TapRights(True, True, True)
NO_VALUES = TapRights(True, False, False, "both", "values are not told", "manage is not")
_read = msgspec.msgpack.Decoder(tuple[list[Sight | Dropped | Rates | Refused]])


def passing(block: str = "state", method: str = "get", target: str = "store", source: str = "orders") -> Passing:
    made = Passing("asked", block, method, target, source)
    made.ends("ok")
    return made


def watch(wanted: Wanted, rights: TapRights = ALL) -> Watch:
    match = compiled(wanted.where)
    made = Watch(Place("ns", "orders", "n"), Question("t", "w", wanted), match, 65536, itertools.count(1))
    made.renew(rights, None)
    return made


def told(watched: Watch) -> list[Any]:
    return [item for body, *_ in watched.batches() for item in _read.decode(body)[0]]


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (Wanted(sample=1.1), "sample"),
        (Wanted(sample=float("nan")), "sample"),
        (Wanted(max_body=-1), "maxBody"),
        (Wanted(max_body=1024 * 1024 + 1), "maxBody"),
        (Wanted(rates=0.5), "rates"),
        (Wanted(rates=float("nan")), "rates"),
        (Wanted(sights=False), "sights"),
        (Wanted(where="x" * 5000), "where"),
        (Wanted(apps=("a",) * 101), "apps"),
        (Wanted(topics=("",)), "topics"),
        (Wanted(topics=("[",)), "topics"),
        (Wanted(blocks=("x" * 513,)), "blocks"),
    ],
)
def test_what_makes_no_sense_is_named(wanted: Wanted, field: str) -> None:
    with pytest.raises(BadArgumentError, match=field):
        wanted.check()


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("event.data.seconds >", "does not compile"),
        ("even.data", "unknown variable 'even'"),
        ("event.data.seconds", "must give true or false"),
        ("event.data.outcome > 1.0", "cannot be evaluated"),
        ("[1].all(a, [1].map(b, b) // all\n== [1].filter(c, true))", "4 of all, exists"),
    ],
)
async def test_wrong_expressions_are_told_before_anybody_is_asked(where: str, says: str) -> None:
    async with node("memory:", "ns", registry=MemoryMesh()) as runtime:
        with pytest.raises(BadArgumentError, match=f"where: .*{says}"):
            async with runtime.tap(Wanted(where=where)):
                raise AssertionError


@pytest.mark.parametrize(
    ("wanted", "made", "taken"),
    [
        (Wanted(), passing(), True),
        (Wanted(blocks=("state", "x")), passing(), True),
        (Wanted(blocks=("pub*",)), passing(), False),
        (Wanted(apps=("here",)), passing(), True),
        (Wanted(apps=("ord*",)), passing(), True),
        (Wanted(apps=("checkout",)), passing(), False),
        (Wanted(apps=("store",)), passing(), False),
        (Wanted(apps=("checkout",)), passing("invocation", "invoke", "checkout.other"), True),
        (Wanted(topics=("orders.*",)), passing("pubsub", "publish", "pubsub/orders.new"), True),
        (Wanted(topics=("pubsub/orders",)), passing("pubsub", "publish", "pubsub/orders"), True),
        (Wanted(topics=("other/orders",)), passing("pubsub", "publish", "pubsub/orders"), False),
        (Wanted(topics=("*",)), passing(), False),
        (Wanted(apps=("orders",), blocks=("lock",)), passing(), False),
    ],
)
def test_lists(wanted: Wanted, made: Passing, taken: bool) -> None:
    assert Names(wanted, "here").take(made) is taken


def test_a_queue_is_bounded_and_what_is_left_out_is_counted() -> None:
    watched = watch(Wanted())
    for _ in range(at_node.MAX_SIGHTS + 7):
        watched.see(passing())
    sizes = []
    items: list[Any] = []
    left = 0
    for body, count, dropped in watched.batches():
        found = _read.decode(body)[0]
        assert len(found) == count + bool(dropped) <= at_node.BATCH_SIGHTS
        left += dropped
        sizes.append(len(body))
        items += found
    assert left == 7
    assert max(sizes) <= at_node.BATCH_BYTES + 65536
    assert items[0] == Dropped("orders", "n", 7)
    assert len(items) == at_node.MAX_SIGHTS + 1
    assert len({each.id for each in items[1:]}) == at_node.MAX_SIGHTS
    assert not watched.waits


def test_a_queue_is_bounded_in_bytes() -> None:
    watched, made = watch(Wanted(values=True)), passing()
    made.request = Part(body=b"x" * 100_000)
    for _ in range(at_node.MAX_SIGHTS):
        watched.see(made)
    items = told(watched)
    (dropped,) = [each for each in items if isinstance(each, Dropped)]
    sights = [each for each in items if isinstance(each, Sight)]
    assert dropped.count + len(sights) == at_node.MAX_SIGHTS
    assert len(sights) == at_node.MAX_KEPT_BYTES // 65536  # Each is a little more than that.
    contents = [each.request for each in sights if each.request is not None]
    assert {(each.size, len(each.body or b""), each.cut) for each in contents} == {(100_000, 65536, True)}


def test_a_share_is_told() -> None:
    half, none = watch(Wanted(sample=0.5)), watch(Wanted(sample=0.0, rates=1.0))
    for _ in range(1000):
        half.see(passing())
        none.see(passing())
    assert 400 < len(told(half)) < 600
    assert not told(none)
    none.tick(none.rates_due)
    (rates,) = told(none)
    assert rates.edges[0].count == 1000


SECRETS = """Authorization proxy-authorization Cookie Set-Cookie dapr-api-token X-Auth-Token client_secret DB-PASSWORD
x-api-key apiKey mesh-proof mesh-identity X-Amz-Signature aws_access_key Credential sig X-Auth db_pwd x-jwt
x-goog-iap-jwt-assertion Ocp-Apim-Subscription-Key x-functions-key AccountKey X-XSRF
x-amz-server-side-encryption-customer-key"""


@pytest.mark.parametrize("name", SECRETS.split())
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "content-type",
        "traceparent",
        "x-request-id",
        "key",
        "accept",
        "partitionKey",
        "routing-key",
        "design",
        "X-Author",
    ],
)
def test_names_of_no_secrets(name: str) -> None:
    assert not is_secret(name)


def test_hidden_where_values_are_not_allowed() -> None:
    """Also for the expression: it cannot be used to guess at what is not told."""
    watched = watch(Wanted(values=True), NO_VALUES)
    guessing = watch(Wanted(values=True, where="event.data.request.text == 'secret'"), NO_VALUES)
    allowed = watch(Wanted(values=True, where="event.data.request.text == 'secret'"))
    made = passing()
    made.request = Part([("x", "y")], "text/plain", b"secret")
    for each in (watched, guessing, allowed):
        each.see(made)
    refused, sight = told(watched)
    assert refused == Refused("orders", "n", "values are not told")
    assert sight.hidden and sight.request == Content(None, "text/plain", 6)
    assert [type(each) for each in told(guessing)] == [Refused]
    assert [type(each) for each in told(allowed)] == [Sight]


def test_values_are_not_told_unasked() -> None:
    watched, made = watch(Wanted()), passing()
    made.request = Part([("x", "y")], "text/plain", b"secret")
    watched.see(made)
    (sight,) = told(watched)
    assert sight.request == Content(None, "text/plain", 6)
    assert not sight.hidden


def _told_of(operation: Operation, result: object) -> tuple[Passing, Content | None, Content | None]:
    made = Passing("asked", operation.method.block, operation.method.name, operation.target)
    Telling.asked(made, operation)
    Telling.came(made, operation, result)
    request, reply = (content(made, each, 65536, values=True) for each in (made.request, made.reply))
    return made, request, reply


def test_secrets_and_plain_texts_never_leave() -> None:
    context = Context(Caller("ns", "a"))
    cases: Sequence[tuple[Any, object, object, dict[str, object]]] = [
        (GET_SECRET, GetSecret("db"), {"password": "TOPSECRET"}, {"name": "db"}),
        (
            ENCRYPT,
            Encrypt(b"TOPSECRET", "AES", "k"),
            Encrypted(b"TOPSECRET"),
            {"key": "k", "algorithm": "AES"},
        ),
    ]
    for method, asked, result, details in cases:
        made, request, reply = _told_of(Operation(method, "vault", asked, context), result)
        assert made.details == details
        assert b"TOPSECRET" not in msgspec.msgpack.encode((made.details, request, reply))
        assert request is not None and request.body is None


def test_a_url_of_a_header_hides_its_secrets() -> None:
    """One that leads back with a token, or with a login, is as good as that."""
    told = {
        "Location": "/back?token=x",
        "Referer": "http://a/?a=1&api_key=x",
        "Link": "<https://user:x@a/>; rel=next",
        "Origin": "https://a/?a=1&b=2",
        "From": "user@a",
    }
    part = Part(tuple(told.items()), body=b"")
    found = content(Passing("asked", "invocation", "invoke", "orders"), part, 10, values=True)
    assert found is not None
    assert found.headers == tuple(
        (name, value if name in ("Origin", "From") else HIDDEN) for name, value in told.items()
    )


def test_arguments_as_json() -> None:
    """As they were asked: what is done is taken out of them; metadata that is named as a secret is hidden."""
    save = Save([Item("k", b'{"a":1}', metadata={"token": "x", "ttl": "1"}), Item("b", b"\xff\x00")])
    operation = Operation(SAVE, "store", save, Context(Caller("ns", "a")))
    made = Passing("asked", "state", "save", "store")
    Telling.asked(made, operation)
    save.items.clear()
    found = content(made, made.request, 65536, values=True)
    assert found is not None
    first, second = orjson.loads(found.body or b"")["items"]
    assert (first["key"], first["value"], first["metadata"]) == ("k", {"a": 1}, {"token": HIDDEN, "ttl": "1"})
    assert second["value"] == "/wA="
    assert made.details == {"count": 2}


def test_edges_are_bounded() -> None:
    counted = Counted("orders")
    for number in range(MAX_EDGES + 500):
        counted.add(passing(target=str(number)))
    edges = counted.take()
    assert len(edges) <= MAX_EDGES + 10
    (rest,) = [each for each in edges if each.target == OTHERS]
    assert rest.count == 500
    assert not counted.take()


def test_buckets() -> None:
    counted = Counted("orders")
    for seconds in (0.0, 0.001, 0.0011, 6.0):
        made = passing()
        made.seconds = seconds
        counted.add(made)
    failed = passing()
    failed.ends("COMPONENT_FAILED")
    failed.seconds = 5.0
    counted.add(failed)
    (edge,) = counted.take()
    assert (edge.count, edge.errors, edge.longest) == (5, 1, 6.0)
    assert edge.buckets[:2] == (2, 1)
    assert edge.buckets[-2:] == (1, 1)
    assert len(edge.buckets) == len(BUCKETS) + 1


def test_ids_of_actors_and_workflows_make_no_edges() -> None:
    counted = Counted("orders")
    for number in range(10):
        counted.add(passing("actors", "invoke", f"cart/{number}"))
        counted.add(passing("workflows", "turn", f"order/{number}"))
    assert {(each.target, each.count) for each in counted.take()} == {("cart", 10), ("order", 10)}


def test_an_expression_that_cannot_be_evaluated_is_told_once() -> None:
    """What a sight does not have is no match, and no error."""
    missing = watch(Wanted(where="event.data.details.status >= 500"))
    wrong = watch(Wanted(where="event.data.details.status >= 'x'"))
    made = passing()
    missing.see(made)
    made.details["status"] = 503
    for _ in range(3):
        missing.see(made)
        wrong.see(made)
    assert [type(each) for each in told(missing)] == [Sight] * 3
    (refused,) = told(wrong)
    assert "where: expression 'event.data.details.status >= 'x''" in refused.reason


def test_a_slow_expression_ends_the_tap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_node, "SLOW_SECONDS", -1.0)
    slow = watch(Wanted(where="event.data.outcome == 'ok'"))
    for _ in range(3):
        slow.see(passing())
    (refused,) = [each for each in told(slow) if isinstance(each, Refused)]
    assert "holds up this node" in refused.reason
    slow.see(passing())
    assert not slow.waits


def _gate(section: AccessControl | None, *, proves: bool = False, alone: bool = False) -> Gate:
    return Gate(Caller("ns", "orders"), section, nobody, proves=proves, alone=alone)


SHOP = AccessPolicy("shop", "public", "ns")
LISTS = AccessControl(tap=TapAccess(values=("watcher",), manage=("admin",)))
CLAIMED = Caller("ns", "watcher")
PROVEN = Caller("ns", "watcher", proven=True)


@pytest.mark.parametrize(
    ("gate", "caller", "sights", "values", "manage"),
    [
        (_gate(None), CLAIMED, True, False, False),
        (_gate(None, alone=True), CLAIMED, True, True, True),
        (_gate(AccessControl(default_action="deny")), CLAIMED, False, False, False),
        (_gate(AccessControl(default_action="deny"), alone=True), CLAIMED, False, False, False),
        (_gate(AccessControl(default_action="deny", tap=TapAccess("allow"))), CLAIMED, True, False, False),
        (_gate(AccessControl(policies=(SHOP,))), CLAIMED, False, False, False),
        (_gate(AccessControl(policies=(SHOP,)), alone=True), CLAIMED, False, False, False),
        (_gate(AccessControl("allow", policies=(SHOP,))), CLAIMED, True, False, False),
        (_gate(AccessControl(tap=TapAccess("deny", ("watcher",)))), CLAIMED, False, False, False),
        (_gate(LISTS), CLAIMED, True, True, False),
        (_gate(LISTS), Caller("ns", "admin"), True, False, True),
        (_gate(LISTS), Caller("ns", "other"), True, False, False),
        (_gate(LISTS), Caller("other", "watcher"), True, False, False),
        (_gate(LISTS, proves=True), CLAIMED, True, False, False),
        (_gate(LISTS, proves=True), PROVEN, True, True, False),
    ],
)
def test_rights(gate: Gate, caller: Caller, sights: bool, values: bool, manage: bool) -> None:
    rights = gate.tap(caller)
    assert (rights.sights, rights.values, rights.manage) == (sights, values, manage)
    assert bool(rights.why) is not (sights and values and manage)
    assert bool(rights.why_values) is not values
    assert bool(rights.why_manage) is not manage


def test_rights_name_the_lines_to_add() -> None:
    gate = _gate(None)
    assert "spec.accessControl.tap: {values: [watcher]}" in gate.tap(CLAIMED).why_values
    assert "spec.accessControl.tap: {values: [watcher], manage: [watcher]}" in gate.tap(CLAIMED).why
    gate.apply(AccessControl(default_action="deny"))
    assert "spec.accessControl.tap: {action: allow}" in gate.tap(CLAIMED).why
    gate.apply(AccessControl(default_action="deny", tap=TapAccess("allow", ("watcher",), ("watcher",))))
    assert gate.tap(CLAIMED) == TapRights(True, True, True)


@pytest.mark.parametrize(("section", "told"), [(None, True), (AccessControl("deny"), False)])
async def test_what_is_not_well_is_told_to_who_may_see(section: AccessControl | None, told: bool) -> None:
    """Why something failed says as much as a sight of it."""
    configuration = Configuration(spec=ConfigurationSpec(access_control=section))
    async with node("memory:", "ns", registry=MemoryMesh(), configuration=configuration) as runtime:
        runtime.conditions.of("state", "store").gives_up(3, "no such table")
        found = await collect(runtime.broker, "ns", 0.3)
        assert [bool(each.problems) for each in found] == [told]


async def test_nothing_is_made_while_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    for name in ("Passing", "arrives", "_asking", "_arriving", "_timed"):
        monkeypatch.setattr(pipeline, name, never)
    async with node("memory:", "ns", component("store", "state.in-memory"), registry=MemoryMesh()) as runtime:
        await ask(runtime, SAVE, "store", Save([Item("k", b"1")]))
        assert (await ask(runtime, GET, "store", Get("k"))).value == b"1"


def _asked(runtime: Runtime, tap: str, app: str = "w", wanted: Wanted = Wanted(), *, over: bool = False) -> Any:  # noqa: B008 - frozen
    body = msgspec.msgpack.encode(Question(tap, app, wanted, over))
    return runtime.broker.broadcast(address.taps("ns"), Message({}, body))


def _count(runtime: Runtime) -> int:
    return cast("Any", runtime).parts.taps.count


def _has(runtime: Runtime, count: int) -> Callable[[], None]:
    def check() -> None:
        assert _count(runtime) == count

    return check


@pytest.mark.parametrize(
    ("wanted", "whole"), [({}, False), ({"rates": 1.0, "sights": False}, False), ({"values": True}, True)]
)
async def test_an_answer_is_waited_for_only_where_it_is_told(wanted: dict[str, Any], whole: bool) -> None:
    runtime = node("memory:", "ns", app_id="a", registry=MemoryMesh())
    async with serving(runtime, App()), tapping(runtime, runtime, **wanted):
        answer = cast("CallAnswer", await ask(runtime, INVOKE, "a", Call("POST", "/x", [], b"body")))
        assert (answer.body is not None) is whole
        await answer.aclose()


async def test_a_tap_whose_asker_died_ends_with_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_node, "LEASE_SECONDS", 0.3)
    async with node("memory:", "ns", registry=MemoryMesh()) as runtime:
        await _asked(runtime, "t")
        await eventually(_has(runtime, 1))
        assert cast("Any", runtime).parts.taps.on
        await eventually(_has(runtime, 0))
        assert not cast("Any", runtime).parts.taps.on


async def test_another_asker_cannot_end_or_change_a_tap() -> None:
    async with node("memory:", "ns", registry=MemoryMesh()) as runtime:
        await _asked(runtime, "t")
        await eventually(_has(runtime, 1))
        await _asked(runtime, "t", "other", over=True)
        await _asked(runtime, "u", "other")
        await eventually(_has(runtime, 2))
        await _asked(runtime, "t", over=True)
        await eventually(_has(runtime, 1))


async def test_there_are_so_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "MAX_WATCHES", 2)
    async with node("memory:", "ns", app_id="a", registry=MemoryMesh()) as runtime:
        for number in range(2):
            await _asked(runtime, f"t{number}")
        await eventually(_has(runtime, 2))
        async with tapping(runtime) as seen:

            def refused() -> None:
                assert [each.reason for each in seen.of(Refused)]

            await eventually(refused)
            assert "watched by 2 taps already" in seen.of(Refused)[0].reason
        assert _count(runtime) == 2


async def test_one_application_leaves_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "MAX_OF_ONE", 2)
    async with node("memory:", "ns", app_id="a", registry=MemoryMesh()) as runtime:
        for number in range(5):
            await _asked(runtime, f"t{number}", "greedy")
        await _asked(runtime, "u", "modest")
        await eventually(_has(runtime, 3))
        assert {"t0", "t1", "u"} == {*cast("Any", runtime).parts.taps._watches}


async def test_what_takes_every_node_long_is_refused_by_each() -> None:
    """Also where who asks has not looked at it."""
    async with node("memory:", "ns", registry=MemoryMesh()) as runtime:
        loops = "true"
        for number in range(3):
            loops = f"[1, 2].all(x{number}, {loops})"
        await _asked(runtime, "slow", wanted=Wanted(where=loops))
        await _asked(runtime, "t", wanted=Wanted(where="[1].all(a, [1].all(b, true))"))
        await eventually(_has(runtime, 1))
        assert [*cast("Any", runtime).parts.taps._watches] == ["t"]


async def test_what_is_malformed_is_ignored() -> None:
    async with node("memory:", "ns", registry=MemoryMesh()) as runtime:
        wrong = [msgspec.msgpack.encode(each) for each in (["t", "a"], ["t", "a", {"sample": "x"}], {})]
        for body in (b"", b"\xc1", *wrong):
            await runtime.broker.broadcast(address.taps("ns"), Message({}, body))
        await _asked(runtime, "x" * 5000)
        await _asked(runtime, "no-app", "x" * 5000)
        await _asked(runtime, "wrong", wanted=Wanted(sample=7.0))
        await _asked(runtime, "t")
        await eventually(_has(runtime, 1))


async def test_a_slow_reader_is_told_what_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for it: what passes goes on as fast."""
    monkeypatch.setattr(asking, "MAX_ITEMS", 20)
    store = component("store", "state.in-memory")
    runtime = node("memory:", "ns", store, app_id="a", registry=MemoryMesh())
    async with runtime, runtime.tap(Wanted()) as sights:
        await eventually(_has(runtime, 1))
        for _ in range(200):
            await ask(runtime, GET, "store", Get("k"))
        watched = next(iter(cast("Any", runtime).parts.taps._watches.values()))

        def sent() -> None:
            assert not watched.waits

        await eventually(sent)
        found: list[Any] = []
        async with asyncio.timeout(5):
            while sum(each.count if isinstance(each, Dropped) else 1 for each in found) < 200:
                found.append(await anext(sights))
        assert any(isinstance(each, Dropped) for each in found)


async def test_an_iteration_ends_with_the_node() -> None:
    runtime = node("memory:", "ns", registry=MemoryMesh())
    async with runtime:
        tapped = runtime.tap(Wanted())
        sights = await tapped.__aenter__()
        runtime._tapping.close()
        assert [each async for each in sights] == []
        await tapped.__aexit__(None, None, None)


@pytest.mark.parametrize(
    "told",
    [
        msgspec.structs.replace(asking._SAMPLE, time=1e20),
        msgspec.structs.replace(asking._SAMPLE, time=float("nan")),
        msgspec.structs.replace(asking._SAMPLE, seconds=float("inf")),
        Dropped("a", "n", 2**60),
        Rates("a", "n", 1.0, (Edge(Seen.ASKED, "state", "a", "s", "a", 1, 0, 0.1, 0.1, (1, 0)),)),
        Rates("a", "n", 1.0, (Edge(Seen.ASKED, "state", "a", "s", "a", 2**60, 0, 0.1, 0.1, (0,) * 13),)),
    ],
)
async def test_what_cannot_be_shown_ends_no_tap(told: Any) -> None:
    async with node("memory:", "ns", registry=MemoryMesh()) as runtime, runtime.tap(Wanted()) as sights:
        await eventually(_has(runtime, 1))
        at = address.taps("ns", next(iter(cast("Any", runtime).parts.taps._watches)))
        good = Dropped("a", "n", 1)
        for each in (told, good):
            body = msgspec.msgpack.encode(Told([msgspec.Raw(msgspec.msgpack.encode(each))]))
            await runtime.broker.broadcast(at, Message({}, body))
        async with asyncio.timeout(10):
            assert await anext(sights) == good


def test_a_refusal_is_given_once() -> None:
    queue = _Queue("a", "n")
    queue.take([Refused("b", "m", "no"), Refused("b", "m", "no"), Refused("b", "m", "why")], 10)
    assert len(queue._items) == 2


class Recorded(Taps):
    """Keeps what it is told."""

    on = True

    def __init__(self) -> None:
        self.seen: list[Passing] = []

    def tell(self, passing: Passing) -> None:
        self.seen.append(passing)


class Host:
    """Has actors that answer by their method's name."""

    settings: Any = None

    async def turn(self, turn: Turn) -> TurnAnswer:
        if turn.name == "away":
            raise MeshError("it is away")
        return TurnAnswer(200 if turn.name == "add" else 500, [("x", "y")], b"2")


async def test_turns_of_actors() -> None:
    taps = Recorded()
    host = ObservedHost(cast("Any", Host()), nobody, taps)
    await host.turn(Turn(TurnKind.METHOD, "cart", "7", "add", [("traceparent", "t")], b"1"))
    await host.turn(Turn(TurnKind.REMINDER, "cart", "7", "pay"))
    with pytest.raises(MeshError):
        await host.turn(Turn(TurnKind.METHOD, "cart", "7", "away"))
    first, second, third = taps.seen
    assert (first.seen, first.block, first.method, first.target) == ("turn", "actors", "method", "cart/7")
    assert first.details == {"type": "cart", "id": "7", "name": "add", "status": 200}
    assert (first.outcome, first.traceparent) == ("ok", "t")
    assert first.request is not None and first.reply is not None
    assert (first.request.body, first.reply.body) == (b"1", b"2")
    assert (second.method, second.outcome) == ("reminder", "FAILED")
    assert (third.outcome, third.details["reason"]) == (MeshError.code, "it is away")


def test_steps_of_workflows() -> None:
    turn = observed.turning(TurnWork(Ref(1, "i"), "orders", "ship", "e", 0, 3, (), ()))
    observed.noted(turn, Answer())
    assert (turn.seen, turn.block, turn.method, turn.target, turn.source) == (
        "step",
        "workflows",
        "turn",
        "ship/i",
        "orders",
    )
    assert turn.details == {"workflow": "ship", "instance": "i", "turn": 3, "actions": 0}
    work = TaskWork("orders", "i", "ship", 0, 1, 2, "pack", "e", "packer", 0.0, input='{"n":1}')
    done, failed = observed.tasking(work), observed.tasking(work)
    observed.noted(done, TaskResult("2"))
    observed.noted(failed, TaskResult(failure=Failure("Broken", "by SECRET")))
    assert done.details == {"workflow": "ship", "instance": "i", "activity": "pack", "attempt": 2}
    assert (done.outcome, failed.outcome, failed.details["reason"]) == ("success", "failed", "Broken")
    assert "SECRET" not in str(failed.details)


@pytest.mark.parametrize(("rights", "reason"), [(ALL, "no row 'SECRET'"), (NO_VALUES, None)])
def test_a_reason_is_for_those_who_may_see_values(rights: TapRights, reason: str | None) -> None:
    """It may quote one."""
    watched, failed = watch(Wanted(), rights), Passing("asked", "state", "get", "store", "orders")
    failed.details["keys"] = 1
    failed.ends("ERR_STATE_GET", "no row 'SECRET'")
    watched.see(failed)
    (sight,) = told(watched)
    assert (sight.details.get("reason"), sight.details["keys"], sight.outcome) == (reason, 1, "ERR_STATE_GET")


def test_what_is_lost_is_counted_and_refusals_are_told_anew() -> None:
    watched = watch(Wanted(values=True), NO_VALUES)
    watched.see(passing())
    ((_, count, dropped),) = watched.batches()
    watched.lost(count + dropped)
    watched.renew(NO_VALUES, None)
    lost, refused = told(watched)
    assert (lost.count, type(refused)) == (2, Refused)


def test_rates_are_told_in_their_rhythm() -> None:
    watched = watch(Wanted(sights=False, rates=2.0))
    due = watched.rates_due
    watched.tick(due - 0.1)
    assert not watched.waits
    watched.tick(due + 0.1)
    assert watched.rates_due == due + 2.0
    watched.tick(due + 100.0)
    assert watched.rates_due == due + 102.0
    assert [type(each) for each in told(watched)] == [Rates, Rates]


def test_a_batch_is_one_message() -> None:
    """Of its own kind, so that nobody takes it for another."""
    watched = watch(Wanted())
    watched.see(passing())
    ((body, count, dropped),) = watched.batches()
    assert (count, dropped) == (1, 0)
    assert len(msgspec.msgpack.decode(body, type=Told).items) == 1
