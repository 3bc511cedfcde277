"""``mesh check --security``: what is open, and that nothing else is told to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from tests.http.harness import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _here(open_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(open_path)
    for name in (
        "MESH_BACKBONE",
        "DAPR_API_TOKEN",
        "MESH_TRUST_MODE",
        "MESH_TRUST_DIR",
        "MESH_TRUST_CERT",
        "MESH_TRUST_SEAL",
    ):
        monkeypatch.delenv(name, raising=False)


def found(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[tuple[str, str]], list[dict[str, Any]]]:
    code = main(["check", "--security", "-o", "json", *words])
    told = json.loads(capsys.readouterr().out)
    assert told["problems"] == []
    return code, [(each["severity"], each["code"]) for each in told["open"]], told["open"]


def component(kind: str, *settings: dict[str, object], scopes: tuple[str, ...] = ("a",), **plain: object) -> str:
    metadata = [*settings, *({"name": name, "value": value} for name, value in plain.items())]
    spec = {"type": kind, "version": "v1", "metadata": metadata}
    return with_store(yaml("Component", "c", spec, scopes=scopes))


def with_store(document: str) -> str:
    return document.replace('"metadata":{"name":', '"auth":{"secretStore":"vault"},"metadata":{"name":', 1)


def referred(name: str) -> dict[str, object]:
    return {"name": name, "secretKeyRef": {"name": "n", "key": "k"}}


PAIR = referred("clientCert"), referred("clientKey")
REMOTE = "redis.example.com:6379"
PLAIN, SECRET, INURL = ("medium", "plain-connection"), ("high", "plain-secret"), ("high", "password-in-url")
UNSCOPED, UNVERIFIED = ("low", "no-scopes"), ("high", "no-verification")
ONLY_LOCAL = component("state.redis", redisType="cluster", redisHost="localhost:6379,127.0.0.1:6380,[::1]:1")
COMPONENTS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "nothing to hide": (component("state.mesh", scopes=()), []),
    "this machine": (ONLY_LOCAL, []),
    "plain text": (component("state.redis", redisHost=REMOTE), [PLAIN]),
    "one of several": (component("state.redis", redisType="cluster", redisHost=f"localhost:1,{REMOTE}"), [PLAIN]),
    "TLS": (component("state.redis", redisHost=REMOTE, enableTLS=True), []),
    "plain password": (component("state.redis", redisHost="localhost:6379", redisPassword="s"), [SECRET]),
    "empty password": (component("state.redis", redisHost="localhost:6379", redisPassword=""), []),
    "password of a type that is not known": (component("state.nobody", masterPassword="s"), [SECRET]),
    "referred to": (component("state.redis", referred("redisPassword"), redisHost="localhost:6379"), []),
    "of a variable": (component("state.redis", {"name": "redisPassword", "envRef": "X"}, redisHost="localhost:1"), []),
    "for everybody": (
        component("state.redis", referred("redisPassword"), scopes=(), redisHost="localhost:6379"),
        [UNSCOPED],
    ),
    "plain for everybody": (
        component("state.redis", scopes=(), redisHost="localhost:6379", redisPassword="s"),
        [SECRET, UNSCOPED],
    ),
    "login in a URL": (component("pubsub.rabbitmq", connectionString="amqp://u:p@localhost:5672"), [INURL]),
    "login in a plain URL": (component("pubsub.rabbitmq", connectionString="amqp://u:p@q:5672"), [INURL, PLAIN]),
    "user in a URL": (component("pubsub.rabbitmq", connectionString="amqps://u@q:5671"), []),
    "pairs": (component("state.postgresql", connectionString="host=db user=u password=p"), [INURL]),
    "pairs without": (component("state.postgresql", connectionString="host=db user=u sslmode=require"), []),
    "pairs in plain text": (component("state.postgresql", connectionString="host=db sslmode=disable"), [PLAIN]),
    "pairs on this machine": (component("state.postgresql", connectionString="host=localhost sslmode=disable"), []),
    "kafka": (component("pubsub.kafka", brokers="k1:9092,k2:9092", authType="none"), [PLAIN]),
    "kafka with a CA": (component("pubsub.kafka", referred("caCert"), brokers="k1:9092", authType="none"), []),
    "kafka with mtls": (component("pubsub.kafka", *PAIR, brokers="k1:9092", authType="mtls"), []),
    "a URL in plain text": (
        component("state.postgresql", connectionString="postgres://u@db/x?sslmode=disable"),
        [PLAIN],
    ),
    "a URL on this machine": (
        component("state.postgresql", connectionString="postgres://u@[::1]/x?sslmode=disable"),
        [],
    ),
    "mysql": (component("state.mysql", connectionString="u:p@tcp(db:3306)/?x=y"), [INURL, PLAIN]),
    "mysql over TLS": (component("state.mysql", connectionString="u@tcp(db:3306)/?tls=true"), []),
    "mysql in capitals": (component("bindings.mysql", url="u@tcp(db:3306)/?TLS=Skip-Verify"), []),
    "mysql without TLS": (component("state.mysql", connectionString="u:s@tcp(db.example)/?tls=False"), [INURL, PLAIN]),
    "mysql with TLS said to be 0": (component("state.mysql", connectionString="u@tcp6([2001:db8::1])/?tls=0"), [PLAIN]),
    "mysql with TLS said to be f": (component("state.mysql", connectionString="u@(db:3306)/d?a=b&tls=F"), [PLAIN]),
    "mysql with TLS left empty": (component("state.mysql", connectionString="u@tcp4(db:3306)/d?tls=&a=b"), [PLAIN]),
    "mysql, a slash in it": (
        component("state.mysql", connectionString="u:p/w@tcp(db.example:3306)/?tls=False"),
        [INURL, PLAIN],
    ),
    "mysql, an @ in it": (component("state.mysql", connectionString="u:p@ss@tcp(db:3306)/"), [INURL, PLAIN]),
    "mysql by a socket": (component("state.mysql", connectionString="u:secret@unix(/x.sock)/"), [INURL]),
    "mysql by a socket alone": (component("state.mysql", connectionString="u@unix(/x.sock)/d"), []),
    "mysql at its default place": (component("state.mysql", connectionString="u:p@/d?tls=true"), [INURL]),
    "mysql without a login": (component("state.mysql", connectionString="tcp(localhost)/d?time_zone='a:b@c'"), []),
    "mysql with slashes in an option": (component("state.mysql", connectionString="u@tcp(db)/d?loc=a/b"), [PLAIN]),
    "mysql here": (component("state.mysql", connectionString="u@tcp(localhost:3306)/"), []),
    "rabbitmq by its host": (component("pubsub.rabbitmq", hostname="q", username="u"), [PLAIN]),
    "rabbitmq over TLS": (component("pubsub.rabbitmq", hostname="q", protocol="amqps"), []),
    "etcd": (component("state.etcd", endpoints="e:2379"), [PLAIN]),
    "etcd over TLS": (component("state.etcd", endpoints="e:2379", tlsEnable="true"), []),
    "cassandra": (component("state.cassandra", hosts="c1,c2"), [PLAIN]),
    "cassandra over TLS": (component("state.cassandra", hosts="c1", enableHostVerification="true"), []),
    "memcached": (component("state.memcached", hosts="m:11211"), [PLAIN]),
    "memcached here": (component("state.memcached", hosts="localhost:11211"), []),
    "unverified": (
        component("pubsub.kafka", *PAIR, brokers="k1:9092", authType="mtls", skipVerify="true"),
        [UNVERIFIED],
    ),
    "verified": (component("pubsub.kafka", *PAIR, brokers="k1:9092", authType="mtls", skipVerify="false"), []),
    "HTTP": (component("bindings.http", url="http://orders.example.com/x"), [PLAIN]),
    "HTTPS": (component("bindings.http", url="https://orders.example.com/x"), []),
}


@pytest.mark.parametrize(("text", "expected"), COMPONENTS.values(), ids=COMPONENTS)
def test_components(capsys: pytest.CaptureFixture[str], text: str, expected: list[tuple[str, str]]) -> None:
    Path("a.yaml").write_text(text)
    code, openings, told = found(capsys, "a.yaml")
    assert sorted(openings) == sorted(expected)
    assert code == int(any(severity != "low" for severity, _ in expected))
    assert all(each["problem"]["file"] == "a.yaml" and each["problem"]["line"] and each["next"] for each in told)


def test_the_environment_of_a_template(capsys: pytest.CaptureFixture[str]) -> None:
    common = "common: {env: {DAPR_API_TOKEN: t0, COLOUR: red}}"
    Path("dapr.yaml").write_text(
        f"version: 1\n{common}\napps: [{{appID: a, appDirPath: ., env: {{DB_PASSWORD: p0}}}}]\n"
    )
    _, openings, told = found(capsys, "dapr.yaml")
    assert openings == [("high", "plain-secret")] * 2
    assert sorted(each["problem"]["message"] for each in told) == [
        "application a: DAPR_API_TOKEN is in the file",
        "application a: DB_PASSWORD is in the file",
    ]


POLICY = {"appId": "a", "namespace": "n", "trustDomain": "public"}
CONFIGURATIONS: dict[str, tuple[dict[str, object], list[tuple[str, str]]]] = {
    "nothing": ({"tracing": {"samplingRate": "1"}}, []),
    "nobody named": ({"accessControl": {"defaultAction": "deny"}}, []),
    "a tap of claimed names": ({"accessControl": {"tap": {"values": ["w"]}}}, [("high", "claimed-callers")]),
    "a tap without names": ({"accessControl": {"tap": {"action": "allow"}}}, []),
    "claimed and denied": ({"accessControl": {"policies": [POLICY]}}, [("low", "claimed-callers")]),
    "claimed and allowed": (
        {"accessControl": {"defaultAction": "allow", "policies": [POLICY]}},
        [("high", "claimed-callers")],
    ),
    "all secrets": ({"secrets": {"scopes": [{"storeName": "s"}]}}, [("low", "secrets-allowed")]),
    "all but one": (
        {"secrets": {"scopes": [{"storeName": "s", "defaultAccess": "allow", "deniedSecrets": ["x"]}]}},
        [("low", "secrets-allowed")],
    ),
    "some secrets": ({"secrets": {"scopes": [{"storeName": "s", "allowedSecrets": ["x"]}]}}, []),
    "no secret": ({"secrets": {"scopes": [{"storeName": "s", "defaultAccess": "deny"}]}}, []),
}


@pytest.mark.parametrize(("spec", "expected"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_configurations(capsys: pytest.CaptureFixture[str], spec: object, expected: list[tuple[str, str]]) -> None:
    Path("c.yaml").write_text(yaml("Configuration", "c", spec))
    assert found(capsys, "c.yaml")[1] == expected


def test_workflows_that_others_may_use(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a Configuration is about workflows, no policy is told of; else policies whose callers prove nothing."""
    Path("c.yaml").write_text(yaml("Configuration", "c", {"workflow": {"maxConcurrentActivityInvocations": 5}}))
    _, openings, told = found(capsys, "c.yaml")
    assert openings == [("low", "workflows-open")]
    assert "any application of the namespace" in told[0]["problem"]["message"]
    rules = [{"callers": [{"appID": "till"}], "workflows": [{"name": "*", "operations": ["schedule"]}]}]
    Path("p.yaml").write_text(yaml("WorkflowAccessPolicy", "p", {"rules": rules}))
    _, openings, told = found(capsys, "c.yaml", "p.yaml")
    assert openings == [("high", "claimed-callers")]
    assert told[0]["problem"]["file"] == "p.yaml"
    monkeypatch.setenv("MESH_TRUST_MODE", "strict")
    assert found(capsys, "c.yaml", "p.yaml")[1] == []
    Path("p.yaml").write_text(yaml("WorkflowAccessPolicy", "p", {"rules": []}))
    monkeypatch.delenv("MESH_TRUST_MODE")
    assert found(capsys, "c.yaml", "p.yaml")[1] == []


def test_callers_that_are_asked_to_prove_who_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ``strict`` alone: a mode that takes others at their word is told of, and one that is off is none."""
    Path("c.yaml").write_text(yaml("Configuration", "c", CONFIGURATIONS["claimed and allowed"][0]))
    Path("d.yaml").write_text(yaml("Configuration", "d", CONFIGURATIONS["claimed and denied"][0]))
    for mode, allowed, denied in (
        ("strict", [], []),
        ("permissive", [("high", "claimed-callers"), PERMISSIVE], [PERMISSIVE]),
        ("off", [("high", "claimed-callers")], [("low", "claimed-callers")]),
        ("", [("high", "claimed-callers")], [("low", "claimed-callers")]),
        ("strikt", [("high", "claimed-callers")], [("low", "claimed-callers")]),
    ):
        monkeypatch.setenv("MESH_TRUST_MODE", mode)
        assert [found(capsys, name)[1] for name in ("c.yaml", "d.yaml")] == [allowed, denied], mode


PERMISSIVE = ("medium", "permissive-trust")


def test_what_is_stored_is_not_sealed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where calls are: an operator who has asked for that is told what it does not cover."""
    Path("c.yaml").write_text(yaml("Component", "orders", {"type": "pubsub.mesh", "version": "v1", "metadata": []}))
    monkeypatch.setenv("MESH_TRUST_MODE", "strict")
    assert found(capsys, "c.yaml")[1] == []
    monkeypatch.setenv("MESH_TRUST_SEAL", "true")
    code, openings, told = found(capsys, "c.yaml")
    assert (code, openings) == (1, [("medium", "any-host"), ("low", "stored-open")])
    monkeypatch.setenv("MESH_TRUST_HOSTS", "stores")
    code, openings, told = found(capsys, "c.yaml")
    assert (code, openings) == (0, [("low", "stored-open")])
    assert "events of orders, durable calls and their outcomes" in told[0]["problem"]["message"]
    monkeypatch.setenv("MESH_TRUST_MODE", "permissive")
    assert "sent calls in the open" in found(capsys, "c.yaml")[2][0]["problem"]["message"]


@pytest.mark.parametrize("by", ["variables", "template"])
def test_keys_of_identities_that_others_can_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    Path("c.yaml").write_text(yaml("Configuration", "c", {}))
    Path("dapr.yaml").write_text(TEMPLATE % "")
    word = "c.yaml" if by == "variables" else "dapr.yaml"
    folder = Path("trust")
    folder.mkdir()
    for name in ("root.key", "roots.pem", "shop.key", "shop.pem"):
        (folder / name).write_text("x")
        (folder / name).chmod(0o644)
    for variables, key in (
        ({"DIR": "trust"}, "root.key"),
        ({"CERT": "trust/shop.pem", "KEY": "trust/shop.key", "ROOTS": "trust/roots.pem"}, "shop.key"),
    ):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(f"MESH_TRUST_{name}", value)
            for mode, openings in ((0o640, True), (0o604, True), (0o600, False)):
                (folder / key).chmod(mode)
                found_now = {each["problem"]["message"].split(" ")[9] for each in found(capsys, word)[2]}
                assert found_now == ({f"{(folder / key).absolute()}:"} if openings else set())


@pytest.mark.parametrize(
    ("url", "is_open"),
    [
        ("nats://broker:4222", True),
        ("nats://localhost:4222,broker:4222", False),
        ("nats://u:p@10.0.0.1", True),
        ("tls://broker:4222", False),
        ("nats://127.0.0.9:4222", False),
        ("redis://[::1]:6379", False),
        ("redis://[2001:db8::1]:6379", True),
        ("kafkas://broker", False),
        ("memory:", False),
    ],
)
def test_backbone(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    is_open: bool,
) -> None:
    """Of whoever asks; a password in it is not shown."""
    Path("c.yaml").write_text(yaml("Configuration", "c", {}))
    monkeypatch.setenv("MESH_BACKBONE", url)
    _, openings, told = found(capsys, "c.yaml")
    assert openings == ([("high", "plain-broker")] if is_open else [])
    assert "u:p" not in json.dumps(told)


TEMPLATE = "version: 1\napps:\n- {appID: shop, appDirPath: ., command: [sh]%s}\n"


@pytest.mark.parametrize(
    ("more", "token", "expected"),
    [
        ("", "", []),
        (", apiListenAddresses: '0.0.0.0'", "", [("high", "open-listener")]),
        (", apiListenAddresses: '0.0.0.0'", "secret", []),
        (", apiListenAddresses: '127.0.0.1,::1'", "", []),
    ],
)
def test_gateways_of_templates(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: str,
    token: str,
    expected: list[tuple[str, str]],
) -> None:
    Path("dapr.yaml").write_text(TEMPLATE % more)
    if token:
        monkeypatch.setenv("DAPR_API_TOKEN", token)
    _, openings, told = found(capsys, "dapr.yaml")
    assert openings == expected
    assert all(each["problem"]["file"] == "dapr.yaml" for each in told)


def test_files_that_others_can_read(capsys: pytest.CaptureFixture[str]) -> None:
    """Files of secrets, and keys in a folder; the next step mends it."""
    secrets, keys = Path("s.json"), Path("keys")
    secrets.write_text("{}")
    keys.mkdir()
    (keys / "k.pem").write_text("x")
    for path in (secrets, keys / "k.pem"):
        path.chmod(0o644)
    Path("a.yaml").write_text(component("secretstores.local.file", secretsFile="s.json"))
    Path("b.yaml").write_text(component("crypto.dapr.localstorage", path="keys").replace('"c"', '"d"'))
    code, openings, told = found(capsys, "a.yaml", "b.yaml")
    assert (code, openings) == (1, [("medium", "readable-file")] * 2)
    for each in told:
        Path(each["next"].removeprefix("chmod 600 ")).chmod(0o600)
    assert found(capsys, "a.yaml", "b.yaml")[:2] == (0, [])
    secrets.chmod(0o644)
    assert found(capsys, "a.yaml")[0] == 1
    secrets.parent.absolute().chmod(0o700)
    assert found(capsys, "a.yaml")[:2] == (0, [])


def test_headers_of_endpoints(capsys: pytest.CaptureFixture[str]) -> None:
    headers = [{"name": "Authorization", "value": "Bearer x"}, {"name": "X-Kind", "value": "y"}, referred("X-API-Key")]
    spec = {"baseUrl": "http://partner.example.com", "headers": headers}
    Path("e.yaml").write_text(with_store(yaml("HTTPEndpoint", "e", spec)))
    assert found(capsys, "e.yaml")[1] == [SECRET, PLAIN]


@pytest.mark.parametrize(
    ("tracing", "openings"),
    [
        ({"otel": {"endpointAddress": "http://c.example.com", "headers": [{"name": "api-key", "value": "a"}]}}, 2),
        ({"otel": {"endpointAddress": "c.example.com:4317", "isSecure": False}}, 1),
        ({"zipkin": {"endpointAddress": "http://z.example.com:9411/api/v2/spans"}}, 1),
        ({"zipkin": {"endpointAddress": "http://localhost:9411"}, "otel": {"endpointAddress": "https://c.example"}}, 0),
        ({"otel": {"headers": [{"name": "api-key", "value": "$OTEL_KEY"}, {"name": "x-team", "value": "b"}]}}, 0),
        ({"otel": {"endpointAddress": "c.example.com:4317", "protocol": "grpc"}}, 0),
    ],
)
def test_where_spans_go(
    tracing: dict[str, object], openings: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_KEY", "s3cr3t")
    Path("c.yaml").write_text(yaml("Configuration", "c", {"tracing": tracing}))
    assert found(capsys, "c.yaml")[1] == [SECRET, PLAIN][2 - openings :]


def test_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """The worst first; what is low fails with `--strict` alone."""
    Path("a.yaml").write_text(component("state.redis", scopes=(), redisHost=REMOTE, redisPassword="s"))
    assert main(["check", "--security", "a.yaml"]) == 1
    out = capsys.readouterr().out
    assert [line.partition(":")[0] for line in out.splitlines() if line.endswith("]")] == ["high", "medium", "low"]
    assert out.startswith("1 resource is fine\nhigh: a.yaml:2:")
    assert out.endswith("\n3 open\n")
    Path("a.yaml").write_text(component("state.redis", referred("redisPassword"), scopes=(), redisHost="localhost:1"))
    assert main(["check", "--security", "a.yaml"]) == 0
    assert main(["check", "--security", "--strict", "a.yaml"]) == 1
    capsys.readouterr()
    Path("a.yaml").write_text(ONLY_LOCAL)
    assert main(["check", "--security", "--strict", "a.yaml"]) == 0
    assert capsys.readouterr().out == "1 resource is fine\nnothing open\n"
    Path("a.yaml").write_text("kind: Component\n")
    assert main(["check", "--security", "a.yaml"]) == 1


@pytest.mark.parametrize(
    ("files", "unseen"),
    [
        ({"a.yaml": "kind: Component\n"}, ["a.yaml"]),
        ({"c.yaml": yaml("Configuration", "c", {"tracing": {"samplingRate": "x"}})}, ["c.yaml"]),
        ({"m.yaml": "apps:\n- appId: 5\n"}, ["m.yaml"]),
        ({}, ["."]),
        (None, ["away"]),
    ],
)
def test_what_was_not_looked_at(
    files: dict[str, str] | None, unseen: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is open only where somebody looked; what can be read is looked at although something else cannot."""
    for name, text in (files or {}).items():
        Path(name).write_text(text)
    where = "." if files is not None else "away"
    main(["check", "--security", where])
    out = capsys.readouterr().out
    assert out.endswith(f"so far nothing open\nwhat is open was not looked for everywhere in {unseen[0]}\n")
    if files:
        Path("z.yaml").write_text(component("state.redis", redisHost=REMOTE))
        assert main(["check", "--security", "-o", "json", where]) == 1
        told = json.loads(capsys.readouterr().out)
        assert ([each["code"] for each in told["open"]], told["unseen"]) == ([PLAIN[1]], unseen)


def test_examples_are_told_nothing_that_is_not_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of this repository: what a compose network carries in plain text is all."""
    monkeypatch.chdir(ROOT)
    manifests = Path("examples/kubernetes")  # Of clusters: each file is one of its own.
    folders = [str(each) for each in sorted(Path("examples").iterdir()) if each.is_dir() and each != manifests]
    for each in sorted(manifests.glob("*.yaml")):
        assert found(capsys, str(each))[1:] == ([], [])
    _, openings, told = found(capsys, *folders)
    assert openings == [PLAIN] * 3
    assert all(each["problem"]["file"].startswith("examples/hosted/") for each in told)
