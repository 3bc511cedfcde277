#!/usr/bin/env bash
# Downloads the Zipkin server from Maven Central, for tests that start servers of their own. Idempotent.
# It goes to $BROKERMESH_ZIPKIN, by default ~/.cache/brokermesh-tests/zipkin.
set -euo pipefail
. "$(dirname "$0")/debian.bash"

version=3.5.1
directory=${BROKERMESH_ZIPKIN:-$HOME/.cache/brokermesh-tests/zipkin}

command -v java >/dev/null || provide "Java 17 or later" default-jre-headless
if [ -e "$directory/zipkin-server-$version-exec.jar" ]; then
    exit 0
fi

command -v mvn >/dev/null || provide Maven maven
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$work" && mvn -q -B dependency:copy -Dartifact="io.zipkin:zipkin-server:$version:jar:exec" \
    -DoutputDirectory="$work/jars" >"$work/mvn.log" 2>&1) || {
    tail -20 "$work/mvn.log" >&2
    exit 1
}
rm -rf "$directory"
mkdir -p "$(dirname "$directory")"
mv "$work/jars" "$directory"
