"""Several applications of one gateway process, as they are told on the command line and in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli.serve import parse_gateway
from gateway.config import GatewayConfig, sharing
from mesh.errors import ConfigError

CASES = {
    "ports follow each other": (
        ["--app", "a=3000", "--app", "b=3001"],
        [("a", 3000, 3500, 50001), ("b", 3001, 3501, 50002)],
    ),
    "from the first ones that are given": (
        ["--app", "a=3000", "--app", "b=3001", "-H", "4000", "-G", "5000"],
        [("a", 3000, 4000, 5000), ("b", 3001, 4001, 5001)],
    ),
    "ports of its own": (
        ["--app", "a=3000,http-port=3700,grpc-port=3701", "--app", "b"],
        [("a", 3000, 3700, 3701), ("b", None, 3501, 50002)],
    ),
    "ports of its own that are the first ones": (
        ["--app", "a=3000,http-port=3501", "--app", "b=3001,http-port=3500", "-H", "3500"],
        [("a", 3000, 3501, 50001), ("b", 3001, 3500, 50002)],
    ),
    "free ones": (["--app", "a=1", "--app", "b=2", "-H", "0", "-G", "0"], [("a", 1, 0, 0), ("b", 2, 0, 0)]),
    "one application": (["--app", "a=3000"], [("a", 3000, 3500, 50001)]),
}


def configs(*words: str, environ: dict[str, str] | None = None) -> list[GatewayConfig]:
    return parse_gateway(words, environ or {})[0]


@pytest.mark.parametrize("case", CASES)
def test_ports(case: str) -> None:
    words, wanted = CASES[case]
    found = configs(*words)
    assert [(each.app_id, each.app_port, each.http_port, each.grpc_port) for each in found] == wanted


def test_options_of_one_and_of_all(tmp_path: Path) -> None:
    """Any option of a gateway, by its long name; what stands beside ``--app`` counts for all."""
    own = f"a=3000,app-protocol=h2c,app-max-concurrency=4,namespace=east,enable-app-health-check,config={tmp_path}/c"
    first, second = configs(
        *("--app", own, "--app", "b=3001", "--config", "all.yaml", "--app-protocol", "grpc", "--log-level", "debug"),
        environ={"NAMESPACE": "west"},
    )
    assert (first.app_protocol, first.app_max_concurrency, first.namespace) == ("h2c", 4, "east")
    assert first.configuration_files == (Path("all.yaml"), tmp_path / "c")
    assert first.app_health is not None
    assert (second.app_protocol, second.app_max_concurrency, second.namespace) == ("grpc", None, "west")
    assert second.configuration_files == (Path("all.yaml"),)
    assert second.app_health is None
    assert (first.log_level, second.log_level) == ("debug", "debug")


def test_one_port(tmp_path: Path) -> None:
    """Those that name the same port share it, and that of gRPC, and are told apart by their tokens."""
    words = []
    for name in "ab":
        (tmp_path / name).write_text(f"token-{name}\n")
        words += ["--app", f"{name}=3000,http-port=3500,api-token-file={tmp_path / name}"]
    found = configs(*words, "--app", "c=3002")
    assert [(each.http_port, each.grpc_port) for each in found] == [(3500, 50001), (3500, 50001), (3502, 50003)]
    assert [[each.app_id for each in group] for group in sharing(found)] == [["a", "b"]]


def test_of_a_file(tmp_path: Path) -> None:
    """The template of ``mesh run -f``: its commands are not started, and variables are those that a gateway reads."""
    (tmp_path / "apps.yaml").write_text(
        """
version: 1
common: {appProtocol: http}
apps:
  - {appID: a, appDirPath: ., appPort: 3000, daprHTTPPort: 3600, command: [no-such-program]}
  - {appID: b, appDirPath: ., appPort: 3001, env: {APP_API_TOKEN: secret, NAMESPACE: east}}
"""
    )
    found, _, warnings = parse_gateway(["--apps", str(tmp_path / "apps.yaml"), "--app", "c=3002"], {})
    assert [(each.app_id, each.http_port) for each in found] == [("c", 3500), ("a", 3600), ("b", 3502)]
    assert (found[2].tokens.app, found[2].namespace, found[1].tokens.app) == ("secret", "east", None)
    assert warnings == []


REFUSED = {
    "no port": (["--app", "a=x"], "the port is"),
    "no option": (["--app", "a=1,http-prt=3"], "did you mean"),
    "a port that stands elsewhere": (["--app", "a,app-port=3"], "both stand before the first comma: ID=PORT"),
    "workers of one": (["--app", "a=1,workers=3"], "--workers stands beside --app"),
    "no value": (["--app", "a=1,app-protocol"], "needs a value"),
    "an option of the process": (["--app", "a=1,metrics-port=3"], "no option 'metrics-port' of one application"),
    "a wrong value": (["--app", "a=1,app-protocol=ftp"], "'ftp' is not supported"),
    "an id beside it": (["--app", "a=1", "--app-id", "b"], "each has its id and port there"),
    "twice": (["--app", "a=1", "--app", "a=2"], "a is there 2 times"),
    "one port twice": (["--app", "a=1,grpc-port=7", "--app", "b=2,grpc-port=7"], "port 7 is used 2 times"),
    "one port without tokens": (["--app", "a=1,http-port=7", "--app", "b=2,http-port=7"], "needs an API token"),
    "no name": (["--app", "=3000"], "app-id"),
    "no workers": (["--app-id", "a", "--workers", "0"], "expected a number from 1 to"),
    "too many workers": (["--app-id", "a", "--workers", "65"], "expected a number from 1 to"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    words, told = REFUSED[case]
    with pytest.raises(ConfigError) as error:
        configs(*words)
    assert told in "\n".join(map(str, error.value.problems))


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        configs("--app", "a=1,app-protocol=ftp", "--app", "b=2,max-body-size=much")
    assert [each.path for each in error.value.problems] == ["--app a: --app-protocol", "--app b: --max-body-size"]
