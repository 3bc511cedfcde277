"""Rows of what tells people something, and of services over HTTP.

Each stands on a server in this process that keeps what it was sent; those of vendors have the requests that their
documentation describes.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import graphql
import orjson
from aiohttp import web
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from mesh.blocks.binding_contract import Invoked
from tests.support.bindings.rows import Check, InputKind, OutputKind, ServedOutput, call, gives
from tests.support.certificates import Authority

__all__ = ["INPUTS", "OUTPUTS", "HTTP", "Mail", "Sent", "mail_server", "serves"]

USER, PASSWORD, TOKEN = "post", "pass word", "t0ken-of-an-account"


@dataclass
class Sent:
    """A request as a service got it."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class HTTP:
    """A service.

    Attributes:
        answer: Makes the answers.
        sent: What it got.
        url: Where it is.
    """

    answer: Callable[[Sent], web.Response]
    sent: list[Sent] = field(default_factory=list)
    url: str = ""


@asynccontextmanager
async def serves(answer: Callable[[Sent], web.Response]) -> AsyncIterator[HTTP]:
    """Serve what answers so."""
    service = HTTP(answer)

    async def handle(request: web.BaseRequest) -> web.Response:
        service.sent.append(Sent(request.method, request.path_qs, request.headers, await request.read()))
        return service.answer(service.sent[-1])

    runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        service.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield service
    finally:
        await runner.cleanup()


@dataclass
class Mail:
    """A mail server that keeps what it was sent, and refuses recipients by their names.

    Attributes:
        envelopes: What came.
        port: Where it is.
    """

    envelopes: list[Envelope] = field(default_factory=list)
    port: int = 0

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address.startswith("nobody"):
            return "550 5.1.1 there is nobody"
        if address.startswith("later"):
            return "450 4.2.0 come again"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if b"too much" in (envelope.content or b""):
            return f"452 4.3.1 no room, {PASSWORD}"
        self.envelopes.append(envelope)
        return "250 OK"


def _login(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: object) -> AuthResult:
    right = isinstance(data, LoginPassword) and (data.login, data.password) == (USER.encode(), PASSWORD.encode())
    return AuthResult(success=right, handled=False)


@asynccontextmanager
async def mail_server(
    tls: ssl.SSLContext | None = None, *, login: bool = False, host: str = "127.0.0.1"
) -> AsyncIterator[Mail]:
    """Serve mail; with TLS by STARTTLS, which must come first."""
    mail, loop = Mail(), asyncio.get_running_loop()

    def connected() -> SMTP:
        options = {"authenticator": _login, "auth_required": tls is not None} if login else {}
        return SMTP(
            mail,
            loop=loop,
            hostname="mail.test",
            tls_context=tls,
            require_starttls=tls is not None,
            auth_require_tls=tls is not None,
            **options,
        )

    server = await loop.create_server(connected, host, 0)
    try:
        mail.port = server.sockets[0].getsockname()[1]
        yield mail
    finally:
        server.close()
        await server.wait_closed()


def _mailed(mail: Mail, to: list[str], **headers: str | None) -> Check:
    def check(found: Invoked | None) -> object:
        envelope = mail.envelopes[-1]
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        told = {name: None if message[name] is None else str(message[name]) for name in headers}
        content = message.get_content().strip()
        return found is None and envelope.rcpt_tos == to and told == headers and content == "<b>größer</b>"

    return check


def _mails(mail: Mail) -> ServedOutput:
    text = b'"<b>gr\\u00f6\\u00dfer</b>"'
    calls = (
        (
            call("create", text, emailTo="a@x.test"),
            _mailed(mail, ["a@x.test"], To="a@x.test", Subject="News", Bcc=None, **{"X-Priority": "3"}),
        ),
        (
            call("create", "<b>größer</b>".encode(), emailTo="A <a@x.test>; b@x.test", emailCC="c@x.test",
                 emailBCC="d@größe.test;a@x.test", subject="Größe", priority="1"),
            _mailed(mail, ["a@x.test", "b@x.test", "c@x.test", "d@xn--gre-6ka8i.test"], To="A <a@x.test>, b@x.test",
                    Cc="c@x.test", Bcc=None, Subject="Größe", **{"X-Priority": "1"}),
        ),
    )  # fmt: skip
    settings = {"host": "127.0.0.1", "port": str(mail.port), "emailFrom": "Shop <shop@x.test>", "subject": "News"}
    return ServedOutput(settings, calls, call("create", text, emailTo="a@x.test;nobody@x.test"))


@asynccontextmanager
async def _smtp(directory: Path) -> AsyncIterator[ServedOutput]:
    async with mail_server() as mail:
        yield _mails(mail)


@asynccontextmanager
async def _starttls(directory: Path) -> AsyncIterator[ServedOutput]:
    server = Authority(directory / "authority").issue("server")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(server.certificate, server.key)
    async with mail_server(tls, login=True) as mail:
        served = _mails(mail)
        more = {"user": USER, "password": PASSWORD, "skipTLSVerify": "true"}
        yield ServedOutput({**served.settings, **more}, served.calls, served.refused)


_SCHEMA = graphql.build_schema(
    "type Query { hello(name: String!, times: Int = 1): String! me: String fails: String } "
    "type Mutation { rename(name: String!): String! }"
)


def _graphql(sent: Sent) -> web.Response:
    asked = orjson.loads(sent.body)
    root = {
        "hello": lambda info, name, times=1: f"hello {name}" * times,
        "me": lambda info: sent.headers.get("X-Me"),
        "rename": lambda info, name: name,
    }
    result = graphql.graphql_sync(_SCHEMA, asked["query"], root, variable_values=asked["variables"])
    # A document that cannot be run is a bad request in that media type.
    return web.json_response(
        result.formatted, status=400 if result.data is None else 200, content_type="application/graphql-response+json"
    )


@asynccontextmanager
async def _queries(directory: Path) -> AsyncIterator[ServedOutput]:
    hello = "query($n: String!, $t: Int) { hello(name: $n, times: $t) }"
    async with serves(_graphql) as service:
        calls = (
            (
                call("query", query=hello, **{"variable:n": "you"}),
                gives(b'{"hello":"hello you"}', operation="query"),
            ),
            (call("query", b'{"n":"x","t":2}', query=hello), gives(b'{"hello":"hello xhello x"}')),
            (call("query", query="{ me }"), gives(b'{"me":"it"}')),
            (call("query", query="{ me }", **{"header:x-me": "other"}), gives(b'{"me":"other"}')),
            (
                call("mutation", mutation='mutation { rename(name: "b") }'),
                gives(b'{"rename":"b"}', operation="mutation"),
            ),
        )
        settings = {"endpoint": f"{service.url}/graphql?v=1", "header:X-Me": "it"}
        yield ServedOutput(settings, calls, call("query", query="{ nothing }"))


def _influx(sent: Sent) -> web.Response:
    if sent.headers.get("Authorization") != f"Token {TOKEN}":
        return web.json_response({"code": "unauthorized", "message": "unauthorized access"}, status=401)
    if sent.path.startswith("/api/v2/write?org=o&bucket=b+c&precision=ns"):
        if sent.body.startswith(b"wrong"):
            return web.json_response({"code": "invalid", "message": "unable to parse"}, status=400)
        return web.Response(status=204)
    asked = orjson.loads(sent.body)
    assert sent.path == "/api/v2/query?org=o"
    assert (asked["type"], sent.headers["Accept"]) == ("flux", "application/csv")
    return web.Response(text=f"#datatype,string\r\n,result\r\n,{asked['query']}\r\n", content_type="text/csv")


def _got(service: HTTP, body: bytes) -> Check:
    return lambda found: found is None and service.sent[-1].body == body


@asynccontextmanager
async def _points(directory: Path) -> AsyncIterator[ServedOutput]:
    async with serves(_influx) as service:
        calls = (
            (
                call("create", b'{"measurement":"m","tags":"room=a","values":"v=1"}'),
                _got(service, b"m,room=a v=1"),
            ),
            (
                call("create", b'{"measurement":"m","tags":{"r":"a b"},"values":{"v":1.5,"s":"x"},"timestamp":7}'),
                _got(service, rb'm,r=a\ b v=1.5,s="x" 7'),
            ),
            (call("query", raw="from()"), gives(b"#datatype,string\r\n,result\r\n,from()\r\n", operation="query")),
        )
        settings = {"url": service.url, "token": TOKEN, "org": "o", "bucket": "b c"}
        yield ServedOutput(settings, calls, call("create", b'{"measurement":"wrong","values":"v"}'))


def _sendgrid(sent: Sent) -> web.Response:
    assert (sent.method, sent.path) == ("POST", "/v3/mail/send")
    if sent.headers.get("Authorization") != f"Bearer {TOKEN}" or b"nobody" in sent.body:
        return web.json_response({"errors": [{"message": f"refused {TOKEN}", "field": "to"}]}, status=400)
    return web.Response(status=202)


def _json(service: HTTP, expected: object) -> Check:
    return lambda found: found is None and orjson.loads(service.sent[-1].body) == expected


@asynccontextmanager
async def _by_sendgrid(directory: Path) -> AsyncIterator[ServedOutput]:
    async with serves(_sendgrid) as service:
        sender = {"email": "shop@x.test", "name": "Shop"}
        plain = {
            "personalizations": [{"to": [{"email": "a@x.test"}], "subject": "News"}],
            "from": sender,
            "content": [{"type": "text/html", "value": "<b>hi</b>"}],
        }
        filled = {
            "personalizations": [
                {
                    "to": [{"email": "b@x.test", "name": "B"}],
                    "subject": "News",
                    "cc": [{"email": "c@x.test"}],
                    "bcc": [{"email": "d@x.test"}],
                    "dynamic_template_data": {"n": 1},
                }
            ],
            "from": sender,
            "template_id": "d-1",
        }
        more = {
            "emailTo": "b@x.test",
            "emailToName": "B",
            "emailCc": "c@x.test",
            "emailBcc": "d@x.test",
            "dynamicTemplateId": "d-1",
            "dynamicTemplateData": '{"n":1}',
        }
        calls = (
            (call("create", b'"<b>hi</b>"', emailTo="a@x.test"), _json(service, plain)),
            (call("create", **more), _json(service, filled)),
        )
        settings = {
            "apiKey": TOKEN,
            "emailFrom": "shop@x.test",
            "emailFromName": "Shop",
            "subject": "News",
            "endpoint": service.url,
        }
        yield ServedOutput(settings, calls, call("create", b'"x"', emailTo="nobody@x.test"))


def _postmark(sent: Sent) -> web.Response:
    assert (sent.method, sent.path) == ("POST", "/email")
    if sent.headers.get("X-Postmark-Server-Token") != TOKEN or b"nobody" in sent.body:
        return web.json_response({"ErrorCode": 300, "Message": "Invalid email request"}, status=422)
    return web.json_response({"ErrorCode": 0, "Message": "OK"})


@asynccontextmanager
async def _by_postmark(directory: Path) -> AsyncIterator[ServedOutput]:
    async with serves(_postmark) as service:
        expected = {"From": "shop@x.test", "To": "a@x.test", "Subject": "News", "HtmlBody": "hi"}
        calls = (
            (call("create", b'"hi"', emailTo="a@x.test"), _json(service, expected)),
            (
                call("create", b'"hi"', emailTo="a@x.test", emailCc="c@x.test", emailBcc="d@x.test"),
                _json(service, expected | {"Cc": "c@x.test", "Bcc": "d@x.test"}),
            ),
        )
        settings = {
            "serverToken": TOKEN,
            "accountToken": "account-token",
            "emailFrom": "shop@x.test",
            "subject": "News",
            "endpoint": service.url,
        }
        yield ServedOutput(settings, calls, call("create", b'"x"', emailTo="nobody@x.test"))


def _dingtalk(sent: Sent) -> web.Response:
    right = f"access_token={TOKEN}" in sent.path and "&sign=" in sent.path and b"wrong" not in sent.body
    told = {"errcode": 0, "errmsg": "ok"} if right else {"errcode": 310000, "errmsg": f"not matched {TOKEN}"}
    return web.json_response(told)


@asynccontextmanager
async def _by_dingtalk(directory: Path) -> AsyncIterator[ServedOutput]:
    async with serves(_dingtalk) as service:
        message = b'{"msgtype":"text","text":{"content":"hi"}}'
        settings = {
            "id": "robot",
            "url": f"{service.url}/robot/send?access_token={TOKEN}",
            "secret": "SEC-of-robot",
            "direction": "input, output",
        }
        calls = ((call("create", message), _json(service, orjson.loads(message))),)
        yield ServedOutput(settings, calls, call("create", b'{"msgtype":"wrong"}'))


def _apprise(sent: Sent) -> web.Response:
    return web.Response(status=403 if b"wrong" in sent.body else 200)


def _notified(service: HTTP, path: str, times: int, **expected: str) -> Check:
    def check(found: Invoked | None) -> object:
        got = [orjson.loads(each.body) for each in service.sent if each.path == path]
        return found is None and len(got) == times and expected.items() <= got[-1].items()

    return check


@asynccontextmanager
async def _by_apprise(directory: Path) -> AsyncIterator[ServedOutput]:
    async with serves(_apprise) as service:
        host = service.url.removeprefix("http://")
        calls = (
            (call("notify", b'"hi"'), _notified(service, "/a", 1, message="hi", title="News", type="info")),
            (
                call("create", b'"out"', title="T", type="failure", tags="team"),
                _notified(service, "/b", 2, message="out", title="T", type="failure"),
            ),
            (call("create", b'"out"', tags="other"), _notified(service, "/b", 2)),
        )
        settings = {"urls": f"json://{host}/a team,all-of-us=json://{USER}:{TOKEN}@{host}/b other=json://{host}/c"}
        yield ServedOutput({**settings, "title": "News"}, calls, call("create", b'"wrong"'))


def _twilio(sent: Sent) -> web.Response:
    assert (sent.method, sent.path) == ("POST", "/2010-04-01/Accounts/AC1/Messages.json")
    if b"nobody" in sent.body:
        return web.json_response({"code": 21211, "message": "Invalid 'To' Phone Number"}, status=400)
    return web.json_response({"sid": "SM1", "status": "queued"}, status=201)


@asynccontextmanager
async def _by_twilio(directory: Path) -> AsyncIterator[ServedOutput]:
    async with serves(_twilio) as service:
        calls = ((call("create", b'"hi"', toNumber="+49"), _got(service, b"To=%2B49&From=%2B100&Body=hi")),)
        settings = {"accountSid": "AC1", "authToken": TOKEN, "fromNumber": "+100", "endpoint": service.url}
        yield ServedOutput(settings, calls, call("create", b'"hi"', toNumber="nobody"))


OUTPUTS: Mapping[str, OutputKind] = {
    "apprise": OutputKind("bindings.apprise", _by_apprise),
    "dingtalk": OutputKind("bindings.dingtalk.webhook", _by_dingtalk),
    "graphql": OutputKind("bindings.graphql", _queries),
    "influx": OutputKind("bindings.influx", _points),
    "postmark": OutputKind("bindings.postmark", _by_postmark),
    "sendgrid": OutputKind("bindings.twilio.sendgrid", _by_sendgrid),
    "twilio.sms": OutputKind("bindings.twilio.sms", _by_twilio),
    "smtp": OutputKind("bindings.smtp", _smtp),
    "smtp, STARTTLS": OutputKind("bindings.smtp", _starttls),
}

INPUTS: Mapping[str, InputKind] = {}
