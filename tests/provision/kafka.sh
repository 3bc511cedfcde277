#!/usr/bin/env bash
# Downloads Apache Kafka from Maven Central, for tests that start servers of their own. Idempotent.
# It goes to $BROKERMESH_KAFKA, by default ~/.cache/brokermesh-tests/kafka.
set -euo pipefail

version=3.9.1
directory=${BROKERMESH_KAFKA:-$HOME/.cache/brokermesh-tests/kafka}

if ! command -v java >/dev/null || ! { [ -e "$directory/libs/kafka_2.13-$version.jar" ] || command -v mvn >/dev/null; }; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "java (17 or later) and mvn are not on PATH; on Debian, as root: apt-get install default-jre-headless maven" >&2
        exit 1
    fi
    install() {
        DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends \
            default-jre-headless maven >/dev/null
    }
    install || { apt-get -o DPkg::Lock::Timeout=300 update -qq && install; }
fi
if [ -e "$directory/libs/kafka_2.13-$version.jar" ] && [ -e "$directory/libs/slf4j-simple-1.7.36.jar" ]; then
    exit 0
fi

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
