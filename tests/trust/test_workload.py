"""A node's certificate from a SPIFFE Workload API: what an agent gives, also wrongly, and while it is away."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import re
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from spiffe import WorkloadApiClient

from gateway.cli.configure import gateway_config
from gateway.cli.options import GatewayOptions
from mesh.blocks.state import GET, SAVE, Get, Save
from mesh.errors import ConfigError, MissingDependencyError
from mesh.registry import Registry
from mesh.store import Item
from mesh.trust import files, workload
from mesh.trust.files import guarding
from mesh.trust.guard import Guard
from mesh.trust.identity import Identity, TrustSettings, target_of
from mesh.trust.workload import SVID, Workload
from tests.support.eventually import eventually
from tests.support.nodes import MemoryMesh, ask, component, node
from tests.support.processes import free_port
from tests.support.workload_api import X509SVID, Agent, Authority, Key

SHOP = Identity("public", "default", "shop")
URI = str(SHOP)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(workload, "LONGEST_WAIT", 0.3)


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(f"unix://{tmp_path}/agent.sock")


@asynccontextmanager
async def shop(agent: Agent) -> AsyncIterator[Guard]:
    settings = TrustSettings("strict", "public", socket=agent.address)
    async with guarding(settings, "default", "shop", Registry()) as guard:
        yield guard


def serial(guard: Guard) -> int:
    """Read by what it proves itself; it must be trusted."""
    peer = guard.peers.get(guard.own.header)
    assert peer is not None
    return peer.leaf.serial_number


def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


AUTHORITIES: dict[str, Callable[[], Authority]] = {
    "ec-p256": Authority,
    "ec-p384": lambda: Authority(key=ec.generate_private_key(ec.SECP384R1())),
    "rsa-2048": lambda: Authority(key=rsa_key()),
    "below another one": lambda: Authority(above=Authority()),
}


@pytest.mark.parametrize("kind", AUTHORITIES)
async def test_a_node_proves_itself_by_what_an_agent_gives(agent: Agent, kind: str) -> None:
    """With each kind of key that a SPIRE server issues by, and an authority above it; of several ids its own."""
    authority = AUTHORITIES[kind]()
    agent.give(authority.svid("spiffe://public/other"), authority.svid(URI))
    async with agent:
        async with shop(agent) as guard:
            assert guard.own.identity == SHOP
            serial(guard)
        await eventually(lambda: _equal(agent.streams, 0))


async def test_the_agent_of_these_tests_is_one_to_the_client_of_spiffe(agent: Agent) -> None:
    """Which also checks the certificates."""
    authority = Authority()
    agent.give(authority.svid(URI))

    def fetch() -> str:
        with WorkloadApiClient(agent.address) as client:
            context = client.fetch_x509_context(timeout=60)
            [root] = context.x509_bundle_set.get_bundle_for_trust_domain(
                context.default_svid.spiffe_id.trust_domain
            ).x509_authorities  # type: ignore[union-attr]
            assert root == authority.certificate
            return str(context.default_svid.spiffe_id)

    async with agent:
        assert await asyncio.to_thread(fetch) == URI


async def test_nodes_of_two_agents_prove_themselves_to_each_other(tmp_path: Path) -> None:
    """By TCP as well; who has no certificate of the same authority is refused."""
    mesh, authority = MemoryMesh(), Authority()
    store = component("store", "state.in-memory", placement="backbone")
    one, another = Agent(f"unix://{tmp_path}/one.sock"), Agent(f"tcp://127.0.0.1:{free_port()}")
    one.give(authority.svid("spiffe://public/ns/ns/host"))
    another.give(authority.svid("spiffe://public/ns/ns/shop"))
    trusts = [TrustSettings("strict", socket=each.address) for each in (one, another)]
    async with (
        one,
        another,
        node("memory:", "ns", store, app_id="host", registry=mesh, trust=trusts[0]),
        node("memory:", "ns", app_id="shop", registry=mesh, trust=trusts[1]) as caller,
    ):
        await ask(caller, SAVE, "store", Save([Item("k", b"1")]))
        assert (await ask(caller, GET, "store", Get("k"))).value == b"1"
        assert caller.exchange.guard is not None
        before = caller.exchange.guard.own
        one.give(authority.svid("spiffe://public/ns/ns/host"))
        another.give(authority.svid("spiffe://public/ns/ns/shop"))
        await eventually(lambda: _differ(caller.exchange.guard.own, before))  # type: ignore[union-attr]
        assert (await ask(caller, GET, "store", Get("k"))).value == b"1"


async def test_a_renewal_and_a_rotation_of_roots_need_no_restart(agent: Agent) -> None:
    old, new = Authority(), Authority()
    agent.give(old.svid(URI))
    async with agent, shop(agent) as guard:
        first, peer = serial(guard), guard.own
        agent.give(old.svid(URI, others=[new]))  # As SPIRE prepares it.
        await eventually(lambda: _differ(serial(guard), first))
        second = serial(guard)
        agent.give(new.svid(URI, others=[old]))
        await eventually(lambda: _differ(serial(guard), second))
        third = serial(guard)
        assert guard.peers.get(peer.header) is not None  # Of the former root, which is trusted still.
        agent.give(new.svid(URI))
        await eventually(lambda: _differ(serial(guard), third))
        with pytest.raises(Exception, match="no root that is trusted here"):
            guard.peers.get(peer.header)


async def test_what_is_sent_again_unchanged_is_no_renewal() -> None:
    authority, heard = Authority(), asyncio.Semaphore(0)
    first, second = [
        SVID(each.spiffe_id, each.x509_svid, each.x509_svid_key, each.bundle)
        for each in (authority.svid(URI), authority.svid(URI))
    ]
    more = asyncio.Event()

    class API:
        async def updates(self) -> AsyncGenerator[Sequence[SVID], None]:
            for svid in (first, dataclasses.replace(first), second):
                yield [svid]
                heard.release()
                await more.wait()
                more.clear()

    given, renewals = Workload("the agent", SHOP), []
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(given.follow(API()))
        for _ in range(3):
            async with asyncio.timeout(10):
                await heard.acquire()
            renewals.append(await given.renewed() is not None)
            more.set()
        task.cancel()
    assert renewals == [True, False, True]


async def test_an_agent_that_restarts_is_found_again(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    """What it gave is used until then."""
    authority = Authority()
    agent.give(authority.svid(URI))
    async with agent:
        guarded = shop(agent)
        guard = await guarded.__aenter__()
    try:
        first = serial(guard)
        await eventually(lambda: _told(caplog, "is not renewed, the former one is used"))
        assert serial(guard) == first
        agent.give(authority.svid(URI))
        async with agent:
            await eventually(lambda: _differ(serial(guard), first))
    finally:
        await guarded.__aexit__(None, None, None)


BAD: dict[str, tuple[Callable[[Agent], None], str]] = {
    "refused": (lambda agent: agent.refuse(grpc.StatusCode.PERMISSION_DENIED), "is an id registered for this process"),
    "away": (lambda agent: agent.refuse(grpc.StatusCode.UNAVAILABLE), "does the agent run"),
    "cancelled": (lambda agent: agent.refuse(grpc.StatusCode.CANCELLED), "(CANCELLED)"),
    "empty": (lambda agent: agent.give(), f"no certificate of {URI}; it gives: none"),
    "another id": (
        lambda agent: agent.give(Authority().svid("spiffe://public/ns/default/stock")),
        "it gives: spiffe://public/ns/default/stock. Register",
    ),
    "garbage": (
        lambda agent: agent.give(X509SVID(spiffe_id=URI, x509_svid=b"\x30\x82", x509_svid_key=b"k", bundle=b"")),
        "gives no certificates",
    ),
    "no key": (lambda agent: agent.give(_with(x509_svid_key=b"")), "gives no private key"),
    "another key": (lambda agent: agent.give(_with(x509_svid_key=Authority().svid(URI).x509_svid_key)), "not the key"),
    "no bundle": (lambda agent: agent.give(_with(bundle=b"")), "no root that is trusted here"),
    "a key of RSA": (lambda agent: agent.give(_with(key=rsa_key())), "another kind than Ed25519 and ECDSA on P-256"),
    "expired": (
        lambda agent: agent.give(Authority().svid(URI, ttl=datetime.timedelta(seconds=-5))),
        "has expired",
    ),
}


def _with(key: Key | None = None, **fields: bytes) -> X509SVID:
    made = Authority().svid(URI, key=key)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("how", BAD)
async def test_what_is_of_no_use_is_told_and_does_not_last(
    agent: Agent, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """At start it is waited for, in use it leaves what was there."""
    bad, told = BAD[how]
    bad(agent)
    async with agent, asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        guarded = shop(agent)
        entering = tasks.create_task(guarded.__aenter__())
        await eventually(lambda: _told(caplog, told))
        good = Authority()
        agent.give(good.svid(URI))
        guard = await entering
        try:
            first = serial(guard)
            caplog.clear()
            bad(agent)
            await eventually(lambda: _told(caplog, told))
            assert serial(guard) == first
            agent.give(good.svid(URI))
            await eventually(lambda: _differ(serial(guard), first))
        finally:
            await guarded.__aexit__(None, None, None)


@pytest.mark.parametrize("there", [False, True])
async def test_a_start_that_waited_in_vain_says_what_to_do(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, *, there: bool
) -> None:
    monkeypatch.setattr(workload, "START_SECONDS", 1.0)
    told = "is an id registered for this process" if there else "does the agent run, and may this user use its socket"

    async def start() -> None:
        with pytest.raises(ConfigError, match=f"Workload API at {agent.address}: .*{told}.*waited for 1 s"):
            async with shop(agent):
                raise AssertionError

    if not there:
        await start()
        return
    async with agent:
        await start()
        assert agent.asked > 1  # With longer and longer waits in between.
        await eventually(lambda: _equal(agent.streams, 0))


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED])
async def test_what_would_be_refused_again_is_not_waited_for(agent: Agent, code: grpc.StatusCode) -> None:
    agent.refuse(code)
    async with agent:
        with pytest.raises(ConfigError, match=code.name):
            async with shop(agent):
                raise AssertionError
    assert agent.asked == 1


async def test_a_server_that_accepts_and_says_nothing_is_not_waited_for_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "START_SECONDS", 0.5)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{tmp_path}/agent.sock")
        silent.listen()
        with pytest.raises(ConfigError, match="does not answer"):
            async with shop(Agent(f"unix://{tmp_path}/agent.sock")):
                raise AssertionError


def test_without_its_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bindings.spiffe", raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(MissingDependencyError, match=r"the SPIFFE Workload API needs .*\[spiffe\]"):
        Registry().workload_api()


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("unix:///run/agent.sock", "unix:/run/agent.sock"),
        ("unix:/run/agent.sock", "unix:/run/agent.sock"),
        ("tcp://127.0.0.1:8081", "ipv4:127.0.0.1:8081"),
        ("tcp://[::1]:8081", "ipv6:[::1]:8081"),
    ],
)
def test_an_address_of_the_standard(address: str, target: str) -> None:
    assert target_of(address) == target


@pytest.mark.parametrize(
    "address",
    [
        *("/run/agent.sock", "unix://run/agent.sock", "unix:agent.sock", "unix:///a?b", "http://127.0.0.1:1", ""),
        *("tcp://localhost:1", "tcp://127.0.0.1", "tcp://127.0.0.1:1/", "tcp://a@127.0.0.1:1", "tcp://127.0.0.1:x"),
        *("tcp://127.0.0.1:99999", "tcp://[::1:1"),
    ],
)
def test_what_is_no_address_of_the_standard(address: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        target_of(address)


def _equal(one: object, another: object) -> None:
    assert one == another


def _differ(one: object, another: object) -> None:
    assert one != another


def _told(caplog: pytest.LogCaptureFixture, text: str) -> None:
    assert text in caplog.text


GIVEN: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    "by the option": ({"trust_socket": "unix:///o"}, {"MESH_TRUST_SOCKET": "unix:///v"}, "unix:///o"),
    "by its variable": ({}, {"MESH_TRUST_SOCKET": "unix:///v", "SPIFFE_ENDPOINT_SOCKET": "unix:///s"}, "unix:///v"),
    "by the standard's": ({"trust_mode": "permissive"}, {"SPIFFE_ENDPOINT_SOCKET": "unix:///s"}, "unix:///s"),
    "the standard's beside a folder": ({"trust_dir": "t"}, {"SPIFFE_ENDPOINT_SOCKET": "unix:///s"}, ""),
}


@pytest.mark.parametrize("how", GIVEN)
def test_where_the_address_is_from(tmp_path: Path, how: str) -> None:
    options, environ, address = GIVEN[how]
    trust = _trust(tmp_path, options, environ)
    assert trust is not None
    assert (trust.socket, trust.folder is None) == (address, bool(address))
    assert trust.mode == options.get("trust_mode", "strict")


def test_the_standards_variable_alone_asks_for_nothing(tmp_path: Path) -> None:
    """It may be there for the application."""
    assert _trust(tmp_path, {}, {"SPIFFE_ENDPOINT_SOCKET": "unix:///s"}) is None


WRONG: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    "no address": ({"trust_socket": "/run/agent.sock"}, {}, "--trust-socket: '/run/agent.sock': it is neither"),
    "none of the standard's": (
        {"trust_mode": "strict"},
        {"SPIFFE_ENDPOINT_SOCKET": "agent"},
        "SPIFFE_ENDPOINT_SOCKET: 'agent'",
    ),
    "beside a folder": ({"trust_socket": "unix:///o", "trust_dir": "t"}, {}, "there can be one"),
}


@pytest.mark.parametrize("how", WRONG)
def test_an_option_that_is_wrong(tmp_path: Path, how: str) -> None:
    options, environ, told = WRONG[how]
    with pytest.raises(ConfigError, match=re.escape(told)):
        _trust(tmp_path, options, environ)


def _trust(home: Path, options: dict[str, str], environ: dict[str, str]) -> TrustSettings | None:
    given = GatewayOptions(app_id="shop", **options)  # type: ignore[arg-type]
    return gateway_config(given, {"MESH_HOME": str(home), **environ}).trust
