"""Which words of ``mesh run`` are options and which are the command, and what options mean."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.cli.configure import gateway_config
from gateway.cli.options import FLAGS, IGNORED, GatewayOptions, to_arguments
from gateway.cli.parsing import Parser, UsageError, add_gateway_flags, gateway_options, split_command, warnings_about
from gateway.cli.run import parser as run_parser
from gateway.cli.run import plan
from gateway.cli.serve import parse_gateway
from gateway.config import GatewayConfig, HealthCheck, Tokens
from mesh.errors import ConfigError

_OWN = {"-f": "text", "-h": "switch"}
_ENVIRON = {"MESH_HOME": "/home/mesh"}


@pytest.mark.parametrize(
    ("line", "own", "command"),
    [
        ("--app-id a node app.js", "--app-id a", "node app.js"),
        ("--app-id a -- node app.js", "--app-id a", "node app.js"),
        ("--app-id=a --app-port=3000 node app.js", "--app-id=a --app-port=3000", "node app.js"),
        ("-a a -p 3000 -H 3500 node app.js", "-a a -p 3000 -H 3500", "node app.js"),
        ("-p3000 node app.js", "-p3000", "node app.js"),
        ("--app-port -1 node app.js", "--app-port -1", "node app.js"),
        ("--enable-api-logging node app.js", "--enable-api-logging", "node app.js"),
        ("--enable-api-logging=true node", "--enable-api-logging=true", "node"),
        ("--app-id a", "--app-id a", ""),
        ("", "", ""),
        ("--", "", ""),
        # What is an option here is so in the command too, as for dapr; what is not is the command's.
        ("node app.js --port 80 -p 3 --log-level z", "--port 80 -p 3 --log-level z", "node app.js"),
        ("python3 app.py --config c.yaml -d ./r/", "--config c.yaml -d ./r/", "python3 app.py"),
        ("node a.js --app-id a --protocol http --port 3500", "--app-id a --protocol http --port 3500", "node a.js"),
        ("node a.js --app-id a extra", "--app-id a", "node a.js extra"),
        ("node --inspect app.js --app-id=a", "--app-id=a", "node --inspect app.js"),
        ("node a.js --app-id -x", "--app-id -x", "node a.js"),
        ("-a x webpack --mode production --wait", "-a x", "webpack --mode production --wait"),
        # Options with one dash: ours before the command, the program's within it.
        ("-app-id a -app-ssl=false ./x -config y -port 3", "-app-id a -app-ssl=false", "./x -config y -port 3"),
        ("-a x java -cp lib -jar a.jar", "-a x", "java -cp lib -jar a.jar"),
        # Behind '--' nothing is ours, and the mark itself is nobody's.
        ("-- node app.js --app-id a", "", "node app.js --app-id a"),
        ("-a x -- app --config x", "-a x", "app --config x"),
        ("-a x npm start -- --app-id a", "-a x", "npm start --app-id a"),
        ("-a x -- npm start -- --app-id a", "-a x", "npm start -- --app-id a"),
        # No effect, but a value.
        ("--dapr-internal-grpc-port 50002 node", "--dapr-internal-grpc-port 50002", "node"),
        ("--placement-host-address localhost:6050 node", "--placement-host-address localhost:6050", "node"),
        # Unknown ones are left to the parser, which refuses them.
        ("--nonsense node app.js", "--nonsense", "node app.js"),
        ("node app.js --app-prot 3", "--app-prot", "node app.js 3"),
        ("node app.js --app-id", "--app-id", "node app.js"),
    ],
)  # fmt: skip
def test_options_are_told_from_the_command(line: str, own: str, command: str) -> None:
    assert split_command(shlex.split(line), _OWN)[:2] == (shlex.split(own), shlex.split(command))


@pytest.mark.parametrize(
    ("line", "late"),
    [
        ("uvicorn main:app --port 8000", ["--port"]),
        ("python -u app.py -c x", ["-u", "-c"]),
        ("node app.js --app-id a --dapr-http-port 1 --resources-path r", []),
        ("-p 1 -- uvicorn main:app --port 8000", []),
    ],
)
def test_options_that_the_command_may_have_wanted_are_said(line: str, late: list[str]) -> None:
    assert split_command(shlex.split(line), _OWN).late == late


def _parsed(line: str) -> GatewayOptions:
    parser = Parser("mesh gateway")
    add_gateway_flags(parser)
    return gateway_options(parser.parse(shlex.split(line)))


@pytest.mark.parametrize("line", ["show nightly -a shop", "show -a shop nightly", "-a shop show nightly"])
def test_options_stand_before_words_and_behind_them(line: str) -> None:
    parser = Parser("mesh jobs")
    parser.add_argument("action")
    parser.add_argument("name", nargs="?")
    parser.add_argument("--app-id", "-a")
    found = parser.parse(shlex.split(line))
    assert (found.action, found.name, found.app_id) == ("show", "nightly", "shop")


def test_every_option_reaches_its_field_by_each_name() -> None:
    values = {"text": "x", "number": "7", "list": "x", "switch": None}
    expected = {"text": "x", "number": 7, "list": ("x",), "switch": True}
    for flag in FLAGS:
        for name in flag.names:
            value = values[flag.kind]
            options = _parsed(name if value is None else f"{name} {value}")
            assert options == GatewayOptions(**{flag.to_field: expected[flag.kind]}), name  # type: ignore[arg-type]


def test_options_survive_the_way_to_the_gateway() -> None:
    options = GatewayOptions(
        app_id="-a",
        resources_path=("r one", "--x"),
        app_port=-1,
        app_ssl=True,
        label=("appCommand=node --x=1",),
        config=("c",),
    )
    parser = Parser("mesh gateway")
    add_gateway_flags(parser)
    assert gateway_options(parser.parse(to_arguments(options))) == options


def test_names_are_unique() -> None:
    names = [name for flag in FLAGS for name in flag.names] + list(IGNORED)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("word", "value"), [("--app-ssl=true", True), ("--app-ssl=FALSE", False), ("--app-ssl", True)])
def test_switch_takes_a_value_as_go_does(word: str, value: bool) -> None:
    assert _parsed(word).app_ssl is value


@pytest.mark.parametrize(
    ("word", "value"),
    [("", True), ("--enable-metrics", True), ("--enable-metrics=true", True), ("--enable-metrics=false", False)],
)
def test_a_switch_may_be_on_unless_it_is_said_to_be_off(word: str, value: bool) -> None:
    options = _parsed(word)
    assert options.enable_metrics is value
    assert _parsed(shlex.join(to_arguments(options))) == options


@pytest.mark.parametrize(
    ("line", "port"),
    [("", None), ("--metrics-port 9999", 9999), ("--metrics-port 0", 0), ("-M -1", 0)],
)
def test_port_of_metrics(line: str, port: int | None) -> None:
    """The usual one if nothing is said, or with ``mesh run`` a free one."""
    options = replace(_parsed(line), app_id="a")
    assert gateway_config(options, {}).metrics_port == port
    assert gateway_config(options, {}, default_http_port=0).metrics_port == (port or 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--app-prot 3", "unknown option --app-prot; did you mean --app-port?"),
        ("--app-port x", "argument --app-port/-p: invalid int value: 'x'"),
        ("--app-id", "--app-id needs a value"),
        ("--app-id --app-port 3000", "--app-id needs a value"),
        ("-app-prot 3", "unknown option -app-prot; did you mean --app-port?"),
        ("-app-nonsense=1", "unknown option -app-nonsense"),
        ("-anodeapp", "unknown option -anodeapp; a value of -a stands apart: -a nodeapp"),
        ("-xyz", "unknown option -xyz"),
        ("-app-port x", "argument --app-port/-p: invalid int value: 'x'"),
        ("-pabc", "unknown option -pabc; a value of -p stands apart: -p abc"),
        (
            "--dapr-http-max-request-size 16Mi",
            "argument --dapr-http-max-request-size: not a whole number of at least 1: '16Mi'",
        ),
        (
            "--dapr-http-read-buffer-size 0",
            "argument --dapr-http-read-buffer-size: not a whole number of at least 1: '0'",
        ),
        ("--app-ssl=perhaps", "--app-ssl: not a boolean: 'perhaps' ('true' or 'false')"),
        ("surplus", "unexpected 'surplus'"),
        ("--app-ssl false", "unexpected 'false'; a switch has its value behind '=', such as --app-ssl=false"),
    ],
)
def test_wrong_words_are_refused_in_one_line(line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        _parsed(line)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-app-id=x -app-ssl=false -app-port 80", GatewayOptions(app_id="x", app_port=80)),
        ("-app-id x -enable-api-logging=true", GatewayOptions(app_id="x", enable_api_logging=True)),
        ("-app-id x -enable-api-logging=false", GatewayOptions(app_id="x", enable_api_logging=False)),
        ("-app-ssl", GatewayOptions(app_ssl=True)),
        ("-a -x", GatewayOptions(app_id="-x")),
        ("-a=x -p=3000 -p3001", GatewayOptions(app_id="x", app_port=3001)),
        ("-d./resources -d /abs", GatewayOptions(resources_path=("./resources", "/abs"))),
        ("--dapr-http-max-request-size 16", GatewayOptions(max_body_size="16Mi")),
        ("-dapr-http-read-buffer-size=64", GatewayOptions(read_buffer_size="64Ki")),
        ("--dapr-http-max-request-size -1", GatewayOptions()),
        ("-mode kubernetes -runtime-path /usr/local", GatewayOptions()),
    ],
)  # fmt: skip
def test_words_are_read_as_daprd_reads_them(line: str, expected: GatewayOptions) -> None:
    assert _parsed(line) == expected


# What `dapr run` and daprd take: see their own help.
_REFERENCE = """
    app-id app-port app-protocol app-channel-address app-max-concurrency dapr-http-port dapr-grpc-port
    dapr-internal-grpc-port dapr-internal-grpc-listen-address dapr-public-port dapr-public-listen-address
    dapr-listen-addresses metrics-port metrics-listen-address enable-metrics profile-port enable-profiling config
    resources-path components-path log-level log-as-json enable-api-logging placement-host-address
    scheduler-host-address scheduler-job-streams actors-disseminate-timeout control-plane-address
    control-plane-trust-domain control-plane-namespace sentry-address sentry-request-jwt-audiences enable-mtls
    max-body-size read-buffer-size dapr-http-max-request-size dapr-http-read-buffer-size unix-domain-socket
    allowed-origins enable-app-health-check app-health-check-path app-health-probe-interval
    app-health-probe-timeout app-health-threshold app-binding-options-timeout disable-init-endpoints app-ssl mode
    dapr-graceful-shutdown-seconds dapr-block-shutdown-duration hot-reload-reconcile-interval wait runtime-path
    disable-builtin-k8s-secret-store port grpc-port protocol max-concurrency
""".split()  # noqa: SIM905 - a list of this length reads better as words


@pytest.mark.parametrize("name", _REFERENCE)
@pytest.mark.parametrize("dashes", ["-", "--"])
def test_every_option_of_the_reference_is_known(name: str, dashes: str) -> None:
    parser = Parser("mesh gateway")
    add_gateway_flags(parser)
    switch = name.startswith("enable-") or name in (
        "app-ssl", "log-as-json", "wait", "disable-builtin-k8s-secret-store"
    )  # fmt: skip
    parser.parse([f"{dashes}{name}"] if switch else [f"{dashes}{name}", "1"])


def test_old_names_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert _parsed("--port 1 --port 2 -components-path r").dapr_http_port == 2
    assert capsys.readouterr().err.splitlines() == [
        "warning: --port is an old name; use --dapr-http-port",
        "warning: --components-path is an old name; use --resources-path",
    ]


@pytest.mark.parametrize(
    ("words", "protocol"),
    [
        ("", "http"),
        ("--app-protocol http", "http"),
        ("--app-protocol HTTPS", "https"),
        ("-P h2c", "h2c"),
        ("--protocol gRPC", "grpc"),
        ("--app-protocol grpcs", "grpcs"),
        ("--app-ssl", "https"),
        ("--app-protocol https --app-ssl", "https"),
        ("--app-protocol grpc --app-ssl", "grpcs"),
        ("--app-protocol h2c --app-ssl", "h2c"),
    ],
)
def test_protocols_of_the_application(words: str, protocol: str) -> None:
    """In any case of letters; the old switch adds TLS to what may have it."""
    (config,), _, _ = parse_gateway(shlex.split(f"--app-id a {words}"), _ENVIRON)
    assert config.app_protocol == protocol


def test_options_without_effect_are_said() -> None:
    found = run_parser().parse(["--dapr-internal-grpc-port", "1", "--enable-profiling", "--app-id", "a"])
    assert warnings_about(found) == [
        "--dapr-internal-grpc-port has no effect: gateways talk over the broker, never to each other",
        "--enable-profiling has no effect: there is no profiling endpoint",
    ]


def test_gateway_flags_become_its_configuration() -> None:
    line = (
        "--app-id orders --app-port 3000 --app-protocol https --app-channel-address 10.0.0.1 --app-max-concurrency 5"
        " --enable-app-health-check --app-health-check-path live --app-health-probe-interval 3"
        " --app-health-probe-timeout 250 --app-health-threshold 2 --dapr-http-port 3501 --dapr-grpc-port 3502"
        " --app-binding-options-timeout 1500ms"
        " --dapr-listen-addresses '[::1],127.0.0.1' --max-body-size 16Mi --read-buffer-size 8Ki"
        " --allowed-origins https://a.example,https://b.example --resources-path r --resources-path s --config c"
        " --log-level warn --log-as-json --enable-api-logging --dapr-graceful-shutdown-seconds 9"
        " --disable-init-endpoints subscribe --label appCommand=node"
    )
    environ = {
        "MESH_HOME": "/home/mesh",
        "NAMESPACE": "shop",
        "MESH_BACKBONE": "nats://b",
        "DAPR_API_TOKEN": "t",
        "APP_API_TOKEN": "u",
        "DAPR_HTTP_PORT": "1",
    }
    (config,), _, warnings = parse_gateway(shlex.split(line), environ)
    assert warnings == []
    assert config == GatewayConfig(
        app_id="orders",
        home=Path("/home/mesh"),
        app_port=3000,
        app_host="10.0.0.1",
        app_protocol="https",
        app_max_concurrency=5,
        app_health=HealthCheck("/live", 3, 0.25, 2),
        app_binding_seconds=1.5,
        http_port=3501,
        grpc_port=3502,
        listen=("::1", "127.0.0.1"),
        max_body_bytes=16 * 1024 * 1024,
        max_header_bytes=8 * 1024,
        allowed_origins=("https://a.example", "https://b.example"),
        resource_paths=(Path("r"), Path("s")),
        configuration_files=(Path("c"),),
        namespace="shop",
        backbone="nats://b",
        drain=9.0,
        log_level="warning",
        log_json=True,
        api_logging=True,
        tokens=Tokens("t", "u"),
        init_endpoints_off=frozenset({"subscribe"}),
        labels={"appCommand": "node"},
    )


@pytest.mark.parametrize("address", ["::1", "[::1]"])
def test_addresses_of_ipv6_stand_with_brackets_or_without(address: str) -> None:
    config = gateway_config(
        GatewayOptions(app_id="a", app_channel_address=address, dapr_listen_addresses=address), _ENVIRON
    )
    assert (config.app_host, config.listen) == ("[::1]", ("::1",))


@pytest.mark.parametrize(
    ("value", "spoken"),
    [
        (None, True),
        ("", True),
        ("false", True),
        ("0", True),
        ("true", False),
        ("YES", False),
        ("1", False),
        ("on", False),
    ],
)
def test_http_2_can_be_switched_off(value: str | None, spoken: bool) -> None:
    environ = _ENVIRON if value is None else {**_ENVIRON, "DAPR_HTTP_DISABLE_H2C": value}
    assert gateway_config(GatewayOptions(app_id="a"), environ).h2c is spoken


def test_name_of_daprd_before_its_options_is_left_out() -> None:
    (config,), _, _ = parse_gateway(["./daprd", "-app-id", "x", "-app-port", "80"], _ENVIRON)
    assert (config.app_id, config.app_port) == ("x", 80)


def test_defaults_are_those_of_the_gateway() -> None:
    config = gateway_config(GatewayOptions(app_id="a"), _ENVIRON)
    assert config == GatewayConfig(app_id="a", home=Path("/home/mesh"))


@pytest.mark.parametrize(("given", "expected"), [(None, 0), (-1, 0), (0, 0), (3500, 3500)])
def test_run_picks_a_free_port_unless_one_is_given(given: int | None, expected: int) -> None:
    options = GatewayOptions(app_id="a", dapr_http_port=given, dapr_grpc_port=given)
    config = gateway_config(options, _ENVIRON, default_http_port=0)
    assert (config.http_port, config.grpc_port) == (expected, expected)


def test_all_wrong_values_are_reported_together() -> None:
    options = GatewayOptions(
        app_id="a.b",
        app_port=70000,
        app_protocol="tcp",
        max_body_size="big",
        log_level="loud",
        disable_init_endpoints="config,x",
        enable_app_health_check=True,
        app_health_probe_interval=1,
        app_health_probe_timeout=2000,
        app_health_threshold=0,
        app_binding_options_timeout="0s",
        app_channel_address="a..b",
        dapr_listen_addresses="127.0.0.1,.x",
        resources_path=("r", ""),
        config=(" ",),
    )
    with pytest.raises(ConfigError) as caught:
        twice = {"DAPR_API_TOKEN": "t", "DAPR_API_TOKEN_FILE": "f"}
        gateway_config(options, {**_ENVIRON, **twice, "DAPR_HTTP_DISABLE_H2C": "perhaps"})
    assert sorted(problem.path for problem in caught.value.problems) == [
        "--app-binding-options-timeout",
        "--app-channel-address",
        "--app-health-probe-timeout",
        "--app-health-threshold",
        "--app-id",
        "--app-port",
        "--app-protocol",
        "--config",
        "--dapr-listen-addresses",
        "--disable-init-endpoints",
        "--log-level",
        "--max-body-size",
        "--resources-path",
        "DAPR_API_TOKEN_FILE",
        "DAPR_HTTP_DISABLE_H2C",
    ]


def test_every_field_of_the_configuration_can_be_said() -> None:
    """A field that is added to `GatewayConfig` has to be filled by `gateway_config`, or named here."""
    from inspect import getsource

    told = getsource(gateway_config)
    unsaid = {each.name for each in dataclasses.fields(GatewayConfig) if f"{each.name}=" not in told}
    assert unsaid == {"bridge", "dashboard", "host_only", "registered"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "there is no command to run"),
        ("-k node app.js", "in a cluster, applications of a template are run: mesh run -k -f FILE"),
        ("-f dapr.yaml node app.js", "'node' has no place beside -f"),
    ],
)
def test_run_refuses_what_makes_no_sense(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(shlex.split(line), _ENVIRON)


def test_run_refuses_one_port_for_both() -> None:
    with pytest.raises(ConfigError, match="--app-port: 3000 is the --dapr-http-port as well"):
        plan(shlex.split("--app-id a -p 3000 -H 3000 node"), _ENVIRON)


def test_run_takes_a_gateway_alone_by_its_name() -> None:
    (spec,) = plan(["--app-id", "myapp", "--dapr-http-port", "3500"], _ENVIRON)
    assert (spec.app_id, spec.command, spec.config.http_port) == ("myapp", (), 3500)


def test_options_beside_a_template_have_no_effect_and_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dapr.yaml").write_text(
        "version: 1\ncommon: {resourcesPath: .}\napps:\n"
        "  - {appID: one, appDirPath: ., appProtocol: h2c, daprHTTPMaxRequestSize: 16, command: [sh]}\n"
        "  - {appID: two, appDirPath: ., daprHTTPReadBufferSize: 64, maxBodySize: 1Mi, command: [sh]}\n"
        "  - {appID: three, appDirPath: ., daprHTTPMaxRequestSize: -1, command: [sh]}\n"
    )
    specs = plan(["-f", str(tmp_path), "--app-id", "x", "--log-as-json"], _ENVIRON)
    assert [(spec.config.max_body_bytes, spec.config.max_header_bytes) for spec in specs] == [
        (16 * 1024 * 1024, 16 * 1024),
        (1024 * 1024, 64 * 1024),
        (4 * 1024 * 1024, 16 * 1024),
    ]
    assert capsys.readouterr().err.splitlines() == [
        "warning: --app-id: without effect beside -f; the template says it for each application",
        "warning: daprHTTPMaxRequestSize is an old name; use maxBodySize, such as 16Mi",
        "warning: daprHTTPReadBufferSize is an old name; use readBufferSize, such as 64Ki",
        "warning: resourcesPath is an old name; use resourcesPaths",
    ]


def test_as_dapr_old_fields_of_a_template_are_not_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files that are written for it have them."""
    monkeypatch.setenv("MESH_OUTPUT", "dapr")
    (tmp_path / "dapr.yaml").write_text(
        "version: 1\ncommon: {resourcesPath: .}\napps: [{appID: one, appDirPath: ., command: [sh]}]\n"
    )
    assert plan(["-f", str(tmp_path)], _ENVIRON)
    assert capsys.readouterr().err == ""


def test_run_names_an_application_that_has_no_name() -> None:
    (spec,) = plan(["node", "app.js"], _ENVIRON)
    assert "-" in spec.app_id
    assert spec.command == ("node", "app.js")


def test_run_refuses_resources_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="nowhere: there is no such file or folder"):
        plan(["--resources-path", "nowhere", "node"], _ENVIRON)


@pytest.mark.parametrize(
    ("line", "app_id", "app_port", "http_port", "command"),
    [
        ("--app-id nodeapp --app-port 3000 --port 3500 node app.js", "nodeapp", 3000, 3500, "node app.js"),
        ("--app-id pythonapp python app.py", "pythonapp", None, 0, "python app.py"),
        ("--app-id nodeapp --app-port 3000 --dapr-http-port 3500 -- node app.js", "nodeapp", 3000, 3500, "node app.js"),
        ("node app.js --app-id proc --app-port 3002 --protocol http --port 3500", "proc", 3002, 3500, "node app.js"),
        ("--app-id orders --app-port 7005 --app-protocol http -- python3 app.py", "orders", 7005, 0, "python3 app.py"),
    ],
)  # fmt: skip
def test_lines_of_tutorials_are_understood(
    line: str, app_id: str, app_port: int | None, http_port: int, command: str
) -> None:
    (spec,) = plan(shlex.split(line), _ENVIRON)
    assert (spec.app_id, spec.config.app_port, spec.config.http_port) == (app_id, app_port, http_port)
    assert spec.command == tuple(command.split())


@pytest.mark.parametrize("by", ["option", "variable"])
@pytest.mark.parametrize("mode", ["permissive", "strict", "off"])
def test_sealing_is_an_option_of_identities(by: str, mode: str) -> None:
    environ = _ENVIRON if by == "option" else {**_ENVIRON, "MESH_TRUST_SEAL": "true"}
    options = GatewayOptions(app_id="a", trust_mode=mode, trust_seal=by == "option")
    if mode == "off":
        with pytest.raises(ConfigError, match="--trust-seal: it needs identities"):
            gateway_config(options, environ)
        return
    trust = gateway_config(options, environ).trust
    assert trust is not None
    assert (trust.mode, trust.seal) == (mode, True)
    plain = gateway_config(replace(options, trust_seal=False), _ENVIRON).trust
    assert plain is not None
    assert not plain.seal
