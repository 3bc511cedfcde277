"""A Workload API as an agent of SPIRE serves it, on the messages of SPIFFE's own library."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator, Sequence
from typing import Any, Self, TypeAlias

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from spiffe._proto.workload_pb2 import X509SVID, X509SVIDResponse
from spiffe._proto.workload_pb2_grpc import add_SpiffeWorkloadAPIServicer_to_server

__all__ = ["Agent", "Authority", "p256"]

Key: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


def p256() -> ec.EllipticCurvePrivateKey:
    """Make a key as SPIRE does unless it is told otherwise."""
    return ec.generate_private_key(ec.SECP256R1())


class Authority:
    """Issues as a SPIRE server does; below another one it is no root."""

    def __init__(self, trust_domain: str = "public", key: Key | None = None, above: Authority | None = None) -> None:
        """Make a key and its certificate."""
        self.key: Key = key or p256()
        self._above = above
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "SPIFFE"),
                x509.NameAttribute(NameOID.SERIAL_NUMBER, str(x509.random_serial_number())),
            ]
        )
        issuer = name if above is None else above.certificate.subject
        builder = _begun(name, issuer, self.key, datetime.timedelta(days=1), f"spiffe://{trust_domain}")
        builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
        builder = builder.add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), False)
        self.certificate = builder.sign((above or self).key, hashes.SHA256())

    def svid(
        self,
        uri: str,
        *,
        key: Key | None = None,
        ttl: datetime.timedelta = datetime.timedelta(hours=1),
        others: Sequence[Authority] = (),
    ) -> X509SVID:
        """Issue for an id; ``others`` are roots that are trusted besides."""
        key = key or p256()
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "SPIRE"),
            ]
        )
        builder = _begun(name, self.certificate.subject, key, ttl, uri)
        usage = _usage("digital_signature", "key_encipherment", "key_agreement")
        both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = builder.add_extension(usage, critical=True).add_extension(both, critical=False)
        builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        chain, root = [builder.add_extension(issuer, critical=False).sign(self.key, hashes.SHA256())], self
        while root._above is not None:
            chain, root = [*chain, root.certificate], root._above
        private = key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        bundle = [root.certificate, *(each.certificate for each in others)]
        return X509SVID(spiffe_id=uri, x509_svid=_der(chain), x509_svid_key=private, bundle=_der(bundle))


def _begun(
    subject: x509.Name, issuer: x509.Name, key: Key, ttl: datetime.timedelta, uri: str
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(seconds=10))
        .not_valid_after(now + ttl)
        .add_extension(names, critical=False)
    )


def _usage(*wanted: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{each: each in wanted for each in _USAGES})


def _der(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.DER) for each in certificates)


class Agent:
    """Serves at an address while it is entered; it can be stopped, and entered again.

    Attributes:
        streams: How many are open now.
        asked: How many were ever begun, refused ones too.
    """

    def __init__(self, address: str) -> None:
        """Have nothing to give yet."""
        self.address = address
        self.streams = self.asked = 0
        self._answer: X509SVIDResponse | grpc.StatusCode = grpc.StatusCode.PERMISSION_DENIED
        self._changed = asyncio.Event()

    def give(self, *svids: X509SVID) -> None:
        """Send these to all, now and to whoever comes."""
        self._set(X509SVIDResponse(svids=svids))

    def refuse(self, code: grpc.StatusCode) -> None:
        """End every stream so, now and of whoever comes."""
        self._set(code)

    def _set(self, answer: X509SVIDResponse | grpc.StatusCode) -> None:
        self._answer = answer
        self._changed.set()
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = grpc.aio.server()
        add_SpiffeWorkloadAPIServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        target = self.address.replace("unix://", "unix:").removeprefix("tcp://")
        assert self._server.add_insecure_port(target)
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End every stream, as an agent that is stopped."""
        await self._server.stop(None)

    async def FetchX509SVID(self, request: Any, context: Any) -> AsyncIterator[X509SVIDResponse]:
        """Answer, and again with each change."""
        self.asked += 1
        if dict(context.invocation_metadata()).get("workload.spiffe.io") != "true":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        self.streams += 1
        try:
            while True:
                changed, answer = self._changed, self._answer
                if isinstance(answer, grpc.StatusCode):
                    await context.abort(answer, "no identity issued")
                yield answer
                await changed.wait()
        finally:
            self.streams -= 1

    def __getattr__(self, name: str) -> object:
        """Have no other method; each is asked for when the service is made."""
        if name.startswith(("Fetch", "Validate")):
            return None
        raise AttributeError(name)
