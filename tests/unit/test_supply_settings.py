"""What a gateway is told about the operator that gives it resources, and what it makes of secrets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from gateway.cli.configure import gateway_config
from gateway.cli.options import GatewayOptions
from gateway.cli.several import several
from gateway.config import GatewayConfig, SupplyConfig
from gateway.settings import load_settings
from mesh.errors import ConfigError
from mesh.resources.component import Component, MetadataEntry, SecretRef
from mesh.supply.secrets import SECRETS, marked, secret_of
from mesh.trust.identity import TrustSettings

FOLDER = Path("/var/lib/mesh/supply")
GIVEN = {"MESH_SUPPLY": "mesh-system", "MESH_SUPPLY_ROOTS": "PEM", "POD_NAME": "shop-0", "MESH_HOME": "/home"}


def config(*, resources: tuple[str, ...] = (), configs: tuple[str, ...] = (), **environ: str) -> GatewayConfig:
    options = GatewayOptions(app_id="shop", resources_path=resources, config=configs)
    return gateway_config(options, {**GIVEN, **environ})


def supply(**environ: str) -> SupplyConfig:
    found = config(**environ).supply
    assert found is not None
    return found


def test_without_the_variable_there_is_no_operator() -> None:
    options = GatewayOptions(app_id="shop", config=("seen",))
    found = gateway_config(options, {"MESH_SUPPLY_ROOTS": "PEM", "MESH_SUPPLY": ""})
    assert found.supply is None
    assert found.configuration_files == (Path("seen"),)


def test_what_is_not_said_has_a_default() -> None:
    identity = [FOLDER / "identity" / name for name in ("tls.crt", "tls.key", "ca.crt")]
    trust = TrustSettings("strict", "public", None, *identity)
    token = Path("/var/run/secrets/mesh/token")
    assert supply() == SupplyConfig("mesh-system", FOLDER, token, "PEM", "public", "shop-0", (), trust)
    assert config().trust is None  # Until it is given a certificate.


def test_how_it_proves_who_it_is_can_be_said(tmp_path: Path) -> None:
    given = supply(MESH_TRUST_MODE="permissive", MESH_TRUST_DOMAIN="Example.org", MESH_TRUST_SEAL="true")
    assert given.identified
    assert given.trust is not None
    assert (given.trust.mode, given.trust.trust_domain, given.trust.seal) == ("permissive", "example.org", True)
    assert supply(MESH_TRUST_MODE="off").trust is None
    other = config(MESH_TRUST_DIR=str(tmp_path))
    assert other.supply is not None
    assert other.supply.trust is None
    assert other.trust is not None
    assert other.trust.folder == tmp_path


def test_what_is_supplied_is_no_file_yet() -> None:
    found = config(
        resources=(str(FOLDER), "own"),
        configs=("seen", f"{FOLDER}/configuration-other.yaml", "here/own.yaml", "a.yaml"),
    )
    assert found.supply is not None
    assert found.supply.configurations == ("seen", "other")
    assert found.resource_paths == (Path("own"),)
    assert found.configuration_files == (Path("here/own.yaml"), Path("a.yaml"))


EVERY = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: TYPE}
spec: {type: secretstores.local.env, version: v1}
"""


@pytest.mark.parametrize(
    ("name", "components", "builtin"),
    [
        (None, None, ["secretstores.kubernetes"]),
        ("env", ["secretstores.local.env", "secretstores.kubernetes"], []),
        ("kubernetes", ["secretstores.local.env"], []),
    ],
)
def test_an_injected_gateway_has_the_secrets_of_its_cluster(
    tmp_path: Path, name: str | None, components: list[str] | None, builtin: list[str]
) -> None:
    """Though nothing refers to them, and beside the components that are there when nobody configured any."""
    if name is not None:
        (tmp_path / "c.yaml").write_text(EVERY.replace("TYPE", name))
    found = config(resources=(str(tmp_path),), MESH_TRUST_MODE="off")
    made = load_settings(found)
    assert (None if made.components is None else [each.type for each in made.components]) == components
    assert [each.type for each in made.builtin] == builtin
    without = load_settings(replace(found, builtin_secrets=False))
    assert without.builtin == ()
    assert all(each.type != "secretstores.kubernetes" for each in without.components or ())


def test_several_applications_go_without_an_operator() -> None:
    with pytest.raises(ConfigError, match="MESH_SUPPLY: an operator gives one application"):
        several(("a=3000", "b=3001"), None, GatewayOptions(), GIVEN, [])


def test_roots_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "roots.pem"
    file.write_text("of a file")
    assert supply(MESH_SUPPLY_ROOTS="", MESH_SUPPLY_ROOTS_FILE=str(file)).roots == "of a file"


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"MESH_SUPPLY_ROOTS": ""}, "MESH_SUPPLY_ROOTS: it must say who is trusted"),
        ({"MESH_SUPPLY_ROOTS": "", "MESH_SUPPLY_ROOTS_FILE": "/none"}, "MESH_SUPPLY_ROOTS_FILE: /none cannot be read"),
        ({"MESH_SUPPLY": "a/b"}, "MESH_SUPPLY: namespace 'a/b'"),
        ({"MESH_TRUST_DOMAIN": "a b"}, "a b"),
    ],
)
def test_what_is_wrong_is_said_by_its_name(environ: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        config(**environ)


def store(key: str = "file") -> Component:
    return Component("store", "state.sqlite", (MetadataEntry("connectionString", SecretRef("database", key)),))


def test_a_component_differs_when_its_secret_does(tmp_path: Path) -> None:
    def given(**values: bytes) -> Component:
        (tmp_path / SECRETS).write_bytes(msgspec.json.encode({"database": values}))
        [found] = marked([store()], tmp_path)
        return found

    assert marked([store()], tmp_path) == (store(),)
    first = given(file=b"one", other=b"1")
    assert first != store()
    assert first == given(file=b"one", other=b"2")
    assert first != given(file=b"two")
    assert given(other=b"1") == store()
    assert b"one".hex() not in first.secrets


def test_secrets_are_given_as_far_as_they_are_text(tmp_path: Path) -> None:
    assert secret_of(tmp_path, "database") is None
    (tmp_path / SECRETS).write_bytes(msgspec.json.encode({"database": {"file": b"one", "raw": b"\xff"}}))
    assert secret_of(tmp_path, "database") == {"file": "one"}
    assert secret_of(tmp_path, "other") is None
    (tmp_path / SECRETS).write_text("{")
    assert secret_of(tmp_path, "database") is None
