"""The server that an API server asks, and whom the API server trusts for it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace

import orjson
from aiohttp import web

from bindings.kubernetes.api import Cluster, ClusterError
from bindings.kubernetes.injector.certificate import Certificate
from bindings.kubernetes.injector.container import Injection
from bindings.kubernetes.injector.objects import CONFIGURATION, PATH, PORT, SERVICE, bundle_of
from bindings.kubernetes.injector.review import reviewed
from mesh.errors import ConfigError
from mesh.tasks import task_group
from mesh.trust.certificates import as_pem
from mesh.trust.folder import Root

__all__ = ["Injector", "has_native_sidecars", "serving"]

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
CLOSING_SECONDS = 5.0
ASKED_SECONDS = 10.0  # As long as the API server waits (``objects.SECONDS``).
MAX_BYTES = 4 * 2**20  # Of a review: an API server takes at most 3 MiB for an object.
LARGE_BYTES, MAX_LARGE = 256 * 1024, 16  # Whoever reaches the port takes no more memory, and keeps no pod waiting.
MANAGER = "brokermesh-injector"
NATIVE = (1, 29)


@dataclass(frozen=True, slots=True, kw_only=True)
class Injector:
    """Where an injector serves.

    Attributes:
        namespace: Of its Service.
        service: Its Service.
        configuration: The MutatingWebhookConfiguration that names it; empty = nobody keeps whom the API server trusts.
        host: Where it listens.
        port: Where it listens; 0 picks a free one.
        names: Further names and addresses that it is reached by.
    """

    namespace: str
    service: str = SERVICE
    configuration: str = CONFIGURATION
    host: str = "0.0.0.0"  # noqa: S104 - the API server is elsewhere
    port: int = PORT
    names: Sequence[str] = ()

    def all_names(self) -> list[str]:
        """Give what it is reached by."""
        return [f"{self.service}.{self.namespace}.svc", *self.names]


@asynccontextmanager
async def serving(
    cluster: Cluster, injector: Injector, injection: Injection, root: Callable[[], Root | None]
) -> AsyncIterator[int]:
    """Answer an API server; give the port.

    Any number of them serve at once, also on one address.

    Args:
        cluster: Whom to tell whom to trust.
        injector: Where.
        injection: What counts for all pods; ``roots`` follows ``root``.
        root: Gives what certificates are issued by at the moment; None = it is not known yet. Must not block.

    Raises:
        ConfigError: It cannot listen there.
    """
    certificate = Certificate(injector.all_names())
    kept = _Kept(cluster, injector, certificate, root)
    async with task_group() as tasks:
        keeping = tasks.create_task(kept.keep(), name="injector-keep")
        await kept.ready.wait()

        large = asyncio.Semaphore(MAX_LARGE)

        async def answer(request: web.Request) -> web.Response:
            try:
                is_small = request.content_length is not None and request.content_length <= LARGE_BYTES
                async with asyncio.timeout(ASKED_SECONDS), nullcontext() if is_small else large:
                    review = orjson.loads(await request.read())
                    known = replace(injection, roots=kept.roots)
                    found = await asyncio.to_thread(reviewed, review, known, secrets.token_urlsafe(24))
            except TimeoutError:
                return web.Response(status=408, text="the review did not come to its end in time\n")
            except ValueError as error:
                return web.Response(status=400, text=f"{error}\n")
            _log(review, found)
            return web.Response(body=orjson.dumps(found), content_type="application/json")

        async def healthy(_: web.Request) -> web.Response:
            return web.Response(text="ok\n")

        application = web.Application(client_max_size=MAX_BYTES)
        application.router.add_post(PATH, answer)
        application.router.add_get("/healthz", healthy)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=CLOSING_SECONDS)
        await runner.setup()
        try:
            site = web.TCPSite(runner, injector.host, injector.port, ssl_context=certificate.context, reuse_port=True)
            try:
                await site.start()
            except OSError as error:
                text = f"cannot listen on {injector.host}, port {injector.port}, for the API server: {error.strerror}"
                raise ConfigError(text) from error
            port = int(runner.addresses[0][1])
            logger.info("pods are given gateways on port %d", port)
            yield port
        finally:
            await runner.cleanup()
            keeping.cancel()


def _log(review: dict[str, dict[str, object]], found: dict[str, dict[str, object]]) -> None:
    request, response = review["request"], found["response"]
    pod = request.get("object")
    about = pod.get("metadata") or {} if isinstance(pod, dict) else {}
    where = f"{request.get('namespace')}/{about.get('name') or about.get('generateName') or ''}"
    if not response["allowed"]:
        logger.warning("refused the pod %s: %s", where, response["status"])
    elif "patch" in response:
        logger.info("gave the pod %s a gateway%s", where, ", for a dry run" if request.get("dryRun") else "")


class _Kept:
    """Keeps the certificate, and whom the API server trusts."""

    def __init__(
        self, cluster: Cluster, injector: Injector, certificate: Certificate, root: Callable[[], Root | None]
    ) -> None:
        self._cluster, self._injector, self._certificate, self._root = cluster, injector, certificate, root
        self._told = ""
        self.roots = ""
        self.ready = asyncio.Event()

    async def keep(self) -> None:
        """Look again and again; what goes wrong is said once, and tried again."""
        while True:
            try:
                await self._look()
                self._told = ""
            except (ClusterError, ConfigError) as error:
                if str(error) != self._told:
                    self._told = str(error)
                    logger.warning("whom the API server trusts is not kept: %s", error)
            await asyncio.sleep(LOOK_SECONDS if self.ready.is_set() else 0.2)

    async def _look(self) -> None:
        root = self._root()
        if root is None:
            return
        pem = as_pem(root.roots)
        if not self.ready.is_set():
            await asyncio.to_thread(self._certificate.renew, root)
            self.roots = pem.decode()
            self.ready.set()
        if self._injector.configuration:
            await self._tell(pem)
        # Only now: whoever does not trust a new root yet must not meet it.
        if await asyncio.to_thread(self._certificate.renew, root):
            logger.info("the certificate for the API server is renewed")
        self.roots = pem.decode()

    async def _tell(self, pem: bytes) -> None:
        name = self._injector.configuration
        path = f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{name}"
        found = await self._cluster.get(path)
        if found is None:
            raise ConfigError(f"there is no MutatingWebhookConfiguration {name}; mesh init -k makes it")
        if (said := bundle_of(found, pem)) is not None:
            await self._cluster.apply(said, path=path, manager=MANAGER)
            logger.info("the API server trusts the roots of the mesh for %s", name)


async def has_native_sidecars(cluster: Cluster) -> bool:
    """Ask whether the cluster has native sidecars: from Kubernetes 1.29 on.

    Raises:
        ClusterError: It does not answer.
    """
    return await cluster.version() >= NATIVE
