# Sourced by the scripts beside it.

# Builds a program, once for all clones, to $BROKERMESH_SDKS; without Go, or with one that is too old, it is left out.
#   build WHAT SOURCES NAME [FLAG...]
build() {
    local what=$1 sources=$2 name=$3 hash target least found built
    shift 3
    hash=$(cat "$sources"/go.* "$sources"/*.go | sha256sum | cut -c1-16)
    target=${BROKERMESH_SDKS:-$HOME/.cache/brokermesh-tests/sdks}/$name-$hash
    [ ! -x "$target/$name" ] || return 0
    if ! command -v go >/dev/null; then
        echo "left out: $what needs Go"
        return 0
    fi
    least=$(sed -n 's/^go //p' "$sources/go.mod")
    found=$(go env GOVERSION | sed 's/^go//')
    if [ "$(printf '%s\n' "$least" "$found" | sort -V | head -1)" != "$least" ]; then
        echo "left out: $what needs Go $least or later, there is $found"
        return 0
    fi
    mkdir -p "$target"
    built=$(mktemp "$target/.$name-XXXXXX") # Another clone may build it at the same time.
    (cd "$sources" && GOFLAGS=-buildvcs=false nice go build -ldflags "-s -w" "$@" -o "$built" .) || {
        rm -f "$built"
        echo "left out: $what cannot be built"
        [ -z "${CI:-}" ]
        return
    }
    chmod 755 "$built"
    mv "$built" "$target/$name"
}
