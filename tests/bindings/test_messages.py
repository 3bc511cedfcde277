"""Bindings that tell people something, and those to services over HTTP: what goes wrong, and what is sent in detail."""

from __future__ import annotations

import asyncio
import email
import email.policy
import logging
from base64 import b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import parse_qs

import orjson
import pytest
from aiohttp import web

from bindings._twilio_send import TwilioMessages
from mesh.blocks.binding_contract import BindingError, Invoke, OutputBinding
from mesh.errors import ConfigError
from mesh.registry import Registry
from tests.support.bindings import OUTPUTS, call
from tests.support.bindings.messages import PASSWORD, TOKEN, USER, mail_server, serves
from tests.support.nodes import component


@pytest.fixture(autouse=True)
def _blocking() -> None:
    """What is installed is read once, before anything runs; the suite's detector would refuse it."""


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Give what reaches the root's handlers, as a gateway's log does."""
    root, texts = logging.getLogger(), list[str]()
    handler, level = logging.Handler(), root.level
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield texts
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


def adapter(kind: str, settings: Mapping[str, str]) -> OutputBinding:
    made: OutputBinding = Registry().load(kind).from_component(component("out", kind, **settings))
    return made


MAIL = {"emailFrom": "shop@x.test", "emailTo": "a@x.test", "subject": "News"}
SERVICES: Mapping[str, tuple[Mapping[str, str], str, Invoke]] = {
    "bindings.graphql": ({"header:Authorization": TOKEN}, "endpoint", call("query", query="{ a }")),
    "bindings.influx": (
        {"token": TOKEN, "org": "o", "bucket": "b"},
        "url",
        call("create", b'{"measurement":"m","values":"v=1"}'),
    ),
    "bindings.postmark": ({**MAIL, "serverToken": TOKEN, "accountToken": TOKEN}, "endpoint", call("create", b'"x"')),
    "bindings.twilio.sendgrid": ({**MAIL, "apiKey": TOKEN}, "endpoint", call("create", b'"x"')),
    "bindings.dingtalk.webhook": ({"secret": TOKEN}, "url", call("create", b"{}")),
    "bindings.apprise": ({}, "urls", call("create", b'"x"')),
}


def settings_of(kind: str, url: str) -> Mapping[str, str]:
    given, name, _ = SERVICES[kind]
    match kind:
        case "bindings.dingtalk.webhook":
            url += f"/robot?access_token={TOKEN}"
        case "bindings.apprise":
            url = f"json://{USER}:{TOKEN}@{url.removeprefix('http://')}/"
    return {**given, name: url}


@pytest.mark.parametrize("kind", SERVICES)
@pytest.mark.parametrize(
    ("status", "retryable"), [(302, False), (400, False), (401, False), (429, True), (500, True), (503, True)]
)
async def test_refusals(kind: str, status: int, retryable: bool, logged: list[str]) -> None:
    """They tell the status, and whether to try again; neither they nor logs tell a secret, though the service does."""
    told = {"message": f"no, {TOKEN}\r\n"}
    async with (
        serves(lambda sent: web.json_response(told, status=status)) as service,
        adapter(kind, settings_of(kind, service.url)) as binding,  # type: ignore[attr-defined]
    ):
        with pytest.raises(BindingError, match=str(status)) as caught:
            await binding.invoke(SERVICES[kind][2])
    assert caught.value.retryable is retryable
    assert kind == "bindings.apprise" or caught.value.metadata == {"statusCode": str(status)}
    assert TOKEN not in f"{caught.value} {caught.value.told} {logged}"
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", SERVICES)
async def test_away(kind: str, logged: list[str]) -> None:
    """It starts without its service; a call fails then, and may be tried again."""
    async with serves(lambda sent: web.Response()) as service:
        url = service.url
    async with adapter(kind, settings_of(kind, url)) as binding:  # type: ignore[attr-defined]
        with pytest.raises(BindingError, match=r"reached") as caught:
            await binding.invoke(SERVICES[kind][2])
    assert caught.value.retryable
    assert TOKEN not in f"{caught.value} {logged}"


async def test_the_url_of_an_http_service_may_be_secret(logged: list[str]) -> None:
    """What is told of it is where it is; and only what may succeed later is to be tried again."""
    async with serves(lambda sent: web.Response(text="long")) as service:
        host = service.url.removeprefix("http://")
        url = f"http://{USER}:{TOKEN}@{host}/a?key={TOKEN}"
        async with adapter("bindings.http", {"url": url, "maxResponseBodySize": "1"}) as binding:  # type: ignore[attr-defined]
            with pytest.raises(
                BindingError, match=rf"http://\*\*\*@{host}/a cannot be called: it answers more"
            ) as large:
                await binding.invoke(call("get"))
    async with adapter("bindings.http", {"url": url}) as binding:  # type: ignore[attr-defined]
        with pytest.raises(BindingError, match=rf"http://\*\*\*@{host}/a cannot be called") as away:
            await binding.invoke(call("get"))
    assert (large.value.retryable, away.value.retryable) == (False, True)
    assert TOKEN not in f"{large.value} {away.value} {logged}"


@pytest.mark.parametrize(
    ("kind", "asked", "message"),
    [
        ("bindings.graphql", call("query", mutation="{ a }"), "metadata query"),
        ("bindings.graphql", call("query", b"[1]", query="{ a }"), "JSON object"),
        ("bindings.graphql", call("query", query="{ a }", **{"header:a": "b\r\nc: d"}), "line break"),
        ("bindings.graphql", call("query", query="{ a }", **{"header:Host": "other"}), "no header field"),
        ("bindings.influx", call("query"), "metadata raw"),
        ("bindings.influx", call("create", b'"text"'), "measurement"),
        ("bindings.influx", call("create", b"[]"), "measurement"),
        ("bindings.postmark", call("create"), "text of the mail"),
        ("bindings.twilio.sendgrid", call("create"), "text of the mail"),
        ("bindings.twilio.sendgrid", call("create", dynamicTemplateId="d", dynamicTemplateData="[]"), "TemplateData"),
        ("bindings.apprise", call("create"), "text of the notification"),
        ("bindings.apprise", call("create", b'"x"', type="news"), "type is info"),
        ("bindings.apprise", call("create", b'"x"', format="pdf"), "format is text"),
        ("bindings.apprise", call("create", b'"x"', tags="nobody"), "no URL has the tags nobody"),
    ],
)
async def test_wrong_calls(kind: str, asked: Invoke, message: str) -> None:
    """They name what is wrong, and nothing is sent."""
    async with serves(lambda sent: web.Response()) as service:
        async with adapter(kind, settings_of(kind, service.url)) as binding:  # type: ignore[attr-defined]
            with pytest.raises(BindingError, match=message) as caught:
                await binding.invoke(asked)
        assert not service.sent
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("bindings.graphql", {"endpoint": "ftp://x"}, "URL"),
        ("bindings.graphql", {"endpoint": "http://x", "header:a b": "c"}, "no header field"),
        ("bindings.influx", {"url": "x", "token": "t", "org": "o", "bucket": "b"}, "URL"),
        ("bindings.influx", {"url": f"http://u:{TOKEN}@x", "token": "t", "org": "o", "bucket": "b"}, "URL"),
        ("bindings.twilio.sendgrid", {"apiKey": TOKEN, "endpoint": "http://example.com"}, "https"),
        ("bindings.twilio.sendgrid", {"apiKey": "k", "endpoint": f"https://u:{TOKEN}@example.com"}, "https"),
        ("bindings.postmark", {"serverToken": TOKEN, "endpoint": "http://example.com"}, "https"),
        ("bindings.dingtalk.webhook", {"url": f"http://example.com?access_token={TOKEN}"}, "https"),
        ("bindings.apprise", {"urls": f"json://localhost nothing://{TOKEN}"}, "place 2"),
        ("bindings.smtp", {"host": "x", "port": "25", "user": "u"}, "go together"),
        ("bindings.twilio.sms", {"authToken": TOKEN, "accountSid": "AC1"}, "go together"),
        ("bindings.twilio.sms", {"authToken": TOKEN, "endpoint": "http://example.com"}, "https"),
        ("bindings.smtp", {"host": "x", "port": "25", "priority": "6"}, "priority"),
    ],
)
async def test_wrong_settings(kind: str, settings: Mapping[str, str], message: str) -> None:
    """What cannot work, or would show a secret on the way, is refused at start."""
    with pytest.raises(ConfigError, match=message) as caught:
        async with adapter(kind, settings):  # type: ignore[attr-defined]
            pass
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b'{"measurement":"a b,c","values":{"v":1}}', r"a\ b\,c v=1"),
        (b'{"measurement":"a\\\\ b","values":{"v":1}}', r"a\ b v=1"),
        (b'{"measurement":"m","tags":{"z":"1","a b":"c=d, e","no":""},"values":{"v":1}}', r"m,a\ b=c\=d\,\ e,z=1 v=1"),
        (b'{"measurement":"m","tags":{"t":true,"n":5},"values":{"v":1}}', "m,n=5,t=true v=1"),
        (b'{"measurement":"m","tags":"","values":"v=1i,w=2"}', "m v=1i,w=2"),
        (b'{"measurement":"m","values":{"a":true,"b":1.5,"c":null,"d e":2}}', r"m a=true,b=1.5,d\ e=2"),
        (b'{"measurement":"m","values":{"s":"say \\"hi\\" \\\\ a, b"}}', r'm s="say \"hi\" \\ a, b"'),
        (b'{"measurement":"m","values":{"s":"gr\xc3\xb6\xc3\x9fer"},"timestamp":9}', 'm s="größer" 9'),
        (b'[{"measurement":"m","values":"v=1"},{"measurement":"n","values":"v=2"}]', "m v=1\nn v=2"),
    ],
)
async def test_points(data: bytes, line: str) -> None:
    """Each is one line, whatever its names and texts hold."""
    async with (
        serves(lambda sent: web.Response(status=204)) as service,
        adapter("bindings.influx", settings_of("bindings.influx", service.url)) as binding,  # type: ignore[attr-defined]
    ):
        await binding.invoke(call("create", data))
        assert service.sent[-1].body.decode() == line


@pytest.mark.parametrize(
    "data",
    [
        b'{"values":"v=1"}',
        b'{"measurement":"m"}',
        b'{"measurement":"m","values":{}}',
        b'{"measurement":"m\\nn","values":"v=1"}',
        b'{"measurement":"m","tags":{"a":"b\\nn v=2"},"values":"v=1"}',
        b'{"measurement":"m","tags":{"a":"b\\\\"},"values":"v=1"}',
        b'{"measurement":"m","tags":"a=b\\nn","values":"v=1"}',
        b'{"measurement":"m","values":{"a":[1]}}',
        b'{"measurement":"m","values":"v=1","timestamp":"now"}',
    ],
)
async def test_no_points(data: bytes) -> None:
    """What is no point, or would become another one, is refused."""
    async with serves(lambda sent: web.Response(status=204)) as service:
        async with adapter("bindings.influx", settings_of("bindings.influx", service.url)) as binding:  # type: ignore[attr-defined]
            with pytest.raises(BindingError):
                await binding.invoke(call("create", data))
        assert not service.sent


async def test_subjects_of_mail() -> None:
    """What joins emojis, and blanks that keep words together, are no line breaks."""
    subject = "Prix\u00a0: 5\u202f€ \U0001f469\u200d\U0001f4bb"
    async with mail_server() as mail:
        settings = {"host": "127.0.0.1", "port": str(mail.port), **MAIL}
        async with adapter("bindings.smtp", settings) as binding:  # type: ignore[attr-defined]
            await binding.invoke(call("create", b'"x"', subject=subject))
            for refused in ("a\u2028b", "a\x85b", "a\x0bb", "a\0b"):
                with pytest.raises(BindingError, match="subject"):
                    await binding.invoke(call("create", b'"x"', subject=refused))
        (envelope,) = mail.envelopes
    assert str(email.message_from_bytes(envelope.content, policy=email.policy.default)["subject"]) == subject


async def test_credentials_in_a_url() -> None:
    """Those of a GraphQL service are sent, and not told."""
    async with serves(lambda sent: web.json_response({"message": "pa ss"}, status=403)) as service:
        url = service.url.replace("http://", "http://me:pa%20ss@")
        async with adapter("bindings.graphql", {"endpoint": f"{url}/graphql"}) as binding:  # type: ignore[attr-defined]
            with pytest.raises(BindingError, match=r"answered 403: \*\*\*"):
                await binding.invoke(call("query", query="{ a }"))
        (sent,) = service.sent
    assert sent.path == "/graphql"
    assert sent.headers["Authorization"] == "Basic " + b64encode(b"me:pa ss").decode()


async def test_many_calls_of_a_service() -> None:
    """None waits for another one's connection longer than it may."""
    async with serves(lambda sent: web.Response(status=204)) as service:
        settings = settings_of("bindings.influx", service.url)
        async with adapter("bindings.influx", settings) as binding, asyncio.TaskGroup() as tasks:  # type: ignore[attr-defined]
            for _ in range(150):  # More than a client has connections.
                tasks.create_task(binding.invoke(SERVICES["bindings.influx"][2]))
        assert len(service.sent) == 150


@pytest.mark.parametrize("text", ["a\n.\nb", ".", "x" * 5000, "größer\n" * 200, "", "<b>\u2028</b>"])
async def test_texts_of_mail(text: str) -> None:
    """They arrive as they are, whatever their lines hold; names in metadata are in any case."""
    async with mail_server() as mail:
        settings = {"host": "127.0.0.1", "port": str(mail.port), **MAIL}
        async with adapter("bindings.smtp", settings) as binding:  # type: ignore[attr-defined]
            await binding.invoke(call("create", orjson.dumps(text), emailCc="Größe <c@x.test>"))
        (envelope,) = mail.envelopes
    message = email.message_from_bytes(envelope.content, policy=email.policy.default)
    assert message.get_content().replace("\r\n", "\n").rstrip("\n") == text.rstrip("\n")
    assert message.get_content_type() == "text/html"
    assert str(message["cc"]) == "Größe <c@x.test>"
    assert max(map(len, envelope.content.split(b"\r\n"))) <= 998


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"subject": "a\r\nBcc: x@x.test"}, "subject holds a line break"),
        ({"emailTo": "a@x.test\nb@x.test"}, "emailTo holds a line break"),
        ({"emailFrom": "a@x.test\r\nX: y"}, "emailFrom holds a line break"),
        ({"emailTo": "nonsense"}, "emailTo: 'nonsense' is no address"),
        ({"emailCC": "a@x.test;<>"}, "emailCC: '<>' is no address"),
        ({"emailBCC": "a b@x.test"}, "is no address"),
        ({"emailFrom": "a@x.test;b@x.test"}, "emailFrom is one address"),
        ({"priority": "0"}, "priority"),
        ({"priority": "high"}, "priority"),
        ({"emailTo": "größe@x.test"}, "no address"),
    ],
)
async def test_wrong_mail(metadata: Mapping[str, str], message: str) -> None:
    """No header field comes by another one, and what is wrong is named."""
    async with mail_server() as mail:
        settings = {"host": "127.0.0.1", "port": str(mail.port), **MAIL}
        async with adapter("bindings.smtp", settings) as binding:  # type: ignore[attr-defined]
            with pytest.raises(BindingError, match=message) as caught:
                await binding.invoke(call("create", b'"x"', **metadata))
        assert not mail.envelopes
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("to", "retryable"),
    [("nobody@x.test;a@x.test", False), ("later@x.test;a@x.test", True), ("later@x.test;nobody@x.test", False)],
)
async def test_refused_recipients(to: str, retryable: bool) -> None:
    """Each is named with the server's answer, and nobody is sent the mail."""
    async with mail_server() as mail:
        settings = {"host": "127.0.0.1", "port": str(mail.port), **MAIL}
        async with adapter("bindings.smtp", settings) as binding:  # type: ignore[attr-defined]
            with pytest.raises(BindingError) as caught:
                await binding.invoke(call("create", b'"x"', emailTo=to))
            assert not mail.envelopes
            await binding.invoke(call("create", b'"x"'))  # The next one is not disturbed.
            assert [each.rcpt_tos for each in mail.envelopes] == [["a@x.test"]]
    refused = [each for each in to.split(";") if not each.startswith("a@")]
    assert all(each in str(caught.value) for each in refused)
    assert "a@x.test" not in str(caught.value)
    assert caught.value.retryable is retryable


async def test_mail_server_says_no() -> None:
    """A server that is full may be asked again; its answer is told, without the password."""
    async with mail_server(login=True) as mail:
        settings = {"host": "127.0.0.1", "port": str(mail.port), **MAIL, "user": USER, "password": PASSWORD}
        async with adapter("bindings.smtp", settings) as binding:  # type: ignore[attr-defined]
            with pytest.raises(BindingError, match=r"452.*no room, \*\*\*") as caught:
                await binding.invoke(call("create", b'"too much"'))
            assert caught.value.retryable
        async with adapter("bindings.smtp", {**settings, "password": "wrong"}) as binding:  # type: ignore[attr-defined]
            with pytest.raises(BindingError, match="535") as caught:
                await binding.invoke(call("create", b'"x"'))
            assert not caught.value.retryable
    async with adapter("bindings.smtp", settings) as binding:  # type: ignore[attr-defined]
        with pytest.raises(BindingError, match="reached") as caught:
            await binding.invoke(call("create", b'"x"'))
        assert caught.value.retryable


async def test_partly_notified() -> None:
    """Where some services have it, who asks is told not to send it to all of them again."""
    async with serves(lambda sent: web.Response(status=503 if sent.path == "/b" else 200)) as service:
        host = service.url.removeprefix("http://")
        settings = {"urls": f"json://{host}/a json://{host}/b"}
        async with adapter("bindings.apprise", settings) as binding:  # type: ignore[attr-defined]
            with pytest.raises(BindingError, match=r"1 of 2 services have not taken it: JSON \(503\)") as caught:
                await binding.invoke(call("notify", b'"x"'))
    assert not caught.value.retryable


async def test_a_password_is_not_shown(tmp_path: Path) -> None:
    """It is sent neither without TLS to another machine, nor to a server whose certificate nobody has signed."""
    mail = {**MAIL, "user": USER, "password": PASSWORD}
    async with mail_server(login=True, host="127.0.0.2") as server:
        settings = {**mail, "host": "127.0.0.2", "port": str(server.port)}
        async with adapter("bindings.smtp", settings) as binding:  # type: ignore[attr-defined]
            with pytest.raises(BindingError, match="no TLS"):
                await binding.invoke(call("create", b'"x"'))
        assert not server.envelopes
    async with OUTPUTS["smtp, STARTTLS"].serve(tmp_path) as served:
        settings = {**served.settings, "skipTLSVerify": "false"}
        async with adapter("bindings.smtp", settings) as binding:  # type: ignore[attr-defined]
            with pytest.raises(BindingError, match="certificate") as caught:
                await binding.invoke(served.calls[0][0])
            assert not caught.value.retryable


@pytest.mark.parametrize("kind", ["bindings.apprise", "bindings.smtp"])
async def test_silence(kind: str) -> None:
    """A service that never answers does not hold a call longer than it may take."""
    ended = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        settings = {
            "bindings.apprise": {"urls": f"json://127.0.0.1:{port}", "timeout": "500ms"},
            "bindings.smtp": {**MAIL, "host": "127.0.0.1", "port": str(port)},
        }[kind]
        async with adapter(kind, settings) as binding:  # type: ignore[attr-defined]
            with pytest.raises(BindingError if kind == "bindings.apprise" else TimeoutError):
                async with asyncio.timeout(None if kind == "bindings.apprise" else 0.5):
                    await binding.invoke(call("create", b'"x"'))
    finally:
        ended.set()
        server.close()


@pytest.mark.parametrize(("status", "retryable"), [(201, None), (400, False), (401, False), (429, True), (500, True)])
async def test_twilio(status: int, retryable: bool | None) -> None:
    """A message is a form that the account sends; what Twilio says against it is told without the token."""
    told = {"code": 21211, "message": f"Invalid 'To', {TOKEN}", "status": status}
    async with (
        serves(lambda sent: web.json_response(told, status=status)) as service,
        TwilioMessages("AC1", TOKEN, "+100", url=service.url) as messages,
    ):
        asked = call("create", '"größer & mehr"'.encode(), toNumber="+49 1")
        if retryable is None:
            await messages.invoke(asked)
        else:
            with pytest.raises(BindingError, match=rf"Twilio answered {status}: Invalid 'To', \*\*\*") as caught:
                await messages.invoke(asked)
            assert caught.value.retryable is retryable
        (sent,) = service.sent
        assert (sent.method, sent.path) == ("POST", "/2010-04-01/Accounts/AC1/Messages.json")
        assert sent.headers["Authorization"] == "Basic " + b64encode(f"AC1:{TOKEN}".encode()).decode()
        assert parse_qs(sent.body.decode()) == {"To": ["+49 1"], "From": ["+100"], "Body": ["größer & mehr"]}
        for wrong in (call("create", b'"x"'), call("create", toNumber="+1"), call("create", b"\xff", toNumber="+1")):
            with pytest.raises(BindingError):
                await messages.invoke(wrong)
        with pytest.raises(BindingError, match="1600"):
            await messages.invoke(call("create", b"x" * 1601, toNumber="+1"))
        assert len(service.sent) == 1


async def test_many_notifications() -> None:
    """More at once than there are threads: each arrives, once."""
    async with serves(lambda sent: web.Response()) as service:
        settings = settings_of("bindings.apprise", service.url)
        async with adapter("bindings.apprise", settings) as binding, asyncio.TaskGroup() as tasks:  # type: ignore[attr-defined]
            for number in range(30):
                tasks.create_task(binding.invoke(call("notify", orjson.dumps(f"text {number}"))))
        told = sorted(orjson.loads(each.body)["message"] for each in service.sent)
    assert told == sorted(f"text {number}" for number in range(30))
