"""What an injector is asked by whoever may make a pod: it answers at once, whatever is written there."""

from __future__ import annotations

import base64
import time
from typing import Any

import orjson
import pytest

from bindings.kubernetes.injector import Injection
from bindings.kubernetes.injector.review import MAX_MESSAGE, reviewed

ASKS = {"dapr.io/enabled": "true", "dapr.io/app-id": "cart"}
AT_ONCE = 1.0  # Seconds; each of these took a multiple of it without a bound.


def answer(annotations: dict[str, str], *containers: str) -> Any:
    """Review a pod; gives what the API server is answered."""
    spec = {"containers": [{"name": each} for each in containers or ("app",)]}
    pod = {"metadata": {"annotations": {**ASKS, **annotations}}, "spec": spec}
    request = {"uid": "1", "kind": {"kind": "Pod"}, "operation": "CREATE", "object": pod}
    begin = time.process_time()
    found = reviewed({"kind": "AdmissionReview", "request": request}, Injection(image="gateway"), "key")["response"]
    assert time.process_time() < begin + AT_ONCE
    return found


def test_many_annotations_that_are_none() -> None:
    """It is not looked for what each of them was meant to be."""
    found = answer({f"dapr.io/app-health-{number}": "" for number in range(20_000)})
    assert "20002 annotations begin as ours do" in found["status"]["message"]


def test_many_names_of_components() -> None:
    """A name counts once."""
    found = answer({"dapr.io/pluggable-components": "app," * 100_000}, "app", *(f"c{each}" for each in range(1000)))
    assert found["allowed"]


def test_what_is_said_of_long_values_is_short() -> None:
    """An error goes to people, and into a log."""
    found = answer({"dapr.io/env": ",x" * 100_000})
    assert not found["allowed"]
    assert len(found["status"]["message"]) == MAX_MESSAGE


@pytest.mark.parametrize("value", ["-1", "0"])
@pytest.mark.parametrize("what", ["threshold", "probe-interval", "probe-timeout"])
def test_a_number_that_no_gateway_starts_with(what: str, value: str) -> None:
    """The default counts in place of a container that ends again and again."""
    found = answer({"dapr.io/enable-app-health-check": "true", f"dapr.io/app-health-{what}": value})
    assert any(each.startswith(f"dapr.io/app-health-{what}: ") for each in found["warnings"])
    assert f"--app-health-{what}".encode() not in base64.b64decode(found["patch"])


def test_an_endpoint_that_nobody_asks_for() -> None:
    """The pod is refused: its gateway would not start."""
    found = answer({"dapr.io/disable-init-endpoints": "config,job"})
    assert found["status"]["message"] == "dapr.io/disable-init-endpoints: 'job' is none of config, subscribe"


@pytest.mark.parametrize(
    "name",
    [
        "dapr.io/sidecar-liveness-probe-delay-seconds",
        "dapr.io/graceful-shutdown-seconds",
        "dapr.io/app-max-concurrency",
    ],
)
@pytest.mark.parametrize("value", ["9" * 20, "9" * 5000, "1_0", "٣"])
def test_numbers_that_a_pod_cannot_have(name: str, value: str) -> None:
    """The default counts, and whoever made the pod is told."""
    found = answer({name: value})
    assert found["allowed"]
    assert any(each.startswith(f"{name}: ") for each in found["warnings"])
    assert orjson.loads(orjson.dumps(found)) == found


@pytest.mark.parametrize("review", [None, 1, [], {}, {"kind": "AdmissionReview", "request": []}])
def test_what_is_no_review(review: object) -> None:
    """Anybody in a cluster may send it; it is an error of theirs, and none that fills a log."""
    with pytest.raises(ValueError, match="no AdmissionReview"):
        reviewed(review, Injection(image="gateway"), "key")


def test_the_name_of_a_configuration_is_one() -> None:
    """The operator keeps what it made by it."""
    spec = Injection(image="gateway", control_namespace="mesh-system")
    pod = {"metadata": {"annotations": {**ASKS, "dapr.io/config": "c" * 1025}}, "spec": {"containers": [{"name": "a"}]}}
    request = {"uid": "1", "kind": {"kind": "Pod"}, "operation": "CREATE", "object": pod}
    found = reviewed({"kind": "AdmissionReview", "request": request}, spec, "key")["response"]
    assert "dapr.io/config: is longer than 1024 characters" in found["status"]["message"]
