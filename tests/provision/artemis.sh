#!/usr/bin/env bash
# Downloads ActiveMQ Artemis, a broker that speaks AMQP 1.0, from Maven Central, for tests that start servers of their own. Idempotent.
# It goes to $BROKERMESH_ARTEMIS, by default ~/.cache/brokermesh-tests/artemis.
set -euo pipefail
. "$(dirname "$0")/debian.bash"
. "$(dirname "$0")/maven.bash"

unpack org.apache.activemq:apache-artemis:2.40.0:tar.gz:bin "${BROKERMESH_ARTEMIS:-$HOME/.cache/brokermesh-tests/artemis}"
