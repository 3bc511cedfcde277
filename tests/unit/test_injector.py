"""What a pod gets, by table: annotations on one side, the gateway's container on the other."""

from __future__ import annotations

import base64
import copy
import datetime
import re
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography import x509

from bindings.kubernetes.injector import ANNOTATIONS, CONTAINER, Injected, Injection, app_id_of, injected
from bindings.kubernetes.injector import container as told
from bindings.kubernetes.injector.annotations import Values
from bindings.kubernetes.injector.certificate import Certificate, server_certificate
from bindings.kubernetes.injector.objects import bundle_of, webhook_configuration
from bindings.kubernetes.injector.review import reviewed
from gateway.cli.configure import gateway_config
from gateway.cli.options import FLAGS
from gateway.cli.parsing import Parser, add_gateway_flags, gateway_options
from gateway.http import public
from mesh.trust.certificates import as_pem
from mesh.trust.folder import Folder

PLAIN = Injection(image="mesh:1", backbone="nats://broker:4222")
SUPPLIED = Injection(
    image="mesh:1", control_namespace="mesh-system", trust_domain="cluster.local", trust_mode="strict", roots="PEM"
)


def _pod(annotations: Mapping[str, str], spec: Mapping[str, Any] | None = None, **about: object) -> dict[str, Any]:
    containers = [{"name": "app", "image": "orders:1"}]
    enabled = {"dapr.io/enabled": "true", "dapr.io/app-id": "orders"}
    return {
        "metadata": {"annotations": enabled | dict(annotations), **about},
        "spec": {"containers": containers} | dict(spec or {}),
    }


def _patched(pod: dict[str, Any], patch: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Apply a patch of ``add`` alone, as RFC 6902 section 4.1 says."""
    pod = copy.deepcopy(pod)
    for operation in patch:
        assert operation["op"] == "add"
        *path, last = (part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:])
        at: Any = pod
        for part in path:
            at = at[int(part)] if isinstance(at, list) else at[part]
        value = copy.deepcopy(operation["value"])
        if isinstance(at, list):
            at.insert(len(at) if last == "-" else int(last), value)
        else:
            at[last] = value
    return pod


def _gateway(
    annotations: Mapping[str, str], injection: Injection = PLAIN, spec: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    pod = _pod(annotations, spec)
    found = injected(pod, injection, "key")
    assert not found.problems, found.problems
    patched = _patched(pod, found.patch)["spec"]
    everywhere = [*patched.get("initContainers", ()), *patched["containers"]]
    return next(each for each in everywhere if each["name"] == CONTAINER)


def _env(container: Mapping[str, Any]) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def _secret(name: str, key: str) -> dict[str, Any]:
    return {"secretKeyRef": {"name": name, "key": key}}


# An annotation, its value, and an argument of the gateway that follows.
OPTIONS = {
    "app-id": ("orders", "--app-id=orders"),
    "app-port": ("3000", "--app-port=3000"),
    "app-protocol": ("grpc", "--app-protocol=grpc"),
    "app-ssl": ("yes", "--app-ssl=true"),
    "app-channel-address": ("10.0.0.1", "--app-channel-address=10.0.0.1"),
    "app-max-concurrency": ("4", "--app-max-concurrency=4"),
    "log-level": ("debug", "--log-level=debug"),
    "log-as-json": ("true", "--log-as-json=true"),
    "enable-api-logging": ("false", "--enable-api-logging=false"),
    "enable-metrics": ("false", "--enable-metrics=false"),
    "metrics-port": ("9191", "--metrics-port=9191"),
    "grpc-port": ("50002", "--dapr-grpc-port=50002"),
    "sidecar-listen-addresses": ("0.0.0.0", "--dapr-listen-addresses=0.0.0.0"),
    "max-body-size": ("16Mi", "--max-body-size=16Mi"),
    "read-buffer-size": ("64Ki", "--read-buffer-size=64Ki"),
    "http-max-request-size": ("16", "--max-body-size=16Mi"),
    "http-read-buffer-size": ("64", "--read-buffer-size=64Ki"),
    "graceful-shutdown-seconds": ("9", "--dapr-graceful-shutdown-seconds=9"),
    "block-shutdown-duration": ("3s", "--dapr-block-shutdown-duration=3s"),
    "unix-domain-socket-path": ("/sockets", "--unix-domain-socket=/var/run/dapr-sockets"),
    "disable-builtin-k8s-secret-store": ("true", "--disable-builtin-k8s-secret-store=true"),
    "enable-app-health-check": ("true", "--enable-app-health-check=true"),
    "app-health-check-path": ("/hz", "--app-health-check-path=/hz"),
    "app-health-probe-interval": ("7", "--app-health-probe-interval=7"),
    "app-health-probe-timeout": ("300", "--app-health-probe-timeout=300"),
    "app-health-threshold": ("5", "--app-health-threshold=5"),
    "app-binding-options-timeout": ("8s", "--app-binding-options-timeout=8s"),
    "disable-init-endpoints": ("config", "--disable-init-endpoints=config"),
}

PROBES = {
    "delay-seconds": "initialDelaySeconds",
    "timeout-seconds": "timeoutSeconds",
    "period-seconds": "periodSeconds",
    "threshold": "failureThreshold",
}

# Annotations whose effect the tests below check one by one.
CHECKED = {
    "enabled", "config", "api-token-secret", "app-token-secret", "env", "env-from-secret", "sidecar-image",
    "sidecar-cpu-request", "sidecar-cpu-limit", "sidecar-memory-request", "sidecar-memory-limit", "volume-mounts",
    "sidecar-seccomp-profile-type", "volume-mounts-rw", "pluggable-components", "pluggable-components-sockets-folder",
    "enable-native-sidecar", *(f"sidecar-{each}-probe-{end}" for each in ("liveness", "readiness") for end in PROBES),
}  # fmt: skip
OURS = {"http-port", "public-port", "image", "backbone-secret", "trust-mode", "drain"}

# reference/dapr-surface.md 4.6.
REFERENCE = """
    enabled app-id app-port app-protocol app-ssl config enable-profiling log-level log-as-json
    api-token-secret app-token-secret app-max-concurrency enable-metrics metrics-port enable-debug debug-port
    env env-from-secret grpc-port internal-grpc-port sidecar-cpu-request sidecar-cpu-limit
    sidecar-memory-request sidecar-memory-limit sidecar-listen-addresses sidecar-liveness-probe-delay-seconds
    sidecar-liveness-probe-timeout-seconds sidecar-liveness-probe-period-seconds
    sidecar-liveness-probe-threshold sidecar-readiness-probe-delay-seconds
    sidecar-readiness-probe-timeout-seconds sidecar-readiness-probe-period-seconds
    sidecar-readiness-probe-threshold sidecar-image sidecar-seccomp-profile-type http-max-request-size
    max-body-size http-read-buffer-size read-buffer-size graceful-shutdown-seconds block-shutdown-duration
    enable-api-logging unix-domain-socket-path volume-mounts volume-mounts-rw disable-builtin-k8s-secret-store
    enable-app-health-check app-health-check-path app-health-probe-interval app-health-probe-timeout
    app-health-threshold app-binding-options-timeout placement-host-address actors-disseminate-timeout
    scheduler-host-address pluggable-components pluggable-components-sockets-folder component-container
    inject-pluggable-components app-channel-address sentry-request-jwt-audiences sidecar-svc-annotations
    disable-init-endpoints enable-native-sidecar
""".split()  # noqa: SIM905 - a list of this length reads better as words


def test_every_annotation_of_the_reference_is_in_the_table() -> None:
    known = {each.name.removeprefix("dapr.io/") for each in ANNOTATIONS if each.name.startswith("dapr.io/")}
    assert known == set(REFERENCE)
    assert len(ANNOTATIONS) == len({each.name for each in ANNOTATIONS})


def test_every_annotation_has_an_effect_that_is_checked_or_a_reason() -> None:
    for each in ANNOTATIONS:
        name = each.name.removeprefix("dapr.io/").removeprefix("mesh.")
        assert bool(each.effect) != bool(each.reason), each.name
        assert (name in OPTIONS or name in CHECKED or name in OURS) == bool(each.effect), each.name


@pytest.mark.parametrize("name", OPTIONS)
def test_it_sets_an_option(name: str) -> None:
    value, argument = OPTIONS[name]
    assert argument in _gateway({f"dapr.io/{name}": value})["args"]
    flag = argument.partition("=")[0]
    parser = Parser("mesh gateway")
    add_gateway_flags(parser)
    assert parser.parse([argument])
    assert flag in {each for option in FLAGS for each in option.names}


def test_the_options_are_a_gateway_that_runs() -> None:
    """All arguments together are what the command takes, with and without annotations."""
    everything = {f"dapr.io/{name}": value for name, (value, _) in OPTIONS.items() if not name.startswith("http-")}
    for given in ({}, {"dapr.io/app-port": "3000"}, everything):
        parser = Parser("mesh gateway")
        add_gateway_flags(parser)
        arguments = _gateway(given)["args"]
        config = gateway_config(
            gateway_options(parser.parse(arguments)), {"MESH_BACKBONE_DEFAULT": "nats://broker:4222"}
        )
        assert (config.app_id, config.http_port, config.public_port) == ("orders", 3500, 3501)
        assert config.backbone == "nats://broker:4222"
        assert config.backbone_timeout == 300.0


def test_what_the_gateway_answers_is_what_is_asked() -> None:
    """The two packages do not import each other."""
    assert (told.DRAIN, told.DRAIN_KEY_HEADER, told.ALIVE) == (public.DRAIN, public.DRAIN_KEY_HEADER, public.ALIVE)


def test_a_pod_that_asks_gets_a_native_sidecar() -> None:
    pod = _pod(
        {"dapr.io/app-port": "3000"}, {"initContainers": [{"name": "migrate", "env": [{"name": "A", "value": "1"}]}]}
    )
    found = _patched(pod, injected(pod, SUPPLIED, "key").patch)
    gateway, migrate = found["spec"]["initContainers"]
    assert (gateway["name"], gateway["restartPolicy"], gateway["image"]) == (CONTAINER, "Always", "mesh:1")
    assert gateway["startupProbe"]["httpGet"] == {"path": "/v1.0/healthz/outbound", "port": 3501}
    assert gateway["livenessProbe"]["httpGet"] == {"path": "/v1.0/healthz/alive", "port": 3501}
    assert gateway["readinessProbe"]["httpGet"] == {"path": "/v1.0/healthz", "port": 3501}
    app = found["spec"]["containers"][0]
    ports = {"DAPR_HTTP_PORT": "3500", "DAPR_GRPC_PORT": "50001", "APP_PROTOCOL": "http"}
    assert _env(app) == ports
    assert _env(migrate) == {"A": "1"} | ports
    drain = {"path": public.DRAIN, "port": 3501, "httpHeaders": [{"name": public.DRAIN_KEY_HEADER, "value": "key"}]}
    assert app["lifecycle"] == {"preStop": {"httpGet": drain}} == gateway["lifecycle"]
    assert "lifecycle" not in migrate
    assert found["metadata"]["labels"] == {
        "dapr.io/sidecar-injected": "true",
        "dapr.io/app-id": "orders",
        "dapr.io/metrics-enabled": "true",
    }


def test_it_may_do_nothing_but_its_work() -> None:
    gateway = _gateway({}, SUPPLIED)
    assert gateway["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    rooted = _gateway({}, SUPPLIED, {"securityContext": {"runAsUser": 0}})
    assert rooted["securityContext"]["runAsUser"] == 65532
    unconfined = _gateway({"dapr.io/sidecar-seccomp-profile-type": "Unconfined"})
    assert unconfined["securityContext"]["seccompProfile"] == {"type": "Unconfined"}


def test_what_an_operator_supplies_comes_into_memory() -> None:
    pod = _pod({"dapr.io/config": "tracing", "mesh.trust-mode": "permissive"})
    found = _patched(pod, injected(pod, SUPPLIED, "key").patch)["spec"]
    assert found["volumes"] == [
        {"name": "mesh-gateway", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
        {
            "name": "mesh-token",
            "projected": {
                "sources": [{"serviceAccountToken": {"path": "token", "audience": "mesh", "expirationSeconds": 3600}}]
            },
        },
    ]
    gateway = found["initContainers"][0]
    env = _env(gateway)
    folder = env["MESH_SUPPLY_DIR"]
    assert env["MESH_SUPPLY"] == "mesh-system"
    assert (env["MESH_TRUST_DOMAIN"], env["MESH_TRUST_MODE"], env["MESH_SUPPLY_ROOTS"]) == (
        "cluster.local",
        "permissive",
        "PEM",
    )
    assert {
        "name": "mesh-token",
        "mountPath": Path(env["MESH_SUPPLY_TOKEN_FILE"]).parent.as_posix(),
        "readOnly": True,
    } in gateway["volumeMounts"]
    assert any(folder.startswith(each["mountPath"]) for each in gateway["volumeMounts"])
    assert {f"--resources-path={folder}", f"--config={folder}/configuration-tracing.yaml"} <= set(gateway["args"])
    plain = _gateway({})
    assert not {"MESH_SUPPLY", "MESH_TRUST_MODE"} & set(_env(plain))
    assert [each["name"] for each in plain["volumeMounts"]] == ["mesh-gateway"]


def test_the_broker_is_that_of_the_namespace_or_the_operators() -> None:
    env = _env(_gateway({}))
    assert env["MESH_BACKBONE"] == {"secretKeyRef": {"name": "mesh-backbone", "key": "url", "optional": True}}
    assert env["MESH_BACKBONE_DEFAULT"] == "nats://broker:4222"
    other = _env(_gateway({"mesh.backbone-secret": "broker", "dapr.io/env": "MESH_BACKBONE_DEFAULT=redis://r"}))
    assert other["MESH_BACKBONE"]["secretKeyRef"]["name"] == "broker"
    assert other["MESH_BACKBONE_DEFAULT"] == "redis://r"


def test_tokens_and_variables() -> None:
    env = _env(
        _gateway(
            {
                "dapr.io/api-token-secret": "api",
                "dapr.io/app-token-secret": "app",
                "dapr.io/env": "A=1,LIST=x,y, B=c=d",
                "dapr.io/env-from-secret": "KEY=store:key, PASSWORD=store",
            }
        )
    )
    assert env["DAPR_API_TOKEN"] == _secret("api", "token")
    assert env["APP_API_TOKEN"] == _secret("app", "token")
    assert (env["A"], env["LIST"], env["B"]) == ("1", "x,y", "c=d")
    assert (env["KEY"], env["PASSWORD"]) == (_secret("store", "key"), _secret("store", "PASSWORD"))
    assert env["DAPR_ENV_KEYS"] == "A LIST B KEY PASSWORD"


def test_limits_ports_and_probes() -> None:
    probes = {
        f"dapr.io/sidecar-{which}-probe-{end}": str(number)
        for which in ("liveness", "readiness")
        for number, end in enumerate(PROBES, 11)
    }
    gateway = _gateway(
        {
            "dapr.io/sidecar-cpu-request": "50m",
            "dapr.io/sidecar-memory-limit": "128Mi",
            "dapr.io/sidecar-cpu-limit": "1",
            "dapr.io/sidecar-memory-request": "64Mi",
            "mesh.http-port": "3600",
            "mesh.public-port": "3601",
            **probes,
        }
    )
    assert gateway["resources"] == {
        "requests": {"cpu": "50m", "memory": "64Mi"},
        "limits": {"cpu": "1", "memory": "128Mi"},
    }
    assert {each["name"]: each["containerPort"] for each in gateway["ports"]} == {
        "dapr-http": 3600,
        "dapr-grpc": 50001,
        "dapr-metrics": 9090,
        "mesh-public": 3601,
    }
    assert {"--dapr-http-port=3600", "--dapr-public-port=3601", "--metrics-listen-address=0.0.0.0"} <= set(
        gateway["args"]
    )
    for which in ("livenessProbe", "readinessProbe"):
        assert [gateway[which][name] for name in PROBES.values()] == [11, 12, 13, 14]
        assert gateway[which]["httpGet"]["port"] == 3601


def test_volumes_and_sockets() -> None:
    pod = _pod(
        {
            "dapr.io/volume-mounts": "settings:/etc/settings, more:/more",
            "dapr.io/volume-mounts-rw": "data:/data",
            "dapr.io/unix-domain-socket-path": "/sockets",
        },
        {"volumes": [{"name": "settings"}]},
    )
    found = _patched(pod, injected(pod, PLAIN, "key").patch)["spec"]
    gateway = found["initContainers"][0]
    assert gateway["volumeMounts"][1:] == [
        {"name": "dapr-unix-domain-socket", "mountPath": "/var/run/dapr-sockets"},
        {"name": "settings", "mountPath": "/etc/settings", "readOnly": True},
        {"name": "more", "mountPath": "/more", "readOnly": True},
        {"name": "data", "mountPath": "/data"},
    ]
    assert found["containers"][0]["volumeMounts"] == [{"name": "dapr-unix-domain-socket", "mountPath": "/sockets"}]
    assert [each["name"] for each in found["volumes"]] == ["settings", "mesh-gateway", "dapr-unix-domain-socket"]
    assert "dapr-http" not in {each["name"] for each in gateway["ports"]}


def test_components_beside_the_application() -> None:
    """They begin with the pod, so the gateway does too, and not before them."""
    own = [{"name": "app"}, {"name": "store", "volumeMounts": [{"name": "x", "mountPath": "/x"}]}]
    annotations = {
        "dapr.io/pluggable-components": "store",
        "dapr.io/pluggable-components-sockets-folder": "/run/sockets",
    }
    pod = _pod(annotations, {"containers": own})
    found = _patched(pod, injected(pod, PLAIN, "key").patch)["spec"]
    app, store, gateway = found["containers"]
    assert gateway["name"] == CONTAINER
    assert "restartPolicy" not in gateway
    assert store["volumeMounts"][1] == {"name": "dapr-components-sockets", "mountPath": "/run/sockets"}
    assert _env(store) == {"DAPR_COMPONENTS_SOCKETS_FOLDER": "/run/sockets"}
    mount = next(each for each in gateway["volumeMounts"] if each["name"] == "dapr-components-sockets")
    assert _env(gateway)["DAPR_COMPONENTS_SOCKETS_FOLDER"] == mount["mountPath"]
    assert "lifecycle" in app and "lifecycle" not in store
    missing = injected(_pod({"dapr.io/pluggable-components": "stor"}), PLAIN, "key")
    assert missing.problems == ["dapr.io/pluggable-components: the pod has no container stor"]


def test_an_ordinary_container() -> None:
    for given, injection in (
        ({"dapr.io/enable-native-sidecar": "false"}, PLAIN),
        ({}, Injection(image="mesh:1", native=False)),
    ):
        gateway = _gateway(given, injection)
        assert not {"restartPolicy", "startupProbe"} & set(gateway)
        assert "preStop" in gateway["lifecycle"]


def test_what_the_application_says_itself_stays() -> None:
    hook = {"preStop": {"exec": {"command": ["sleep", "1"]}}}
    own = [{"name": "app", "env": [{"name": "DAPR_HTTP_PORT", "value": "1"}], "lifecycle": hook}]
    pod = _pod({}, {"containers": own}, labels={"a": "b"})
    found = _patched(pod, injected(pod, PLAIN, "key").patch)
    app = found["spec"]["containers"][0]
    assert app["lifecycle"] == hook
    assert _env(app)["DAPR_HTTP_PORT"] == "1"
    assert found["metadata"]["labels"]["a"] == "b"
    pod = _pod({"mesh.drain": "false"})
    assert "lifecycle" not in _patched(pod, injected(pod, PLAIN, "key").patch)["spec"]["containers"][0]


def test_the_operator_says_what_counts_without_a_word_of_the_pod() -> None:
    injection = Injection(image="mesh:1", defaults={"dapr.io/log-as-json": "true", "dapr.io/sidecar-cpu-request": "1"})
    assert "--log-as-json=true" in _gateway({}, injection)["args"]
    gateway = _gateway({"dapr.io/log-as-json": "false", "dapr.io/sidecar-cpu-request": "2"}, injection)
    assert "--log-as-json=true" not in gateway["args"]
    assert gateway["resources"] == {"requests": {"cpu": "2"}}


@pytest.mark.parametrize(
    ("annotations", "image"),
    [
        ({}, "mesh:1"),
        ({"dapr.io/sidecar-image": "mine/mesh:2"}, "mine/mesh:2"),
        ({"dapr.io/sidecar-image": "docker.io/daprio/daprd:1.16.0"}, "mesh:1"),
        ({"dapr.io/sidecar-image": "localhost:5000/daprd@sha256:ab", "mesh.image": "mesh:3"}, "mesh:3"),
    ],
)
def test_the_image(annotations: dict[str, str], image: str) -> None:
    assert _gateway(annotations)["image"] == image


NOTHING = Injected()


@pytest.mark.parametrize(
    "pod",
    [
        {"metadata": {}, "spec": {"containers": [{"name": "app"}]}},
        {"metadata": {"annotations": {"dapr.io/enabled": "no"}}, "spec": {"containers": []}},
        {"metadata": {"annotations": {"dapr.io/enabled": ""}}, "spec": {"containers": []}},
        {"metadata": {"annotations": {"dapr.io/app-id": "a"}}, "spec": {"containers": []}},
    ],
)
def test_a_pod_that_does_not_ask_stays_as_it_is(pod: dict[str, Any]) -> None:
    assert injected(pod, PLAIN, "key") == NOTHING


@pytest.mark.parametrize("native", [True, False])
def test_a_second_time_it_does_nothing(native: bool) -> None:
    pod = _pod({"dapr.io/enable-native-sidecar": str(native).lower()})
    once = _patched(pod, injected(pod, PLAIN, "key").patch)
    assert injected(once, PLAIN, "other") == NOTHING


def test_a_pod_of_the_other_runtime_is_left_to_it() -> None:
    found = injected(_pod({}, {"initContainers": [{"name": "daprd"}]}), PLAIN, "key")
    assert not found.patch and not found.problems
    assert "daprd" in found.warnings[0]


@pytest.mark.parametrize(
    ("annotations", "problem"),
    [
        ({"dapr.io/enabled": "maybe"}, r"dapr.io/enabled: .*'maybe'"),
        ({"dapr.io/app-id": ""}, r"dapr.io/app-id is missing"),
        ({"dapr.io/app-id": "a.b"}, r"dapr.io/app-id: .*must not contain dots"),
        ({"dapr.io/app-id": "-a"}, r"dapr.io/app-id: '-a' must be a label"),
        ({"dapr.io/app-id": "a" * 64}, r"dapr.io/app-id: 'a+' must be a label"),
        ({"dapr.io/app-port": "http"}, r"dapr.io/app-port: 'http' is not a port: 1 to 65535"),
        ({"dapr.io/app-port": "70000"}, r"dapr.io/app-port: '70000' is not a port"),
        ({"dapr.io/app-port": "3500"}, r"dapr.io/app-port: 3500 is also mesh.http-port"),
        ({"dapr.io/app-protocol": "ftp"}, r"dapr.io/app-protocol: 'ftp' is none of http, https, h2c, grpc, grpcs"),
        ({"dapr.io/env": "A"}, r"dapr.io/env: 'A' is not NAME=VALUE"),
        ({"dapr.io/env-from-secret": "A="}, r"dapr.io/env-from-secret: 'A=' is not NAME=SECRET:KEY"),
        ({"dapr.io/volume-mounts": "data"}, r"dapr.io/volume-mounts: 'data' is not VOLUME:PATH"),
        ({"mesh.trust-mode": "some"}, r"mesh.trust-mode: 'some' is none of"),
        ({"dapr.io/app-prot": "1"}, r"dapr.io/app-prot: there is no such annotation; did you mean dapr.io/app-port\?"),
        ({"mesh.htp-port": "1"}, r"mesh.htp-port: .*did you mean mesh.http-port\?"),
    ],
)
def test_a_wrong_value_refuses_the_pod_and_names_the_annotation(annotations: dict[str, str], problem: str) -> None:
    found = injected(_pod(annotations), SUPPLIED, "key")
    assert not found.patch
    assert any(re.match(problem, each) for each in found.problems), found.problems


@pytest.mark.parametrize(
    ("annotations", "warning"),
    [
        (
            {"dapr.io/sidecar-cpu-request": "much"},
            r"dapr.io/sidecar-cpu-request: 'much' is no quantity .*what counts is nothing",
        ),
        ({"dapr.io/log-level": "loud"}, r"dapr.io/log-level: 'loud' is none of debug, .*what counts is info"),
        ({"dapr.io/app-health-threshold": "x"}, r"dapr.io/app-health-threshold: .*what counts is 3"),
        (
            {"dapr.io/sidecar-liveness-probe-period-seconds": "0"},
            r".*period-seconds: 0 is less than 1; what counts is 6",
        ),
        ({"dapr.io/max-body-size": "x"}, r"dapr.io/max-body-size: .*what counts is 4Mi"),
        ({"dapr.io/enable-metrics": "sure"}, r"dapr.io/enable-metrics: 'sure' is neither .*what counts is true"),
        ({"dapr.io/placement-host-address": "p:1"}, r"dapr.io/placement-host-address has no effect: there is no such"),
        ({"mesh.something-of-mine": "1"}, r"mesh.something-of-mine: there is no such annotation"),
        ({"dapr.io/sidecar-image": "daprio/daprd:1"}, r"dapr.io/sidecar-image: daprio/daprd:1 is another runtime"),
        ({"dapr.io/graceful-shutdown-seconds": "40"}, r"terminationGracePeriodSeconds is 30: .*40 s"),
    ],
)
def test_what_the_reference_would_admit_is_admitted_with_a_warning(annotations: dict[str, str], warning: str) -> None:
    pod = _pod(annotations, {"terminationGracePeriodSeconds": 30})
    found = injected(pod, PLAIN, "key")
    assert not found.problems
    assert found.patch
    assert [each for each in found.warnings if re.match(warning, each)], found.warnings
    assert len(found.warnings) == 1  # It is said once.


def test_the_application_of_a_pod() -> None:
    assert app_id_of(_pod({})) == "orders"
    assert app_id_of({"metadata": {"name": "orders-0"}}) == "orders-0"
    assert app_id_of({"metadata": {"generateName": "orders-"}}) == ""


def _review(pod: object, **request: object) -> dict[str, Any]:
    asked = {"uid": "u", "kind": {"kind": "Pod"}, "operation": "CREATE", "object": pod, **request}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": asked}


def test_reviews() -> None:
    patched = reviewed(_review(_pod({"dapr.io/debug-port": "1"})), PLAIN, "key")
    response = patched["response"]
    assert (patched["kind"], response["uid"], response["allowed"], response["patchType"]) == (
        "AdmissionReview",
        "u",
        True,
        "JSONPatch",
    )
    assert orjson.loads(base64.b64decode(response["patch"]))
    assert response["warnings"] == ["dapr.io/debug-port has no effect: there is no debugger in the image"]
    refused = reviewed(_review(_pod({"dapr.io/app-port": "x"})), PLAIN, "key")["response"]
    assert refused["allowed"] is False
    assert refused["status"]["message"].startswith("dapr.io/app-port: 'x'")
    for other in (_review(_pod({}), operation="UPDATE"), _review(None), _review(_pod({}), kind={"kind": "Service"})):
        assert reviewed(other, PLAIN, "key")["response"] == {"uid": "u", "allowed": True}
    for none in ({}, {"kind": "AdmissionReview"}, {"kind": "AdmissionReview", "request": {}}):
        with pytest.raises(ValueError, match="no AdmissionReview"):
            reviewed(none, PLAIN, "key")


def test_values_read_a_port_of_nothing_as_none() -> None:
    assert Values({"dapr.io/app-port": "0"}).number("dapr.io/app-port") is None


def test_the_certificate_is_by_the_root_and_renewed(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "trust")
    folder.init("cluster.local")
    root = folder.root()
    leaf, _ = server_certificate(root, ["mesh-injector.mesh-system.svc", "10.0.0.1"])
    leaf.verify_directly_issued_by(root.roots[0])
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["mesh-injector.mesh-system.svc"]
    assert not names.get_values_for_type(x509.UniformResourceIdentifier)  # It proves no application.
    assert leaf.not_valid_after_utc - datetime.datetime.now(datetime.UTC) < datetime.timedelta(days=8)
    certificate = Certificate(["mesh-injector"])
    assert isinstance(certificate.context, ssl.SSLContext)
    assert certificate.renew(root)
    assert not certificate.renew(root)
    assert certificate.renew(root.rotated())


def test_whom_the_api_server_trusts_is_written_once() -> None:
    found = webhook_configuration("mesh-system")
    said = bundle_of(found, b"PEM")
    assert said is not None
    for hook, told_of in zip(found["webhooks"], said["webhooks"], strict=True):
        assert hook["name"] == told_of["name"]
        hook["clientConfig"] |= told_of["clientConfig"]
    assert bundle_of(found, b"PEM") is None
    assert bundle_of(found, as_pem([])) is not None


def test_namespaces_choose_what_happens_without_an_injector() -> None:
    hooks = webhook_configuration("mesh-system", failure_policy="Ignore")["webhooks"]
    said = {each["name"].partition(".")[0]: each for each in hooks}
    assert {kind: each["failurePolicy"] for kind, each in said.items()} == {
        "default": "Ignore",
        "fail": "Fail",
        "ignore": "Ignore",
    }
    for kind, operator, labels in (
        ("default", "NotIn", ["fail", "ignore"]),
        ("fail", "In", ["fail"]),
        ("ignore", "In", ["ignore"]),
    ):
        expressions = said[kind]["namespaceSelector"]["matchExpressions"]
        assert {"key": "mesh.failure-policy", "operator": operator, "values": labels} in expressions
        assert said[kind]["matchConditions"]
        assert any("mesh-system" in each["values"] and each["operator"] == "NotIn" for each in expressions)
