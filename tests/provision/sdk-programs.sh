#!/usr/bin/env bash
# Builds the programs of tests/sdk that are compiled, on the official SDKs for Go, Java and Rust. Idempotent.
# They go to $BROKERMESH_SDKS, by default ~/.cache/brokermesh-tests/sdks, each to a directory named after what it is
# built of, so that clones share them. A language whose compiler is missing or too old is left out, and outside of CI one
# whose program cannot be built.
set -euo pipefail
. "$(dirname "$0")/debian.bash"

here=$(cd "$(dirname "$0")" && pwd)
cache=${BROKERMESH_SDKS:-$HOME/.cache/brokermesh-tests/sdks}
grpcurl=v1.9.4

build_go() {
    newer Go "$(sed -n 's/^go //p' go.mod)" "$(go env GOVERSION 2>/dev/null | sed 's/^go//')"
    export GOFLAGS=-buildvcs=false
    go build -ldflags "-s -w" -o "$1/program" .
    GOBIN=$1 go install -ldflags "-s -w" "github.com/fullstorydev/grpcurl/cmd/grpcurl@$grpcurl"
}

build_java() {
    command -v mvn >/dev/null || provide Maven maven
    command -v javac >/dev/null || provide "a compiler for Java" default-jdk-headless
    mvn -q -B dependency:copy-dependencies -DoutputDirectory="$1"
    javac -nowarn -cp "$1/*" -d "$1" *.java
}

build_rust() {
    newer Rust "$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)" "$(rustc --version 2>/dev/null | cut -d' ' -f2)"
    export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$1/target}
    cargo build --quiet --locked
    cp "$CARGO_TARGET_DIR/debug/sdk" "$1/program"
    rm -rf "$1/target"
}

# newer WHAT LEAST FOUND
newer() {
    [ -z "$3" ] || [ "$(printf '%s\n' "$2" "$3" | sort -V | head -1)" != "$2" ] || return 0
    echo "left out: the SDK for $1 needs $1 $2 or later, there is ${3:-none}, and Debian's may be too old"
    exit 3
}

if [ $# = 2 ]; then
    cd "$here/../sdk/$1"
    "build_$1" "$2"
    exit
fi

mkdir -p "$cache"
for language in go java rust; do
    sources=$here/../sdk/$language
    hash=$( (cd "$sources" && find . -type f | LC_ALL=C sort | xargs cat "$here/sdk-programs.sh") | sha256sum | cut -c1-16)
    [ ! -d "$cache/$language-$hash" ] || continue
    rm -f "$cache/$language.left-out"
    work=$(mktemp -d "$cache/.$language-XXXXXX")
    status=0
    bash "$here/sdk-programs.sh" "$language" "$work" >"$work/build.log" 2>&1 || status=$?
    if [ $status = 0 ]; then
        mv -T "$work" "$cache/$language-$hash" 2>/dev/null || rm -rf "$work" # Another one was faster.
        continue
    fi
    [ $status = 3 ] || echo "the program on the SDK for $language could not be built:" >&2
    tail -20 "$work/build.log" | tee "$cache/$language.left-out" >&2
    rm -rf "$work"
    [ $status = 3 ] || [ -z "${CI:-}" ] || exit 1
done
# What was built of other sources, some time ago.
find "$cache" -mindepth 1 -maxdepth 1 -mtime +30 -exec rm -rf {} +
