"""Names of services and of their pods, as the DNS of a cluster has them: ``python names.py KUBECONFIG ADDRESS``.

Source: the Kubernetes specification "DNS-Based Service Discovery", version 1.1.0, and RFC 1035.
"""

from __future__ import annotations

import json
import socket
import socketserver
import ssl
import struct
import sys
import urllib.request
from pathlib import Path
from typing import Any

__all__ = ["answer", "main"]

ZONE = "cluster.local"
A, NAME_ERROR = 1, 3
SECONDS = 1


def main() -> None:
    """Answer on UDP port 53."""
    config = json.loads(Path(sys.argv[1]).read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
    tls.load_cert_chain(user["client-certificate"], user["client-key"])

    def read(path: str) -> Any:
        with urllib.request.urlopen(cluster["server"] + path, context=tls, timeout=2) as response:
            return json.load(response)

    class Asked(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            question: bytes
            asked_on: socket.socket
            question, asked_on = self.request
            asked_on.sendto(answer(question, lambda name: _addresses(name, read)), self.client_address)

    with socketserver.ThreadingUDPServer((sys.argv[2], 53), Asked) as server:
        server.serve_forever()


def _addresses(name: str, read: Any) -> list[str] | None:
    """Look a name up; None where there is none."""
    host, _, zone = name.lower().rstrip(".").partition(".svc.")
    parts = host.split(".")
    if zone != ZONE or len(parts) not in (2, 3):
        return None
    pod, service, namespace = ["", *parts] if len(parts) == 2 else parts
    try:
        found = read(f"/api/v1/namespaces/{namespace}/services/{service}")
        fixed = found["spec"].get("clusterIP", "None")
        if fixed != "None":
            return None if pod else [fixed]
        ends = read(f"/api/v1/namespaces/{namespace}/endpoints/{service}").get("subsets") or []
    except OSError:
        return None
    early = found["spec"].get("publishNotReadyAddresses")
    given = [
        each
        for subset in ends
        for each in [*subset.get("addresses", []), *(subset.get("notReadyAddresses", []) if early else [])]
    ]
    return [each["ip"] for each in given if not pod or each.get("hostname") == pod] or None


def answer(question: bytes, addresses: Any) -> bytes:
    """Answer one question; ``addresses`` gives those of a name, or None."""
    number, flags = struct.unpack_from("!HH", question)
    labels, at = [], 12
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode())
        at += 1 + length
    kind = struct.unpack_from("!H", question, at + 1)[0]
    found = addresses(".".join(labels))
    given = (found or []) if kind == A else []
    code = 0 if found is not None else NAME_ERROR
    head = struct.pack("!HHHHHH", number, 0x8480 | (flags & 0x0100) | code, 1, len(given), 0, 0)
    records = b"".join(b"\xc0\x0c" + struct.pack("!HHIH", A, 1, SECONDS, 4) + socket.inet_aton(each) for each in given)
    return head + question[12 : at + 5] + records


if __name__ == "__main__":
    main()
