#!/usr/bin/env bash
# Makes sure that RabbitMQ is there, for tests that start servers of their own. Idempotent.
set -euo pipefail
. "$(dirname "$0")/debian.bash"

[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || provide "RabbitMQ 3.10 or later" rabbitmq-server
