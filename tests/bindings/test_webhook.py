"""What a webhook answers, whom it believes, and what applications get of a request."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest

from bindings._listener import BODY_SECONDS
from bindings._signatures import SIGNATURES, Generic, Signed
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingError, BindingEvent, Handle, InputBinding, Reading
from mesh.blocks.bindings import BindingComponent
from mesh.errors import ConfigError
from mesh.registry import Registry
from tests.support.nodes import component
from tests.support.processes import free_port

SECRET = "s3cret"


def adapter(kind: str = "bindings.webhook", **settings: str) -> ComponentAdapter:
    return Registry().load(kind).from_component(component("in", kind, **settings))  # type: ignore[attr-defined, no-any-return]


class Taken:
    """An application; it takes everything unless it is told otherwise."""

    def __init__(self, answer: bytes = b"", *, takes: bool = True) -> None:
        self.answer, self.takes = answer, takes
        self.got: list[BindingEvent] = []

    async def handle(self, event: BindingEvent) -> bytes:
        self.got.append(event)
        if not self.takes:
            raise BindingError("the application answered 500")
        return self.answer


@asynccontextmanager
async def listening(*handles: Handle, kind: str = "bindings.webhook", **settings: str) -> AsyncIterator[str]:
    """Have events handled for so many applications; gives the URL."""
    port = free_port()
    async with adapter(kind, port=str(port), **settings) as opened, AsyncExitStack() as stack:
        assert isinstance(opened, InputBinding)
        for number, handle in enumerate(handles):
            await stack.enter_async_context(opened.reading(Reading("in", f"app{number}", handle)))
        yield f"http://127.0.0.1:{port}"


async def post(url: str, body: object = b"{}", method: str = "POST", **headers: str) -> tuple[int, bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, data=body, headers=named) as response,
    ):
        return response.status, await response.read()


def hexed(text: bytes, secret: str = SECRET) -> str:
    return hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()


async def test_what_is_answered() -> None:
    """By place, verb, size, and what the application does."""
    app = Taken(b'{"mine":1}')
    async with listening(app.handle, path="/hook", maxBodySize="10") as url:
        assert await post(f"{url}/hook", b"0123456789") == (200, b"")
        assert (await post(f"{url}/hook", b"0123456789a"))[0] == 413
        assert (await post(f"{url}/hook", _parts(b"01234", b"567890")))[0] == 413
        assert (await post(f"{url}/other"))[0] == 404
        assert (await post(f"{url}/hook", method="GET"))[0] == 405
        assert (await post(f"{url}/hook", Origin="https://evil.example.com"))[0] == 403
        app.takes = False
        assert (await post(f"{url}/hook"))[0] == 503
    assert [event.data for event in app.got] == [b"0123456789", b"{}"]


async def _parts(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_an_answer_is_passed_back() -> None:
    """Where that is wanted."""
    async with listening(Taken(b'{"mine":1}').handle, answer="true") as url:
        assert await post(url) == (200, b'{"mine":1}')


async def test_several_applications() -> None:
    """Each gets it; it is taken when all have; the others go on when one leaves."""
    one, two = Taken(), Taken(takes=False)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with adapter(port=str(port)) as opened:
        assert isinstance(opened, InputBinding)
        async with opened.reading(Reading("in", "one", one.handle)):
            async with opened.reading(Reading("in", "two", two.handle)):
                assert (await post(url))[0] == 503
                two.takes = True
                assert (await post(url))[0] == 200
            two.takes = False
            assert (await post(url))[0] == 200
        with pytest.raises(aiohttp.ClientConnectionError):
            await post(url)
        async with opened.reading(Reading("in", "one", one.handle)):
            assert (await post(url))[0] == 200
    assert (len(one.got), len(two.got)) == (4, 2)


async def test_too_many_at_once() -> None:
    """They are told to come back."""
    begun, release = asyncio.Event(), asyncio.Event()

    async def handle(event: BindingEvent) -> bytes:
        begun.set()
        await release.wait()
        return b""

    async with listening(handle, maxConcurrency="1") as url, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(post(url))
        await begun.wait()
        assert (await post(url))[0] == 429
        release.set()
        assert (await first)[0] == 200
        assert (await post(url))[0] == 200


async def test_leaving_waits_for_no_body() -> None:
    """Whoever is slow to send it is not waited for."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(listening(Taken().handle))
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nsome")
        await writer.drain()
        assert await post(url) == (200, b"")
        async with asyncio.timeout(BODY_SECONDS * 2 / 3):
            await stack.aclose()
        writer.close()


async def test_what_an_application_gets() -> None:
    """Header fields are metadata, but for those by which somebody is somebody, or that only a gateway may say."""
    app = Taken()
    async with listening(app.handle) as url:
        withheld = {"Authorization": "Bearer x", "Cookie": "a=b", "dapr_api_token": "t", "mesh_binding": "m"}
        many = {f"x_{number}": "v" * 1000 for number in range(30)}
        await post(f"{url}/?a=1&b=%20", b"x", Content_Type="text/csv", X_Event="made", **withheld, **many)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nX-Raw: b\xff\r\nX-Fine: f\r\nContent-Length: 1\r\n\r\nx")
        assert b" 200 " in await reader.readline()
        writer.close()
    first, second = (event.metadata for event in app.got)
    assert (first["contentType"], first["query"], first["x-event"]) == ("text/csv", "a=1&b=%20", "made")
    assert not {"authorization", "cookie", "dapr-api-token", "mesh-binding", "content-type", "host"} & set(first)
    assert sum(len(name) + len(value) for name, value in first.items()) <= 16 * 1024
    assert ("x-raw" in second, second["x-fine"]) == (False, "f")


async def test_the_port_is_taken() -> None:
    """It is read as soon as it is free: who cannot listen says so."""
    app = Taken()
    async with listening(app.handle) as url, adapter(port=url.rpartition(":")[2]) as second:
        assert isinstance(second, InputBinding)
        with pytest.raises(BindingError, match="cannot listen on"):
            async with second.reading(Reading("in", "app", app.handle)):
                pass


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"address": "0.0.0.0"}, "say how requests are signed"),
        ({"signature": "github"}, "needs the secret"),
        ({"secret": "x"}, "must be said how"),
        ({"signature": "generic", "secret": "x"}, "needs signatureHeader"),
        ({"signature": "twilio", "secret": "x"}, "needs publicUrl"),
        ({"signature": "acme", "secret": "x"}, "none or github or stripe"),
        ({"path": "a b"}, "is the path of a URL"),
        ({"port": "0"}, "port"),
    ],
)
async def test_settings(settings: dict[str, str], why: str) -> None:
    """What cannot be meant is refused at start."""
    with pytest.raises(ConfigError, match=why):
        async with adapter(**{"port": "8085", **settings}):
            pass


async def test_slack_and_github_ask_whether_it_is_there() -> None:
    """They are answered without the application; signed as all else."""
    app = Taken()
    body = b'{"type":"url_verification","challenge":"abc"}'
    async with listening(app.handle, signature="slack", secret=SECRET) as url:
        now = str(int(time.time()))
        signed = {"X_Slack_Request_Timestamp": now, "X_Slack_Signature": f"v0={hexed(f'v0:{now}:'.encode() + body)}"}
        assert await post(url, body, **signed) == (200, b"abc")
        assert (await post(url, body))[0] == 401
    async with listening(app.handle, signature="github", secret=SECRET) as url:
        assert (await post(url, b"{}", X_Hub_Signature_256=f"sha256={hexed(b'{}')}", X_GitHub_Event="ping"))[0] == 200
        assert app.got == []
        assert (await post(url, b"{}", X_Hub_Signature_256=f"sha256={hexed(b'{}')}", X_GitHub_Event="push"))[0] == 200
    assert [dict(event.metadata).get("x-github-event") for event in app.got] == ["push"]
    assert "x-hub-signature-256" not in app.got[0].metadata


async def test_a_secret_that_is_changed() -> None:
    """The former one holds meanwhile."""
    async with listening(Taken().handle, signature="github", secret="new", previousSecret=SECRET) as url:
        for secret, status in ((SECRET, 200), ("new", 200), ("other", 401)):
            assert (await post(url, b"x", X_Hub_Signature_256=f"sha256={hexed(b'x', secret)}"))[0] == status


SLACK_BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar"
    b"&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com"
    b"%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121"
    b".803a0bc887a14d10d2c447fce8b6703c"
)
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
TWILIO_URL = "https://mycompany.com/myapp.php?foo=1&bar=2"
TWILIO_BODY = b"CallSid=CA1234567890ABCDE&Caller=%2B14158675309&Digits=1234&From=%2B14158675309&To=%2B18005551212"


def based(body: bytes) -> str:
    return base64.b64encode(hmac.digest(SECRET.encode(), body, "sha256")).decode()


@pytest.mark.parametrize(
    ("kind", "secret", "headers", "request_", "now", "url"),
    [
        # Those that the services' own pages show.
        (
            "github",
            "It's a Secret to Everybody",
            {"X-Hub-Signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"},
            b"Hello, World!",
            0,
            "",
        ),
        (
            "slack",
            "8f742231b10e8888abcd99yyyzzz85a5",
            {
                "X-Slack-Request-Timestamp": "1531420618",
                "X-Slack-Signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
            },
            SLACK_BODY,
            1531420618,
            "",
        ),
        ("twilio", "12345", {**FORM, "X-Twilio-Signature": "RSOYDt4T1cUTdK1PDd93/VVr8B8="}, TWILIO_BODY, 0, TWILIO_URL),
        (
            "twilio",
            "12345",
            {**FORM, "X-Twilio-Signature": "RSOYDt4T1cUTdK1PDd93/VVr8B8="},
            TWILIO_BODY,
            0,
            TWILIO_URL.replace(".com/", ".com:443/"),
        ),
        # By what they say.
        ("stripe", SECRET, {"Stripe-Signature": f"t=100,v1=00,v1={hexed(b'100.{}')},v0=1"}, b"{}", 399, ""),
        ("shopify", SECRET, {"X-Shopify-Hmac-Sha256": based(b"{}")}, b"{}", 0, ""),
    ],
)
def test_signatures(kind: str, secret: str, headers: Mapping[str, str], request_: bytes, now: float, url: str) -> None:
    """Right, and wrong by the body, the secret, the time, or for lack of it."""
    verify, _ = SIGNATURES[kind]
    assert verify(Signed(headers, request_, now, url), secret)
    assert not verify(Signed(headers, request_ + b"&a=b", now, url), secret)
    assert not verify(Signed(headers, request_, now, url), secret + "x")
    assert not verify(Signed({**FORM}, request_, now, url), secret)
    nonsense = {name: "\udcff" if "Type" not in name else value for name, value in headers.items()}
    assert not verify(Signed(nonsense, request_, now, url), secret)
    if kind in ("slack", "stripe"):
        assert not verify(Signed(headers, request_, now + 301, url), secret)
        assert not verify(Signed(headers, request_, now - 700, url), secret)
    if kind == "twilio":
        assert not verify(Signed(headers, request_, now, url + "1"), secret)


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512"])
@pytest.mark.parametrize("encoding", ["hex", "base64"])
@pytest.mark.parametrize("prefix", ["", "v1="])
def test_generic(algorithm: str, encoding: str, prefix: str) -> None:
    """By a field's name, hash, encoding and prefix."""
    digest = hmac.new(SECRET.encode(), b"body", algorithm)
    text = prefix + (digest.hexdigest() if encoding == "hex" else base64.b64encode(digest.digest()).decode())
    verify = Generic("X-Sign", algorithm, encoding, prefix)
    assert verify(Signed({"X-Sign": text}, b"body", 0), SECRET)
    for headers, body in (({"X-Sign": text}, b"other"), ({"X-Sign": f"x{text}"}, b"body"), ({}, b"body")):
        assert not verify(Signed(headers, body, 0), SECRET)


async def test_twilio_with_a_json_body() -> None:
    """The hash of the body is in the URL, which is signed."""
    verify, _ = SIGNATURES["twilio"]
    url = f"https://a.example.com/x?bodySHA256={hashlib.sha256(b'{}').hexdigest()}"
    signature = base64.b64encode(hmac.digest(SECRET.encode(), url.encode(), "sha1")).decode()
    headers = {"X-Twilio-Signature": signature, "Content-Type": "application/json"}
    assert verify(Signed(headers, b"{}", 0, url), SECRET)
    assert not verify(Signed(headers, b"{1}", 0, url), SECRET)


async def test_a_short_message() -> None:
    """Its fields are one JSON object; Twilio is told to send nothing back."""
    app = Taken(b'{"ignored":1}')
    settings: dict[str, Any] = {"authToken": "12345", "publicUrl": TWILIO_URL}
    headers = {"Content-Type": FORM["Content-Type"], "X-Twilio-Signature": "RSOYDt4T1cUTdK1PDd93/VVr8B8="}
    async with listening(app.handle, kind="bindings.twilio.sms", **settings) as url:
        assert await post(url, TWILIO_BODY, **headers) == (
            200,
            b'<?xml version="1.0" encoding="UTF-8"?><Response/>',
        )
        assert (await post(url, TWILIO_BODY + b"&a=b", **headers))[0] == 401
    assert b'"Digits":"1234"' in app.got[0].data


async def test_twilio_without_a_port_is_no_input() -> None:
    """So a component that only sends is not read."""
    made = component("in", "bindings.twilio.sms", authToken="t")
    async with adapter("bindings.twilio.sms", authToken="t") as opened:
        with pytest.raises(ConfigError):
            BindingComponent(made, opened, ("input",))


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", b" 400 "),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b" 400 "),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", b" 400 "),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b" 400 "),
        (b"POST / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", b" 400 "),
        (b"POST /%ff%00 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", b" 404 "),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf", b""),
    ],
)
async def test_what_is_no_request(sent: bytes, status: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """It is refused, without a word in the log, and others are answered."""
    app = Taken()
    async with listening(app.handle) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(sent)
        if not status:
            writer.write_eof()
        answer = await reader.readline()
        writer.close()
        assert status in answer
        assert (await post(url))[0] == 200
    assert [event.data for event in app.got] == [b"{}"]
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []
