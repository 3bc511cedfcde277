"""The official SDKs for Go, Java and Rust, unmodified, over gRPC: clients, applications, and calls between them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.faults.conftest import mesh_home
from tests.support.mesh import GatewayProcess
from tests.support.processes import ROOT, free_port
from tests.support.security import missing

__all__ = ["mesh_home"]

HERE = Path(__file__).parent
BUILD = ROOT / "tests" / "provision" / "sdk-programs.sh"
CACHE = Path(os.environ.get("BROKERMESH_SDKS") or Path.home() / ".cache/brokermesh-tests/sdks")
WITHIN = 120.0
# A program lives shorter than what an optimizing compiler takes.
JAVA = ("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto")
COMPONENTS: Mapping[str, str] = {
    "pubsub": "pubsub.mesh",
    "statestore": "state.mesh",
    "people": "state.in-memory",
    "secrets": "secretstores.local.env",
    "locks": "lock.mesh",
    "settings": "configuration.mesh",
}
SECRET = {"SHOP_SECRET": "s3cret"}
PROBED = ("--enable-app-health-check", "--app-health-probe-interval", "1")
TOKENS = {"DAPR_API_TOKEN": "of the API", "APP_API_TOKEN": "of the application"}


def built(language: str) -> Path:
    """Give where the program of a language is; skip where it was left out."""
    found = sorted((HERE / language).rglob("*"), key=lambda path: path.relative_to(HERE / language).as_posix())
    content = b"".join(path.read_bytes() for path in (BUILD, *found) if path.is_file())
    made = CACHE / f"{language}-{sha256(content).hexdigest()[:16]}"
    if not made.exists():
        left_out = CACHE / f"{language}.left-out"
        if left_out.exists():
            pytest.skip(left_out.read_text())
        missing(f"not built: {BUILD.relative_to(ROOT)}")
    return made


def resources(home: Path) -> Path:
    """Write the components of the client's gateway."""
    made = home / "resources"
    made.mkdir()
    for name, kind in COMPONENTS.items():
        spec = {"type": kind, "version": "v1"}
        resource = {"apiVersion": "dapr.io/v1alpha1", "kind": "Component", "metadata": {"name": name}, "spec": spec}
        (made / f"{name}.yaml").write_text(json.dumps(resource))
    return made


class Program:
    """A program with its gateways.

    Attributes:
        client: The gateway of its client.
        grpc_port: Of that one.
    """

    def __init__(self, process: asyncio.subprocess.Process, client: GatewayProcess, grpc_port: int) -> None:
        self._process = process
        self.client = client
        self.grpc_port = grpc_port

    async def seen(self) -> dict[str, Any]:
        """Let it begin, change the configuration when it waits for that, and give what it saw."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        said = []
        async with asyncio.timeout(WITHIN):
            await self._configure("10")
            self._process.stdin.write(b"\n")
            async for line in self._process.stdout:
                said.append(line.decode())
                if line == b"subscribed\n":
                    await self._configure("20")
                elif line.startswith(b"{"):
                    seen: dict[str, Any] = json.loads(line)
                    return seen
        raise AssertionError("".join(said))

    async def _configure(self, value: str) -> None:
        url = f"{self.client.api}/mesh/configuration/settings/limit"
        headers = {"dapr-api-token": TOKENS["DAPR_API_TOKEN"]}
        async with aiohttp.ClientSession() as session, session.put(url, data=value, headers=headers) as response:
            assert response.status == 204, await response.text()


@asynccontextmanager
async def running(
    home: Path, command: Sequence[str], applications: Mapping[str, str], *flags: str
) -> AsyncIterator[Program]:
    """Run a program that is the application of gateways, each with a protocol, beside the gateway of its client."""
    grpc_port, ports = free_port(), {name: free_port() for name in applications}
    components = ("--resources-path", str(resources(home)), "--dapr-grpc-port", str(grpc_port))
    client = GatewayProcess("client", home, arguments=components, environ={**TOKENS, **SECRET})
    environ = {
        **os.environ,
        **TOKENS,
        "DAPR_GRPC_PORT": str(grpc_port),
        "DAPR_HTTP_PORT": str(client.port),
        **{f"{name.upper()}_PORT": str(port) for name, port in ports.items()},
    }
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(client)  # It starts the broker.
        log = stack.enter_context((home / "program.log").open("wb"))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, env=environ, stdin=pipe, stdout=pipe, stderr=log)
        try:
            for name, protocol in applications.items():
                arguments = ("--app-protocol", protocol, *flags)
                gateway = GatewayProcess(name, home, app=ports[name], arguments=arguments, environ=TOKENS)
                await stack.enter_async_context(gateway)
            yield Program(process, client, grpc_port)
        except BaseException:
            print((home / "program.log").read_text(errors="replace"))
            raise
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def compared(seen: Mapping[str, Any]) -> dict[str, Any]:
    """Write what differs between the languages, and not in what they saw, the same way."""

    def write(name: str, value: Any) -> Any:
        if name.endswith(("events", "Events")):
            return sorted(",".join(str(each[part]) for part in ("topic", "data", "type", "path")) for each in value)
        if name in CODES:
            return (
                [write("nobody", each) for each in value] if isinstance(value, list) else value.replace("_", "").upper()
            )
        return {name: write(name, each) for name, each in value.items()} if isinstance(value, dict) else value

    return {name: write(name, value) for name, value in seen.items()}


CODES = ("conflicts", "refused", "failed", "nobody")
STATE = {
    "got": ['{"a":1}', '"text"', ""],
    "etags": [True, True, False],
    "conflicts": ["ABORTED", "ABORTED", "INTERNAL"],
    "bulk": {"one": '{"a":2}', "two": '"text"', "none": ""},
    "left": ["", "", "", "", "5"],
}
COMMON: Mapping[str, Any] = {
    "state": STATE,
    "found": ["cid", "ann"],
    "configuration": ["10", "20", "<nil>"],
    "locks": [True, False, 2, 0, 1],
    "secret": SECRET,
    "secrets": SECRET,
    "metadata": ["client", "sdk", len(COMPONENTS)],
    "streamed": ["streamed", "streamed"],
    "handled": "handled",
    "refused": ["INVALIDARGUMENT"] * 2,
    "proxied": {"answer": "SERVING", "watched": ["SERVING"], "failed": "NOTFOUND"},
    "probed": True,
}


async def test_go(mesh_home: Path) -> None:
    """All of a client; applications over gRPC and HTTP; a service of an application's own, by grpcurl as well."""
    made = built("go")
    applications = {"app": "grpc", "web": "http"}
    async with running(mesh_home, [str(made / "program")], applications, *PROBED) as program:
        seen = compared(await program.seen())
        listed = await grpcurl(made, program, "list")
        asked = await grpcurl(made, program, "-d", '{"service": "shop"}', method="grpc.health.v1.Health/Check")
    assert seen.pop("again") >= 2
    echoed = {"verb": "PUT", "query": "x=1", "type": "application/json", "data": '{"a":1}'}
    empty = {"verb": "GET", "query": "", "type": "", "data": ""}
    events = [
        "again,again,application/json,again",
        "graves,poison,application/json,graves",
        "graves,poison,application/json,graves",  # Each application gave one up, and both read them.
        "orders,2,application/json,special",
        "orders,AP8=,application/octet-stream,default",
        "orders,bulk,text/plain,default",
        "orders,plain,text/plain,default",
        "orders,{'orderId': 7},application/json,default",
        "orders,{'orderId': 8},application/json,default",
    ]
    assert seen == {
        **COMMON,
        "refused": ["INVALIDARGUMENT"] * 3,
        "events": events,
        "httpEvents": events,
        "invoked": {"echoed": echoed, "empty": empty, "failed": ["UNKNOWN", "UNKNOWN"]},
        "httpInvoked": {"echoed": echoed, "empty": empty, "failed": ["UNKNOWN", "NOTFOUND"]},
        "nobody": "INTERNAL",
    }
    assert "grpc.health.v1.Health" in listed.split()
    assert json.loads(asked) == {"status": "SERVING"}


async def grpcurl(made: Path, program: Program, *arguments: str, method: str = "") -> str:
    """Call the application of the program through the client's gateway, by what its reflection tells."""
    headers = ("-H", "dapr-app-id: app", "-H", f"dapr-api-token: {TOKENS['DAPR_API_TOKEN']}")
    options = () if not method else arguments
    address = f"127.0.0.1:{program.grpc_port}"
    words = (made / "grpcurl", "-plaintext", *headers, *options, address, *((method,) if method else arguments))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(WITHIN):
            output, errors = await process.communicate()
    except BaseException:
        process.kill()
        raise
    assert process.returncode == 0, (output + errors).decode()
    return output.decode()


async def test_java(mesh_home: Path) -> None:
    """All of a client, whose invocations are over HTTP; an application, to which events come in bulk as well."""
    made = built("java")
    command = [*JAVA, "-cp", f"{made}:{made}/*", "Sdk"]
    async with running(mesh_home, command, {"app": "grpc"}, *PROBED) as program:
        seen = compared(await program.seen())
    assert seen.pop("again") >= 2
    echoed = {"verb": "PUT", "query": "x=1", "type": "application/json", "data": '{"a":1}'}
    assert seen == {
        **COMMON,
        "metadata": ["client", len(COMPONENTS)],
        "events": [
            'again,"again",application/json,',
            'batches,{"orderId":8},application/json,bulk',
            'batches,{"orderId":9},application/json,bulk',
            'graves,"poison",application/json,',
            "orders,2,application/json,special",
            "orders,plain,text/plain,default",
            'orders,{"orderId":7},application/json,default',
        ],
        "failedEntries": 0,
        "invoked": {
            "echoed": echoed,
            "empty": {**echoed, "verb": "GET", "query": "", "data": ""},
            "failed": ["FAILEDPRECONDITION"],
        },
        "nobody": "ERRDIRECTINVOKE",
    }


async def test_rust(mesh_home: Path) -> None:
    """All of a client, which has no locks, transactions, streams and bulk; an application.

    It is not probed: the SDK asks for the token with every call, and Dapr's probes carry none.
    """
    made = built("rust")
    async with running(mesh_home, [str(made / "program")], {"app": "grpc"}) as program:
        seen = compared(await program.seen())
    state = {**STATE, "conflicts": ["ABORTED"], "kept": '{"a":2}', "left": ["", "", "3"]}
    echoed = {"verb": "POST", "query": "", "type": "application/json", "data": '{"a":1}'}
    unlike = {"bulk", "locks", "streamed", "handled", "probed"}
    assert seen == {
        **{name: value for name, value in COMMON.items() if name not in unlike},
        "state": {name: value for name, value in state.items() if name not in unlike},
        "events": [
            'again,"again",application/json,',
            "orders,2,application/json,",
            "orders,plain,text/plain,",
            'orders,{"orderId":7},application/json,',
        ],
        "refused": ["INVALIDARGUMENT"],
        "invoked": {"echoed": echoed, "type": "application/json", "failed": ["FAILEDPRECONDITION", "INTERNAL"]},
    }
