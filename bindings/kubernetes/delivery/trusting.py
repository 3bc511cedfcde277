"""A new root of the identities of a cluster, beside the former ones: operators follow the Secret."""

from __future__ import annotations

import base64
from datetime import timedelta

from bindings.kubernetes.api import Cluster, ClusterError
from bindings.kubernetes.operator.trust import SECRET
from mesh.trust.certificates import as_pem, read_certificates, read_key
from mesh.trust.folder import ROOT_TTL, Root
from mesh.trust.secret import texts_of

__all__ = ["renew"]


async def renew(cluster: Cluster, namespace: str, ttl: timedelta = ROOT_TTL) -> bytes:
    """Write a new root, by which certificates are issued from now on; give all that are trusted, PEM.

    Raises:
        ClusterError: There is none, or somebody else has written it meanwhile.
        ConfigError: What there is cannot be read.
    """
    path, where = f"/api/v1/namespaces/{namespace}/secrets/{SECRET}", f"the Secret {SECRET} of {namespace}"
    found = await cluster.get(path)
    if found is None:
        raise ClusterError(f"there is no {where.removeprefix('the ')}; see: mesh status -k", 404)
    roots, key = (base64.b64decode(found["data"][name]) for name in ("roots.pem", "root.key"))
    new = Root(read_certificates(roots, where), read_key(key, where), where, where).rotated(ttl)
    # With its version: whoever was faster is not overwritten.
    await cluster.replace(path, {**found, "data": None, "stringData": texts_of(new)})
    return as_pem(new.roots)
