"""An installation made by the command line, applications from plain annotated YAML, and what must not harm them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.kubernetes.images import APPS, GATEWAY, NATS
from tests.support.kubernetes.node import LocalCluster
from tests.support.processes import ROOT

SYSTEM = "mesh-system"
EXAMPLES = ROOT / "examples" / "kubernetes"
# All that differs from the defaults: no registry can be reached, and there are no disks here.
SET = {"image": GATEWAY, "nats.image": NATS, "nats.storage": ""}
PATIENCE = 120.0
POST = """\
import json, sys, urllib.request as asked
request = asked.Request(sys.argv[1], sys.argv[2].encode(), {"Content-Type": "application/json"})
with asked.urlopen(request, timeout=20) as response:
    print(response.read().decode())
"""


class Mesh:
    """An installation, and the command line for it."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster

    def run(self, *words: str, given: str | None = None, code: int = 0) -> str:
        """Run a command; gives what it shows, and behind it what it says."""
        environ = {**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig)}
        command = [sys.executable, "-m", "gateway.cli", *words]
        done = subprocess.run(
            command, input=given, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == code, f"mesh {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def json(self, *words: str) -> Any:
        """Run a command, and read what it shows."""
        return json.loads(self.run(*words, "-o", "json"))

    def pods(self, namespace: str, app_id: str | None = None) -> list[Any]:
        """Give the pods of applications."""
        found = self.cluster.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
        return [each for each in found if app_id in (None, each["metadata"]["labels"].get("dapr.io/app-id"))]

    def component(self, namespace: str, name: str) -> Any:
        """Give the status of a component."""
        found = self.cluster.get(f"/apis/dapr.io/v1alpha1/namespaces/{namespace}/components/{name}")
        return found.get("status", {})

    def log(self, namespace: str, app_id: str, container: str) -> str:
        """Give what a container has written."""
        told = ""
        for each in self.pods(namespace, app_id):
            name = each["metadata"]["name"]
            told += self.cluster.get(f"/api/v1/namespaces/{namespace}/pods/{name}/log?container={container}")
        return told

    def post(self, namespace: str, app: str, url: str, body: object) -> Any:
        """Ask from within a pod of an application."""
        words = ("exec", f"deploy/{app}", "-c", app, "--", "python3", "-c", POST, url, json.dumps(body))
        told = self.cluster.kubectl("-n", namespace, *words)
        return json.loads(told) if told.strip() else None


@pytest.fixture(scope="module")
def mesh(cluster: LocalCluster) -> Iterator[Mesh]:
    """Install, and in the end remove what was installed."""
    made = Mesh(cluster)
    made.run("init", "-k", *settings(), "--wait", "--timeout", "120")
    yield made


def settings() -> list[str]:
    return [word for name, value in SET.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def hello(mesh: Mesh) -> str:
    """Apply hello world as it is in examples, but for its image; gives its namespace, where it runs."""
    return applied(mesh, "hello", "hello-world.yaml", 2)


def until(check: Callable[[], None]) -> None:
    """Look now and then: what is waited for takes seconds, and whoever looks takes its time from it."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return check()
        except AssertionError:
            if time.monotonic() > end:
                raise
        time.sleep(0.25)


def _condition(pod: Any) -> dict[str, str]:
    return next((each for each in pod["status"].get("conditions", ()) if each["type"] == "Ready"), {})


def applied(mesh: Mesh, namespace: str, file: str, pods: int) -> str:
    mesh.cluster.kubectl("create", "namespace", namespace)
    documents = list(yaml.safe_load_all((EXAMPLES / file).read_text()))
    for each in documents:
        if each["kind"] == "Deployment":
            [container] = each["spec"]["template"]["spec"]["containers"]
            container["image"] = APPS
    mesh.cluster.kubectl("-n", namespace, "apply", "-f", "-", given=yaml.safe_dump_all(documents))

    def running() -> None:
        found = mesh.pods(namespace)
        ready = [each for each in found if {"type": "Ready", "status": "True"}.items() <= _condition(each).items()]
        assert len(ready) == len(found) == pods

    until(running)
    return namespace


def orders(mesh: Mesh, namespace: str) -> list[str]:
    """Give which orders the first application has stored, as the second one knows it."""
    told = mesh.log(namespace, "pythonapp", "python")
    return [line for line in told.splitlines() if line.endswith("was taken")]


def more_orders(mesh: Mesh, namespace: str, more: int = 3) -> None:
    before = len(orders(mesh, namespace))

    def taken() -> None:
        assert len(orders(mesh, namespace)) >= before + more

    until(taken)


def failed_orders(mesh: Mesh, namespace: str) -> list[str]:
    told = mesh.log(namespace, "pythonapp", "python")
    return [line for line in told.splitlines() if " failed: " in line]


def test_a_dry_run_changes_nothing(cluster: LocalCluster) -> None:
    """It is checked by the API server; what is printed is what would be applied."""
    mesh = Mesh(cluster)
    if SYSTEM not in cluster.kubectl("get", "namespaces"):
        assert "Deployment mesh-operator: not checked" in mesh.run("init", "-k", *settings(), "--dry-run")
        assert SYSTEM not in cluster.kubectl("get", "namespaces")
    printed = list(yaml.safe_load_all(mesh.run("init", "-k", *settings(), "-o", "yaml")))
    assert {"StatefulSet", "Deployment", "MutatingWebhookConfiguration"} <= {each["kind"] for each in printed}


def test_hello_world(mesh: Mesh, hello: str) -> None:
    """Orders are taken, and stored; commands tell of the applications and of their component."""
    more_orders(mesh, hello)
    url = "http://127.0.0.1:3500/v1.0/invoke/nodeapp/method/order"
    read = f"import urllib.request as asked; print(asked.urlopen('{url}', timeout=20).read().decode())"
    order = mesh.cluster.kubectl("-n", hello, "exec", "deploy/pythonapp", "-c", "python", "--", "python3", "-c", read)
    assert json.loads(order)["orderId"] > 0
    assert {each["appId"] for each in mesh.json("list", "-k", "--namespace", hello)} == {"nodeapp", "pythonapp"}

    def loaded() -> None:
        assert mesh.component(hello, "statestore").get("loadedBy", {}).get("count") == 2

    until(loaded)
    assert "spiffe://cluster.local/ns/hello/nodeapp" in mesh.run("logs", "-k", "-a", "nodeapp", "--namespace", hello)
    parts = {each["name"]: each for each in mesh.json("status", "-k")}
    assert {name: each["replicas"] for name, each in parts.items()} == {
        "mesh-dashboard": 1,
        "mesh-nats": 3,
        "mesh-operator": 2,
    }
    assert all(each["healthy"] for each in parts.values())


def test_a_shop(mesh: Mesh) -> None:
    """Seven services call each other, one keeps state, and one takes an event by the subscription of a file."""
    namespace = applied(mesh, "shop", "shop.yaml", 7)
    url = "http://127.0.0.1:3500/v1.0/invoke/frontend/method/buy"

    def bought() -> Any:
        return mesh.post(namespace, "frontend", url, {"user": "ann", "items": ["mug"], "currency": "CHF"})

    told = bought()
    assert told["orderId"] == "ann-1"
    assert told["suggested"] == ["shirt"]

    def mailed() -> None:
        assert "Confirmed by mail: order ann-1" in mesh.log(namespace, "email", "email")

    until(mailed)
    mesh.cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def test_a_wrong_resource_is_told(mesh: Mesh, hello: str) -> None:
    """One that no schema finds wrong is told by its status; the gateways go on with what they had."""
    wrong = {
        "apiVersion": "dapr.io/v1alpha1",
        "kind": "Component",
        "metadata": {"name": "wrong", "namespace": hello},
        "spec": {"type": "state.mash", "version": "v1", "metadata": []},
    }
    mesh.cluster.apply(json.dumps(wrong))

    def told() -> None:
        status = mesh.component(hello, "wrong")
        problems = [each for each in status.get("problems", ()) if "nodeapp" in each["node"]]
        assert problems
        [problem] = problems
        assert "state.mash" in problem["text"]
        assert problem["field"] == "spec.type"
        assert problem["line"] > 0

    until(told)
    more_orders(mesh, hello, 1)
    mesh.cluster.kubectl("-n", hello, "delete", "component", "wrong")
    wrong["spec"] = {"type": 7}
    with pytest.raises(AssertionError, match=r"spec\.type"):
        mesh.cluster.apply(json.dumps(wrong))


def test_operators_and_the_api_server_are_killed(mesh: Mesh, hello: str) -> None:
    """Applications do not notice; a gateway that starts without them has what it had; afterwards all works again."""
    cluster = mesh.cluster
    before = len(failed_orders(mesh, hello))
    cluster.kubectl("-n", SYSTEM, "scale", "deploy/mesh-operator", "--replicas=0")
    cluster.kubectl(
        "-n", SYSTEM, "delete", "pods", "-l", "app.kubernetes.io/name=mesh-operator", "--force", "--grace-period=0"
    )
    more_orders(mesh, hello)
    cluster.kill("apiserver")
    cluster.run("apiserver")
    more_orders(mesh, hello)
    assert len(failed_orders(mesh, hello)) == before

    # The gateway of the caller dies, and is started again by the node.
    restarts = gateway_restarts(mesh, hello)
    kill = "import os, signal; os.kill(1, signal.SIGTERM)"
    cluster.kubectl("-n", hello, "exec", "deploy/pythonapp", "-c", "mesh-gateway", "--", "python", "-c", kill)

    def restarted() -> None:
        assert gateway_restarts(mesh, hello) > restarts

    until(restarted)
    more_orders(mesh, hello)
    cluster.kubectl("-n", SYSTEM, "scale", "deploy/mesh-operator", "--replicas=2")
    resource = {
        "apiVersion": "dapr.io/v1alpha1",
        "kind": "Component",
        "metadata": {"name": "later", "namespace": hello},
        "spec": {"type": "state.in-memory", "version": "v1", "metadata": []},
    }
    cluster.apply(json.dumps(resource))

    def loaded() -> None:
        assert mesh.component(hello, "later").get("loadedBy", {}).get("count") == 2

    until(loaded)


def gateway_restarts(mesh: Mesh, namespace: str) -> int:
    statuses = [each for pod in mesh.pods(namespace, "pythonapp") for each in pod["status"]["initContainerStatuses"]]
    return sum(each["restartCount"] for each in statuses)


def test_a_template_runs_in_the_cluster(mesh: Mesh, tmp_path: Path) -> None:
    """``run -k -f`` makes its workloads, ``stop -k -f`` removes them."""
    template = tmp_path / "dapr.yaml"
    app = {
        "appID": "templated",
        "appDirPath": ".",
        "appPort": 3000,
        "command": ["node", "/app/examples/hello-world/node/app.js"],
        "env": {"APP_PORT": "3000"},
        "containerImage": APPS,
        "containerImagePullPolicy": "Never",
        "createService": True,
    }
    template.write_text(yaml.safe_dump({"version": 1, "apps": [app]}))
    environ = {**os.environ, "KUBECONFIG": str(mesh.cluster.kubeconfig), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "gateway.cli", "run", "-k", "-f", str(template)]
    running = subprocess.Popen(
        command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert running.stdout is not None
        assert any("templated-" in line and "application at" in line for line in running.stdout)
    finally:
        running.kill()
        running.communicate()
    mesh.cluster.kubectl("get", "service", "templated")
    assert "deployments templated: deleted" in mesh.run("stop", "-k", "-f", str(template))
    assert not mesh.json("list", "-k", "--namespace", "nowhere")


def test_the_dashboard_is_reached(mesh: Mesh) -> None:
    """A port of this machine leads to it."""
    import urllib.request

    environ = {**os.environ, "KUBECONFIG": str(mesh.cluster.kubeconfig), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "gateway.cli", "dashboard", "-k", "--port", "0"]
    running = subprocess.Popen(command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        address = running.stdout.readline().partition("Dashboard: ")[2].strip()
        with urllib.request.urlopen(address, timeout=20) as page:
            assert b"<html" in page.read()
    finally:
        running.kill()
        running.communicate()


def test_roots_are_renewed(mesh: Mesh, hello: str) -> None:
    """Beside the new one the former one is trusted; nothing fails."""
    before = len(failed_orders(mesh, hello))
    assert len(mesh.run("mtls", "-k").splitlines()) == 1
    assert len(mesh.run("mtls", "renew-certificate", "-k").splitlines()) == 3

    def renewed() -> None:
        assert "or who is trusted, is renewed" in mesh.log(hello, "pythonapp", "mesh-gateway")

    until(renewed)
    more_orders(mesh, hello)
    assert len(failed_orders(mesh, hello)) == before


def test_uninstall_leaves_what_is_of_others(mesh: Mesh) -> None:
    """It is the last: resources stay, and with --all they go as well."""
    cluster = mesh.cluster
    mesh.run("uninstall", "-k")
    assert "nothing is installed" in mesh.run("status", "-k", code=1)
    assert "statestore" in cluster.kubectl("get", "components", "-A")
    mesh.run("uninstall", "-k", "--all")
    assert cluster.get(f"/api/v1/namespaces/{SYSTEM}")["status"]["phase"] == "Terminating"
    assert "mesh-" not in cluster.kubectl("get", "mutatingwebhookconfigurations,clusterroles,clusterrolebindings")
    cluster.kubectl("delete", "namespace", "hello", "--wait=false")
