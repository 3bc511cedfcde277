#!/usr/bin/env bash
# Downloads Apache Kafka from Maven Central, for tests that start servers of their own, and has it start once, so that
# later starts take less. Idempotent.
# It goes to $BROKERMESH_KAFKA, by default ~/.cache/brokermesh-tests/kafka.
set -euo pipefail
. "$(dirname "$0")/debian.bash"

version=3.9.1
directory=${BROKERMESH_KAFKA:-$HOME/.cache/brokermesh-tests/kafka}

command -v java >/dev/null || provide "Java 17 or later" default-jre-headless

# An archive of another Java is not used.
archive() {
    [ "$directory/classes.jsa" -nt "$(readlink -f "$(command -v java)")" ] && [ "$directory/classes.jsa" -nt "$directory/libs" ] && return
    cd "$(dirname "$0")/../.."
    .venv/bin/python -m tests.support.kafka_server
}

if [ -e "$directory/libs/kafka_2.13-$version.jar" ] && [ -e "$directory/libs/slf4j-simple-1.7.36.jar" ]; then
    archive
    exit
fi

command -v mvn >/dev/null || provide Maven maven
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/pom.xml" <<POM
<project><modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>kafka</artifactId><version>1</version>
<dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$version</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
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
