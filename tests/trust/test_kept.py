"""What is stored: taken hours later and more than once, and by nobody else and nowhere else than it was signed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from mesh import address
from mesh.blocks.proofs import Proofs
from mesh.blocks.topic_scopes import TopicScopes
from mesh.blocks.topics import not_before_of
from mesh.broker import Delivery, Message
from mesh.errors import BadArgumentError, IdentityAwayError, UnprovenError
from mesh.operation import Caller
from mesh.trust.folder import Folder
from mesh.trust.guard import Guard
from mesh.trust.identity import Identity, TrustSettings
from mesh.trust.kept import KEPT_SECONDS, MAX_DELAY_SECONDS, UNSETTLED_SECONDS, Kept

ORDERS, REFUNDS, LETTERS = (address.topic("ns", "pubsub", name) for name in ("orders", "refunds", "letters"))
EVENT = Message({"ce-id": "1", "ce-source": "shop", "ce-specversion": "1.0", "ce-type": "t"}, b"one", "k", "i")
SHOP = "spiffe://public/ns/ns/shop"
REASON = {"mesh-dead-letter-reason": "x", "mesh-dead-letter-attempts": "1", "mesh-dead-letter-topic": "orders"}
HOUR = 3600.0
OPEN = TopicScopes()


class Nodes:
    """Nodes of one root."""

    def __init__(self, folder: Path) -> None:
        self.folder = Folder(folder)
        self.folder.init("public")
        self.refused: list[tuple[str, ...]] = []

    def proofs(
        self,
        app_id: str,
        mode: str = "strict",
        *,
        namespace: str = "ns",
        folder: Folder | None = None,
        on_backbone: bool = True,
        scopes: TopicScopes = OPEN,
        prefix: str = "",
    ) -> Proofs:
        settings = TrustSettings(mode, folder=self.folder.path)  # type: ignore[arg-type]
        guard = Guard(settings, lambda _, labels, *rest: self.refused.append(labels))
        identity = Identity("public", namespace, app_id)
        guard.take((folder or self.folder).issue(identity), identity)
        return Proofs(guard.kept, Caller(namespace, app_id), on_backbone, ORDERS.space, prefix, scopes)


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path / "trust")


def read(
    proofs: Proofs,
    message: Message,
    where: address.Address = ORDERS,
    *,
    lenient: bool = False,
    letters: bool = True,
) -> str:
    delivery = Delivery(message, where, 1, None)  # type: ignore[arg-type]
    return proofs.publisher(delivery, lenient=lenient, letters=letters)


def with_header(message: Message, name: str, value: str | None) -> Message:
    headers = {**message.headers, name: value or ""}
    if value is None:
        del headers[name]
    return replace(message, headers=headers)


def test_it_is_taken_as_often_as_it_comes(nodes: Nodes) -> None:
    sent = nodes.proofs("shop").prove(ORDERS, EVENT)
    assert (sent.body, sent.key, sent.id) == (EVENT.body, EVENT.key, EVENT.id)
    stock = nodes.proofs("stock")
    assert [read(stock, sent) for _ in range(3)] == [SHOP] * 3
    assert not nodes.refused


ALTERED: dict[str, Callable[[Message], Message]] = {
    "body": lambda sent: replace(sent, body=b"two"),
    "attribute": lambda sent: with_header(sent, "ce-source", "bank"),
    "one more header": lambda sent: with_header(sent, "ce-extra", "1"),
    "one header less": lambda sent: with_header(sent, "ce-type", None),
    "when it is due": lambda sent: with_header(sent, "mesh-not-before", str(int(time.time() * 1000))),
    "time": lambda sent: with_header(sent, "mesh-signed", str(int(sent.headers["mesh-signed"]) - 1)),
    "no time": lambda sent: with_header(sent, "mesh-signed", "²"),
    "signer": lambda sent: with_header(sent, "mesh-signer", "AAAA"),
    "no signer": lambda sent: with_header(sent, "mesh-signer", None),
    "short signer": lambda sent: with_header(sent, "mesh-signer", "#AAAA"),
    "signature": lambda sent: with_header(sent, "mesh-signature", "AAAA"),
    "no base64": lambda sent: with_header(sent, "mesh-signature", "ß"),
    "said to be a dead letter": lambda sent: replace(sent, headers={**sent.headers, **REASON}),
}


@pytest.mark.parametrize("altered", ALTERED)
def test_it_is_altered(nodes: Nodes, altered: str) -> None:
    message = ALTERED[altered](nodes.proofs("shop").prove(ORDERS, EVENT))
    with pytest.raises(UnprovenError):
        read(nodes.proofs("stock"), message)
    assert nodes.refused == [("event", "invalid")]
    assert read(nodes.proofs("stock", "permissive"), message) == "none"
    assert read(nodes.proofs("stock"), message, lenient=True) == "none"
    assert len(nodes.refused) == 1


def test_it_is_not_signed(nodes: Nodes) -> None:
    with pytest.raises(UnprovenError, match="not proven"):
        read(nodes.proofs("stock"), EVENT)
    assert nodes.refused == [("event", "missing")]
    assert read(nodes.proofs("stock", "permissive"), EVENT) == "none"
    assert read(nodes.proofs("stock"), EVENT, lenient=True) == "none"


def test_it_is_brought_to_another_topic(nodes: Nodes) -> None:
    sent = nodes.proofs("shop").prove(ORDERS, EVENT)
    for on_backbone, where in ((True, REFUNDS), (True, address.topic("ns", "other", "orders")), (False, REFUNDS)):
        with pytest.raises(UnprovenError):
            read(nodes.proofs("stock", on_backbone=on_backbone), sent, where)


def test_by_a_root_that_nobody_trusts(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = Folder(tmp_path / "evil")
    evil.init("public")
    sent, stock = nodes.proofs("shop", folder=evil).prove(ORDERS, EVENT), nodes.proofs("stock")
    later = time.time() + UNSETTLED_SECONDS + 1
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: later)
        with pytest.raises(UnprovenError, match="no root"):
            read(stock, sent)


def test_what_is_not_proven_yet_is_looked_at_again(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader looks for new roots now and then, and clocks differ: an event of a moment ago is not lost by that."""
    stock, permissive, now = nodes.proofs("stock"), nodes.proofs("stock", "permissive"), time.time()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now + 60)
        ahead = nodes.proofs("shop").prove(ORDERS, EVENT)
    nodes.folder.rotate()
    by_new_root = nodes.proofs("shop").prove(ORDERS, EVENT)
    letter = nodes.proofs("stock").move(LETTERS, replace(ahead, headers={**ahead.headers, **REASON}))
    for message, where in ((ahead, ORDERS), (by_new_root, ORDERS), (letter, LETTERS)):
        with pytest.raises(IdentityAwayError) as raised:
            read(stock, message, where)
        assert raised.value.retryable  # So its delivery fails as when a broker does: it comes again.
        assert read(permissive, message, where) == "none"
    assert nodes.refused == [("event", "invalid")] * 3
    stock.kept._guard.peers.trust(nodes.folder.roots())  # type: ignore[attr-defined]
    assert read(stock, by_new_root) == SHOP
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert read(stock, ahead) == read(stock, letter, LETTERS) == SHOP


@pytest.mark.parametrize("hours", [-1.0, 30.0])
def test_nothing_is_signed_by_a_certificate_that_is_not_valid(
    nodes: Nodes, hours: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its publisher is told so; else it would be told that it is stored, and readers drop it."""
    shop, now = nodes.proofs("shop"), time.time()
    monkeypatch.setattr(time, "time", lambda: now + hours * HOUR)
    for sign in (shop.prove, shop.move):
        with pytest.raises(IdentityAwayError, match="has expired, or is not valid yet"):
            sign(ORDERS, EVENT)


def test_by_another_namespace(nodes: Nodes) -> None:
    """On the backbone each namespace has topics of its own; a broker of its own may be for several."""
    for on_backbone in (True, False):
        # Both know it by the same name: the address is not what keeps it out.
        shop = nodes.proofs("shop", namespace="other", on_backbone=on_backbone)
        other = dataclasses.replace(shop, own=Caller("other", "shop"))
        sent, stock = other.prove(ORDERS, EVENT), nodes.proofs("stock", on_backbone=on_backbone)
        if on_backbone:
            with pytest.raises(UnprovenError, match="not for spiffe://public/ns/other/shop"):
                read(stock, sent)
        else:
            assert read(stock, sent) == "spiffe://public/ns/other/shop"
            assert read(stock, sent, address.topic("ns", "named-otherwise", "orders")) == str(
                Identity("public", "other", "shop")
            )


@pytest.mark.parametrize(
    ("later", "delay", "taken"),
    [
        (30 * HOUR, 0.0, True),  # Its certificate has expired meanwhile.
        (KEPT_SECONDS + HOUR, 0.0, False),
        (KEPT_SECONDS + HOUR, 100 * HOUR, True),  # It counts from when it is due.
        (-UNSETTLED_SECONDS - 60.0, 0.0, False),  # By a clock that is ahead.
    ],
)
def test_it_is_read_later(
    nodes: Nodes, later: float, delay: float, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    due = {"mesh-not-before": str(int((now + delay) * 1000))} if delay else {}
    sent = nodes.proofs("shop").prove(ORDERS, replace(EVENT, headers={**EVENT.headers, **due}))
    stock = nodes.proofs("stock")
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now + later)
        if taken:
            assert read(stock, sent) == SHOP
        else:
            with pytest.raises(UnprovenError, match="too long ago"):
                read(stock, sent)


def test_what_nobody_would_take_is_not_stored(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    due = {"mesh-not-before": str(int((time.time() + MAX_DELAY_SECONDS) * 1000) + 60_000)}
    late, shop = replace(EVENT, headers={**EVENT.headers, **due}), nodes.proofs("shop")
    with pytest.raises(BadArgumentError, match="366 days"):
        shop.prove(ORDERS, late)
    monkeypatch.setattr("mesh.trust.kept.MAX_DELAY_SECONDS", 2 * MAX_DELAY_SECONDS)
    sent = shop.prove(ORDERS, late)  # Whatever the gateway says that has signed it.
    monkeypatch.undo()
    with pytest.raises(UnprovenError, match="too long ago"):
        read(nodes.proofs("stock"), sent)


@pytest.mark.parametrize("said", ["0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z"])
def test_it_was_due_before_time_began(nodes: Nodes, said: str) -> None:
    due = not_before_of({"scheduledSendTime": said})
    assert due == 0.0
    held = {"mesh-not-before": str(int(due * 1000))}
    sent = nodes.proofs("shop").prove(ORDERS, replace(EVENT, headers={**EVENT.headers, **held}))
    assert read(nodes.proofs("stock"), sent) == SHOP


def test_it_is_signed_when_the_certificate_was_not_valid(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    shop, stock, now = nodes.proofs("shop"), nodes.proofs("stock"), time.time()
    assert read(stock, shop.prove(ORDERS, EVENT)) == SHOP  # It is known from here on.
    for at in (now - HOUR, now + 30 * HOUR):
        for reader in (stock, nodes.proofs("stock")):
            with monkeypatch.context() as patch:
                patch.setattr(time, "time", lambda at=at: at)
                patch.setattr(Kept, "usable", lambda kept: None)
                sent = shop.prove(ORDERS, EVENT)
                with pytest.raises(UnprovenError, match=r"expired|not valid"):
                    read(reader, sent)


def test_what_is_altered_is_refused_at_once(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it says that a clock is ahead: nobody has anything tried again for minutes."""
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now + 100.0)
        sent = nodes.proofs("shop").prove(ORDERS, EVENT)
    with pytest.raises(IdentityAwayError, match="ahead"):
        read(nodes.proofs("stock"), sent)
    with pytest.raises(UnprovenError, match="altered"):
        read(nodes.proofs("stock"), replace(sent, body=b"2"))


def test_permissive_goes_on_when_a_certificate_has_ended(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its events are not proven then."""
    later, shop, stock = (
        time.time() + 30 * HOUR,
        nodes.proofs("shop", "permissive"),
        nodes.proofs("stock", "permissive"),
    )
    monkeypatch.setattr(time, "time", lambda: later)
    assert read(stock, shop.prove(ORDERS, EVENT)) == "none"


def test_a_dead_letter_is_by_its_publisher(nodes: Nodes) -> None:
    stock, audit = nodes.proofs("stock"), nodes.proofs("audit")
    sent = nodes.proofs("shop").prove(ORDERS, EVENT)
    letter = stock.move(LETTERS, replace(sent, headers={**sent.headers, **REASON}))
    assert read(audit, letter, LETTERS) == SHOP
    again = audit.move(REFUNDS, replace(letter, headers={**letter.headers, **REASON, "mesh-dead-letter-attempts": "2"}))
    assert read(stock, again, REFUNDS) == SHOP
    for message, where in (
        (letter, ORDERS),
        (letter, REFUNDS),
        (again, LETTERS),
        (replace(letter, body=b"2"), LETTERS),
    ):
        with pytest.raises(UnprovenError):
            read(audit, message, where)


@pytest.mark.parametrize("signed", [True, False])
def test_nobody_brings_an_event_as_a_dead_letter_to_where_there_are_none(nodes: Nodes, signed: bool) -> None:
    sent = nodes.proofs("shop").prove(REFUNDS, EVENT) if signed else EVENT
    letter, stock = nodes.proofs("evil").move(ORDERS, sent), nodes.proofs("stock")
    with pytest.raises(UnprovenError, match="not known to hold any"):
        read(stock, letter, letters=False)
    assert nodes.refused == [("event", "invalid")]
    assert read(stock, letter, letters=False, lenient=True) == "none"
    assert read(nodes.proofs("stock", "permissive"), letter, letters=False) == "none"


def test_dead_letters_are_moved_by_nodes_of_the_namespace(nodes: Nodes) -> None:
    """Also on a broker that several namespaces share, where events are by any of them."""
    sent = nodes.proofs("shop", namespace="other", on_backbone=False).prove(ORDERS, EVENT)
    stock = nodes.proofs("stock", on_backbone=False)
    for namespace in ("ns", "other"):
        letter = nodes.proofs("stock", namespace=namespace, on_backbone=False).move(LETTERS, sent)
        if namespace == "ns":
            assert read(stock, letter, LETTERS) == "spiffe://public/ns/other/shop"
        else:
            with pytest.raises(UnprovenError, match="not for spiffe://public/ns/other/stock"):
                read(stock, letter, LETTERS)


def test_a_dead_letter_is_of_an_event_that_is_not_proven(nodes: Nodes) -> None:
    """A node of the mesh says that it put it there; so it can be looked at, and is by nobody."""
    stock, audit = nodes.proofs("stock"), nodes.proofs("audit")
    sent = nodes.proofs("shop").prove(ORDERS, EVENT)
    for message in (EVENT, replace(sent, body=b"altered")):
        letter = stock.move(LETTERS, replace(message, headers={**message.headers, **REASON}))
        assert read(audit, letter, LETTERS) == "none"
        with pytest.raises(UnprovenError):
            read(audit, replace(letter, headers={**letter.headers, "ce-id": "2"}), LETTERS)
    assert nodes.refused == [("event", "invalid")] * 2


NOBODY: frozenset[str] = frozenset()
ITS = frozenset({"orders"})
SCOPES = {
    "none": (OPEN, True),
    "its topics": (TopicScopes(publishing={"shop": ITS}), True),
    "other topics": (TopicScopes(publishing={"shop": frozenset({"refunds"})}), False),
    "no topics": (TopicScopes(publishing={"shop": NOBODY}), False),
    "of another application": (TopicScopes(publishing={"stock": NOBODY}), True),
    "of subscribers": (TopicScopes(subscription={"shop": NOBODY}), True),
    "protected": (TopicScopes(protected=ITS), False),
    "protected, and listed": (TopicScopes(protected=ITS, publishing={"shop": ITS}), True),
    "allowed": (TopicScopes(allowed=ITS), True),
    "not allowed": (TopicScopes(allowed=frozenset({"refunds"})), False),
}


@pytest.mark.parametrize("on_backbone", [True, False])
@pytest.mark.parametrize("named", SCOPES)
def test_it_is_by_one_who_may_not_publish_it(nodes: Nodes, named: str, on_backbone: bool) -> None:
    """By the scopes that the reader has: its publisher's gateway may have others, or pass over them."""
    (scopes, may), out = SCOPES[named], ("event", "scope")
    where = address.topic("ns", "pubsub", "nsorders")
    sent = nodes.proofs("shop", on_backbone=on_backbone).prove(where, EVENT)
    stock = nodes.proofs("stock", on_backbone=on_backbone, scopes=scopes, prefix="ns")
    permissive = nodes.proofs("stock", "permissive", on_backbone=on_backbone, scopes=scopes, prefix="ns")
    if may:
        assert read(stock, sent, where) == read(permissive, sent, where) == SHOP
        assert not nodes.refused
        return
    with pytest.raises(UnprovenError, match=f"do not let {SHOP} publish"):
        read(stock, sent, where)
    assert nodes.refused == [out]
    assert read(stock, sent, where, lenient=True) == read(permissive, sent, where) == "none"
    assert nodes.refused == [out] * 3


def test_dead_letters_and_scopes(nodes: Nodes) -> None:
    """Its publisher may publish the event where it did, and who moved it the letter where that is."""
    may = {"shop": frozenset({"orders"}), "stock": frozenset({"letters"}), "evil": frozenset({"letters"})}
    audit = nodes.proofs("audit", scopes=TopicScopes(publishing=may))

    def moved(by: str, mover: str, where: address.Address, *, of: address.Address = ORDERS) -> Message:
        return nodes.proofs(mover).move(where, nodes.proofs(by).prove(of, EVENT))

    assert read(audit, moved("shop", "stock", LETTERS), LETTERS) == SHOP
    # What was refused can be looked at, but is by nobody: a topic that its publisher may not use, or of elsewhere.
    assert read(audit, moved("evil", "stock", LETTERS), LETTERS) == "none"
    elsewhere = address.topic("ns", "other", "orders")
    assert read(audit, moved("shop", "stock", LETTERS, of=elsewhere), LETTERS) == "none"
    assert not nodes.refused
    # Nobody brings its event to a topic as a letter, where it may not publish.
    for message, where in (
        (moved("evil", "evil", ORDERS, of=LETTERS), ORDERS),
        (moved("shop", "evil", ORDERS), ORDERS),
        (moved("shop", "shop", LETTERS), LETTERS),
    ):
        with pytest.raises(UnprovenError, match="do not let"):
            read(audit, message, where)


def test_what_an_application_tells_itself(nodes: Nodes) -> None:
    stock = nodes.proofs("stock")
    for by, where, taken in (("stock", ORDERS, True), ("shop", ORDERS, False), ("stock", REFUNDS, False)):
        delivery = Delivery(nodes.proofs(by).prove(where, EVENT), ORDERS, 1, None)  # type: ignore[arg-type]
        if taken:
            stock.check_own(delivery)
        else:
            with pytest.raises(UnprovenError):
                stock.check_own(delivery)
    letter = stock.move(ORDERS, EVENT)
    with pytest.raises(UnprovenError):
        stock.check_own(Delivery(letter, ORDERS, 1, None))  # type: ignore[arg-type]
