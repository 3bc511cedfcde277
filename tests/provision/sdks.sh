#!/usr/bin/env bash
# Makes sure that the official SDKs, which tests/sdk runs unmodified, are installed below tests/sdk. Idempotent.
set -euo pipefail
. "$(dirname "$0")/debian.bash"

command -v npm >/dev/null || provide "npm of Node.js 18 or later" nodejs npm
cd "$(dirname "$0")/../sdk"
if ! cmp -s package.json node_modules/.installed; then
    npm install --no-package-lock --no-audit --no-fund --silent
    cp package.json node_modules/.installed
fi
if ! cmp -s requirements.txt .python/.installed; then
    python3 -m venv .python
    .python/bin/python -m pip install -q --disable-pip-version-check -r requirements.txt
    cp requirements.txt .python/.installed
fi
