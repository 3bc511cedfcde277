#!/usr/bin/env bash
# Makes sure that a virtual environment has the library of AMQP 1.0, which is built with a C compiler. Idempotent.
#   proton.bash PYTHON
set -euo pipefail
. "$(dirname "$0")/debian.bash"

"$1" -c "import proton" 2>/dev/null && exit
command -v cc >/dev/null || provide "a C compiler, for the library of AMQP 1.0," gcc libc6-dev libssl-dev python3-dev
"$1" -m pip install -q --disable-pip-version-check -e ".[amqp]"
