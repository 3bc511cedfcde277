"""Which words of ``mesh run`` are options and which are the command, and what options mean."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest

from gateway.cli.configure import gateway_config
from gateway.cli.options import FLAGS, IGNORED, GatewayOptions, to_arguments
from gateway.cli.parsing import Parser, UsageError, add_gateway_flags, gateway_options, ignored_warnings, split_command
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
        # From the first word that is no option, all is the command's, also what looks like an option of ours.
        ("node app.js --port 80 -p 3 --log-level z", "", "node app.js --port 80 -p 3 --log-level z"),
        ("-a x python -c 'print(1)'", "-a x", "python -c 'print(1)'"),
        ("-a x npm start -- --port 3", "-a x", "npm start -- --port 3"),
        # What no other program has may follow, and then all that follows is ours.
        ("node a.js --app-id a --protocol http --port 3500", "--app-id a --protocol http --port 3500", "node a.js"),
        ("-a x node app.js --resources-path r", "-a x --resources-path r", "node app.js"),
        ("node --inspect app.js --app-id=a", "--app-id=a", "node --inspect app.js"),
        # Behind '--' nothing is ours.
        ("-- node app.js --app-id a", "", "node app.js --app-id a"),
        ("-a x npm start -- --app-id a", "-a x", "npm start -- --app-id a"),
        # No effect, but a value.
        ("--dapr-internal-grpc-port 50002 node", "--dapr-internal-grpc-port 50002", "node"),
        ("--placement-host-address localhost:6050 node", "--placement-host-address localhost:6050", "node"),
        # Unknown ones are left to the parser, which refuses them.
        ("--nonsense node app.js", "--nonsense", "node app.js"),
    ],
)  # fmt: skip
def test_command_begins_where_options_end(line: str, own: str, command: str) -> None:
    assert split_command(shlex.split(line), _OWN) == (shlex.split(own), shlex.split(command))


@pytest.mark.parametrize(
    "line", ["node app.js --app-id a extra", "node app.js --app-id", "node --app-port 3000 --what 5"]
)
def test_words_after_trailing_options_are_refused(line: str) -> None:
    with pytest.raises(UsageError, match="stands after the command"):
        split_command(shlex.split(line), _OWN)


def _parsed(line: str) -> GatewayOptions:
    parser = Parser("mesh gateway")
    add_gateway_flags(parser)
    return gateway_options(parser.parse(shlex.split(line)))


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
    ("line", "message"),
    [
        ("--app-prot 3", "unknown option --app-prot; did you mean --app-port?"),
        ("--app-port x", "argument --app-port/-p: invalid int value: 'x'"),
        ("--app-id", "argument --app-id/-a: expected one argument"),
        ("--app-ssl=perhaps", "--app-ssl: not a boolean: 'perhaps' ('true' or 'false')"),
        ("surplus", "unexpected 'surplus'"),
    ],
)
def test_wrong_words_are_refused_in_one_line(line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        _parsed(line)
    assert str(caught.value) == message


def test_options_without_effect_are_said() -> None:
    found = run_parser().parse(["--dapr-internal-grpc-port", "1", "--enable-profiling", "--app-id", "a"])
    assert ignored_warnings(found) == [
        "--dapr-internal-grpc-port has no effect: gateways talk over the broker, never to each other",
        "--enable-profiling has no effect: there is no profiling endpoint",
    ]


def test_gateway_flags_become_its_configuration() -> None:
    line = (
        "--app-id orders --app-port 3000 --app-protocol https --app-channel-address 10.0.0.1 --app-max-concurrency 5"
        " --enable-app-health-check --app-health-check-path live --app-health-probe-interval 3"
        " --app-health-probe-timeout 250 --app-health-threshold 2 --dapr-http-port 3501 --dapr-grpc-port 3502"
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
    config, warnings = parse_gateway(shlex.split(line), environ)
    assert warnings == []
    assert config == GatewayConfig(
        app_id="orders",
        home=Path("/home/mesh"),
        app_port=3000,
        app_host="10.0.0.1",
        app_protocol="https",
        app_max_concurrency=5,
        app_health=HealthCheck("/live", 3, 0.25, 2),
        http_port=3501,
        grpc_port=3502,
        listen=("[::1]", "127.0.0.1"),
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
        app_protocol="grpc",
        max_body_size="big",
        log_level="loud",
        disable_init_endpoints="config,x",
        enable_app_health_check=True,
        app_health_probe_interval=1,
        app_health_probe_timeout=2000,
        app_health_threshold=0,
    )
    with pytest.raises(ConfigError) as caught:
        gateway_config(options, _ENVIRON)
    assert sorted(problem.path for problem in caught.value.problems) == [
        "--app-health-probe-timeout",
        "--app-health-threshold",
        "--app-id",
        "--app-port",
        "--app-protocol",
        "--disable-init-endpoints",
        "--log-level",
        "--max-body-size",
    ]


def test_every_field_of_the_configuration_can_be_said() -> None:
    """A field that is added to `GatewayConfig` has to be filled by `gateway_config`, or named here."""
    from inspect import getsource

    told = getsource(gateway_config)
    unsaid = {each.name for each in dataclasses.fields(GatewayConfig) if f"{each.name}=" not in told}
    assert unsaid == {"host_only", "registered"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "there is no command to run"),
        ("-k node app.js", "Kubernetes is not supported"),
        ("-f dapr.yaml node app.js", "'node' has no place beside -f"),
        ("-f dapr.yaml --app-id x", "'--app-id' has no place beside -f"),
    ],
)
def test_run_refuses_what_makes_no_sense(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(shlex.split(line), _ENVIRON)


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
