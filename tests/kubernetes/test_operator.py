"""What an operator gives gateways of what a cluster has, with the rights of an installation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519

from bindings.kubernetes.operator.running import Operator
from mesh.errors import NoResponderError
from mesh.supply.wire import Answer
from mesh.trust.certificates import chain_identity, check_chain
from tests.support.eventually import eventually
from tests.support.kubernetes.node import LocalCluster
from tests.support.kubernetes.operators import Installed, component, secret
from tests.support.nats import NatsServer

PASSWORD = {"name": "redisPassword", "secretKeyRef": {"name": "login", "key": "password"}}


@pytest.fixture
async def installed(cluster: LocalCluster, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Installed]:
    namespace = f"oper-{abs(hash(request.node.name)) % 10**8}"
    server = NatsServer(tmp_path / "nats")
    async with server, Installed.make(cluster, namespace, tmp_path, server.url) as made:
        yield made


@pytest.fixture
async def operator(installed: Installed) -> AsyncIterator[Operator]:
    async with installed.operator() as operator:
        await serving(operator)
        yield operator


async def serving(operator: Operator) -> None:
    def check() -> None:
        assert operator.serving

    await eventually(check)


def names(answer: Answer) -> list[str]:
    assert not answer.refused, answer.refused
    return sorted(f"{each.kind}/{each.name}" for each in answer.documents or ())


async def test_what_a_pod_is_given(installed: Installed, operator: Operator) -> None:
    """What is in its namespace and for its application, the Configuration that it names, and values of Secrets."""
    admin, here, there = installed.admin, await installed.space("oper-shop"), await installed.space("oper-other")
    await admin.apply(secret(here, "login", password="of-here", user="not-asked-for"))
    await admin.apply(secret(there, "login", password="of-there"))
    await admin.apply(component(here, "store", PASSWORD))
    await admin.apply(component(here, "mine", scopes=["cart", "pay"]))
    await admin.apply(component(here, "others", scopes=["pay"]))
    await admin.apply(component(there, "elsewhere", PASSWORD))
    for name in ("tracing", "unnamed"):
        about = {"name": name, "namespace": here}
        await admin.apply({"apiVersion": "dapr.io/v1alpha1", "kind": "Configuration", "metadata": about, "spec": {}})
    pod = await installed.pod(here, "cart-0", app_id="cart", config="tracing")

    async def check() -> Answer:
        answer = await pod.ask(operator)
        assert names(answer) == ["Component/mine", "Component/store", "Configuration/tracing"]
        assert answer.secrets == {"login": {"password": b"of-here"}}
        return answer

    answer = await eventually(check)
    assert (await pod.ask(operator, have=answer.revision)).documents is None

    await admin.apply(secret(here, "login", password="another"))

    async def changed() -> None:
        again = await pod.ask(operator, have=answer.revision)
        assert again.secrets == {"login": {"password": b"another"}}

    await eventually(changed)
    await admin.delete(f"/apis/dapr.io/v1alpha1/namespaces/{here}/components/store")

    async def gone() -> None:
        again = await pod.ask(operator)
        assert names(again) == ["Component/mine", "Configuration/tracing"]
        assert again.secrets == {}

    await eventually(gone)


async def test_who_is_refused(installed: Installed, operator: Operator) -> None:
    """Whose token is of another pod, for another audience, made up, of no pod, or of one that is gone."""
    here = await installed.space("oper-refused")
    pod, other = await installed.pod(here, "cart-0", app_id="cart"), await installed.pod(here, "pay-0", app_id="pay")
    assert (await pod.ask(operator)).refused == ""
    assert "of another pod" in (await pod.ask(operator, token=other.token)).refused
    outside = await installed.token(here, pod.name, pod.uid, "https://kubernetes.default.svc")
    assert "audience mesh" in (await pod.ask(operator, token=outside)).refused
    assert "does not know the token" in (await pod.ask(operator, token="made-up")).refused
    path = f"/api/v1/namespaces/{here}/serviceaccounts/default/token"
    unbound = (await installed.admin.create(path, {"spec": {"audiences": ["mesh"]}}))["status"]["token"]
    assert "of no pod" in (await pod.ask(operator, token=unbound)).refused
    await installed.admin.delete(f"/api/v1/namespaces/{here}/pods/{pod.name}")

    async def check() -> None:
        assert (await pod.ask(operator)).refused

    await eventually(check)


async def test_certificates(installed: Installed, operator: Operator) -> None:
    """A pod gets one of its own name, of a root that the operator has put into a Secret; a new root comes beside it."""
    here = await installed.space("oper-certified")
    pod = await installed.pod(here, "cart-0", app_id="cart")
    answer = await pod.ask(operator, key=ed25519.Ed25519PrivateKey.generate())
    chain, roots = ([x509.load_der_x509_certificate(each) for each in some] for some in (answer.chain, answer.roots))
    assert str(check_chain(chain, roots, "public")) == f"spiffe://public/ns/{here}/cart"
    assert (
        str(chain_identity(operator.trust.issued.chain[0])) == f"spiffe://public/ns/{installed.namespace}/mesh-operator"
    )

    before = operator.trust.issued
    rotated = operator.trust.root.rotated()
    from mesh.trust.secret import texts_of

    await installed.admin.apply(secret(installed.namespace, "mesh-trust", **texts_of(rotated)))

    async def check() -> None:
        assert len((await pod.ask(operator)).roots) == 2

    await eventually(check)
    assert operator.trust.issued.chain == before.chain, "gateways may not know the new root yet"
    again = await pod.ask(operator, key=ed25519.Ed25519PrivateKey.generate())
    chain = [x509.load_der_x509_certificate(each) for each in again.chain]
    assert str(check_chain(chain, rotated.roots[:1], "public")) == f"spiffe://public/ns/{here}/cart"


async def test_a_root_that_is_deleted(installed: Installed, operator: Operator) -> None:
    """Is written again: gateways trust no other one."""
    path, before = f"/api/v1/namespaces/{installed.namespace}/secrets/mesh-trust", operator.trust.root
    assert await installed.admin.delete(path)

    async def check() -> dict[str, Any]:
        found = await installed.admin.get(path)
        assert found is not None
        return found

    await eventually(check)
    async with installed.operator("two") as other:
        async with asyncio.timeout(20):
            await other.trust.ready.wait()
        assert other.trust.root.roots == before.roots


async def test_two_replicas(installed: Installed) -> None:
    """One serves; when it ends the other one does at once, and when its lease is taken it stops at once."""
    here = await installed.space("oper-replicas")
    pod = await installed.pod(here, "cart-0", app_id="cart")
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{installed.namespace}/leases/mesh-operator"
    async with installed.operator("two") as second:
        async with installed.operator("one") as first:
            await eventually(lambda: _one_serves(first, second))
            leader = first if first.serving else second
            assert (await pod.ask(leader)).refused == ""
            spec = {"holderIdentity": "somebody", "leaseDurationSeconds": 5}
            await installed.admin.patch(lease, {"spec": spec})

            def nobody() -> None:
                assert not leader.serving

            await eventually(nobody, 6.0)
            with pytest.raises(NoResponderError):
                await pod.ask(leader)
            await eventually(lambda: _one_serves(first, second))
            assert (await pod.ask(leader)).refused == ""
        await eventually(lambda: serving_now(second), 8.0)
        assert (await pod.ask(second)).refused == ""
    found = await installed.admin.get(lease)
    assert found is not None
    assert found["spec"]["holderIdentity"] == "", "it was not given up"


def _one_serves(first: Operator, second: Operator) -> None:
    assert first.serving != second.serving


def serving_now(operator: Operator) -> None:
    assert operator.serving
