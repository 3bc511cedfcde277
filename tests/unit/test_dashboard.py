"""The dashboard's own parts: what its command makes of words, how it asks a mesh, and what a viewer is told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from gateway.cli.dashboard import TOKEN_VARIABLE, address, configured, is_free, parser
from gateway.config import GatewayConfig, Tokens
from gateway.dashboard.data import _goes_on
from gateway.dashboard.presence import Presence
from gateway.dashboard.viewers import Viewer
from mesh.errors import BrokerUnavailableError, ConfigError
from mesh.node.description import Node
from tests.support import virtual_time

HOME = {"MESH_HOME": "/nowhere"}
GIVEN = "a-token-of-someones-own"


def _made(*words: str, **environ: str) -> GatewayConfig:
    return configured(parser().parse(words), {**HOME, **environ})


def test_it_is_for_this_machine_and_has_a_token() -> None:
    """Unless something else is said; the token is another one each time."""
    first, second = _made("--port", "18080"), _made("--port", "18080")
    assert (first.app_id, first.app_port, first.listen, first.http_port) == (
        "mesh-dashboard",
        None,
        ("127.0.0.1", "::1"),
        18080,
    )
    assert first.dashboard is not None and second.dashboard is not None
    assert len(first.dashboard.token or "") >= 32
    assert first.dashboard.token != second.dashboard.token
    assert first.tokens == Tokens()
    assert "token" not in repr(first.dashboard) or (first.dashboard.token or "") not in repr(first)


def test_a_token_of_ones_own() -> None:
    """It is that of the variable, where there is one."""
    assert _made(**{TOKEN_VARIABLE: GIVEN}).dashboard.token == GIVEN  # type: ignore[union-attr]
    assert _made("--no-token", **{TOKEN_VARIABLE: GIVEN}).dashboard.token is None  # type: ignore[union-attr]


def test_beyond_this_machine_the_whole_gateway_has_a_token() -> None:
    """Its API is reached from elsewhere, too; a token of the API's own stays."""
    made = _made("--listen-address", "0.0.0.0", **{TOKEN_VARIABLE: GIVEN})
    assert made.listen == ("0.0.0.0",)
    assert made.tokens.api == GIVEN
    assert _made("-a", "0.0.0.0", DAPR_API_TOKEN="another").tokens.api == "another"
    assert _made("--address", "localhost", **{TOKEN_VARIABLE: GIVEN}).tokens.api is None


@pytest.mark.parametrize(
    ("words", "environ", "named"),
    [
        (["--no-token", "--listen-address", "0.0.0.0"], {}, "--no-token"),
        (["--no-token", "--listen-address", "::"], {}, "--no-token"),
        ([], {TOKEN_VARIABLE: "tiny"}, TOKEN_VARIABLE),
        ([], {TOKEN_VARIABLE: "with a line\nbreak in it"}, TOKEN_VARIABLE),
        ([], {TOKEN_VARIABLE: "tökens-are-plain-text"}, TOKEN_VARIABLE),
        (["--traces-url", "http://localhost:16686"], {}, "--traces-url"),
        (["--port", "70000"], {}, "--port"),
        (["--app-id", "a.b"], {}, "--app-id"),
        (["--listen-address", "a..b"], {}, "--listen-address"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], environ: dict[str, str], named: str) -> None:
    """With the name of what is wrong, and never with the token."""
    with pytest.raises(ConfigError) as refused:
        _made(*words, **environ)
    assert named in str(refused.value)
    assert not environ or environ[TOKEN_VARIABLE] not in str(refused.value)


def test_a_port_that_is_taken_is_not_the_default() -> None:
    """Another one is chosen where somebody listens already, on either loopback address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not is_free(port, ("127.0.0.1", "::1"))
    assert is_free(port, ("127.0.0.1", "::1"))


def test_its_address_is_one_that_a_browser_opens() -> None:
    """The token stands behind the mark that is not sent."""
    assert address("127.0.0.1", 8080, GIVEN) == f"http://127.0.0.1:8080/dashboard/#token={GIVEN}"
    assert address("0.0.0.0", 8080, None) == "http://127.0.0.1:8080/dashboard/"
    assert address("::", 1, None) == "http://[::1]:1/dashboard/"


class _Mesh:
    """What answers, and how often it was asked."""

    def __init__(self, *nodes: str) -> None:
        self.nodes, self.asked, self.away = list(nodes), 0, False

    async def ask(self, seconds: float) -> Sequence[Node]:
        self.asked += 1
        await asyncio.sleep(seconds)
        if self.away:
            raise BrokerUnavailableError("the broker is away")
        return [Node(each, ()) for each in self.nodes]


async def _heard(presence: Presence, so: Callable[[], bool]) -> int:
    """Wait for news until something is so; gives how many there were."""
    for count in range(20):
        if so():
            return count
        await presence.heard.wait()
    raise AssertionError("it never is")


def test_a_node_is_there_until_it_leaves_two_questions_unanswered() -> None:
    """Once it is missed it is asked for at once, and one that only was busy stays all the time."""

    async def main() -> None:
        mesh = _Mesh("a", "b")
        presence = Presence(mesh.ask)
        loop = asyncio.get_running_loop()
        async with presence.running():
            with presence.looking():
                await _heard(presence, lambda: len(presence.nodes) == 2)
                mesh.nodes.remove("b")
                assert await _heard(presence, lambda: bool(presence._missed)) == 1
                assert "b" in presence.nodes
                mesh.nodes.append("b")
                await _heard(presence, lambda: not presence._missed)
                mesh.nodes.remove("b")
                began = loop.time()
                assert await _heard(presence, lambda: "b" not in presence.nodes) == 2
                assert loop.time() - began < 6
            asked = mesh.asked
            await asyncio.sleep(60)
            assert mesh.asked <= asked + 1

    virtual_time.run(main())


def test_many_nodes_are_asked_more_rarely() -> None:
    """So that there are no more than so many answers in a second."""

    async def asked_within(seconds: float, count: int) -> int:
        mesh = _Mesh(*map(str, range(count)))
        presence = Presence(mesh.ask)
        async with presence.running():
            with presence.looking():
                await asyncio.sleep(seconds)
        return mesh.asked

    assert 18 <= virtual_time.run(asked_within(60, 10)) <= 22
    assert 5 <= virtual_time.run(asked_within(60, 500)) <= 8


def test_a_mesh_that_cannot_be_asked_is_said_so() -> None:
    """At once, where nothing is known; what is known stays until it is old, and it is heard again when it can be."""

    async def main() -> None:
        mesh = _Mesh("a")
        mesh.away = True
        presence = Presence(mesh.ask)
        loop = asyncio.get_running_loop()
        async with presence.running():
            with pytest.raises(BrokerUnavailableError, match="the broker is away"):
                await presence.current(loop.time() + 30)
            assert loop.time() < 1002  # It began at 1000.
            mesh.away = False
            await asyncio.sleep(5)
            assert list(await presence.current(loop.time() + 30)) == ["a"]
            mesh.away = True
            await asyncio.sleep(5)
            assert list(await presence.current(loop.time() + 30)) == ["a"]
            await asyncio.sleep(15)
            with pytest.raises(BrokerUnavailableError):
                await presence.current(loop.time() + 30)

    virtual_time.run(main())


def test_what_is_too_much_for_a_viewer_is_counted() -> None:
    """What waits is bounded in number and in size; of figures the latest ones are enough."""

    async def main() -> None:
        viewer = Viewer(lambda kind, data: kind.encode() + data)
        for number in range(1500):
            viewer.tell("n", b"%d," % number)
        viewer.renew("r", b"1,")
        viewer.renew("r", b"2,")
        told = await viewer.next(1)
        assert told.startswith(b"r2,n0,n1,") and told.endswith(b"n999,")
        assert (viewer.take_dropped(), viewer.take_dropped()) == (500, 0)
        assert await viewer.next(1) == b""
        for _ in range(10):
            viewer.tell("l", bytes(1024 * 1024))
        assert viewer.take_dropped() == 7
        sizes = []
        while part := await viewer.next(1):
            sizes.append(len(part))
        assert sizes == [1024 * 1024 + 1] * 3
        viewer.close()
        assert (await viewer.next(1), viewer.closed) == (b"", True)

    virtual_time.run(main())


def test_a_viewer_may_leave_things_out() -> None:
    """What it writes nothing of does not wake it."""

    async def main() -> None:
        viewer = Viewer(lambda kind, data: data if kind == "sight" else b"")
        viewer.tell("rates", b"1")
        viewer.renew("mesh", b"2")
        began = asyncio.get_running_loop().time()
        assert await viewer.next(3) == b""
        assert asyncio.get_running_loop().time() - began >= 3
        viewer.tell("sight", b"3")
        assert await viewer.next(3) == b"3"

    virtual_time.run(main())


def test_files_that_change_are_read_again(tmp_path: Path) -> None:
    """Those that did not change stay as they were; hidden ones are none."""
    from gateway.dashboard.assets import Assets

    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "a.js").write_text("one")
    (tmp_path / ".hidden").write_text("x")
    assets = Assets(tmp_path)
    assert assets.answer("app/a.js", "", "") is None
    assets.look()
    first = assets.answer("app/a.js", "gzip", "")
    assert first is not None and first.body == b"one"
    (tmp_path / "app" / "a.js").write_text("three")
    assets.look()
    second = assets.answer("app/a.js", "", "")
    assert second is not None and second.body == b"three"
    assert dict(first.fields)["ETag"] != dict(second.fields)["ETag"]
    assert assets.answer(".hidden", "", "") is assets.answer("app", "", "") is assets.answer("", "", "") is None


@pytest.mark.parametrize("name", ["Cookie", "dapr-api-token", "Dashboard-Token", "Origin", "Sec-Fetch-Site"])
def test_what_a_browser_says_of_itself_stays_here(name: str) -> None:
    assert not _goes_on(name)
    assert _goes_on("X-Request-Id")
