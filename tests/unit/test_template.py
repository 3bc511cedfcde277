"""The multi-app template: what it resolves to, and where its problems are."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from gateway.cli.app_spec import AppSpec
from gateway.cli.output import LogTarget
from gateway.cli.template import load_template, read_template, template_path
from mesh.errors import ConfigError, Problem
from mesh.resources.loader import is_run_file

EXAMPLES = Path(__file__).parents[2] / "examples"


def _load(path: Path, warnings: list[Problem] | None = None) -> list[AppSpec]:
    (document,) = read_template(path)
    return load_template(document, path, {"MESH_HOME": "/home/mesh"}, [] if warnings is None else warnings)


def _written(directory: Path, text: str) -> Path:
    for name in ("orders", "stock"):
        (directory / name).mkdir(exist_ok=True)
    path = directory / "dapr.yaml"
    path.write_text(text)
    return path


def test_template_with_every_field_is_taken_as_it_is(tmp_path: Path) -> None:
    for name in ("common-resources", "more", "orders/own", "orders/old"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "common.yaml").touch()
    path = _written(
        tmp_path,
        """\
version: 1
name: shop
common:
  resourcesPaths: [./common-resources]
  resourcesPath: more
  configFilePath: common.yaml
  appProtocol: https
  apiListenAddresses: 127.0.0.1
  appMaxConcurrency: 3
  appSSL: false
  logLevel: debug
  enableApiLogging: true
  enableProfiling: true
  placementHostAddress: localhost:50005
  schedulerHostAddress: localhost:50006
  maxBodySize: 8Mi
  readBufferSize: 8Ki
  enableAppHealthCheck: true
  appHealthCheckPath: /live
  appHealthProbeInterval: 3
  appHealthProbeTimeout: 300
  appHealthThreshold: 2
  runtimePath: /nowhere
  env: {BOTH: common, NUMBER: 5, COMMON: "yes"}
  daprdLogDestination: console
apps:
  - appID: orders
    appDirPath: ./orders
    appPort: 6001
    daprHTTPPort: 3501
    daprGRPCPort: 50001
    daprInternalGRPCPort: 50002
    metricsPort: 9091
    profilePort: 7778
    appChannelAddress: localhost
    unixDomainSocket: /tmp/sockets
    resourcesPaths: [own]
    resourcesPath: old
    logLevel: warn
    env: {BOTH: app}
    command: ["python3", "app.py", 5]
    appLogDestination: file
    containerImage: orders:1
    containerImagePullPolicy: Never
    createService: true
  - appDirPath: stock
    daprHTTPPort: -1
""",
    )
    orders, stock = _load(path)
    assert orders.command == ("python3", "app.py", "5")
    assert orders.directory == tmp_path / "orders"
    assert orders.environment == {"BOTH": "app", "NUMBER": "5", "COMMON": "yes"}
    config = orders.config
    assert (config.app_id, config.app_port, config.http_port, config.grpc_port) == ("orders", 6001, 3501, 50001)
    assert config.resource_paths == (tmp_path / "orders/own", tmp_path / "orders/old")
    assert config.configuration_files == (tmp_path / "common.yaml",)
    assert (config.app_protocol, config.app_host, config.app_max_concurrency) == ("https", "localhost", 3)
    assert (config.max_body_bytes, config.max_header_bytes) == (8 * 1024 * 1024, 8 * 1024)
    assert (config.log_level, config.api_logging) == ("warning", True)
    assert config.app_health is not None
    assert (config.app_health.path, config.app_health.interval, config.app_health.timeout) == ("/live", 3, 0.3)
    assert config.unix_socket_dir == Path("/tmp/sockets")
    assert orders.gateway_log == LogTarget(console=True, file=None)
    assert orders.app_log.file is not None
    assert not orders.app_log.console
    assert re.fullmatch(r"orders_app_\d{14}\.log", orders.app_log.file.name)
    assert orders.app_log.file.parent == tmp_path / "orders/.dapr/logs"
    assert orders.labels["runTemplatePath"] == str(path)
    assert orders.labels["runTemplateName"] == "shop"
    assert orders.labels["appLogPath"] == str(orders.app_log.file)
    assert orders.labels["daprdLogPath"] == ""
    # The name of its folder, a free port, and what is common.
    assert (stock.app_id, stock.config.http_port, stock.config.app_port) == ("stock", 0, None)
    assert stock.config.resource_paths == (tmp_path / "common-resources", tmp_path / "more")
    assert stock.config.log_level == "debug"
    assert stock.command == ()


def test_logs_go_to_files_and_the_console_by_default(tmp_path: Path) -> None:
    (spec,) = _load(_written(tmp_path, "version: 1\napps: [{appDirPath: orders, command: [x]}]\n"))
    assert spec.app_log.console
    assert spec.app_log.file is not None
    assert not spec.gateway_log.console
    assert spec.gateway_log.file is not None
    assert "_daprd_" in spec.gateway_log.file.name
    assert spec.labels["daprdLogPath"] == str(spec.gateway_log.file)


def test_folder_of_the_application_comes_before_common(tmp_path: Path) -> None:
    (tmp_path / "orders/.dapr/resources").mkdir(parents=True)
    (tmp_path / "orders/.dapr/config.yaml").touch()
    (tmp_path / "common").mkdir()
    (tmp_path / "common.yaml").touch()
    path = _written(
        tmp_path,
        "version: 1\ncommon: {resourcesPath: common, configFilePath: common.yaml}\n"
        "apps: [{appDirPath: orders}, {appDirPath: stock}]\n",
    )
    orders, stock = _load(path)
    assert orders.config.resource_paths == (tmp_path / "orders/.dapr/resources",)
    assert orders.config.configuration_files == (tmp_path / "orders/.dapr/config.yaml",)
    assert stock.config.resource_paths == (tmp_path / "common",)
    assert stock.config.configuration_files == (tmp_path / "common.yaml",)


_APP = "version: 1\napps:\n  - appDirPath: orders\n"


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["dapr.yaml: is empty; expected one template with 'version' and 'apps'"]),
        ("a: [", ["dapr.yaml:1:5: is not valid YAML: expected the node content, but found '<stream end>'"]),
        ("version: 1\napps: []\n", ["dapr.yaml:2:7: apps: there is no application"]),
        ("apps: []\n", ["dapr.yaml:1:1: version: required field is missing"]),
        ("version: 1\napps:\n  - appID: a\n", ["dapr.yaml:3:5: apps[0].appDirPath: required field is missing"]),
        (
            _APP + "    appPrt: 5\n    comand: [x]\n",
            [
                "dapr.yaml:4:5: apps[0].appPrt: unknown field; did you mean 'appPort'?",
                "dapr.yaml:5:5: apps[0].comand: unknown field; did you mean 'command'?",
            ],
        ),
        (
            _APP + "    appPort: 70000\n    appID: a.b\n",
            [
                "dapr.yaml:4:14: apps[0].appPort: expected a port from 1 to 65535, got the number 70000",
                "dapr.yaml:5:12: apps[0].appID: the app id 'a.b' must not contain dots, slashes, '@', blanks or "
                "control characters",
            ],
        ),
        (_APP + "    appPort: '80'\n", ["dapr.yaml:4:14: apps[0].appPort: expected a port from 1 to 65535, got '80'"]),
        (
            _APP + "    command: node app.js\n",
            ["dapr.yaml:4:14: apps[0].command: expected a list, got 'node app.js'"],
        ),
        (
            _APP + "    appProtocol: tcp\n",
            [
                "dapr.yaml:4:18: apps[0].appProtocol: 'tcp' is not supported; use http, https, h2c, grpc or grpcs",
            ],
        ),
        (
            _APP + "    appLogDestination: files\n",
            [
                "dapr.yaml:4:24: apps[0].appLogDestination: expected 'file', 'console' or 'fileAndConsole',"
                " got 'files'; did you mean 'file'?"
            ],
        ),
        (
            "version: 1\ncommon:\n  maxBodySize: huge\n  logLevel: loud\napps: []\n",
            [
                "dapr.yaml:3:16: common.maxBodySize: not a size: 'huge' (for example '4Mi', '16Ki', '1G' or '1024')",
                "dapr.yaml:4:13: common.logLevel: expected 'debug', 'info', 'warn', 'warning', 'error', 'fatal'"
                " or 'panic', got 'loud'",
            ],
        ),
        ("version: 1\napps:\n  - appDirPath: nowhere\n", ["dapr.yaml:3:17: apps[0].appDirPath: there is no folder *"]),
        (
            _APP + "    resourcesPaths: [nowhere]\n    configFilePath: no.yaml\n",
            [
                "dapr.yaml:4:22: apps[0].resourcesPaths[0]: there is no file or folder *",
                "dapr.yaml:5:21: apps[0].configFilePath: there is no file or folder *",
            ],
        ),
        (
            _APP + "    appID: a\n    appPort: 80\n  - appDirPath: stock\n    appID: a\n    daprHTTPPort: 80\n",
            [
                "dapr.yaml:5:14: apps[0].appPort: the port 80 is used 2 times",
                "dapr.yaml:8:19: apps[1].daprHTTPPort: the port 80 is used 2 times",
            ],
        ),
        (
            _APP + "  - appDirPath: orders\n",
            [
                "dapr.yaml:4:17: apps[1].appDirPath: the app id 'orders', from the folder's name, is another's;"
                " several instances of one say appID"
            ],
        ),
        (
            _APP + "    unixDomainSocket: /s\n  - appDirPath: orders\n    appID: orders\n    unixDomainSocket: /s\n",
            ["dapr.yaml:7:23: apps[1].unixDomainSocket: another instance of 'orders' has its socket there"],
        ),
        (
            _APP + "    env: {A: [x], B: {c: d}}\n    resourcesPaths: [[5]]\n",
            [
                "dapr.yaml:4:14: apps[0].env.A: expected text, got a list",
                "dapr.yaml:4:22: apps[0].env.B: expected text, got a mapping",
                "dapr.yaml:5:21: apps[0].resourcesPaths: expected text, got a list",
            ],
        ),
        (
            "version: 1\ncommon: {env: {A=B: c}}\napps:\n  - appDirPath: orders\n"
            '    env: {"": d, A: "e\\0"}\n    command: [x, "y\\0"]\n  - appDirPath: stock\n',
            [
                "dapr.yaml:6:18: apps[0].command[1]: a program cannot be given the character U+0000",
                "dapr.yaml:2:16: common.env.A=B: a variable cannot be called 'A=B'",
                "dapr.yaml:5:11: apps[0].env.: a variable cannot be called ''",
                "dapr.yaml:5:21: apps[0].env.A: a program cannot be given the character U+0000",
            ],
        ),
        (
            _APP + "    enableAppHealthCheck: true\n    appHealthProbeInterval: 1\n    appHealthProbeTimeout: 1000\n",
            [
                "dapr.yaml:3:5: apps[0]: --app-health-probe-timeout: must be shorter than --app-health-probe-interval",
            ],
        ),
        ("- a\n", ["dapr.yaml:1:1: expected a mapping, got*"]),
        ("foo\n", ["dapr.yaml:1:1: expected a mapping, got*"]),
        ("version: 1\napps: []\n---\nx: 1\n", ["dapr.yaml: holds more than one document*"]),
    ],
)
def test_problems_are_located(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, problems: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    _written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        _load(Path("dapr.yaml"))
    found = [str(problem) for problem in caught.value.problems]
    assert len(found) == len(problems), found
    for each, expected in zip(found, problems, strict=True):
        if expected.endswith("*"):
            assert each.startswith(expected[:-1])
        else:
            assert each == expected


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("", ""),
        ("~", ""),
        ("''", ""),
        ("true", "true"),
        ("yes", "yes"),
        ("8080", "8080"),
        ("1.10", "1.10"),
        ("010", "010"),
        ("1e3", "1e3"),
        ("2024-01-01", "2024-01-01"),
        ("'null'", "null"),
        ("text", "text"),
    ],
)
def test_environment_is_what_stands_there(tmp_path: Path, written: str, value: str) -> None:
    """As the reference gives it; also where an anchor or `common` brings it."""
    path = _written(
        tmp_path,
        f"version: 1\nx-env: &env {{A: {written}}}\ncommon: {{env: {{C: {written}}}}}\n"
        f"apps: [{{appDirPath: orders, env: {{<<: *env, B: {written}}}, command: [x, {written or 'y'}]}}]\n",
    )
    if written == "~":  # An argument that is nothing is none.
        path.write_text(path.read_text().replace("[x, ~]", "[x, y]"))
    (spec,) = _load(path)
    assert spec.environment == {"A": value, "B": value, "C": value}
    assert spec.command == ("x", value if written not in ("", "~") else "y")


def test_one_app_id_is_several_instances(tmp_path: Path) -> None:
    """With ports of their own; each writes log files of its own."""
    text = "version: 1\napps:\n" + "".join(
        f"  - {{appID: a, appDirPath: orders, appPort: {port}, command: [x]}}\n" for port in (6001, 6002)
    )
    one, other = _load(_written(tmp_path, text))
    assert (one.app_id, other.app_id) == ("a", "a")
    assert (one.config.app_port, other.config.app_port) == (6001, 6002)
    assert one.app_log.file != other.app_log.file
    assert one.gateway_log.file != other.gateway_log.file


def test_one_path_needs_no_list(tmp_path: Path) -> None:
    (tmp_path / "resources").mkdir()
    text = "version: 1\ncommon: {resourcesPaths: resources}\napps: [{appDirPath: orders}]\n"
    (spec,) = _load(_written(tmp_path, text))
    assert spec.config.resource_paths == (tmp_path / "resources",)
    with pytest.raises(ConfigError, match=r"dapr\.yaml:2:26: common\.resourcesPaths: there is no file or folder"):
        _load(_written(tmp_path, text.replace("{resourcesPaths: resources}", "{resourcesPaths: nowhere}")))


def test_what_has_no_effect_is_told_once_and_loads(tmp_path: Path) -> None:
    """Strangers, too; keys of the user's own are not mentioned."""
    warnings: list[Problem] = []
    text = (
        "version: 1\nx-mine: 1\nenv: {A: b}\ncommon: {schedulerHostAddress: 'localhost:50006', x-note: y}\n"
        + "apps: [{appDirPath: orders, metricsPort: 9090, daprGRPCPort: 50001, enableProfiling: false, colour: red}]\n"
    )
    assert _load(_written(tmp_path, text), warnings)
    found = [str(each).removeprefix(f"{tmp_path}/dapr.yaml:").partition("; known")[0] for each in warnings]
    assert found == [
        "3:1: env: unknown field; its place is 'common.env'",
        "4:10: common.schedulerHostAddress: it has no effect: there is no such service behind the gateway",
        "5:93: apps[0].colour: unknown field",
    ]


def test_path_that_is_wrong_in_common_is_reported_once(tmp_path: Path) -> None:
    path = _written(
        tmp_path, "version: 1\ncommon: {resourcesPath: no}\napps: [{appDirPath: orders}, {appDirPath: stock}]\n"
    )
    with pytest.raises(ConfigError) as caught:
        _load(path)
    assert [problem.path for problem in caught.value.problems] == ["common.resourcesPath"]


def test_folder_stands_for_its_template(tmp_path: Path) -> None:
    assert template_path(str(tmp_path)) == tmp_path / "dapr.yaml"
    assert template_path(str(tmp_path / "x.yaml")) == tmp_path / "x.yaml"
    assert template_path("-") is None


def test_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        read_template(tmp_path / "dapr.yaml")


@pytest.mark.parametrize("name", ["hello-world", "pubsub"])
def test_examples_are_templates(name: str) -> None:
    path = EXAMPLES / name / "dapr.yaml"
    assert is_run_file(read_template(path)[0])
    assert _load(path)
    assert os.path.isabs(_load(path)[0].directory)
