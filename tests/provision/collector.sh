#!/usr/bin/env bash
# Builds an OpenTelemetry Collector of tests/support/otel_collector, for tests that start servers of their own. Idempotent.
# It is built in some minutes, once for all clones, to $BROKERMESH_SDKS; without Go, or with one that is too old, it is left out.
set -euo pipefail

sources=$(cd "$(dirname "$0")/../support/otel_collector" && pwd)
hash=$(cat "$sources"/go.* "$sources"/*.go | sha256sum | cut -c1-16)
target=${BROKERMESH_SDKS:-$HOME/.cache/brokermesh-tests/sdks}/otelcol-$hash
if [ -x "$target/otelcol" ]; then
    exit 0
fi
if ! command -v go >/dev/null; then
    echo "left out: the OpenTelemetry Collector needs Go"
    exit 0
fi
least=$(sed -n 's/^go //p' "$sources/go.mod")
found=$(go env GOVERSION | sed 's/^go//')
if [ "$(printf '%s\n' "$least" "$found" | sort -V | head -1)" != "$least" ]; then
    echo "left out: the OpenTelemetry Collector needs Go $least or later, there is $found"
    exit 0
fi
mkdir -p "$target"
built=$(mktemp "$target/.otelcol-XXXXXX") # Another clone may build it at the same time.
trap 'rm -f "$built"' EXIT
(cd "$sources" && GOFLAGS=-buildvcs=false nice go build -ldflags "-s -w" -o "$built" .) || {
    echo "left out: the OpenTelemetry Collector cannot be built"
    [ -z "${CI:-}" ]
    exit
}
chmod 755 "$built"
mv "$built" "$target/otelcol"
