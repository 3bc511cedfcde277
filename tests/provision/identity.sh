#!/usr/bin/env bash
# Makes sure that oidc-provider-mock, a provider of OpenID Connect, is there, for tests that start servers of their own.
# Idempotent. It has an environment of its own below $BROKERMESH_SDKS: with what it needs, other packages load more than they do elsewhere.
set -euo pipefail

version=0.3.4
target=${BROKERMESH_SDKS:-$HOME/.cache/brokermesh-tests/sdks}/oidc-provider-mock-$version
python=$(dirname "$0")/../../.venv/bin/python

if [ -e "$target/.installed" ]; then
    exit 0
fi
[ -x "$python" ] || python=python3
rm -rf "$target"
"$python" -m venv "$target"
"$target/bin/python" -m pip install -q --disable-pip-version-check "oidc-provider-mock==$version" "authlib<2"
touch "$target/.installed"
