#!/usr/bin/env bash
# Downloads Apicurio Registry, a schema registry that answers as Confluent's does, from Maven Central, for tests that start servers of their own. Idempotent.
# It goes to $BROKERMESH_APICURIO, by default ~/.cache/brokermesh-tests/apicurio.
set -euo pipefail
. "$(dirname "$0")/debian.bash"
. "$(dirname "$0")/maven.bash"

unpack io.apicurio:apicurio-registry-app:3.0.9:tar.gz:all "${BROKERMESH_APICURIO:-$HOME/.cache/brokermesh-tests/apicurio}"
