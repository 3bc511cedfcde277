"""Tokens for Amazon MSK: what they say, and that their signature is right as AWS describes it.

None of this ran against MSK: that has no stand-in.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiokafka.errors import KafkaConnectionError, SaslAuthenticationFailed

from bindings.queues.kafka import KafkaBinding
from brokers.kafka import KafkaBroker
from brokers.native.kafka import KafkaTopics
from mesh.errors import ConfigError
from tests.support.security import component

KEY = {"accessKey": "AKIDEXAMPLE", "secretKey": "wJalrXUtnFEMI/K7MDENG"}
OLDER = {
    "awsRegion": "eu-central-1",
    "awsAccessKey": "AKIDEXAMPLE",
    "awsSecretKey": "wJalrXUtnFEMI/K7MDENG",
    "awsSessionToken": "to+ken/=",
}
ROLE_KEY = {"AccessKeyId": "ASIAROLE", "SecretAccessKey": "r0le/secret", "SessionToken": "role+token"}


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have no credentials but those of the settings."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


def topics(**settings: str) -> KafkaTopics:
    given = {"brokers": "broker:9098", "authType": "awsiam", **settings}
    return KafkaTopics.from_component(component("pubsub.kafka", **given))


async def token_of(**settings: str) -> str:
    tokens = topics(**settings)._config.tokens
    assert tokens is not None
    return str(await tokens.token())


def read(token: str) -> tuple[str, dict[str, str]]:
    """Give the host and the fields of a token's URL."""
    assert "=" not in token
    url = urlsplit(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode())
    assert (url.scheme, url.path) == ("https", "/")
    return url.netloc, dict(parse_qsl(url.query, strict_parsing=True))


def signature(host: str, fields: Mapping[str, str], secret: str) -> str:
    """Sign as *AWS Signature Version 4* says it of a GET without a body, signed by its query."""
    signed = {name: value for name, value in fields.items() if name not in ("X-Amz-Signature", "User-Agent")}
    query = "&".join(f"{quote(name, safe='')}={quote(signed[name], safe='')}" for name in sorted(signed))
    request = f"GET\n/\n{query}\nhost:{host}\n\nhost\n{hashlib.sha256(b'').hexdigest()}"
    scope = fields["X-Amz-Credential"].partition("/")[2]
    text = f"AWS4-HMAC-SHA256\n{fields['X-Amz-Date']}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{secret}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key.hex()


@pytest.mark.parametrize("settings", [{"region": "eu-central-1", **KEY, "sessionToken": "to+ken/="}, OLDER])
async def test_a_token_is_a_signed_request_to_connect(settings: dict[str, str]) -> None:
    began = datetime.now(UTC).replace(microsecond=0)
    host, fields = read(await token_of(**settings))
    assert host == "kafka.eu-central-1.amazonaws.com"
    made = datetime.strptime(fields["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    assert began <= made <= began + timedelta(minutes=1)
    assert fields == {
        "Action": "kafka-cluster:Connect",
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"AKIDEXAMPLE/{made:%Y%m%d}/eu-central-1/kafka-cluster/aws4_request",
        "X-Amz-Date": fields["X-Amz-Date"],
        "X-Amz-Expires": "900",
        "X-Amz-SignedHeaders": "host",
        "X-Amz-Security-Token": "to+ken/=",
        "X-Amz-Signature": signature(host, fields, "wJalrXUtnFEMI/K7MDENG"),
        "User-Agent": "brokermesh",
    }


async def test_the_region_and_the_key_may_be_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDMACHINE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "machine")
    host, fields = read(await token_of())
    assert host == "kafka.us-east-1.amazonaws.com"
    assert fields["X-Amz-Credential"].startswith("AKIDMACHINE/")
    assert fields["X-Amz-Signature"] == signature(host, fields, "machine")


async def test_a_role_is_taken_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its credentials are asked for once, as whom the settings say; while AWS is away, the client tries again."""
    asked: list[dict[str, str]] = []

    async def assume(request: web.Request) -> web.Response:
        asked.append({name: str(value) for name, value in (await request.post()).items()})
        ends = datetime.now(UTC) + timedelta(hours=1)
        given = "".join(f"<{name}>{value}</{name}>" for name, value in ROLE_KEY.items())
        text = f"<Credentials>{given}<Expiration>{ends:%Y-%m-%dT%H:%M:%SZ}</Expiration></Credentials>"
        inner = f"<AssumeRoleResult>{text}</AssumeRoleResult>"
        space = "https://sts.amazonaws.com/doc/2011-06-15/"
        return web.Response(
            text=f'<AssumeRoleResponse xmlns="{space}">{inner}</AssumeRoleResponse>', content_type="text/xml"
        )

    app = web.Application()
    app.router.add_post("/", assume)
    role = {"awsIamRoleArn": "arn:aws:iam::123456789012:role/shop", "awsStsSessionName": "orders"}
    tokens = topics(region="eu-central-1", **KEY, **role)._config.tokens
    assert tokens is not None
    async with TestServer(app) as sts:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", str(sts.make_url("/")))
        for _ in range(2):
            host, fields = read(await tokens.token())
            assert fields["X-Amz-Credential"].startswith("ASIAROLE/")
            assert fields["X-Amz-Security-Token"] == "role+token"
            assert fields["X-Amz-Signature"] == signature(host, fields, "r0le/secret")
    (call,) = asked
    assert (call["RoleArn"], call["RoleSessionName"]) == (role["awsIamRoleArn"], "orders")
    with pytest.raises(KafkaConnectionError, match="cannot be asked for credentials"):
        await token_of(region="eu-central-1", **KEY, **role)


async def test_without_credentials_or_region() -> None:
    with pytest.raises(SaslAuthenticationFailed, match="no region is known"):
        await token_of(**KEY)
    with pytest.raises(SaslAuthenticationFailed, match="gives no credentials"):
        await token_of(region="eu-central-1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accessKey": "a"}, "needs secretKey as well"),
        ({"awsSecretKey": "s3cret"}, "needs accessKey as well"),
        ({"sessionToken": "t"}, "needs accessKey and secretKey as well"),
        ({"trustAnchorArn": "arn"}, "IAM Roles Anywhere"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        topics(**settings)
    assert "s3cret" not in str(raised.value)


async def test_other_components_of_kafka_log_in_alike() -> None:
    """Over TLS, unless that is told otherwise."""
    own = {"brokers": "broker:9098", "authType": "awsiam", "region": "eu-central-1", **KEY}
    mesh = KafkaBroker.from_component(component("pubsub.kafka", layout="mesh", **own))
    made = [mesh._config.connection_options()]
    async with KafkaBinding.from_component(component("bindings.kafka", **own)) as binding:
        made.append(binding._options)
    for options in made:
        assert (options["security_protocol"], options["sasl_mechanism"]) == ("SASL_SSL", "OAUTHBEARER")
        assert read(await options["sasl_oauth_token_provider"].token())[0] == "kafka.eu-central-1.amazonaws.com"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="needs secretKey"):
        async with KafkaBinding.from_component(component("bindings.kafka", **{**own, "secretKey": ""})):
            pass
