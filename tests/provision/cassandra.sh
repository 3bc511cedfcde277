#!/usr/bin/env bash
# Downloads Apache Cassandra from Maven Central, for tests that start servers of their own, and has it start once, so that
# later starts take less. Idempotent.
# It goes to $BROKERMESH_CASSANDRA, by default ~/.cache/brokermesh-tests/cassandra.
set -euo pipefail
. "$(dirname "$0")/debian.bash"

version=5.0.4
directory=${BROKERMESH_CASSANDRA:-$HOME/.cache/brokermesh-tests/cassandra}

command -v java >/dev/null || provide "Java 17 or later" default-jre-headless

# An archive of another Java is not used.
archive() {
    [ "$directory/classes.jsa" -nt "$(readlink -f "$(command -v java)")" ] && [ "$directory/classes.jsa" -nt "$directory/libs" ] && return
    cd "$(dirname "$0")/../.."
    .venv/bin/python -m tests.support.cassandra_server
}

if [ -e "$directory/libs/cassandra-all-$version.jar" ]; then
    archive
    exit
fi

command -v mvn >/dev/null || provide Maven maven
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/pom.xml" <<POM
<project><modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>cassandra</artifactId><version>1</version>
<dependencies>
<dependency><groupId>org.apache.cassandra</groupId><artifactId>cassandra-all</artifactId><version>$version</version></dependency>
</dependencies></project>
POM
mkdir -p "$directory"
(cd "$work" && mvn -q -B dependency:copy-dependencies -DoutputDirectory="$work/libs" >"$work/mvn.log" 2>&1) || {
    tail -20 "$work/mvn.log" >&2
    exit 1
}
rm -rf "$directory/libs"
mv "$work/libs" "$directory/libs"
archive
