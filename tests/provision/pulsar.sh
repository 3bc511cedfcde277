#!/usr/bin/env bash
# Downloads Apache Pulsar from Maven Central, for tests that start servers of their own. Idempotent.
# It goes to $BROKERMESH_PULSAR, by default ~/.cache/brokermesh-tests/pulsar.
set -euo pipefail
. "$(dirname "$0")/debian.bash"
. "$(dirname "$0")/maven.bash"

unpack org.apache.pulsar:pulsar-server-distribution:4.0.4:tar.gz:bin "${BROKERMESH_PULSAR:-$HOME/.cache/brokermesh-tests/pulsar}"
