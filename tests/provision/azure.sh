#!/usr/bin/env bash
# Makes sure that what answers as Azure does, cosmosdb-server and Azurite, is below tests/support/azure. Idempotent.
set -euo pipefail
. "$(dirname "$0")/debian.bash"

command -v npm >/dev/null || provide "npm of Node.js 18 or later" nodejs npm
cd "$(dirname "$0")/../support/azure"
if ! cmp -s package.json node_modules/.installed; then
    npm install --no-package-lock --no-audit --no-fund --silent
    cp package.json node_modules/.installed
fi
