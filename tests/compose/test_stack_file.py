"""What compose.yaml and the Dockerfile promise, as far as it can be read from them; no engine is needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.dashboard import TOKEN_VARIABLE, configured, parser
from mesh.resources.loader import load_resources
from tests.compose.engine import BROKERS, GATEWAY, ROOT, THIN, read_stack

SERVICES: dict[str, dict[str, Any]] = read_stack()["services"]
APPLICATIONS = ("nodeapp", "pythonapp")
# They end by themselves.
ONCE = {"nats-volume", "redis-volume", "postgres-volume", "cache-volume"}
# They do nothing, or nothing that could be asked for.
UNCHECKED = ONCE | {"nodeapp-pod", "pythonapp-pod", "pythonapp"}
# They write their settings at start.
WRITABLE = {"rabbitmq", "kafka"}
OURS = {GATEWAY, THIN}
DATABASES = {"postgres", "cache"}
PASSWORDS = {"POSTGRES_PASSWORD", "REDIS_PASSWORD"}


def in_profile(broker: str) -> set[str]:
    return {name for name, service in SERVICES.items() if broker in service.get("profiles", [broker])}


@pytest.fixture(params=sorted(SERVICES))
def name(request: pytest.FixtureRequest) -> str:
    given: str = request.param
    return given


def test_service_is_confined(name: str) -> None:
    """No container has privileges, or a root filesystem that it may write to without a reason."""
    service = SERVICES[name]
    assert not {"privileged", "devices", "pid", "ipc", "userns_mode"} & service.keys()
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("cap_add", []) == (["CHOWN"] if name in ONCE else [])
    assert service["read_only"] is (name not in WRITABLE)
    assert service.get("network_mode") != "host"


def test_service_does_not_run_as_root(name: str) -> None:
    """Only what gives a volume its owner is root; the gateway's user is set by its image."""
    service = SERVICES[name]
    if service["image"] in OURS:
        assert "user" not in service
    else:
        assert (service["user"] == "0:0") is (name in ONCE)


def test_service_comes_back(name: str) -> None:
    """A container that dies is started again."""
    assert SERVICES[name]["restart"] == ("no" if name in ONCE else "unless-stopped")


def test_service_has_a_health_check(name: str) -> None:
    """A container says whether it is well; the gateway's check is in its image."""
    service = SERVICES[name]
    checked = "healthcheck" in service or service["image"] in OURS
    assert checked is (name not in UNCHECKED)


def test_ports_are_published_to_this_machine_only(name: str) -> None:
    """Nobody else reaches what is published."""
    assert all(str(port).startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_images_are_pinned(name: str) -> None:
    """A public image has a version."""
    image = SERVICES[name]["image"]
    assert image in OURS or re.fullmatch(r"\S+:\d\S*", image)


def test_nothing_of_the_engine_is_mounted(name: str) -> None:
    """What is mounted is a volume, or an example that can not be written to."""
    for mount in SERVICES[name].get("volumes", []):
        source, _, rest = mount.partition(":")
        assert source in read_stack()["volumes"] or (source.startswith("./examples/") and rest.endswith(":ro"))


@pytest.mark.parametrize("broker", BROKERS)
def test_profile_is_a_whole_mesh(broker: str) -> None:
    """Each application has one gateway in its own network namespace, which waits for the one broker."""
    there = in_profile(broker)
    assert there & BROKERS.keys() == {broker}
    gateways = {name for name in there if SERVICES[name]["image"] in OURS}
    assert gateways == {f"{app}-gateway-{broker}" for app in APPLICATIONS}
    for app in APPLICATIONS:
        gateway = SERVICES[f"{app}-gateway-{broker}"]
        assert gateway["network_mode"] == SERVICES[app]["network_mode"] == f"service:{app}-pod"
        assert f"--app-id={app}" in gateway["command"]
        assert gateway["depends_on"][broker] == {"condition": "service_healthy"}
        assert gateway["environment"]["MESH_BACKBONE"].startswith(f"{BROKERS[broker]}://")
    assert SERVICES[broker]["networks"] == ["backbone"]
    assert any(mount.startswith(f"{broker}:") for mount in SERVICES[broker]["volumes"])


def test_a_host_has_what_it_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a profile of its own; what it answers for is mounted and let out, and its databases start before it."""
    host = SERVICES["host"]
    assert (host["image"], host["entrypoint"], host["profiles"]) == (GATEWAY, ["mesh", "host"], ["host"])
    assert "--dapr-http-port=3500" in host["command"], "the health check of the image asks there"
    [resources] = (volume.split(":")[:2] for volume in host["volumes"])
    assert f"--resources-path={resources[1]}" in host["command"]
    settings = {"ledger": "connectionString", "cache": "redisHost", "locks": "redisHost"}
    servers = {"ledger": "host=postgres ", "cache": "cache:6379", "locks": "cache:6379"}
    for variable in PASSWORDS:
        monkeypatch.setenv(variable, "hidden")
    components = load_resources([ROOT / resources[0]]).components
    assert {component.name for component in components} == settings.keys()
    for component in components:
        assert (component.placement, component.scopes) == (None, ("nodeapp",))
        assert (component.setting(settings[component.name]) or "").startswith(servers[component.name])
    assert host["depends_on"] == {name: {"condition": "service_healthy"} for name in ("nats", *DATABASES)}
    for database in DATABASES:
        assert SERVICES[database]["profiles"] == ["host"]
        assert any(mount.startswith(f"{database}:") for mount in SERVICES[database]["volumes"])


def test_the_host_alone_has_drivers_passwords_and_databases() -> None:
    """Gateways over NATS have the image without drivers; none has a database's password, or shares its network."""
    assert {each for each in SERVICES if "stores" in SERVICES[each].get("networks", [])} == {"host", *DATABASES}
    assert all(SERVICES[database]["networks"] == ["stores"] for database in DATABASES)
    assert read_stack()["networks"]["stores"] == {"internal": True}
    for app in APPLICATIONS:
        gateway = SERVICES[f"{app}-gateway-nats"]
        assert (gateway["image"], gateway["build"]) == (THIN, {"context": ".", "target": "thin"})
        assert gateway["environment"] == {"MESH_BACKBONE": "nats://nats:4222"}
        assert "volumes" not in gateway
    for name, service in SERVICES.items():
        known = {variable for variable in PASSWORDS if variable in str(service)}
        assert not known or name in {"host", *DATABASES}
    assert all(f"${{{variable}:-mesh}}" == SERVICES["host"]["environment"][variable] for variable in PASSWORDS)


def test_the_dashboard_is_for_who_knows_its_token(tmp_path: Path) -> None:
    """A profile of its own; it listens for others, so nobody gets in without the token; its health is asked for."""
    service = SERVICES["dashboard"]
    assert (service["image"], service["entrypoint"], service["profiles"]) == (
        THIN,
        ["mesh", "dashboard"],
        ["dashboard"],
    )
    [port] = service["ports"]
    environ = {"MESH_HOME": str(tmp_path), TOKEN_VARIABLE: "", "MESH_BACKBONE": service["environment"]["MESH_BACKBONE"]}
    config = configured(parser().parse(service["command"]), environ)
    assert config.dashboard is not None
    assert config.dashboard.token == config.tokens.api is not None
    assert (config.listen, config.http_port) == (("0.0.0.0",), int(port.rpartition(":")[2]))
    assert f"'127.0.0.1', {config.http_port}," in service["healthcheck"]["test"][-1]
    assert "volumes" not in service
    assert service["environment"][TOKEN_VARIABLE] == "${MESH_DASHBOARD_TOKEN:-}"


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_gateways_share_a_folder_where_the_broker_keeps_no_state(broker: str) -> None:
    """Their state outlives them, and one reads what the other has written; that they are on one machine is said."""
    for app in APPLICATIONS:
        assert SERVICES[f"{app}-gateway-{broker}"]["volumes"] == [f"{broker}-state:/var/lib/mesh/state"]
        assert SERVICES[f"{app}-gateway-{broker}"]["environment"]["MESH_SINGLE_HOST"] == "true"


def test_dependencies_are_in_the_same_profile() -> None:
    """What a service waits for is started with it."""
    for broker in BROKERS:
        there = in_profile(broker)
        assert all(set(SERVICES[name].get("depends_on", {})) <= there for name in there)


def test_brokers_reach_nothing_outside() -> None:
    """Their network has no way out."""
    assert read_stack()["networks"]["backbone"] == {"internal": True}


def test_a_profile_is_the_default() -> None:
    """Without a word, there is a broker."""
    settings = dict(re.findall(r"^(\w+)=(.*)$", (ROOT / ".env").read_text(encoding="utf-8"), re.MULTILINE))
    assert settings == {"COMPOSE_PROFILES": "nats"}


def test_image_is_of_the_gateway_alone() -> None:
    """Its user is not root, its base has a version, and nothing goes through a shell."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r"ARG BASE=python:\d+\.\d+-slim", next(line for line in lines if line.startswith("ARG")))
    stages = [line for line in lines if line.startswith("FROM")]
    assert stages == [
        *("FROM ${BASE} AS thin-base", "FROM thin-base AS thin-build", "FROM ${BASE} AS shell", "FROM shell AS thin"),
        *("FROM thin-base AS base", "FROM base AS build", "FROM shell"),
    ]
    assert all(line.startswith("RUN [") for line in lines if line.startswith("RUN"))
    assert 'ENTRYPOINT ["mesh", "gateway"]' in lines
    user = next(line for line in lines if line.startswith("USER"))
    assert int(user.split()[1].partition(":")[0]) > 0


def test_image_is_built_from_the_packages_alone() -> None:
    """Tests, examples and settings of a developer do not get into it."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    assert kept == {"pyproject.toml", "README.md", "LICENSE", "mesh", "brokers", "bindings", "gateway"}
