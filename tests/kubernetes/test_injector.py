"""Pods that ask for a gateway, on a real cluster: order of start and end, updates under load, and an injector away."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from bindings.kubernetes.injector import CONTAINER, Injection, webhook_configuration
from mesh.trust.certificates import as_pem
from mesh.trust.folder import Folder
from tests.support.eventually import eventually_sync
from tests.support.kubernetes.images import APPS, GATEWAY, NATS
from tests.support.kubernetes.injecting import Told, injecting, listening, machine
from tests.support.kubernetes.node import LocalCluster
from tests.support.processes import free_port

IDLE = ["python", "-c", "import signal, sys; signal.signal(signal.SIGTERM, sys.exit); signal.pause()"]
SPACE, OPEN, NAME = "inject", "inject-open", "inject-test"
PACE = 0.05  # Seconds between two calls of one client: the load is to be without gaps, not to take the machine.
INJECTION = Injection(image=GATEWAY, pull_policy="Never", backbone=f"nats://nats.{SPACE}:4222")
BROKER = f"""
apiVersion: v1
kind: Namespace
metadata: {{name: {SPACE}}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: {OPEN}, labels: {{mesh.failure-policy: ignore}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: nats, namespace: {SPACE}}}
spec: {{selector: {{app: nats}}, ports: [{{port: 4222}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: nats, namespace: {SPACE}, labels: {{app: nats}}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: nats, image: "{NATS}", args: [-js, -sd, /tmp/data]}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Give the root of the mesh, which may be rotated."""
    folder = Folder(tmp_path_factory.mktemp("root") / "trust")
    folder.init("cluster.local")
    return folder


@pytest.fixture(scope="module")
def port(cluster: LocalCluster) -> Iterator[int]:
    """Give the port that the cluster asks, and a broker, and two namespaces."""
    cluster.apply(BROKER)
    at = free_port()
    within = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": [SPACE, OPEN]}
    url = f"https://{machine(cluster)}:{at}/inject"
    asked = webhook_configuration("nowhere", name=NAME, url=url, selector={"matchExpressions": [within]})
    cluster.apply(json.dumps(asked))
    try:
        yield at
    finally:
        cluster.kubectl("delete", "mutatingwebhookconfiguration", NAME)
        cluster.kubectl("delete", "namespace", SPACE, OPEN, "--wait=false")


@pytest.fixture
def injector(cluster: LocalCluster, root: Folder, port: int) -> Iterator[None]:
    """Have pods get gateways."""
    with injecting(cluster, NAME, INJECTION, root.path, port):
        _until_trusted(cluster, root)
        yield


@pytest.fixture
def told(cluster: LocalCluster) -> Iterator[tuple[str, Told]]:
    """Take what pods tell."""
    with listening(cluster) as found:
        yield found


def _until_trusted(cluster: LocalCluster, root: Folder) -> None:
    bundle = base64.b64encode(as_pem(root.roots())).decode()

    def check() -> None:
        found = cluster.json("get", "mutatingwebhookconfiguration", NAME)
        assert all(each["clientConfig"].get("caBundle") == bundle for each in found["webhooks"])

    eventually_sync(check)


def _template(app_id: str, command: list[str], **more: Any) -> dict[str, Any]:
    annotations = {"dapr.io/enabled": "true", "dapr.io/app-id": app_id} | more.pop("annotations", {})
    container = {"name": "app", "image": APPS, "imagePullPolicy": "Never", "command": command}
    spec = {"containers": [container | more.pop("container", {})], **more}
    return {"metadata": {"labels": {"app": app_id}, "annotations": annotations}, "spec": spec}


def _pod(name: str, command: list[str], space: str = SPACE, **more: Any) -> dict[str, Any]:
    found = _template(name, command, **more)
    found["metadata"] |= {"name": name, "namespace": space}
    return {"apiVersion": "v1", "kind": "Pod", **found}


def _deployment(name: str, replicas: int, command: list[str], **more: Any) -> str:
    spec = {
        "replicas": replicas,
        "selector": {"matchLabels": {"app": name}},
        "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": _template(name, command, **more),
    }
    about = {"name": name, "namespace": SPACE}
    return json.dumps({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": about, "spec": spec})


PUBLISHED = """
import os, sys, urllib.request as asked
base = f"http://127.0.0.1:{os.environ['DAPR_HTTP_PORT']}"
assert asked.urlopen(f"{base}/v1.0/healthz/outbound", timeout=5).status == 204
event = asked.Request(f"{base}/v1.0/publish/pubsub/{sys.argv[1]}", b'"done"', {"Content-Type": "application/json"})
assert asked.urlopen(event, timeout=5).status == 204
"""


@pytest.mark.usefixtures("injector")
def test_a_job_finds_its_gateway_and_completes(cluster: LocalCluster) -> None:
    """From its first line on the gateway is there, for init containers too; and the pod ends with the application."""
    command = ["python", "-c", PUBLISHED, "jobs"]
    init = {"name": "before", "image": APPS, "imagePullPolicy": "Never", "command": command}
    template = _template("job", command, restartPolicy="Never", initContainers=[init])
    about = {"name": "job", "namespace": SPACE}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": about,
        "spec": {"backoffLimit": 0, "template": template},
    }
    cluster.apply(json.dumps(job))
    cluster.kubectl("-n", SPACE, "wait", "--for=condition=complete", "job/job", "--timeout=40s")
    pod = cluster.json("-n", SPACE, "get", "pod", "-l", "app=job")["items"][0]
    assert [each["name"] for each in pod["spec"]["initContainers"]] == [CONTAINER, "before"]
    ended = pod["status"]["initContainerStatuses"][0]["state"]["terminated"]
    assert (pod["status"]["phase"], ended["exitCode"]) == ("Succeeded", 0)
    assert pod["metadata"]["labels"]["dapr.io/app-id"] == "job"


class _Load:
    """Calls and events without a pause, by gateways that the test reaches."""

    def __init__(self, gateway: str) -> None:
        self.failed: list[str] = []
        self.calls, self.by = 0, set[str]()
        self.sent: list[str] = []
        self._gateway = f"http://{gateway}:3500/v1.0"
        self._end = asyncio.Event()
        self._numbers = itertools.count()

    def end(self) -> None:
        self._end.set()

    async def run(self, calling: int = 6, publishing: int = 3) -> None:
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as tasks:
            for _ in range(calling):
                tasks.create_task(self._call(session))
            for _ in range(publishing):
                tasks.create_task(self._publish(session))

    async def _call(self, session: aiohttp.ClientSession) -> None:
        while not self._end.is_set():
            await asyncio.sleep(PACE)
            self.calls += 1
            async with session.post(f"{self._gateway}/invoke/callee/method/hello", data=b"x") as response:
                body = await response.text()
                if response.status == 200:
                    self.by.add(json.loads(body)["by"])
                else:
                    self.failed.append(f"call: {response.status} {body}")

    async def _publish(self, session: aiohttp.ClientSession) -> None:
        while not self._end.is_set():
            await asyncio.sleep(PACE)
            name = f"e{next(self._numbers)}"
            async with session.post(f"{self._gateway}/publish/pubsub/t", json=name) as response:
                if response.status == 204:
                    self.sent.append(name)
                else:
                    self.failed.append(f"publish: {response.status} {await response.text()}")


@pytest.mark.usefixtures("injector")
def test_a_rolling_update_under_load_loses_no_call_and_no_event(cluster: LocalCluster, told: tuple[str, Told]) -> None:
    """All pods are replaced, whose application ends at once when it is told to."""
    where, lines = told
    rude = ["python", "/app/tests/support/apps/rude.py"]
    annotations = {"dapr.io/app-port": "3000"}
    cluster.apply(_deployment("callee", 2, [*rude, "first", where], annotations=annotations))
    reached = {"dapr.io/sidecar-listen-addresses": "0.0.0.0"}
    cluster.apply(json.dumps(_pod("caller", IDLE, annotations=reached, terminationGracePeriodSeconds=1)))
    cluster.kubectl("-n", SPACE, "rollout", "status", "deployment/callee", "--timeout=60s")
    cluster.kubectl("-n", SPACE, "wait", "--for=condition=Ready", "pod/caller", "--timeout=30s")
    address = cluster.json("-n", SPACE, "get", "pod", "caller")["status"]["podIP"]

    async def update() -> _Load:
        load = _Load(address)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.run())
            changed = _deployment("callee", 2, [*rude, "second", where], annotations=annotations)
            await asyncio.to_thread(cluster.apply, changed)
            words = ("-n", SPACE, "rollout", "status", "deployment/callee", "--timeout=100s")
            await asyncio.to_thread(cluster.kubectl, *words, within=110.0)
            await asyncio.to_thread(eventually_sync, lambda: _gone(cluster, 2))
            load.end()
        return load

    load = asyncio.run(update())
    assert not load.failed, (len(load.failed), load.failed[:3])
    assert load.by == {"first", "second"}
    assert load.calls > 50

    def all_arrived() -> None:
        assert not set(load.sent) - set(lines.lines)

    eventually_sync(all_arrived)
    assert len(load.sent) > 50
    cluster.kubectl("-n", SPACE, "delete", "deployment/callee", "pod/caller", "--wait=false")


def _gone(cluster: LocalCluster, left: int) -> None:
    assert len(cluster.json("-n", SPACE, "get", "pod", "-l", "app=callee")["items"]) == left


LAST_WORDS = """
import json, os, signal, sys, time, urllib.request as asked
def end(*_):
    for number in range(10):
        time.sleep(0.1)
        base = f"http://127.0.0.1:{os.environ['DAPR_HTTP_PORT']}/v1.0/publish/pubsub/t"
        event = asked.Request(base, json.dumps(f"last {number}").encode(), {"Content-Type": "application/json"})
        assert asked.urlopen(event, timeout=5).status == 204
    os._exit(0)
signal.signal(signal.SIGTERM, end)
while True:
    time.sleep(60)
"""


@pytest.mark.usefixtures("injector")
def test_an_application_calls_out_until_it_has_ended(cluster: LocalCluster, told: tuple[str, Told]) -> None:
    where, lines = told
    taking = ["python", "/app/tests/support/apps/rude.py", "taker", where]
    cluster.apply(json.dumps(_pod("taker", taking, annotations={"dapr.io/app-port": "3000"})))
    cluster.apply(json.dumps(_pod("ends", ["python", "-c", LAST_WORDS])))
    cluster.kubectl("-n", SPACE, "wait", "--for=condition=Ready", "pod/taker", "pod/ends", "--timeout=40s")
    cluster.kubectl("-n", SPACE, "delete", "pod", "ends")

    def all_arrived() -> None:
        assert {f"last {number}" for number in range(10)} <= set(lines.lines)

    eventually_sync(all_arrived)
    cluster.kubectl("-n", SPACE, "delete", "pod", "taker", "--wait=false")


@pytest.mark.usefixtures("injector")
def test_nothing_else_is_touched(cluster: LocalCluster) -> None:
    """Neither what makes pods, nor a pod that does not ask, nor anything by a dry run."""
    tried = cluster.kubectl(
        "apply", "--dry-run=server", "-o", "json", "-f", "-", given=json.dumps(_pod("dry", ["true"]))
    )
    assert json.loads(tried)["spec"]["initContainers"][0]["name"] == CONTAINER
    asks = _pod("plain", IDLE, terminationGracePeriodSeconds=0)
    asks["metadata"]["annotations"]["dapr.io/enabled"] = "false"
    cluster.apply(json.dumps(asks))
    assert "initContainers" not in cluster.json("-n", SPACE, "get", "pod", "plain")["spec"]
    cluster.apply(_deployment("scaled", 0, ["true"]))
    assert "initContainers" not in cluster.json("-n", SPACE, "get", "deployment", "scaled")["spec"]["template"]["spec"]
    twice = json.dumps(_pod("twice", IDLE, terminationGracePeriodSeconds=0))
    cluster.apply(twice)
    before = cluster.json("-n", SPACE, "get", "pod", "twice")
    cluster.apply(twice)
    after = cluster.json("-n", SPACE, "get", "pod", "twice")
    assert before["spec"] == after["spec"]
    cluster.kubectl("-n", SPACE, "delete", "pod/plain", "pod/twice", "deployment/scaled", "--wait=false")


@pytest.mark.usefixtures("injector")
def test_a_wrong_annotation_is_refused_by_name(cluster: LocalCluster) -> None:
    wrong = _pod("wrong", ["true"], annotations={"dapr.io/app-port": "http"})
    with pytest.raises(AssertionError, match=r"dapr\.io/app-port: 'http' is not a port: 1 to 65535"):
        cluster.apply(json.dumps(wrong))


def test_without_an_injector_the_namespace_decides(cluster: LocalCluster, port: int, root: Folder) -> None:
    """A pod that asks is refused, or goes without; one that does not ask never waits for an injector."""
    with injecting(cluster, NAME, INJECTION, root.path, port):
        _until_trusted(cluster, root)
    asks = {"terminationGracePeriodSeconds": 0}
    with pytest.raises(AssertionError, match="failed calling webhook"):
        cluster.apply(json.dumps(_pod("refused", IDLE, **asks)))
    cluster.apply(json.dumps(_pod("without", IDLE, OPEN, **asks)))
    assert "initContainers" not in cluster.json("-n", OPEN, "get", "pod", "without")["spec"]
    plain = _pod("other", IDLE, **asks)
    del plain["metadata"]["annotations"]
    cluster.apply(json.dumps(plain))
    cluster.kubectl("-n", SPACE, "delete", "pod", "other", "--wait=false")
    cluster.kubectl("-n", OPEN, "delete", "pod", "without", "--wait=false")


def test_two_injectors_follow_the_root(cluster: LocalCluster, port: int, root: Folder) -> None:
    """They share a port; a new root is trusted before anything is served by it; one that ends leaves the other."""
    asks = json.dumps(_pod("asks", ["true"]))
    with injecting(cluster, NAME, INJECTION, root.path, port):
        with injecting(cluster, NAME, INJECTION, root.path, port):
            _until_trusted(cluster, root)
            root.rotate()
            _until_trusted(cluster, root)
            for _ in range(10):
                cluster.apply(asks, "--dry-run=server")
        cluster.apply(asks, "--dry-run=server")
