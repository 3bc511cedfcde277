"""Images of containers, written without an engine: this Python and Node.js, what is installed, and our own packages.

Source: the OCI image format specification, "Image Layout".
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from tests.support.processes import ROOT

__all__ = ["APPS", "GATEWAY", "NATS", "PAUSE", "write_images"]

GATEWAY, APPS, NATS, PAUSE = (f"brokermesh.test/{name}:1" for name in ("gateway", "apps", "nats", "pause"))
USER = 65532
PACKAGES = ("mesh", "brokers", "bindings", "gateway")
EXTRAS = ("encryption", "redis", "sqlite", "postgresql")
PACKAGED = Path(sysconfig.get_path("purelib")).name
LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "lib2to3",
    PACKAGED,
    "dist-packages",
}
HOME = "/opt/mesh"
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
SITE = f"{HOME}/lib/{VERSION}/{PACKAGED}"
_LIBRARY = re.compile(r"(?:=> )?(/\S+) \(0x")


class Layer:
    """Files of an image, in a tar file; folders appear with what is in them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tar = tarfile.open(path, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115 - closed in digest.
        self._made: set[str] = set()

    def folder(self, name: str, mode: int = 0o755, owner: int = 0) -> None:
        """Make a folder, and those above it."""
        name = name.strip("/")
        if not name or name in self._made:
            return
        self.folder(name.rpartition("/")[0])
        self._made.add(name)
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, mode, owner, owner
        self._tar.addfile(entry)

    def file(self, source: Path, name: str) -> None:
        """Add a file of this machine, which anybody may read."""
        if name in self._made:
            return
        self._made.add(name)
        self.folder(name.rpartition("/")[0])
        entry = self._tar.gettarinfo(source.resolve(), name.strip("/"))
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        entry.mode |= 0o444 | (entry.mode & 0o100) // 0o100 * 0o111
        if entry.type == tarfile.LNKTYPE:
            entry.type, entry.size = tarfile.REGTYPE, source.stat().st_size
        with source.open("rb") as content:
            self._tar.addfile(entry, content)

    def text(self, name: str, text: str, mode: int = 0o644) -> None:
        """Add a file with a text; none of this machine takes its place afterwards."""
        self._made.add(name)
        self.folder(name.rpartition("/")[0])
        entry = tarfile.TarInfo(name.strip("/"))
        entry.size, entry.mode = len(text.encode()), mode
        self._tar.addfile(entry, io.BytesIO(text.encode()))

    def link(self, name: str, to: str) -> None:
        """Add a symbolic link."""
        self.folder(name.rpartition("/")[0])
        entry = tarfile.TarInfo(name.strip("/"))
        entry.type, entry.linkname = tarfile.SYMTYPE, to
        self._tar.addfile(entry)

    def tree(self, source: Path, name: str) -> None:
        """Add a folder with what is in it, as far as a program needs it."""
        for folder, inner, files in os.walk(source):
            inner[:] = sorted(set(inner) - LEFT_OUT)
            for file in sorted(files):
                if not file.endswith(".a"):
                    self.file(Path(folder, file), f"{name}{folder.removeprefix(str(source))}/{file}")

    def program(self, source: Path) -> None:
        """Add a program, or a library, at its own path, and the libraries that it loads."""
        self.file(source, str(source))
        self.libraries([source])

    def libraries(self, programs: Sequence[Path]) -> None:
        """Add what programs load from the system."""
        if not programs:
            return
        told = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
        for path in sorted(set(_LIBRARY.findall(told))):
            if not path.startswith(f"{sys.prefix}/"):  # Wheels bring their own, beside them.
                self.file(Path(path), path)

    def digest(self) -> str:
        """End it, and give what it is known by."""
        self._tar.close()
        with self.path.open("rb") as written:
            return hashlib.file_digest(written, "sha256").hexdigest()


def write_images(directory: Path, program: Path) -> Path:
    """Write all images into one archive that ``ctr images import`` takes; blocks.

    Args:
        directory: An empty one.
        program: The first process of each pod.
    """
    pause, python, gateway, apps = (Layer(directory / f"{name}.tar") for name in ("pause", "python", "gateway", "apps"))
    pause.file(program, "/pause")
    _python(python)
    for package in PACKAGES:
        gateway.tree(ROOT / package, f"{SITE}/{package}")
    node = shutil.which("node")
    if node:
        apps.program(Path(node))
        apps.link("/usr/local/bin/node", node)
    for folder in ("examples", "tests/support/apps"):
        apps.tree(ROOT / folder, f"/app/{folder}")
    common = {
        "Env": [
            f"PATH={HOME}/bin:/usr/local/bin:/usr/bin",
            "HOME=/var/lib/mesh",
            "MESH_HOME=/var/lib/mesh",
            "PYTHONUNBUFFERED=1",
        ]
    }
    user = {**common, "User": f"{USER}:{USER}", "WorkingDir": "/app"}
    images = {
        PAUSE: ([pause], {"Entrypoint": ["/pause"]}),
        NATS: ([python], {**common, "Entrypoint": ["nats-server"]}),
        GATEWAY: ([python, gateway], {**user, "Entrypoint": ["mesh", "gateway"]}),
        APPS: ([python, apps], user),
    }
    return _archive(directory, images)


def _python(layer: Layer) -> None:
    """Add this interpreter, and an environment with all that a gateway stands on."""
    base = Path(sys.base_prefix)
    interpreter = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    layer.program(interpreter)
    for place in {
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("platstdlib", vars={"installed_platbase": str(base)}),
    }:
        folder = Path(place if place.startswith(str(base)) else base / "lib" / VERSION)
        layer.tree(folder, str(folder))
        layer.libraries(sorted(folder.glob("lib-dynload/*.so")))
    layer.text(f"{HOME}/pyvenv.cfg", f"home = {interpreter.parent}\ninclude-system-{PACKAGED} = false\n")
    for name in ("python", "python3", VERSION):
        layer.link(f"{HOME}/bin/{name}", str(interpreter))
    mesh = f"#!{HOME}/bin/python\nimport sys\nfrom gateway.cli import main\nsys.exit(main())\n"
    layer.text(f"{HOME}/bin/mesh", mesh, 0o755)
    site = Path(sysconfig.get_path("purelib"))
    compiled = []
    for path in _installed():
        inside = path.is_relative_to(site)
        layer.file(path, f"{SITE}/{path.relative_to(site)}" if inside else f"{HOME}/bin/{path.name}")
        if path.suffix == ".so":
            compiled.append(path)
    layer.libraries(compiled)
    layer.text("/etc/passwd", f"root:x:0:0::/:/\nmesh:x:{USER}:{USER}::/var/lib/mesh:/\n")
    layer.text("/etc/nsswitch.conf", "hosts: files dns\n")
    layer.folder("/tmp", 0o1777)
    layer.folder("/var/lib/mesh/state", 0o700, USER)
    # Loaded by name, by whoever asks who a host is.
    for found in ("libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2", "libgcc_s.so.1"):
        for folder in (Path("/lib/x86_64-linux-gnu"), Path("/lib/aarch64-linux-gnu")):
            if (folder / found).exists():
                layer.program(folder / found)


def _installed() -> Iterator[Path]:
    """Give the files of all packages that a gateway needs."""
    # Of ours, whose code is elsewhere, what is in the environment; a clone may hold another one beside its code.
    found = sorted(Path(sysconfig.get_path("purelib")).glob("brokermesh-*.dist-info/*"))
    yield from (each for each in found if each.is_file())
    wanted, seen = [("brokermesh", frozenset(EXTRAS))], set()
    while wanted:
        name, extras = wanted.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        distribution = importlib.metadata.distribution(name)
        for text in distribution.requires or ():
            need = Requirement(text)
            if not need.marker or any(need.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
                wanted.append((need.name, frozenset(need.extras)))
        for file in () if name == "brokermesh" else distribution.files or ():
            path = Path(str(distribution.locate_file(file))).resolve()
            needed = path.suffix != ".pth" and not {"tests", "test"} & set(path.parts)
            if needed and path.is_relative_to(sys.prefix) and path.is_file():
                yield path


def _archive(directory: Path, images: Mapping[str, tuple[list[Layer], dict[str, Any]]]) -> Path:
    digests = {layer: layer.digest() for layers, _ in images.values() for layer in layers if layer not in images}
    path = directory / "images.tar"
    index = []
    with tarfile.open(path, "w") as archive:

        def blob(content: bytes, kind: str) -> dict[str, Any]:
            digest = hashlib.sha256(content).hexdigest()
            _add(archive, f"blobs/sha256/{digest}", content)
            return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

        for layer, digest in digests.items():
            archive.add(layer.path, f"blobs/sha256/{digest}")
        for name, (layers, config) in images.items():
            rootfs = {"type": "layers", "diff_ids": [f"sha256:{digests[layer]}" for layer in layers]}
            settings = {"architecture": _architecture(), "os": "linux", "config": config, "rootfs": rootfs}
            manifest = {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": blob(json.dumps(settings).encode(), "application/vnd.oci.image.config.v1+json"),
                "layers": [
                    {
                        "mediaType": "application/vnd.oci.image.layer.v1.tar",
                        "digest": f"sha256:{digests[layer]}",
                        "size": layer.path.stat().st_size,
                    }
                    for layer in layers
                ],
            }
            written = blob(json.dumps(manifest).encode(), manifest["mediaType"])
            index.append({**written, "annotations": {"io.containerd.image.name": name}})
        _add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": index}).encode())
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    return path


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _architecture() -> str:
    machine = sysconfig.get_platform().rpartition("-")[2]
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
