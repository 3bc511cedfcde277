#!/usr/bin/env bash
# Makes sure that the libraries of the examples, which tests/e2e runs, are installed below tests/e2e/libraries. Idempotent.
set -euo pipefail
. "$(dirname "$0")/debian.bash"

command -v npm >/dev/null || provide "npm of Node.js 18 or later" nodejs npm
examples=$(cd "$(dirname "$0")/../../examples" && pwd)
mkdir -p "$(dirname "$0")/../e2e/libraries"
cd "$(dirname "$0")/../e2e/libraries"
if ! cmp -s "$examples/express/package.json" node_modules/.installed; then
    cp "$examples/express/package.json" package.json
    npm install --no-package-lock --no-audit --no-fund --silent
    cp package.json node_modules/.installed
fi
grafana=$(cd ../grafana && pwd)
if ! cmp -s "$grafana/package.json" grafana/node_modules/.installed; then
    mkdir -p grafana
    cp "$grafana/package.json" grafana/package.json
    (cd grafana && npm install --no-package-lock --no-audit --no-fund --silent)
    cp grafana/package.json grafana/node_modules/.installed
fi
cat "$examples/fastapi/requirements.txt" "$examples/flask/requirements.txt" >requirements.txt
if ! cmp -s requirements.txt .python/.installed; then
    python3 -m venv .python
    .python/bin/python -m pip install -q --disable-pip-version-check -r requirements.txt
    cp requirements.txt .python/.installed
fi
