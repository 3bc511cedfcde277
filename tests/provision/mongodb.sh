#!/usr/bin/env bash
# Downloads mongo-java-server from Maven Central, which speaks MongoDB's protocol, for tests that start servers of their
# own; MongoDB itself cannot be had from a registry. Idempotent.
# It goes to $BROKERMESH_MONGODB, by default ~/.cache/brokermesh-tests/mongodb.
set -euo pipefail
. "$(dirname "$0")/debian.bash"

version=1.47.0
directory=${BROKERMESH_MONGODB:-$HOME/.cache/brokermesh-tests/mongodb}

command -v java >/dev/null || provide "Java 17 or later" default-jre-headless
[ ! -e "$directory/$version/Serve.class" ] || exit 0
command -v mvn >/dev/null || provide Maven maven
command -v javac >/dev/null || provide "a compiler for Java" default-jdk-headless

fail() {
    echo "error: mongo-java-server $version could not be made ready ($1):" >&2
    tail -20 "$work/output.log" >&2
    exit 1
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/pom.xml" <<POM
<project><modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>mongodb</artifactId><version>1</version>
<dependencies><dependency>
<groupId>de.bwaldvogel</groupId><artifactId>mongo-java-server-memory-backend</artifactId><version>$version</version>
</dependency></dependencies></project>
POM
# Its own command has a port that is fixed, and it tells an older version than clients of today take.
cat >"$work/Serve.java" <<'JAVA'
import de.bwaldvogel.mongo.MongoServer;
import de.bwaldvogel.mongo.MongoVersion;
import de.bwaldvogel.mongo.backend.memory.MemoryBackend;
import java.util.List;

public class Serve {
    public static void main(String[] arguments) {
        MongoVersion version = new MongoVersion() {
            public List<Integer> getVersionArray() {
                return List.of(4, 4, 0);
            }

            public int getWireVersion() {
                return 9;
            }
        };
        new MongoServer(new MemoryBackend().version(version)).bind("127.0.0.1", Integer.parseInt(arguments[0]));
    }
}
JAVA
(cd "$work" && mvn -q -B dependency:copy-dependencies -DoutputDirectory="$work/made" >"$work/output.log" 2>&1) ||
    fail "its download from Maven Central"
javac -cp "$work/made/*" -d "$work/made" "$work/Serve.java" >"$work/output.log" 2>&1 || fail "its compilation"
mkdir -p "$directory"
rm -rf "${directory:?}/$version"
mv "$work/made" "$directory/$version"
