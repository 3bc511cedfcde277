"""A systemd that is started in a root of its own, by systemd-nspawn: all it shares with this machine is what it reads.

Its root is an empty folder with the machine's ``/usr``, the Python that runs the tests and the project in it, none of
which it can write; ``/tmp``, ``/run`` and the network are its own, and so is the group of its processes. (One that is
merely given a mount namespace empties the machine's ``/tmp`` when it starts.)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.meta.sources import ROOT
from tests.support.eventually import eventually_sync
from tests.support.server import missing

__all__ = ["PYTHON", "Booted", "booted"]

PYTHON = "/opt/mesh/bin/python"
_MASKED = ("getty.target", "console-getty.service", "systemd-logind.service", "remote-fs.target")
_GROUPS = Path("/sys/fs/cgroup")
_SECONDS = 60.0
# Before it becomes systemd-nspawn: whatever runs in it is seen and ended below this group alone.
_IN_GROUP = 'for group in "$1"/*; do echo $$ >"$group/cgroup.procs" || exit 1; done; shift; exec "$@"'


@dataclass(frozen=True, slots=True)
class Booted:
    """A systemd that runs.

    Attributes:
        root: Its root, which can be written from here as well.
        pid: Its process.
    """

    root: Path
    pid: int

    def run(self, *words: str, check: bool = True) -> str:
        """Run a command in it, and give what it prints.

        Args:
            words: The command.
            check: Whether it must succeed.
        """
        inside = ["nsenter", "--all", "--target", str(self.pid), "env", "-i", "PATH=/usr/bin:/usr/sbin", "LANG=C.UTF-8"]
        done = subprocess.run([*inside, *words], capture_output=True, text=True, timeout=_SECONDS, check=False)
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def mesh(self, *words: str, check: bool = True) -> str:
        """Run ``mesh`` in it, as root."""
        return self.run(PYTHON, "-P", "-m", "gateway.cli", *words, check=check)


@contextmanager
def booted(root: Path) -> Iterator[Booted]:
    """Start one, and end it with all that it has started.

    Args:
        root: An empty folder.
    """
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("systemd-nspawn"):
        missing("systemd-nspawn, as root")
    _furnish(root)
    groups = [_GROUPS / each for each in ("systemd", "unified") if (_GROUPS / each).is_dir()] or [_GROUPS]
    name = f"mesh-test-{os.getpid()}"
    ours = root.parent / "groups"
    ours.mkdir()
    for group in groups:
        (group / name).mkdir()
        (ours / group.name).symlink_to(group / name)
    log = (root.parent / "boot.log").open("wb")
    process = subprocess.Popen(
        ["sh", "-c", _IN_GROUP, "sh", str(ours), *_nspawn(root, name)],
        env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    try:
        machine = Booted(root, eventually_sync(lambda: _first(process), within=_SECONDS))
        eventually_sync(lambda: machine.run("systemctl", "is-system-running", "--wait"), within=_SECONDS)
        machine.run("ldconfig")
        yield machine
    finally:
        _end(process)
        log.close()
        for group in groups:
            _remove(group / name)


def _nspawn(root: Path, name: str) -> list[str]:
    bound = {"/usr": "/usr", str(ROOT): "/srv/project", sys.base_prefix: "/opt/python"}
    bound[sysconfig.get_path("purelib")] = "/srv/site"
    options = "register=no keep-unit private-network console=pipe link-journal=no resolv-conf=off timezone=off boot"
    binds = [f"--bind-ro={source}:{target}" for source, target in bound.items()]
    return [
        "systemd-nspawn",
        f"--directory={root}",
        f"--machine={name}",
        *(f"--{each}" for each in options.split()),
        *binds,
    ]


def _furnish(root: Path) -> None:
    """Write what a root has besides ``/usr``."""
    for folder in ("usr", "var", "tmp", "run", "root", "srv/project", "srv/site", "opt/python", "opt/mesh/bin"):
        (root / folder).mkdir(parents=True)
    root.chmod(0o755)
    for link in ("bin", "sbin", "lib", "lib64"):
        (root / link).symlink_to(f"usr/{link}")
    units = root / "etc" / "systemd" / "system"
    units.mkdir(parents=True)
    for unit in _MASKED:
        (units / unit).symlink_to("/dev/null")
    (units / "default.target").symlink_to("/usr/lib/systemd/system/multi-user.target")
    etc = {
        "machine-id": f"{'0123456789abcdef' * 2}\n",  # Not its first start: then it would enable all that there is.
        "os-release": Path("/etc/os-release").read_text(),
        "passwd": "root:x:0:0::/root:/bin/sh\nmessagebus:x:100:100::/:/usr/sbin/nologin\n",
        "group": "root:x:0:\nmessagebus:x:100:\n",
        "nsswitch.conf": "passwd: files systemd\ngroup: files systemd\nhosts: files\n",
        "hosts": "127.0.0.1 localhost\n::1 localhost\n",
        "ld.so.conf": "/opt/python/lib\n",
    }
    for name, text in etc.items():
        (root / "etc" / name).write_text(text)
    shutil.copy("/etc/ld.so.cache", root / "etc" / "ld.so.cache")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = Path(sysconfig.get_path("purelib", "posix_prefix", {"base": str(root / "opt" / "mesh")}))
    packages.mkdir(parents=True)
    (packages / "project.pth").write_text("/srv/project\n/srv/site\n")
    (root / "opt" / "mesh" / "pyvenv.cfg").write_text("home = /opt/python/bin\n")
    (root / PYTHON[1:]).symlink_to(f"/opt/python/bin/{version}")
    server = shutil.which("nats-server", path=str(Path(sys.executable).parent))
    assert server is not None
    shutil.copy(server, root / "opt" / "mesh" / "bin")


def _first(process: subprocess.Popen[bytes]) -> int:
    """Give the pid of what runs in the root, which must be a systemd."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    assert Path(f"/proc/{children[0]}/comm").read_text().strip() == "systemd"
    return int(children[0])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # Asks systemd to halt.
    try:
        process.wait(_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_SECONDS)


def _remove(group: Path) -> None:
    until = time.monotonic() + _SECONDS
    for folder in sorted((each for each in group.rglob("*") if each.is_dir()), reverse=True):
        with suppress(OSError):
            folder.rmdir()
    while group.exists() and time.monotonic() < until:
        with suppress(OSError):
            group.rmdir()
