#!/bin/sh
# Install RabbitMQ for the tests, which start servers of their own; nothing is left running. Idempotent.
set -eu

server=/usr/lib/rabbitmq/bin/rabbitmq-server

if [ -x "$server" ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
    echo "error: RabbitMQ 3.10 or later is needed for its tests; on Debian: sudo $0 (installs rabbitmq-server)" >&2
    exit 1
fi

# The package starts its service; this forbids it. Another installation may have forbidden it already.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
lock='-o DPkg::Lock::Timeout=300'
# shellcheck disable=SC2086  # It is two words.
apt-get $lock install -y --no-install-recommends rabbitmq-server >/dev/null 2>&1 || {
    apt-get $lock update >/dev/null
    apt-get $lock install -y --no-install-recommends rabbitmq-server >/dev/null
}

if [ -d /run/systemd/system ]; then
    systemctl disable --now rabbitmq-server.service epmd.socket epmd.service >/dev/null 2>&1 || true
elif [ -x /etc/init.d/rabbitmq-server ]; then
    /etc/init.d/rabbitmq-server stop >/dev/null 2>&1 || true
    update-rc.d rabbitmq-server disable >/dev/null 2>&1 || true
fi
test -x "$server"
