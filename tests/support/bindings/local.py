"""Rows of what stands on this machine alone: files, HTTP, the clock."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
from aiohttp import web

from tests.support.bindings.rows import InputKind, OutputKind, ServedInput, ServedOutput, call, gives, nothing
from tests.support.certificates import Authority

__all__ = ["INPUTS", "OUTPUTS"]


@asynccontextmanager
async def _files(directory: Path) -> AsyncIterator[ServedOutput]:
    (directory / "outside").write_text("secret")
    root = directory / "root"
    root.mkdir()
    (root / "link").symlink_to(directory / "outside")
    calls = (
        (call("create", b'"hello"', fileName="a/b"), gives(b'{"fileName":"a/b"}')),
        (call("create", b"\x00\xff", fileName="raw"), gives(b'{"fileName":"raw"}')),
        (call("get", fileName="a/b"), gives(b"hello")),
        (call("get", fileName="raw"), gives(b"\x00\xff")),
        (call("list", fileName="a"), gives(orjson.dumps([str(root.resolve() / "a" / "b")]))),
        (call("move", fileName="a/b", destinationFile="c"), gives(b'{"fileName":"c"}')),
        (call("delete", fileName="c"), nothing),
    )
    yield ServedOutput({"rootPath": str(root)}, calls, call("get", fileName="link"), {"fileName": "large"})


@asynccontextmanager
async def _service(tls: ssl.SSLContext | None) -> AsyncIterator[str]:
    async def handle(request: web.BaseRequest) -> web.Response:
        status = 404 if request.path == "/missing" else 200
        return web.Response(body=request.method.encode() + b" " + await request.read(), status=status)

    runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        port = runner.addresses[0][1]
        yield f"http{'s' if tls else ''}://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


_CALLS = (
    (call("create", b'{"a":1}'), gives(b'POST {"a":1}', statusCode="200", status="200 OK")),
    (call("post", b'"text"', path="/x"), gives(b"POST text")),
    (call("get", path="/x?y=1"), gives(b"GET ")),
    (call("get", path="missing", errorIfNot2XX="false"), gives(b"GET ", statusCode="404")),
)


@asynccontextmanager
async def _http(directory: Path) -> AsyncIterator[ServedOutput]:
    async with _service(None) as url:
        yield ServedOutput({"url": url}, _CALLS, call("get", path="missing"))


@asynccontextmanager
async def _mutual_tls(directory: Path) -> AsyncIterator[ServedOutput]:
    authority = Authority(directory / "authority")
    server, client = authority.issue("server"), authority.issue("client")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(server.certificate, server.key)
    tls.load_verify_locations(authority.path)
    tls.verify_mode = ssl.CERT_REQUIRED
    async with _service(tls) as url:
        settings = {
            "url": url,
            "MTLSRootCA": authority.text,
            "MTLSClientCert": str(client.certificate),
            "MTLSClientKey": client.key.read_text(),
        }
        yield ServedOutput(settings, _CALLS, call("get", path="missing"))


@asynccontextmanager
async def _clock(directory: Path) -> AsyncIterator[ServedOutput]:
    yield ServedOutput({"schedule": "@hourly"}, ((call("delete"), nothing),), call("create"))


@asynccontextmanager
async def _ticks(directory: Path) -> AsyncIterator[ServedInput]:
    yield ServedInput({"schedule": "@every 1s"}, data=False, again=False)


@asynccontextmanager
async def _folder(directory: Path) -> AsyncIterator[ServedInput]:
    root = directory / "root"
    root.mkdir()
    numbers = itertools.count()

    async def emit(event: bytes) -> None:
        file = root / f"{next(numbers)}.bin"
        beside = root / f".{file.name}"
        beside.write_bytes(event)
        beside.rename(file)

    settings = {"path": str(root), "content": "true", "settle": "50ms", "events": "added"}
    yield ServedInput(settings, emit)


OUTPUTS: Mapping[str, OutputKind] = {
    "localstorage": OutputKind("bindings.localstorage", _files),
    "http": OutputKind("bindings.http", _http),
    "http, mutual TLS": OutputKind("bindings.http", _mutual_tls),
    "cron": OutputKind("bindings.cron", _clock),
}

INPUTS: Mapping[str, InputKind] = {
    "cron": InputKind("bindings.cron", _ticks),
    "files": InputKind("bindings.files", _folder),
}
