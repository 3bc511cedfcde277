#!/usr/bin/env bash
# Builds an OpenTelemetry Collector of tests/support/otel_collector, for tests that start servers of their own. Idempotent.
set -euo pipefail
. "$(dirname "$0")/go.bash"

build "the OpenTelemetry Collector" "$(cd "$(dirname "$0")/../support/otel_collector" && pwd)" otelcol
