"""A gateway that is told how to log in, as people tell it: by its environment, and by a component's file."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import yaml

from brokers.nats._config import CREDENTIALS
from tests.support.certificates import Authority
from tests.support.eventually import eventually
from tests.support.mesh import AppProcess, GatewayProcess
from tests.support.nats import NatsServer, find_nats_server
from tests.support.nats_keys import Operator
from tests.support.processes import free_port
from tests.support.redis_server import DURABLE, RedisServer, find_redis_server
from tests.support.security import missing

PASSWORD = "p@ss:w/rd?#"
NAMES = ("pubsub", "messagebus")


def _component(name: str, kind: str, **settings: str) -> str:
    metadata = [{"name": name, "value": value} for name, value in settings.items()]
    spec = {"type": kind, "version": "v1", "metadata": metadata}
    return yaml.safe_dump(
        {"apiVersion": "dapr.io/v1alpha1", "kind": "Component", "metadata": {"name": name}, "spec": spec}
    )


async def test_calls_and_events_over_brokers_that_ask_for_everything(tmp_path: Path, mesh_home: Path) -> None:
    """NATS with TLS and an operator's credentials as backbone, Redis with mutual TLS and a password as component."""
    if find_nats_server() is None or find_redis_server() is None:
        missing("nats-server or redis-server is not installed")
    authority = Authority(tmp_path / "authority")
    own, user = authority.issue("server"), authority.issue("user")
    operator = Operator()
    jwt, seed = operator.user()
    (tmp_path / "user.creds").write_text(CREDENTIALS.format(jwt=jwt, seed=seed))
    tls = f'\ntls {{ cert_file: "{own.certificate}", key_file: "{own.key}" }}'
    tls_port = free_port()
    files = ("--tls-cert-file", own.certificate, "--tls-key-file", own.key, "--tls-ca-cert-file", authority.path)
    options = (*DURABLE, "--requirepass", PASSWORD, "--tls-port", str(tls_port), *map(str, files))
    resources = tmp_path / "resources"
    resources.mkdir()
    (resources / "pubsub.yaml").write_text(_component("pubsub", "pubsub.mesh"))
    (resources / "messagebus.yaml").write_text(
        _component(
            "messagebus",
            "pubsub.redis",
            redisHost=f"localhost:{tls_port}",
            redisPassword=PASSWORD,
            enableTLS="true",
            caCert=authority.text,
            clientCert=user.certificate.read_text(),
            clientKey=user.key.read_text(),
        )
    )
    subscriptions = [{"pubsubname": name, "topic": "orders", "route": f"/events/{name}"} for name in NAMES]
    async with (
        NatsServer(tmp_path / "nats", config=operator.config + tls) as nats,
        RedisServer(tmp_path / "redis", options),
        AppProcess(mesh_home, subscriptions=subscriptions) as app,
    ):
        url = f"tls://localhost:{nats.port}?creds={tmp_path / 'user.creds'}&cacertfile={authority.path}"
        told = {"backbone": url, "arguments": ["--resources-path", str(resources)]}
        async with (
            GatewayProcess("shop", mesh_home, app=app, **told) as shop,  # type: ignore[arg-type]
            GatewayProcess("caller", mesh_home, **told) as caller,  # type: ignore[arg-type]
            aiohttp.ClientSession() as session,
        ):
            for name in NAMES:
                async with session.post(f"{caller.api}/publish/{name}/orders", json={"id": name}) as response:
                    assert response.status == 204, await response.text()
            called = {"data": {"id": "c"}}
            async with session.post(f"{caller.api}/invoke/shop/method/events/called", json=called) as response:
                assert response.status == 200, await response.text()

            def check() -> None:
                assert {name: app.recorded(name) for name in (*NAMES, "called")} == {
                    "pubsub": ["pubsub"],
                    "messagebus": ["messagebus"],
                    "called": ["c"],
                }

            await eventually(check, 40.0)
    for gateway in (shop, caller):
        log = gateway.log.read_text()
        assert f"tls://localhost:{nats.port}" in log
        assert not [secret for secret in (PASSWORD, seed, jwt, "PRIVATE KEY") if secret in log]
