#!/usr/bin/env bash
# Builds a server of tests/support/pubsub that answers as Google's Pub/Sub does, for tests that start servers of their own. Idempotent.
set -euo pipefail
. "$(dirname "$0")/go.bash"

build "the server of Pub/Sub" "$(cd "$(dirname "$0")/../support/pubsub" && pwd)" pubsub
