"""An operator gives gateways what is theirs, over this broker, whatever else the mesh proves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519

from mesh import address
from mesh.broker import Broker, Frame
from mesh.calls.exchange import Exchange
from mesh.errors import NoResponderError
from mesh.supply.asking import Operator, Who
from mesh.supply.wire import Report
from mesh.trust.folder import Issued
from mesh.trust.identity import Identity
from tests.support.contract import Place
from tests.support.eventually import eventually
from tests.support.guards import Guards
from tests.support.supply import DOMAIN, Table, component, operating

pytestmark = pytest.mark.requires("frames")

SECONDS = 30.0


@pytest.fixture
def table(place: Place) -> Table:
    table = Table(f"{place.namespace}-system")
    table.documents[place.namespace] = [component("store", place.namespace), component("big", place.namespace)]
    table.secrets = {"login": {"password": b"\x00secret\xff"}}
    return table


@pytest.fixture
async def asking(other: Broker, guards: Guards) -> AsyncIterator[Exchange]:
    async with Exchange(other, guard=guards("shop")) as exchange:
        yield exchange


@pytest.mark.parametrize("guards", [False, True], ids=["claimed", "proven"], indirect=True)
async def test_a_gateway_is_given_what_is_its_own(place: Place, broker: Broker, asking: Exchange, table: Table) -> None:
    token = table.admit(place.namespace, "shop")
    operator = Operator(table.control, DOMAIN, table.root.roots)
    who, key = Who(place.namespace, "shop", "shop-0", token), ed25519.Ed25519PrivateKey.generate()
    async with operating(broker, table):
        report = Report("r1", ("Component/store",))
        answer = await operator.ask(asking, who, SECONDS, key=key, report=report)
        assert not answer.refused
        assert answer.documents is not None
        assert [each.name for each in answer.documents] == ["store", "big"]
        assert answer.secrets == table.secrets
        assert table.reports["shop-0"] == Report("r1", ("Component/store",))
        chain, roots = ([x509.load_der_x509_certificate(each) for each in der] for der in (answer.chain, answer.roots))
        Issued(chain, key, roots).check(Identity(DOMAIN, place.namespace, "shop"), "the answer")
        again = await operator.ask(asking, who, SECONDS, have=answer.revision)
        assert (again.refused, again.documents, again.secrets, again.chain) == ("", None, {}, ())


async def test_large_answers_come_whole(place: Place, broker: Broker, asking: Exchange, table: Table) -> None:
    token = table.admit(place.namespace, "shop")
    table.documents[place.namespace] = [
        component(f"store-{number}", place.namespace, "state.in-memory", text="x" * 200_000) for number in range(12)
    ]
    operator = Operator(table.control, DOMAIN, table.root.roots)
    async with operating(broker, table):
        answer = await operator.ask(asking, Who(place.namespace, "shop", "shop-0", token), SECONDS)
        assert answer.documents == tuple(table.documents[place.namespace])


async def test_without_an_operator_that_is_told_at_once(place: Place, asking: Exchange, table: Table) -> None:
    operator = Operator(table.control, DOMAIN, table.root.roots)
    with pytest.raises(NoResponderError):
        await operator.ask(asking, Who(place.namespace, "shop", "shop-0", "token"), SECONDS)


async def test_changes_are_told_to_a_namespace(place: Place, broker: Broker, other: Broker, table: Table) -> None:
    heard: list[float | None] = []
    operator = Operator(table.control, DOMAIN, table.root.roots)

    def hear(frame: Frame) -> None:
        assert frame.message is not None
        heard.append(operator.heard(frame.message.body, place.namespace))

    listening = other.listen(address.supplied(table.control, place.namespace), hear)
    async with operating(broker, table) as answering, listening:

        async def told() -> None:
            answering.changed(place.namespace, within=30.0)
            answering.changed("another")
            await asyncio.sleep(0.1)
            assert heard

        await eventually(told)
        assert heard[0] == 30.0


async def test_another_operator_takes_over(place: Place, broker: Broker, asking: Exchange, table: Table) -> None:
    """It has another key, which a gateway learns while it asks."""
    token = table.admit(place.namespace, "shop")
    operator = Operator(table.control, DOMAIN, table.root.roots)
    who = Who(place.namespace, "shop", "shop-0", token)
    async with operating(broker, table):
        first = await operator.ask(asking, who, SECONDS)
    taking = await place.connect()
    async with operating(taking, table):

        async def again() -> None:
            try:
                second = await operator.ask(asking, who, SECONDS)
            except NoResponderError as error:  # The broker may not have heard of it yet.
                raise AssertionError(str(error)) from None
            assert second.revision == first.revision

        await eventually(again)
