"""What the command line asks of Kubernetes; each part is imported when it is asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from bindings.kubernetes.api import Cluster, ClusterError
from mesh.errors import ConfigError, Problem

__all__ = ["PLATFORM", "Kubernetes"]

Record = dict[str, Any]


class Kubernetes:
    """A cluster, as KUBECONFIG or the pod says."""

    namespace = "mesh-system"

    @asynccontextmanager
    async def _cluster(self) -> AsyncIterator[Cluster]:
        """Connect; what goes wrong is an error for people."""
        try:
            async with Cluster() as cluster:
                yield cluster
        except ClusterError as error:
            raise ConfigError(Problem(str(error))) from None
        except BaseExceptionGroup as group:
            errors = group.subgroup(ClusterError)
            if errors is None:
                raise
            raise ConfigError([Problem(str(each)) for each in errors.exceptions]) from None

    def manifests(self, namespace: str, given: Sequence[str]) -> list[Record]:
        """Give all objects of an installation."""
        from bindings.kubernetes.delivery import installing, settings

        return installing.manifests(namespace, settings.read(given))

    def settings(self) -> list[tuple[str, object, str]]:
        """Give what ``--set`` takes: names, defaults, and what they are."""
        from bindings.kubernetes.delivery.settings import SETTINGS

        return [(each.name, each.default, each.help) for each in SETTINGS]

    async def install(
        self, namespace: str, given: Sequence[str], *, dry_run: bool, within: float | None, upgrade: bool
    ) -> AsyncIterator[str]:
        """Apply all objects, and wait for what runs; tell of each.

        Args:
            namespace: Where it goes.
            given: ``NAME=VALUE``.
            dry_run: The API server checks it, and nothing changes.
            within: Seconds until all is ready; None does not wait.
            upgrade: What is not given stays as the installation has it, which must be there.
        """
        from bindings.kubernetes.delivery import installing, settings

        async with self._cluster() as cluster:
            base = await installing.settings_of(cluster, namespace) if upgrade else None
            if upgrade and base is None:
                raise ConfigError(Problem(f"there is no installation in {namespace}; see: mesh init -k"))
            made = installing.manifests(namespace, settings.read(given, base))
            async for line in installing.install(cluster, made, dry_run=dry_run):
                yield line
            if within is not None and not dry_run:
                try:
                    await installing.wait(cluster, made, within)
                except TimeoutError as error:
                    raise ConfigError(Problem(f"{error}; see: mesh status -k -n {namespace}")) from None

    async def uninstall(self, namespace: str, *, everything: bool) -> AsyncIterator[str]:
        """Remove what was installed; tell of each object."""
        from bindings.kubernetes.delivery import installing

        async with self._cluster() as cluster:
            async for line in installing.uninstall(cluster, namespace, everything=everything):
                yield line

    async def parts(self, namespace: str) -> list[Record]:
        """Tell of the parts of an installation."""
        from bindings.kubernetes.delivery import looking

        async with self._cluster() as cluster:
            return await looking.parts(cluster, namespace)

    async def applications(self, namespace: str | None) -> list[Record]:
        """Tell of the pods that have a gateway; None: of all namespaces."""
        from bindings.kubernetes.delivery import looking

        async with self._cluster() as cluster:
            return await looking.applications(cluster, namespace)

    async def resources(self, kind: str, namespace: str | None, name: str | None) -> list[Record]:
        """Give resources of a kind, as the cluster has them."""
        from bindings.kubernetes.delivery import looking

        async with self._cluster() as cluster:
            return await looking.resources(cluster, kind, namespace, name)

    def rows(self, resources: Sequence[Record]) -> list[Record]:
        """Give of resources what a table shows."""
        from bindings.kubernetes.delivery import looking

        return looking.component_types(resources)

    async def logs(
        self, app_id: str, pod: str | None, namespace: str, *, lines: int, follow: bool
    ) -> AsyncIterator[tuple[str, bytes]]:
        """Give what gateways of an application write: pod and line."""
        from bindings.kubernetes.delivery import looking

        async with self._cluster() as cluster:
            async for each in looking.logs(cluster, app_id, pod, namespace, lines=lines, follow=follow):
                yield each

    @asynccontextmanager
    async def dashboard(self, namespace: str, here: int) -> AsyncIterator[int]:
        """Forward a port of this machine to the dashboard; give it."""
        from bindings.kubernetes.delivery import forwarding, looking, objects

        async with self._cluster() as cluster:
            pods = await looking.pods_of(cluster, namespace, f"app.kubernetes.io/name={objects.DASHBOARD}")
            running = [
                each["metadata"]["name"] for each in pods if (each.get("status") or {}).get("phase") == "Running"
            ]
            if not running:
                raise ConfigError(
                    Problem(f"no dashboard runs in {namespace}; see: mesh upgrade -k --set dashboard=true")
                )
            port = objects.DASHBOARD_PORT
            async with forwarding.forwarding(cluster, namespace, running[0], port, here) as listening:
                yield listening

    async def deploy(self, run: str, namespace: str, apps: Sequence[Mapping[str, Any]]) -> list[str]:
        """Apply the workloads of a template; give their names."""
        from bindings.kubernetes.delivery.deploying import workloads

        async with self._cluster() as cluster:
            made = workloads(run, namespace, apps)
            for each in made:
                await cluster.apply(each)
            return [f"{each['kind']} {each['metadata']['name']}" for each in made]

    async def withdraw(self, run: str, namespace: str) -> list[str]:
        """Delete the workloads of a template; give their names."""
        from bindings.kubernetes.delivery.deploying import RUN

        gone = []
        async with self._cluster() as cluster:
            for path in (
                f"/apis/apps/v1/namespaces/{namespace}/deployments",
                f"/api/v1/namespaces/{namespace}/services",
            ):
                for each in await cluster.list(path, {"labelSelector": f"{RUN}={run}"}):
                    await cluster.delete(f"{path}/{each['metadata']['name']}")
                    gone.append(f"{path.rpartition('/')[2]} {each['metadata']['name']}")
        return gone

    async def roots(self, namespace: str) -> bytes | None:
        """Give whom gateways trust, PEM; None: there are no identities."""
        from bindings.kubernetes.delivery import looking

        async with self._cluster() as cluster:
            return await looking.roots(cluster, namespace)

    async def renew_root(self, namespace: str) -> bytes:
        """Have certificates issued by a new root, beside which the former ones are trusted; give all, PEM."""
        from bindings.kubernetes.delivery.trusting import renew

        async with self._cluster() as cluster:
            return await renew(cluster, namespace)

    def annotations(self) -> Mapping[str, str]:
        """Give each annotation by the option that sets it."""
        from bindings.kubernetes.delivery.annotating import flags

        return flags()

    def annotated(self, text: str, given: Mapping[str, str], resource: str | None, namespace: str | None) -> str:
        """Write annotations into manifests."""
        from bindings.kubernetes.delivery.annotating import annotated

        return annotated(text, given, resource, namespace)

    async def operate(self, options: Mapping[str, Any]) -> None:
        """Run an operator until a signal ends it."""
        from bindings.kubernetes.injector import Injection
        from bindings.kubernetes.operator.running import OperatorSettings, operate

        given = dict(options)
        image, pull_policy = given.pop("image"), given.pop("pull_policy")
        backbone, trust_mode = given.pop("gateway_backbone"), given.pop("trust_mode")
        injection = None
        if image:
            injection = Injection(
                image=image,
                pull_policy=pull_policy,
                control_namespace=given["namespace"],
                trust_mode=trust_mode if given["identities"] else "off",
                backbone=backbone,
            )
        try:
            await operate(OperatorSettings(**given, injection=injection))
        except ClusterError as error:
            raise ConfigError(Problem(str(error))) from None


PLATFORM = Kubernetes()
"""As the entry point names it."""
