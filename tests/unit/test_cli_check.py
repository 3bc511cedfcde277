"""``mesh check``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.cli.check import check_start
from gateway.config import GatewayConfig
from mesh.resources.loader import load_resources

ROOT = Path(__file__).parents[2]

_COMPONENT = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: {name}}}
spec: {{type: {type}, version: v1}}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _write(path: str, text: str) -> None:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _checked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["check", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_good_files_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    _write("r/a.yaml", _COMPONENT.format(name="a", type="pubsub.mesh"))
    assert _checked(capsys, "r") == (0, "1 resource is fine\n", "")
    _write(
        "r/b.yml",
        _COMPONENT.format(name="b", type="state.mesh") + "---\n" + _COMPONENT.format(name="c", type="state.mesh"),
    )
    _write("r/deeper/bad.yaml", "x: [")
    _write("r/readme.txt", "x: [")
    assert _checked(capsys, "r", "r/a.yaml") == (0, "3 resources are fine\n", "")


def test_a_file_of_a_bridge_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    _write("b.yaml", "from: {cluster: east, backbone: 'nats://a'}\nto: {cluster: west}\n")
    assert _checked(capsys, "b.yaml") == (0, "1 bridge is fine\n", "")


def test_type_that_is_not_installed_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    _write("r/a.yaml", _COMPONENT.format(name="messagebus", type="pubsub.nobody"))
    code, out, err = _checked(capsys, "r")
    assert (code, out) == (0, "1 resource is fine\n")
    assert err.startswith("warning: r/a.yaml:")
    assert err.startswith("warning: r/a.yaml:4:14: spec.type: there is no component type 'pubsub.nobody' here")
    assert err.endswith("; with spec.ignoreErrors: true the component is left out\n")
    code, out, err = _checked(capsys, "--strict", "r")
    assert (code, out.startswith("r/a.yaml:4:14: spec.type: "), err) == (1, True, "1 problem\n")


@pytest.mark.parametrize("name", ["pubsub.reddis", "state.in-memry", "secretstores.local.fiel"])
def test_misspelt_type_is_a_problem(capsys: pytest.CaptureFixture[str], name: str) -> None:
    _write("r/a.yaml", _COMPONENT.format(name="messagebus", type=name))
    code, out, _ = _checked(capsys, "r")
    assert (code, out.startswith(f"r/a.yaml:4:14: spec.type: there is no component type '{name}'; did you mean")) == (
        1,
        True,
    )


@pytest.mark.parametrize("apps", ["apps: [{appDirPath: orders}]", "apps:", "Apps: []"])
def test_run_file_among_its_resources_is_left_alone(capsys: pytest.CaptureFixture[str], apps: str) -> None:
    Path("orders").mkdir()
    _write("dapr.yaml", f"version: 1\ncommon: {{resourcesPath: .}}\n{apps}\n")
    _write("pubsub.yaml", _COMPONENT.format(name="pubsub", type="pubsub.mesh"))
    assert load_resources([Path()]).warnings == ()
    if "orders" in apps:
        assert _checked(capsys, "--strict", "dapr.yaml") == (0, "1 resource and 1 template are fine\n", "")
        assert _checked(capsys, "--strict", ".") == (0, "1 resource and 1 template are fine\n", "")


def test_strict_takes_warnings_for_problems(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of a template and of a Configuration as well."""
    Path("orders").mkdir()
    _write("dapr.yaml", "version: 1\napps: [{appDirPath: orders, profilePort: 9090, configFilePath: ../c.yaml}]\n")
    _write(
        "c.yaml",
        "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\nspec: {wasm: {strictSandbox: true}}\n",
    )
    code, out, err = _checked(capsys, "dapr.yaml")
    assert (code, out) == (0, "1 resource and 1 template are fine\n")
    assert [line.partition(": it has")[0] for line in err.splitlines()] == [
        "warning: dapr.yaml:2:29: apps[0].profilePort",
        "warning: c.yaml:4:8: spec.wasm",
    ]
    code, out, err = _checked(capsys, "dapr.yaml", "--strict")
    assert (code, len(out.splitlines()), err) == (1, 2, "2 problems\n")


@pytest.mark.parametrize(
    ("marks", "scopes", "fine"),
    [
        (("true", "true"), ("", ""), False),
        (("true", "TRUE"), ("a, b", "b"), False),
        (("true", "true"), ("a", ""), False),
        (("true", "true"), ("a", "b"), True),
        (("true", "false"), ("", ""), True),
    ],
)
def test_two_stores_of_records(
    marks: tuple[str, str], scopes: tuple[str, str], fine: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, mark, apps in zip("xy", marks, scopes, strict=True):
        given = f"[{{name: actorStateStore, value: '{mark}'}}]"
        head = f"apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: {name}}}\nscopes: [{apps}]\n"
        _write(f"r/{name}.yaml", f"{head}spec: {{type: state.in-memory, version: v1, metadata: {given}}}\n")
    code, out, _ = _checked(capsys, "r")
    assert code == (0 if fine else 1)
    told = "r/y.yaml:5:", "and x (r/x.yaml:1) is marked already: detected duplicate actor state store"
    assert fine or (out.startswith(told[0]) and told[1] in out), out


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("type: state.mesh, metadata: [{name: keyPrefix, value: a||b}]", "(keyPrefix): keyPrefix can't contain '||'"),
        ("type: pubsub.mesh, metadata: [{name: publishingScopes, value: a}]", "(publishingScopes): 'a' must be app="),
        (
            "type: state.mesh, metadata: [{name: x, envRef: DAPR_API_TOKEN}]",
            "belongs to the runtime and cannot be read",
        ),
        (
            "type: state.mesh, metadata: [{name: primaryEncryptionKey, value: k}]",
            "(primaryEncryptionKey): must refer to a secret (secretKeyRef)",
        ),
        (
            "type: state.sqlite, metadata: [{name: clientCert, value: c}]",
            "which nothing reads; ignoring it may be unsafe",
        ),
        (
            "type: state.mesh, metadata: [{name: redisPassword, value: p}]",
            "may be unsafe; state.mesh uses the mesh's own broker: delete this line if it is about another server",
        ),
        ("type: state.mesh, metadata: [{name: ttlInSeconds, value: 1h}]", "(ttlInSeconds): is not a whole number"),
        (
            "type: state.mesh, metadata: [{name: outboxPublishTopic, value: t}]",
            "(outboxPublishTopic): needs outboxPublishPubsub beside it",
        ),
        ("type: state.mesh, initTimeout: 0s", "spec.initTimeout: must be longer than 0"),
        (
            "type: state.mongodb, metadata: [{name: host, value: 'h:1,h:70000'}]",
            "(host): names a port that there cannot be",
        ),
        ("type: nameresolution.mdns", "this version has no components of the kind 'nameresolution'"),
    ],
)
def test_check_says_what_the_start_would_say(spec: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    _write("a.yaml", f"apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: a}}\nspec: {{{spec}}}\n")
    code, out, _ = _checked(capsys, "a.yaml")
    assert (code, out.startswith("a.yaml:4:"), said in out) == (1, True, True), out


def test_strangers_among_the_settings_of_a_broker(capsys: pytest.CaptureFixture[str]) -> None:
    """One warning; what may be what makes the connection safe is refused."""
    head = (
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: a}\nspec:\n  type: pubsub.redis\n  metadata:\n"
    )
    _write("a.yaml", head + "  - {name: redisHost, value: 'localhost:6379'}\n  - {name: colour, value: red}\n")
    code, out, err = _checked(capsys, "a.yaml")
    assert (code, out) == (0, "1 resource is fine\n")
    assert err == "warning: a.yaml:8:5: spec.metadata[1] (colour): unknown setting, which nothing reads\n"
    _write("a.yaml", head + "  - {name: redisHost, value: 'localhost:6379'}\n  - {name: tlsMode, value: strict}\n")
    code, out, _ = _checked(capsys, "a.yaml")
    assert code == 1
    assert out.endswith("(tlsMode): unknown setting, which nothing reads; ignoring it may be unsafe\n")


@pytest.mark.parametrize(
    ("kind", "needed", "setting", "value", "said"),
    [
        ("pubsub.redis", "redisHost: h", "poolSize", "5", "commands go together over one connection"),
        ("pubsub.redis", "redisHost: h", "POOLSIZE", "5", "commands go together over one connection"),
        ("pubsub.redis", "redisHost: h", "maxLenApprox", "9", None),
        ("pubsub.rabbitmq", "host: 'amqp://h'", "publisherConfirm", "'false'", "every publish is confirmed"),
        ("pubsub.rabbitmq", "host: 'amqp://h'", "publisherConfirm", "true", None),
        ("pubsub.rabbitmq", "host: 'amqp://h'", "backOffPolicy", "constant", "the mesh retries alike on every broker"),
        ("pubsub.rabbitmq", "host: 'amqp://h'", "autoAck", "False", None),
        ("pubsub.rabbitmq", "host: 'amqp://h'", "prefetchCount", "5", None),
        ("pubsub.kafka", "brokers: h", "channelBufferSize", "9", "what is fetched is bounded by bytes"),
        ("pubsub.kafka", "brokers: h", "initialOffset", "newest", None),
        ("pubsub.kafka", "brokers: h", "producerRequiredAcks", "1", "a publish waits for all replicas"),
        ("pubsub.kafka", "brokers: h", "consumerGroup", "g", None),
        ("pubsub.jetstream", "natsURL: 'nats://h'", "deliverPolicy", "new", None),
        ("pubsub.jetstream", "natsURL: 'nats://h'", "deliverPolicy", "all", None),
        ("pubsub.jetstream", "natsURL: 'nats://h'", "streamName", "''", None),
        ("pubsub.mqtt3", "url: 'mqtt://h'", "qos", "2", None),
        ("pubsub.mqtt3", "url: 'mqtt://h'", "qos", "1", None),
        ("pubsub.mqtt3", "url: 'mqtt://h'", "backOffMaxRetries", "5", "the mesh retries alike on every broker"),
        ("state.mysql", "connectionString: 'u@/'", "pemContents", "c", "certificates are read from a file: pemPath"),
        ("state.mysql", "connectionString: 'u@/'", "pemPath", "c", None),
        ("state.sqlite", "connectionString: a.db", "disableWAL", "false", None),
    ],
)
def test_settings_that_an_adapter_takes_without_effect(
    kind: str, needed: str, setting: str, value: str, said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """One warning with the reason, unless the value asks for what is so anyway."""
    name, _, given = needed.partition(": ")
    _write(
        "a.yaml",
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: a}\nspec:\n"
        f"  type: {kind}\n  metadata:\n  - {{name: {name}, value: {given}}}\n  - {{name: {setting}, value: {value}}}\n",
    )
    code, out, err = _checked(capsys, "a.yaml")
    assert (code, out) == (0, "1 resource is fine\n")
    told = "" if said is None else f"warning: a.yaml:8:5: spec.metadata[1] ({setting}): it has no effect: {said}"
    assert (err.startswith(told), err.count("\n")) == (True, int(said is not None)), err


@pytest.mark.parametrize("name", ["redisPassword", "mongoToken", "accessKey"])
@pytest.mark.parametrize(
    ("kind", "own"), [("state.mesh", ""), ("state.sqlite", "{name: connectionString, value: a.db}, ")]
)
def test_a_setting_without_a_value_asks_for_nothing(
    kind: str, own: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It protects nothing, so it may be ignored."""
    head = "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: a}\n"
    _write("a.yaml", f'{head}spec: {{type: {kind}, metadata: [{own}{{name: {name}, value: ""}}]}}\n')
    code, out, err = _checked(capsys, "a.yaml")
    assert (code, out) == (0, "1 resource is fine\n")
    assert err.endswith(f"({name}): unknown setting, which nothing reads\n")


def test_configuration_is_checked_with_its_variables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where `--config` names it; what protects is refused here as well."""
    head = "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\nspec:\n"
    _write("c.yaml", head + "  tracing: {samplingRate: $RATE}\n")
    monkeypatch.setenv("RATE", "0.5")
    assert _checked(capsys, "c.yaml") == (0, "1 resource is fine\n", "")
    _write("c.yaml", head + "  mtls: {enabled: true}\n")
    status, said, count = _checked(capsys, "c.yaml")
    assert (status, count) == (1, "1 problem\n")
    assert said.startswith("c.yaml:5:10: spec.mtls.enabled: gateways talk over the broker alone")


def test_what_a_configuration_denies_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """As at the start: beside it, and of a template for the application whose it is; of several it may be another's."""
    text = "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: %s}\nspec: {components: {deny: [%s]}}\n"
    _write("r/a.yaml", _COMPONENT.format(name="a", type="state.mesh"))
    _write("one.yaml", text % ("one", "state.mesh/v1"))
    _write("two.yaml", text % ("two", "state.redis"))
    said = "r/a.yaml:4:14: spec.type: component type 'state.mesh' is denied by Configuration 'one'\n"
    assert _checked(capsys, "r", "one.yaml") == (1, said, "1 problem\n")
    assert _checked(capsys, "r", "two.yaml") == (0, "2 resources are fine\n", "")
    assert _checked(capsys, "r", "one.yaml", "two.yaml") == (0, "3 resources are fine\n", f"warning: {said}")
    for name, expected in (
        ("one", (1, said, "1 problem\n")),
        ("two", (0, "2 resources and 1 template are fine\n", "")),
    ):
        app = f"{{appID: app, appDirPath: ., command: [sh], configFilePath: {name}.yaml, resourcesPath: r}}"
        _write("dapr.yaml", f"version: 1\napps: [{app}]\n")
        assert _checked(capsys, "dapr.yaml") == expected


def test_what_is_denied_is_told_beside_a_root_that_is_nowhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\nspec: {components: {deny: [%s]}}\n"
    _write("r/a.yaml", _COMPONENT.format(name="a", type="state.mesh"))
    _write("c.yaml", text % "state.mesh/v1")
    app = "{appID: app, appDirPath: ., command: [sh], configFilePath: c.yaml, resourcesPath: r}"
    _write("dapr.yaml", f"version: 1\napps: [{app}]\n")
    monkeypatch.setenv("MESH_TRUST_MODE", "strict")
    monkeypatch.setenv("MESH_TRUST_SECRET", "vault/root")
    missing = "the root is in vault/root, and the resources have no secret store 'vault'; they have: none\n"
    denied = "r/a.yaml:4:14: spec.type: component type 'state.mesh' is denied by Configuration 'c'\n"
    assert _checked(capsys, "dapr.yaml") == (1, missing + denied, "2 problems\n")
    _write("r/a.yaml", _COMPONENT.format(name="a", type="[]"))
    assert _checked(capsys, "dapr.yaml")[2] == "1 problem\n"  # It may be what is missing.


def test_two_of_one_name_are_fine_where_no_gateway_takes_both(capsys: pytest.CaptureFixture[str]) -> None:
    one = _COMPONENT.format(name="a", type="state.mesh")
    _write("a.yaml", f"{one}scopes: [x]\n---\n{one}scopes: [y]\n")
    assert _checked(capsys, "a.yaml") == (0, "2 resources are fine\n", "")
    _write("a.yaml", "---\n".join(one.replace("a}", f"a, namespace: {each}}}") for each in ("n", "m")))
    assert _checked(capsys, "a.yaml") == (0, "2 resources are fine\n", "")
    _write("a.yaml", f"{one}scopes: [x]\n---\n{one}scopes: [y, x]\n")
    assert _checked(capsys, "a.yaml")[0] == 1


def test_configuration_of_another_program_is_none_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    _write("r/a.yaml", "apiVersion: serving.knative.dev/v1\nkind: Configuration\nmetadata: {name: a}\nspec: {a: 1}\n")
    warning = "warning: r/a.yaml:2:7: kind: the kind 'Configuration' of serving.knative.dev/v1 is ignored\n"
    assert _checked(capsys, "r") == (0, "0 resources are fine\n", warning)


def test_settings_are_read_by_the_adapter(capsys: pytest.CaptureFixture[str]) -> None:
    """As at the start of a gateway, without connecting; what only the gateway's machine knows is left to it."""
    head = _COMPONENT.format(name="a", type="pubsub.redis").replace("version: v1}", "version: v1, metadata: [%s]}")
    _write("r/a.yaml", head % "{name: redisHost, value: 'localhost:6379'}, {name: queueDept, value: 1}")
    code, out, _ = _checked(capsys, "r")
    assert code == 1
    assert "r/a.yaml:4:" in out
    assert "did you mean 'queueDepth'?" in out
    state = head.replace("pubsub.redis", "state.mesh")
    _write("r/a.yaml", state % "{name: keyPrefx, secretKeyRef: {name: a}}, {name: redisHost, value: there}")
    code, out, err = _checked(capsys, "r")
    assert (code, "did you mean 'keyPrefix'?" in out) == (1, True)
    assert err.startswith("warning: r/a.yaml:4:")
    assert "(redisHost): unknown setting, which nothing reads" in err
    _write("r/a.yaml", head % "{name: redisHost, secretKeyRef: {name: redis, key: host}}")
    code, out, _ = _checked(capsys, "r")
    assert (code, "component a refers to a secret, and does not say in which store" in out) == (1, True)
    _write("r/a.yaml", head % "{name: redisHost, secretKeyRef: {name: redis, key: host}}" + "auth: {secretStore: v}\n")
    assert _checked(capsys, "r")[0] == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{name: redisPort, value: x}", "(redisPort)"),
        ("{name: dialTimeout, value: soon}", "(dialTimeout)"),
        ("{name: keyPrefix, value: 'a||b'}", "(keyPrefix)"),
        ("{name: redisPort, value: '6379'}", ""),
    ],
)
@pytest.mark.parametrize("reference", ["secretKeyRef: {name: redis, key: k}", "envRef: THERE_ALONE"])
def test_what_needs_no_secret_is_checked_beside_one(
    settings: str, said: str, reference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A required setting that refers to what only the gateway's machine knows counts as given."""
    head = _COMPONENT.format(name="a", type="state.redis").replace("version: v1}", "version: v1, metadata: [%s]}")
    text = head % f"{{name: redisHost, {reference}}}, {settings}"
    _write("r/a.yaml", text + "auth: {secretStore: v}\n")
    code, out, _ = _checked(capsys, "r")
    assert code == int(bool(said))
    assert said in out


_REFERS = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: a}}
spec:
  type: {type}
  version: {version}
  metadata:
{entries}
auth: {{secretStore: elsewhere}}
"""


@pytest.fixture
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELSEWHERE", "")


def _refers(kind: str, settings: dict[str, str | None], how: str = "secretKeyRef: {name: n, key: k}") -> str:
    """Write a component; None is a setting whose text is not known here."""
    given = {name: how if value is None else f"value: '{value}'" for name, value in settings.items()}
    entries = [f"  - {{name: {name}, {value}}}" for name, value in given.items()]
    name, _, version = kind.partition("/")
    return _REFERS.format(type=name, version=version or "v1", entries="\n".join(entries))


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("how", ["secretKeyRef: {name: n, key: k}", "envRef: ELSEWHERE"])
@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (
            "pubsub.redis",
            {"redisHost": "h", "redisPassword": None, "redisDB": "x"},
            "10:5: spec.metadata[2] (redisDB): not a whole number",
        ),
        ("pubsub.redis", {"redisHost": None, "redisDB": "x"}, "9:5: spec.metadata[1] (redisDB): not a whole number"),
        (
            "pubsub.redis",
            {"redisHost": "h", "redisPassword": None, "redisType": "many"},
            "(redisType): is node or cl",
        ),
        ("pubsub.kafka", {"brokers": "h", "saslPassword": None, "authType": "perhaps"}, "(authType): is one of none, "),
        ("pubsub.rabbitmq", {"host": None, "prefetchCount": "x"}, "(prefetchCount): not a whole number"),
        ("pubsub.rabbitmq", {"host": "amqp://h", "autoAck": "true"}, "(autoAck): must be false: what the broker takes"),
        ("pubsub.mesh", {"consumerID": None, "publishingScopes": "a"}, "(publishingScopes): 'a' must be app="),
        ("state.redis", {"redisHost": None, "redisPassword": None, "dialTimeout": "soon"}, "(dialTimeout): not a dur"),
        (
            "state.redis",
            {"redisHost": "h,i", "redisPassword": None},
            "8:5: spec.metadata[0] (redisHost): is one host, u",
        ),
        ("state.mesh", {"primaryEncryptionKey": None, "ttlInSeconds": "1h"}, "(ttlInSeconds): is not a whole number"),
        ("state.postgresql", {"url": None, "cleanupInterval": "often"}, "(cleanupInterval): not a duration"),
        (
            "state.postgresql",
            {"connectionString": None, "tablePrefix": "a"},
            "(tablePrefix): is not a setting of version",
        ),
        (
            "state.postgresql",
            {"password": None},
            "7:3: spec.metadata: the setting connectionString is missing, and there is no host",
        ),
        ("state.cockroachdb", {"connectionString": None}, "5:9: spec.type: state.cockroachdb has the version v2"),
        ("state.mysql", {"pemPath": None}, "7:3: spec.metadata: the setting connectionString is missing: where the"),
        ("state.mysql", {"connectionString": None, "maxConns": "0"}, "(maxConns): not a whole number of at least 1"),
        (
            "state.mongodb",
            {"host": "h", "server": "s", "username": "u", "password": None},
            "(server): is instead of host",
        ),
        ("secretstores.aws.secretmanager", {"accessKey": None, "secretKey": None, "endpoint": "x"}, "(endpoint): "),
        ("middleware.http.bearer", {"issuer": "keycloak", "audience": "a"}, "(issuer): is no URL of a service: http"),
        ("middleware.http.opa", {"rego": "package http"}, "(rego): no policy runs in the gateway itself: run Open"),
        ("lock.redis", {"redisHost": "h", "redisPassword": None, "keyPrefix": "a||b"}, "keyPrefix can't contain '||'"),
    ],
)
def test_what_is_wrong_beside_a_reference(
    kind: str, settings: dict[str, str | None], said: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the reference gives is not known here; all else is read as at the start."""
    _write("a.yaml", _refers(kind, settings, how))
    code, out, err = _checked(capsys, "a.yaml")
    assert (code, said in out, err) == (1, True, "1 problem\n"), out


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("how", ["secretKeyRef: {name: n, key: k}", "envRef: ELSEWHERE"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        # A certificate is read with its key.
        ("pubsub.redis", {"redisHost": "h", "enableTLS": "true", "clientCert": "here.pem", "clientKey": None}),
        ("pubsub.kafka", {"brokers": "h", "authType": "mtls", "clientCert": "here.pem", "clientKey": None}),
        ("pubsub.mqtt3", {"url": "mqtts://h", "clientCert": "here.pem", "clientKey": None}),
        ("pubsub.rabbitmq", {"host": "amqps://h", "clientCert": "here.pem", "clientKey": None}),
        ("pubsub.jetstream", {"natsURL": "tls://h", "tls_client_cert": "here.pem", "tls_client_key": None}),
        ("state.redis", {"redisHost": "h", "enableTLS": "true", "clientCert": "here.pem", "clientKey": None}),
        ("state.etcd/v2", {"endpoints": "h:1", "tlsEnable": "true", "ca": "c", "cert": "c", "key": None}),
        # What goes together depends on what is not known.
        ("pubsub.mqtt3", {"url": None, "caCert": "here.pem"}),
        ("pubsub.kafka", {"brokers": "h", "authType": None, "saslUsername": "u"}),
        ("state.redis", {"redisHost": "h", "enableTLS": None, "clientCert": "here.pem", "clientKey": None}),
        ("state.mysql", {"url": None, "pemPath": "here.pem"}),
        ("state.postgresql", {"url": None, "sslRootCert": "here.pem"}),
        # Values of every kind.
        ("pubsub.jetstream", {"natsURL": "nats://h", "jwt": None, "seedKey": None}),
        ("state.in-memory", {"primaryEncryptionKey": None, "secondaryEncryptionKey": None, "ttlInSeconds": None}),
        ("state.azure.blobstorage", {"accountName": "a", "containerName": "c", "accountKey": None}),
        ("state.mongodb", {"connectionString": None}),
        ("state.in-memory", {"outboxPublishPubsub": "p", "outboxPublishTopic": None}),
        ("state.in-memory", {"actorStateStore": None}),
        ("state.redis", {"redisHost": None, "redisDB": None, "failover": None, "dialTimeout": None}),
    ],
)
def test_nothing_is_said_of_what_is_not_known(
    kind: str, settings: dict[str, str | None], how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor of what depends on it."""
    _write("a.yaml", _refers(kind, settings, how))
    assert _checked(capsys, "a.yaml") == (0, "1 resource is fine\n", "")


def test_a_variable_that_is_not_set_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A warning where the files are looked at; at the start it is what is wrong with a setting that must be."""
    settings: dict[str, str | None] = {"redisHost": None}
    _write("r/a.yaml", _refers("pubsub.redis", settings, "envRef: UNSET").replace("auth: {secretStore: elsewhere}", ""))
    code, out, err = _checked(capsys, "r")
    place = "r/a.yaml:8:5: spec.metadata[0] (redisHost): "
    assert (code, f"{place}the variable 'UNSET' is not set, so this is empty\n" in out + err) == (0, True), out + err
    assert _checked(capsys, "--strict", "r")[0] == 1
    (problem,) = check_start([GatewayConfig("app", tmp_path, resource_paths=(Path("r"),))]).problems
    assert str(problem) == f"{place}must not be empty; the variable 'UNSET' is not set, or is empty"


def test_every_reference_of_a_component_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    """One that may be read elsewhere hides none that never may."""
    entries = {"redisHost": "h", "redisPassword": None}
    forbidden = "  - {name: redisUsername, envRef: DAPR_API_TOKEN}\nauth:"
    _write("a.yaml", _refers("pubsub.redis", entries, "envRef: ELSEWHERE").replace("auth:", forbidden))
    code, out, _ = _checked(capsys, "a.yaml")
    told = (
        "a.yaml:10:5: spec.metadata[2] (redisUsername): the variable 'DAPR_API_TOKEN' belongs to the runtime and cannot"
    )
    assert (code, out) == (1, f"{told} be read\n")


@pytest.mark.parametrize(
    ("secrets", "unknown"),
    [
        ("{}", "refers to the secret 'n' (key 'k'), which no secret store gives"),
        (None, None),
    ],
)
def test_start_says_what_is_wrong_beside_a_secret(tmp_path: Path, secrets: str | None, unknown: str | None) -> None:
    """Whether the secret is missing, or can be known only when its store is asked."""
    store = "local.file" if secrets else "hashicorp.vault"
    own = "{name: secretsFile, value: s.json}" if secrets else "{name: vaultToken, value: t}"
    head = "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: elsewhere}\n"
    _write("r/s.yaml", f"{head}spec: {{type: secretstores.{store}, metadata: [{own}]}}\n")
    _write("s.json", secrets or "")
    settings = {"redisHost": "h", "redisPassword": None, "redisDB": "x"}
    _write("r/a.yaml", _refers("pubsub.redis", settings))
    found = check_start([GatewayConfig("app", tmp_path, resource_paths=(Path("r"),))])
    told = [] if unknown is None else [("r/a.yaml", 9, unknown)]
    told.append(("r/a.yaml", 10, "not a whole number of at least 0: 'x'"))
    assert [(each.file, each.line, each.message) for each in found.problems] == told


def test_every_problem_of_every_file_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    _write("r/a.yaml", _COMPONENT.format(name="a", type="state.mesh").replace("version", "versoin"))
    _write("r/b.yaml", "x: [")
    code, out, err = _checked(capsys, "r", "nowhere")
    assert code == 1
    assert [line.partition(": ")[0] for line in out.splitlines()] == ["nowhere", "r/a.yaml:4:26", "r/b.yaml:1:5"]
    assert "did you mean 'version'?" in out
    assert err.endswith("3 problems\n")


_ALL_WRONG = {
    "a.yaml": """\
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: r}
spec:
  policies:
    timeouts: {fast: 5x}
    circuitBreakers: {c: {}}
  targets:
    apps:
      one: {timeout: fsat, retry: none}
      two: {timeout: fast}
    actors: {t: {circuitBreaker: c, circuitBreakerScope: ids}}
""",
    "b.yaml": """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: store}
spec:
  type: state.redis
  version: v1
  metadata:
  - {name: redisHost, vlaue: "a:1"}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: store}
spec:
  type: state.reddis
  version: v1
scoeps: [x]
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: same}
spec: {type: state.mongodb, version: v9}
""",
    "c.yaml": "x: [",
    "d.yaml": """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: same}
spec:
  type: state.mongodb
  version: v1
  metadata:
  - {name: host, value: h}
  - {name: password, secretKeyRef: {name: a, key: b}}
""",
    "e.yaml": """\
apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata: {name: e}
spec:
  tracing: {samplingRate: many}
  api: {denied: [{name: stat, version: v1.0}]}
  httpPipeline:
    handlers:
    - {name: m, type: state.redis}
""",
}


def test_one_run_tells_everything_that_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    """Each once, in the order of files and lines, and nothing that is so only because something else is wrong."""
    for name, text in _ALL_WRONG.items():
        _write(f"r/{name}", text)
    code, out, err = _checked(capsys, "r", "r/b.yaml", ".")
    assert code == 1
    told = [line.removeprefix("r/").split(": ")[:2] for line in out.splitlines()]
    assert told == [
        ["a.yaml:6:22", "spec.policies.timeouts.fast"],
        ["a.yaml:12:58", "spec.targets.actors.t.circuitBreakerScope"],
        ["b.yaml:8:23", "spec.metadata[0].vlaue"],
        ["b.yaml:14:9", "spec.type"],
        ["b.yaml:16:1", "scoeps"],
        ["b.yaml:21:1", "spec.metadata"],
        ["b.yaml:21:14", "spec.type"],
        ["c.yaml:1:5", "is not valid YAML"],
        ["d.yaml:3:18", "metadata.name"],
        ["d.yaml:9:5", "spec.metadata[1] (password)"],
        ["e.yaml:5:27", "spec.tracing.samplingRate"],
        ["e.yaml:6:25", "spec.api.denied[0].name"],
        ["e.yaml:9:7", "spec.httpPipeline.handlers[0]"],
    ], out
    assert err.endswith(f"{len(told)} problems\n")
    _write("r/c.yaml", "# Now it can be read, and has no policy.")
    out = _checked(capsys, "r")[1]
    assert [line.split(": ")[1] for line in out.splitlines() if line.startswith("r/a.yaml:10")] == [
        "spec.targets.apps.one.timeout",
        "spec.targets.apps.one.retry",
    ]


_SUBSCRIPTION = """\
apiVersion: dapr.io/v1alpha1
kind: Subscription
metadata: {{name: {name}}}
spec: {{pubsubname: pubsub, topic: t, route: /{name}, metadata: {{{metadata}}}}}
scopes: [{scope}]
"""


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            "\n  type: middleware.http.routerchecker\n  version: v1\n",
            "8:1: spec.metadata: the setting rule is missing: ",
        ),
        (
            "\n  type: middleware.http.oauth2clientcredentials\n  metadata:\n  - {name: clientId, value: me}\n",
            "10:3: spec.metadata: the setting clientSecret is missing: ",
        ),
        (
            "\n  type: middleware.http.opa\n  metadata: []\n",
            "10:3: spec.metadata: no policy runs in the gateway itself",
        ),
        ("\n  type: state.mongodb\n", "8:1: spec.metadata: one of the settings host, server and connectionString"),
        ("\n  type: bindings.http\n", "8:1: spec.metadata: the setting url is missing: "),
    ],
)
def test_a_setting_that_is_missing_is_told_where_it_would_be(
    capsys: pytest.CaptureFixture[str], spec: str, said: str
) -> None:
    head = (
        "# The second one is meant.\n" + "---\n# And here it begins.\napiVersion: dapr.io/v1alpha1\nkind: Component\n"
    )
    _write("r/a.yaml", f"{head}metadata:\n  name: a\nspec:{spec}")
    code, out, _ = _checked(capsys, "r")
    assert (code, out.splitlines()[0].startswith(f"r/a.yaml:{said}")) == (1, True), out


def test_what_the_start_says_of_subscriptions(capsys: pytest.CaptureFixture[str]) -> None:
    """Two to one topic that differ, if an application has both; metadata that nothing reads."""
    for name, scope, metadata in (("a", "one, two", ""), ("b", "two", "colour: red"), ("c", "three", "")):
        _write(f"r/{name}.yaml", _SUBSCRIPTION.format(name=name, scope=scope, metadata=metadata))
    code, out, err = _checked(capsys, "r")
    assert (code, out.count("\n")) == (1, 1)
    assert out.startswith("r/b.yaml:1:1: a second subscription to the topic 't' of 'pubsub', beside 'a' (r/a.yaml:1): ")
    assert "warning: r/b.yaml:4:" in err
    assert "the metadata 'colour' has no effect here" in err


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ("maxInFlight: many", "4:73: spec.metadata.maxInFlight: not a whole number from 1 to 10000: 'many'"),
        ("MAXINFLIGHT: 0", "4:73: spec.metadata.MAXINFLIGHT: not a whole number from 1 to 10000: '0'"),
        ("maxInFlight: -1", "4:73: spec.metadata.maxInFlight: not a whole number from 1 to 10000: '-1'"),
        ("ordered: perhaps", "4:69: spec.metadata.ordered: not a boolean: 'perhaps' ('true' or 'false')"),
        ("rawPayload: 2", "4:72: spec.metadata.rawPayload: not a boolean: '2' ('true' or 'false')"),
        ("delivery: all", "4:70: spec.metadata.delivery: delivery must be group or broadcast, not 'all'"),
        ("deduplicate: 5", "4:73: spec.metadata.deduplicate: a duration needs a unit: '5s' or '5ms', not '5'"),
        (
            "}, bulkSubscribe: {maxMessagesCount: -1",
            "4:97: spec.bulkSubscribe.maxMessagesCount: expected a whole number of at least 0, got the number -1",
        ),
    ],
)
def test_wrong_values_of_a_subscription(capsys: pytest.CaptureFixture[str], metadata: str, said: str) -> None:
    """They have their place, as anything else that is wrong in a file."""
    _write("r/a.yaml", _SUBSCRIPTION.format(name="a", scope="one", metadata=metadata))
    assert _checked(capsys, "r")[:2] == (1, f"r/a.yaml:{said}\n")


_SECRETS = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: vault}
spec: {type: secretstores.local.file, metadata: [{name: secretsFile, value: secrets.json}]}
---
apiVersion: dapr.io/v1alpha1
kind: HTTPEndpoint
metadata: {name: there}
spec:
  baseUrl: https://there.example
  headers:
    - {name: a, secretKeyRef: {name: here}}
    - {name: b, secretKeyRef: {name: nowhere, key: k}}
    - {name: c, envRef: DAPR_HTTP_PORT}
  clientTLS: {rootCA: {secretKeyRef: {name: ca}}}
auth: {secretStore: vault}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: store}
spec: {type: state.in-memory, metadata: [{name: keyPrefix, secretKeyRef: {name: prefix}}]}
auth: {secretStore: vault}
"""


def test_secrets_that_nobody_gives(capsys: pytest.CaptureFixture[str]) -> None:
    """They may be there where the file is used; a variable that may never be read is wrong everywhere."""
    _write("r/a.yaml", _SECRETS)
    code, out, err = _checked(capsys, "r")
    refused = "r/a.yaml:14:7: spec.headers[2] (c): the variable 'DAPR_HTTP_PORT' belongs to the runtime"
    assert (code, out) == (1, f"{refused} and cannot be read\n")
    assert "(secretsFile): cannot read the secrets file /" in err, "its file is not here"
    _write("secrets.json", '{"here": "x"}')
    _, _, err = _checked(capsys, "r")
    assert [line for line in err.splitlines() if line.startswith("warning")] == [
        f"warning: r/a.yaml:{place}: refers to the secret '{name}' (key '{key}'), which no secret store gives"
        for place, name, key in (
            ("13:7: spec.headers[1] (b)", "nowhere", "k"),
            ("15:23: spec.clientTLS.rootCA (rootCA)", "ca", "ca"),
            ("21:42: spec.metadata[0] (keyPrefix)", "prefix", "prefix"),
        )
    ]
    _write("secrets.json", '{"here": "x", "nowhere": "y", "ca": "z", "prefix": "p", "k": "k"}')
    _write("r/a.yaml", _SECRETS.replace(", key: k", "").replace("DAPR_HTTP_PORT", "HOME"))
    assert _checked(capsys, "r") == (0, "3 resources are fine\n", "")


@pytest.mark.parametrize(
    ("command", "env", "said"),
    [
        ("no-such-program, app.js", "{}", "there is no program 'no-such-program' in PATH"),
        ("sh, -c, x", "{PATH: /nowhere}", "there is no program 'sh' in PATH"),
        ("./own", "{PATH: /nowhere}", None),
        ("own", "{PATH: .}", None),
        ("sub/own", "{}", "{here}/a/sub/own is no program"),
        ("./text", "{}", "{here}/a/text is no program"),
        ("sh", "{}", None),
    ],
)
def test_programs_that_are_not_there(
    capsys: pytest.CaptureFixture[str], command: str, env: str, said: str | None, tmp_path: Path
) -> None:
    """A warning: they may be there where the file is used."""
    _write("a/own", "#!/bin/sh\n")
    Path("a/own").chmod(0o755)
    _write("a/text", "")
    _write("dapr.yaml", f"version: 1\napps:\n- appDirPath: a\n  env: {env}\n  command: [{command}]\n")
    code, _, err = _checked(capsys, "dapr.yaml")
    place = "warning: dapr.yaml:5:13: apps[0].command[0]: "
    told = "" if said is None else f"{place}{said.format(here=tmp_path)}; the application cannot be started here\n"
    assert (code, err) == (0, told)


def test_json_is_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    _write("r/a.yaml", _COMPONENT.format(name="a", type="state.mesh").replace("version", "versoin"))
    code, out, _ = _checked(capsys, "r", "-o", "json")
    (problem,) = json.loads(out)["problems"]
    assert code == 1
    assert (problem["file"], problem["line"], problem["column"], problem["path"]) == ("r/a.yaml", 4, 26, "spec.versoin")


def test_two_templates_in_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    """As the start says."""
    _write("dapr.yaml", "version: 1\napps: [{appDirPath: .}]\n---\nversion: 1\napps: [{appDirPath: .}]\n")
    code, out, err = _checked(capsys, "dapr.yaml")
    assert (code, err) == (1, "1 problem\n")
    assert out == "dapr.yaml: holds more than one document; expected one template with 'version' and 'apps'\n"


def test_template_is_checked_with_what_it_refers_to(capsys: pytest.CaptureFixture[str]) -> None:
    _write("shop/dapr.yaml", "version: 1\ncommon: {resourcesPath: r}\napps: [{appDirPath: a}, {appDirPath: b}]\n")
    for name in ("a", "b"):
        Path("shop", name).mkdir()
    _write("shop/r/a.yaml", _COMPONENT.format(name="a", type="state.mesh"))
    assert _checked(capsys, "shop") == (0, "1 resource and 1 template are fine\n", "")
    _write("shop/r/a.yaml", _COMPONENT.format(name="a", type="state.mesh").replace("kind", "knd"))
    _write(
        "shop/a/.dapr/config.yaml", "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\nspce: {}\n"
    )
    code, out, _ = _checked(capsys, "shop")
    assert code == 1
    assert {line.partition(":")[0] for line in out.splitlines()} == {"shop/r/a.yaml", "shop/a/.dapr/config.yaml"}
    _write("shop/dapr.yaml", "version: 1\napps: [{appDirPath: a, comand: [x]}]\n")
    code, out, _ = _checked(capsys, "shop")
    assert (code, out) == (1, "shop/dapr.yaml:2:24: apps[0].comand: unknown field; did you mean 'command'?\n")


_PLACES = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: statestore}
spec: {type: state.mesh, version: v1}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: shared}
spec: {type: %s, version: v1, metadata: [%s{name: actorStateStore, value: "%s"}]}
---
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata: {name: s}
spec: {pubsubname: p, topic: t, routes: {default: /t}, metadata: {deduplicate: 1h}}
"""
_FILE, _REDIS = "{name: connectionString, value: a.db}, ", "{name: redisHost, value: 'localhost:6379'}, "
_NEEDS = {
    "a.yaml:4:14: spec.type: kafka has no key/value store: state.mesh takes a state store",
    "a.yaml:11: deduplicate: kafka has no key/value store: it takes a state store",
}
_BOUND = {"a.yaml:9:91: spec.metadata[1] (actorStateStore): state.sqlite is no place that every node reaches"}


@pytest.mark.parametrize(
    ("store", "environ", "said"),
    [
        (("state.redis", _REDIS, "false"), {}, _NEEDS),
        (("state.redis", _REDIS, "true"), {}, set()),
        (("state.sqlite", _FILE, "true"), {}, _NEEDS | _BOUND),
        (("state.sqlite", _FILE, "true"), {"MESH_SINGLE_HOST": "true"}, set()),
        (("state.redis", _REDIS, "false"), {"MESH_SINGLE_HOST": "true"}, set()),
        (("state.redis", _REDIS, "false"), {"MESH_BACKBONE": "redis://localhost"}, set()),
        (("state.redis", _REDIS, "false"), {"MESH_BACKBONE": ""}, set()),
        (("state.redis", _REDIS, "false"), {"MESH_BACKBONE": "kafak://localhost"}, set()),
    ],
)
def test_what_has_no_place_on_a_backbone_without_key_value(
    store: tuple[str, str, str],
    environ: dict[str, str],
    said: set[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is told, in a folder as in a template; and nobody is told who needs no place."""
    for name, value in ({"MESH_BACKBONE": "kafka://localhost:9092"} | environ).items():
        monkeypatch.setenv(name, value)
    _write("r/a.yaml", _PLACES % store)
    _write("dapr.yaml", "version: 1\napps: [{appID: app, appDirPath: ., command: [sh], resourcesPath: r}]\n")
    for path in ("r", "dapr.yaml"):
        code, _, err = _checked(capsys, path)
        told = {line.removeprefix("warning: r/") for line in err.splitlines()}
        assert code == 0
        assert len(told) == len(said)
        assert all(any(line.startswith(each) for line in told) for each in said)
    _write("r/a.yaml", _COMPONENT.format(name="p", type="pubsub.mesh"))
    assert _checked(capsys, "r", "dapr.yaml") == (0, "1 resource and 1 template are fine\n", "")


def test_a_single_host_is_a_boolean(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_SINGLE_HOST", "perhaps")
    _write("dapr.yaml", "version: 1\napps: [{appID: app, appDirPath: ., command: [sh]}]\n")
    assert "MESH_SINGLE_HOST: not a boolean: 'perhaps'" in _checked(capsys, "dapr.yaml")[1]


@pytest.mark.parametrize(
    ("name", "verdict"),
    [("hello-world", "1 template is fine\n"), ("pubsub", "4 resources and 1 template are fine\n")],
)
def test_examples_are_fine(name: str, verdict: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ROOT / "examples" / name, name)
    assert _checked(capsys, name) == (0, verdict, "")


def test_component_files_of_tutorials_load(capsys: pytest.CaptureFixture[str]) -> None:
    """They name types that may not be installed; that is said, and is no problem."""
    entries = "{name: redisHost, value: localhost:6379}, {name: redisPassword, value: ''}"
    for name, kind, more in (
        ("messagebus", "pubsub.redis", ""),
        ("statestore", "state.redis", ", {name: actorStateStore, value: 'true'}"),
    ):
        _write(
            f"components/{name}.yaml",
            f"apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: {name}}}\n"
            f"spec: {{type: {kind}, metadata: [{entries}{more}]}}\n",
        )
    _write(
        "components/orders.yaml",
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: order-pub-sub}\n"
        "spec:\n  type: pubsub.rabbitmq\n  version: v1\n  metadata: [{name: host, value: 'amqp://localhost:5672'}]\n"
        "scopes: [orderprocessing, checkout]\n",
    )
    code, out, _ = _checked(capsys, "components")
    assert (code, out) == (0, "3 resources are fine\n")


@pytest.mark.parametrize(
    "spec",
    [
        "type: bindings.cron, version: v1, metadata: [{name: schedule, value: '@every 10s'}]",
        "type: bindings.postgres, version: v1, metadata: [{name: url, value: 'user=u password=p host=localhost "
        "port=5432 dbname=orders pool_min_conns=1 pool_max_conns=10'}]",
        "type: bindings.http, version: v1, metadata: [{name: url, value: 'https://example.com/api/{resource}'}]",
        "type: bindings.kafka, version: v1, metadata: [{name: brokers, value: 'localhost:9092'}, "
        "{name: topics, value: a}, {name: consumerGroup, value: g}, {name: publishTopic, value: a}, "
        "{name: authRequired, value: 'false'}]",
        "type: crypto.dapr.localstorage, version: v1, metadata: [{name: path, value: ../../../fixtures/keys}]",
        "type: conversation.openai, metadata: [{name: key, value: <YOUR_API_KEY>}, {name: model, value: m}, "
        "{name: cacheTTL, value: 10m}]",
        "type: conversation.openai, version: v1, metadata: [{name: key, value: 'k'}, {name: model, "
        "value: 'gpt-oss:20b'}, {name: endpoint, value: 'http://localhost:11434/v1'}]",
        "type: conversation.echo, version: v1",
    ],
)
def test_component_files_of_quickstarts_load(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of bindings, cryptography and conversation; nothing is said of them."""
    head = "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: a, namespace: quickstarts}\n"
    _write("a.yaml", f"{head}spec: {{{spec}}}\n")
    assert _checked(capsys, "a.yaml") == (0, "1 resource is fine\n", "")
