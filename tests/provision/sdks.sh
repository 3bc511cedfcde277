#!/usr/bin/env bash
# Makes sure that the official SDKs, which tests/sdk runs unmodified, are installed below tests/sdk. Idempotent.
set -euo pipefail
cd "$(dirname "$0")/../sdk"

if ! command -v npm >/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "npm (of Node.js 18 or later) is not on PATH; on Debian, as root: apt-get install nodejs npm" >&2
        exit 1
    fi
    install() {
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nodejs npm >/dev/null
    }
    install || { apt-get update -qq && install; }
fi
if ! cmp -s package.json node_modules/.installed; then
    npm install --no-package-lock --no-audit --no-fund --silent
    cp package.json node_modules/.installed
fi
if ! cmp -s requirements.txt .python/.installed; then
    python3 -m venv .python
    .python/bin/python -m pip install -q --disable-pip-version-check -r requirements.txt
    cp requirements.txt .python/.installed
fi
