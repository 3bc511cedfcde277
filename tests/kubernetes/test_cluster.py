"""The cluster that these tests stand on: pods run, find each other by name, and leave nothing behind."""

from __future__ import annotations

from tests.support.eventually import eventually_sync
from tests.support.kubernetes.images import APPS
from tests.support.kubernetes.node import LocalCluster

PODS = f"""
apiVersion: v1
kind: Namespace
metadata: {{name: plain}}
---
apiVersion: v1
kind: Service
metadata: {{name: pages, namespace: plain}}
spec: {{selector: {{app: pages}}, ports: [{{port: 80, targetPort: 8000}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: pages, namespace: plain, labels: {{app: pages}}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: pages, image: "{APPS}", command: [python, -m, http.server, "8000"]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: reader, namespace: plain}}
spec:
  restartPolicy: OnFailure
  containers:
  - name: reader
    image: {APPS}
    command: [python, -c, "import urllib.request as asked; print(asked.urlopen('http://pages', timeout=5).status)"]
"""


def test_pods_find_each_other(cluster: LocalCluster) -> None:
    """A pod reads from another one by the name of its service."""
    cluster.apply(PODS)

    def read() -> None:
        assert cluster.kubectl("-n", "plain", "logs", "reader").endswith("200\n")

    eventually_sync(read)
    cluster.kubectl("delete", "namespace", "plain", "--wait=false")
