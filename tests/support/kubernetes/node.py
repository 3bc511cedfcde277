"""A Kubernetes of a test's own: one node, with its programs, its network and its processes in namespaces of their own.

Whatever it starts ends with the first process of its namespace, and its mounts, addresses and rules with that.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.eventually import pause
from tests.support.kubernetes.images import PAUSE, write_images
from tests.support.kubernetes.keys import Keys
from tests.support.server import NotInstalledError

__all__ = ["LocalCluster", "find_program"]

HERE = Path(__file__).parent
NEEDED = ("containerd", "ctr", "runc", "ip", "nft", "setpriv", "unshare", "nsenter")
PLUGINS = Path("/usr/lib/cni")
READY_WITHIN = 120.0
SERVICES = "10.96.0.0/16"
LINKS = 64  # So many clusters at once on one machine.


def find_program(sources: Path = HERE) -> Path:
    """Give a program that `tests/provision/kubernetes.sh` has built.

    Raises:
        NotInstalledError: It is not there, or something else that a node needs.
    """
    cache = Path(os.environ.get("BROKERMESH_SDKS") or Path.home() / ".cache/brokermesh-tests/sdks")
    content = b"".join(path.read_bytes() for name in ("go.*", "*.go") for path in sorted(sources.glob(name)))
    program = cache / f"{sources.name}-{hashlib.sha256(content).hexdigest()[:16]}" / sources.name
    lacking = [name for name in NEEDED if not shutil.which(name)]
    if not program.exists() or lacking or not (PLUGINS / "ptp").exists():
        raise NotInstalledError(f"no Kubernetes for tests is installed: {lacking or program}")
    if os.geteuid() != 0:
        raise NotInstalledError("only root may start a Kubernetes for tests")
    return program


class LocalCluster:
    """One node that runs pods in a network of their own, with services, their names, and admission webhooks.

    Attributes:
        directory: Where all its files are.
        kubeconfig: Of an administrator.
        address: Of the node; pods reach it, and so does this machine.
        server: The URL of the API server.
    """

    def __init__(self, directory: Path) -> None:
        """Prepare; entering starts it.

        Args:
            directory: An empty one with a short path, for sockets are in it.

        Raises:
            NotInstalledError: Something is not on this machine.
        """
        self.directory = directory
        self.program, self.pause = find_program(), find_program(HERE / "pause")
        self.kubeconfig = directory / "keys" / "admin.kubeconfig"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, Sequence[str]] = {}
        self._number = 0
        self._tls: ssl.SSLContext | None = None

    def __enter__(self) -> LocalCluster:
        try:
            self._start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def kubectl(self, *words: str, given: str | None = None, within: float = 60.0) -> str:
        """Run kubectl as an administrator.

        Raises:
            AssertionError: It failed; with what it said.
        """
        command = [str(self.program), "kubectl", "--kubeconfig", str(self.kubeconfig), *words]
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=within, check=False)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def get(self, path: str) -> Any:
        """Read an object, a list or a log from the API server: far cheaper than kubectl, for whoever looks often."""
        if self._tls is None:
            keys = self.directory / "keys"
            self._tls = ssl.create_default_context(cafile=keys / "ca.crt")
            self._tls.load_cert_chain(keys / "admin.crt", keys / "admin.key")
        try:
            with urllib.request.urlopen(self.server + path, context=self._tls, timeout=20) as response:
                told = response.read().decode(errors="replace")
                return json.loads(told) if response.headers.get_content_type() == "application/json" else told
        except OSError as error:
            raise AssertionError(f"{path}: {error}") from None

    def json(self, *words: str) -> Any:
        """Run kubectl, and read what it gives."""
        return json.loads(self.kubectl(*words, "-o", "json"))

    def apply(self, manifest: str, *words: str) -> str:
        """Create or change objects."""
        return self.kubectl("apply", "--server-side", "-f", "-", *words, given=manifest)

    def load(self, archive: Path) -> None:
        """Hand images to the node."""
        self._inside(
            "ctr", "-a", f"{self.directory}/run/containerd.sock", "-n", "k8s.io", "images", "import", str(archive)
        )

    def kill(self, name: str) -> None:
        """End one of its programs at once: apiserver, etcd, controllers, scheduler, proxy, kubelet."""
        process = self._processes.pop(name)
        # It is a child of what entered the namespaces, and may be there for longer: with its port.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ends = [os.pidfd_open(int(child)) for child in children]
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        for end in ends:
            assert select.select([end], [], [], 30)[0], f"{name} does not end"
            os.close(end)

    def run(self, name: str) -> None:
        """Start a program again, and return when the API server is ready."""
        self._spawn(name, *self._commands[name])
        self._wait("the API server", lambda: self._asked("get", "--raw", "/readyz"))

    def output(self) -> str:
        """Give the ends of what its programs wrote."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}"
            for path in sorted((self.directory / "log").glob("*.log"))
        )

    def end(self) -> None:
        """End everything."""
        for process in (*self._processes.values(),):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
        self._processes.clear()
        if self._number:
            subprocess.run(["ip", "link", "del", f"meshk8s{self._number}"], capture_output=True, check=False)
            groups, own = Path("/sys/fs/cgroup"), f"meshk8s{self._number}"
            for top in (*groups.glob(own), *groups.glob(f"*/{own}")):
                _remove(top)

    # --- its parts ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        for name in ("log", "run", "cni", "keys", "empty"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self._hold()
        self._connect()
        keys = Keys(self.directory / "keys")
        own = ("127.0.0.1", self.address, "localhost")
        cluster_names = (
            "10.96.0.1",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        )
        keys.issue("apiserver", "apiserver", names=(*own, *cluster_names))
        keys.issue("admin", "admin", "system:masters")
        keys.issue("controllers", "system:kube-controller-manager")
        keys.issue("scheduler", "system:kube-scheduler")
        keys.issue("proxy", "system:kube-proxy")
        keys.issue("kubelet", "system:node:node", "system:nodes", names=(*own, "node"))
        for name in ("admin", "controllers", "scheduler", "proxy", "kubelet"):
            keys.kubeconfig(name, self.server)
        self._configure()
        self._run_all()

    def _hold(self) -> None:
        """Make the namespaces; their first process does nothing but hold them."""
        ends_with_us = ("setpriv", "--pdeathsig", "KILL")
        unshare = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        self._launch("holder", *ends_with_us, *unshare, str(self.pause))

        def inside() -> bool:
            children = Path(f"/proc/{self._processes['holder'].pid}/task/{self._processes['holder'].pid}/children")
            found = children.read_text().split()
            if not found or os.readlink(f"/proc/{found[0]}/ns/net") == os.readlink("/proc/self/ns/net"):
                return False
            self._held = found[0]
            return Path(f"/proc/{found[0]}/cmdline").read_bytes().startswith(str(self.pause).encode())

        self._wait("its namespaces", inside)

    def _connect(self) -> None:
        """Join the node's network with this machine's, by a pair of addresses that nobody else has."""
        for number in range(1, LINKS):
            link = f"meshk8s{number}"
            pair = ("ip", "link", "add", link, "type", "veth", "peer", "name", "node0", "netns", self._held)
            if subprocess.run(pair, capture_output=True, check=False).returncode == 0:
                break
        else:
            raise RuntimeError("no network device can be made for a Kubernetes for tests")
        self._number = number
        here, self.address = (f"198.18.{number}.{each}" for each in (1, 2))
        self.pods = f"198.19.{number}.0/24"
        self.server = f"https://{self.address}:6443"
        _do("ip", "address", "add", f"{here}/30", "dev", link)
        _do("ip", "link", "set", link, "up")
        _do("ip", "route", "add", self.pods, "via", self.address)
        self._inside("ip", "link", "set", "lo", "up")
        self._inside("ip", "address", "add", f"{self.address}/30", "dev", "node0")
        self._inside("ip", "link", "set", "node0", "up")
        self._inside("ip", "route", "add", "default", "via", here)
        for folder in ("/run/containerd", "/var/lib/cni", "/run/netns", "/run/xtables", "/var/log/containers"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._inside("mount", "-t", "tmpfs", "tmpfs", folder)
        self._inside("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        groups = Path("/sys/fs/cgroup")
        for place in [groups] if (groups / "cgroup.controllers").exists() else groups.iterdir():
            if (place / "cgroup.procs").exists():
                (place / f"meshk8s{number}").mkdir(exist_ok=True)

    def _configure(self) -> None:
        ipam = {"type": "host-local", "subnet": self.pods, "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/var/lib/cni"}
        network = {"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "ptp", "ipam": ipam}]}
        (self.directory / "cni" / "10-pods.conflist").write_text(json.dumps(network))
        run = self.directory / "run"
        (self.directory / "containerd.toml").write_text(f"""version = 2
root = "{self.directory}/containerd"
state = "{run}/containerd"
[grpc]
  address = "{run}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{self.directory}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  stream_server_address = "127.0.0.1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{PLUGINS}"
    conf_dir = "{self.directory}/cni"
""")
        keys = self.directory / "keys"
        (self.directory / "resolv.conf").write_text(f"nameserver {self.address}\n")
        kubelet = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address,
            "healthzPort": 0,
            "failCgroupV1": False,
            "failSwapOn": False,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/meshk8s{self._number}",
            "containerRuntimeEndpoint": f"unix://{run}/containerd.sock",
            "tlsCertFile": f"{keys}/kubelet.crt",
            "tlsPrivateKeyFile": f"{keys}/kubelet.key",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": False},
                "x509": {"clientCAFile": f"{keys}/ca.crt"},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "clusterDNS": [self.address],
            "clusterDomain": "cluster.local",
            "resolvConf": f"{self.directory}/resolv.conf",
            "podLogsDir": f"{self.directory}/pods",
            "enforceNodeAllocatable": [],
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "syncFrequency": "10s",
        }
        (self.directory / "kubelet.json").write_text(json.dumps(kubelet))

    def _run_all(self) -> None:
        keys, program = self.directory / "keys", str(self.program)
        etcd, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
        self._spawn(
            "etcd", program, "etcd", "--name=t", f"--data-dir={self.directory}/etcd", "--unsafe-no-fsync",
            f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}", f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=t={peer}",
        )  # fmt: skip
        self._spawn(
            "apiserver", program, "apiserver", f"--etcd-servers={etcd}", "--bind-address=0.0.0.0", "--secure-port=6443",
            f"--advertise-address={self.address}", f"--service-cluster-ip-range={SERVICES}",
            f"--tls-cert-file={keys}/apiserver.crt", f"--tls-private-key-file={keys}/apiserver.key",
            f"--client-ca-file={keys}/ca.crt", "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={keys}/accounts.key",
            f"--service-account-signing-key-file={keys}/accounts.key",
            "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
            f"--kubelet-client-certificate={keys}/admin.crt", f"--kubelet-client-key={keys}/admin.key",
            f"--kubelet-certificate-authority={keys}/ca.crt", "--kubelet-preferred-address-types=InternalIP",
        )  # fmt: skip
        self._spawn("containerd", "containerd", "--config", f"{self.directory}/containerd.toml")
        for name in ("controllers", "scheduler"):
            given = f"{keys}/{name}.kubeconfig"
            self._commands[name] = (
                program, name, f"--kubeconfig={given}", f"--authentication-kubeconfig={given}",
                f"--authorization-kubeconfig={given}", "--leader-elect=false", "--bind-address=127.0.0.1",
            )  # fmt: skip
        self._commands["controllers"] = (
            *self._commands["controllers"], "--use-service-account-credentials",
            f"--service-account-private-key-file={keys}/accounts.key", f"--root-ca-file={keys}/ca.crt",
        )  # fmt: skip
        images = self._images()
        self._wait("the API server", lambda: self._asked("get", "--raw", "/readyz"))
        for name in ("controllers", "scheduler"):
            self._spawn(name, *self._commands[name])
        self._spawn("names", sys.executable, str(HERE / "names.py"), str(self.kubeconfig), self.address)
        self.load(images)
        self._spawn(
            "kubelet", program, "kubelet", f"--config={self.directory}/kubelet.json", "--hostname-override=node",
            f"--kubeconfig={keys}/kubelet.kubeconfig", f"--root-dir={self.directory}/kubelet",
            f"--node-ip={self.address}",
        )  # fmt: skip
        self._wait("the node", lambda: self._asked("get", "node", "node"))  # Without it, the next one soon ends.
        self._spawn(
            "proxy", program, "proxy", f"--kubeconfig={keys}/proxy.kubeconfig", "--proxy-mode=nftables",
            "--hostname-override=node", "--bind-address=127.0.0.1", "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
        )  # fmt: skip
        ready = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
        self._wait("the node", lambda: self.kubectl("get", "node", "node", "-o", ready) == "True")
        self._wait("service accounts", lambda: self._asked("get", "serviceaccount", "default"))

    def _images(self) -> Path:
        directory = self.directory / "images"
        directory.mkdir()
        return write_images(directory, self.pause)

    # --- processes ---------------------------------------------------------------------------------------------------

    def _inside(self, *command: str) -> str:
        return _do("nsenter", "--net", "--mount", "--pid", "--target", self._held, *command)

    def _spawn(self, name: str, *command: str) -> None:
        self._commands[name] = command
        self._launch(name, "nsenter", "--net", "--mount", "--pid", "--target", self._held, *command)

    def _launch(self, name: str, *command: str) -> None:
        with (self.directory / "log" / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _asked(self, *words: str) -> bool:
        self.kubectl(*words, within=10)
        return True

    def _wait(self, what: str, check: Callable[[], bool]) -> None:
        begin, told = time.monotonic(), ""
        while time.monotonic() < begin + READY_WITHIN:
            try:
                if check():
                    return
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                told = str(error)
            if ended := [name for name, each in self._processes.items() if each.poll() is not None]:
                raise RuntimeError(f"{', '.join(ended)} ended: {self.output()}")
            time.sleep(pause(begin))
        raise RuntimeError(f"{what} is not ready in time: {told}\n{self.output()}")


def _do(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def _remove(group: Path) -> None:
    """Remove a control group with those in it, as far as no process is left there."""
    for folder in sorted((each for each in group.rglob("*") if each.is_dir()), key=lambda each: -len(each.parts)):
        with suppress(OSError):
            folder.rmdir()
    with suppress(OSError):
        group.rmdir()
