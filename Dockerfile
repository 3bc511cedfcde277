# The gateway: docker run IMAGE --app-id orders --app-port 3000
# By itself it has the clients of all brokers and some databases; `--target thin` makes the one that has that of NATS alone.
# All stages use one base, since the later ones run what the first have installed.
ARG BASE=python:3.12-slim

# What it stands on, without a source of its own: what changes of those is installed in a moment.
FROM ${BASE} AS thin-base
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
RUN ["python", "-m", "venv", "--without-pip", "/opt/mesh"]
RUN ["pip", "--python", "/opt/mesh/bin/python", "install", "--no-cache-dir", "--disable-pip-version-check", "--root-user-action=ignore", "."]

FROM thin-base AS thin-build
COPY . .
RUN ["pip", "--python", "/opt/mesh/bin/python", "install", "--no-cache-dir", "--disable-pip-version-check", "--root-user-action=ignore", "--no-deps", "--force-reinstall", "."]

FROM ${BASE} AS shell
LABEL org.opencontainers.image.title="brokermesh gateway" \
      org.opencontainers.image.licenses="Apache-2.0"
# Of the user below, as a volume that is mounted here will be; all else is root's, and may be read-only.
RUN ["install", "--directory", "--owner=65532", "--group=65532", "--mode=0700", "/var/lib/mesh", "/var/lib/mesh/state"]
ENV PATH=/opt/mesh/bin:$PATH \
    HOME=/var/lib/mesh \
    MESH_HOME=/var/lib/mesh \
    PYTHONUNBUFFERED=1
VOLUME /var/lib/mesh
USER 65532:65532
EXPOSE 3500
# Ready: the broker is connected, and the application is there. Another port needs another check.
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 CMD ["python", "-c", "import http.client, sys; gateway = http.client.HTTPConnection('127.0.0.1', 3500, timeout=2); gateway.request('GET', '/v1.0/healthz'); sys.exit(gateway.getresponse().status != 204)"]
ENTRYPOINT ["mesh", "gateway"]

FROM shell AS thin
COPY --from=thin-build /opt/mesh /opt/mesh

FROM thin-base AS base
RUN ["pip", "--python", "/opt/mesh/bin/python", "install", "--no-cache-dir", "--disable-pip-version-check", "--root-user-action=ignore", ".[encryption,kafka,mqtt,mysql,nkeys,postgresql,rabbitmq,redis]"]

FROM base AS build
COPY . .
RUN ["pip", "--python", "/opt/mesh/bin/python", "install", "--no-cache-dir", "--disable-pip-version-check", "--root-user-action=ignore", "--no-deps", "--force-reinstall", "."]

FROM shell
COPY --from=build /opt/mesh /opt/mesh
