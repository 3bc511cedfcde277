# Sourced by the scripts beside it, after debian.bash.

# Downloads an archive from Maven Central and unpacks it, unless that was done before.
#   unpack ARTIFACT DIRECTORY
unpack() {
    local artifact=$1 directory=$2 work
    command -v java >/dev/null || provide "Java 17 or later" default-jre-headless
    [ "$(cat "$directory/.installed" 2>/dev/null)" != "$artifact" ] || return 0
    command -v mvn >/dev/null || provide Maven maven
    mkdir -p "$(dirname "$directory")"
    work=$(mktemp -d -p "$(dirname "$directory")")
    (cd "$work" && mvn -q -B dependency:copy -Dartifact="$artifact" -DoutputDirectory="$work" >"$work/mvn.log" 2>&1) || {
        tail -20 "$work/mvn.log" >&2
        rm -rf "$work"
        exit 1
    }
    mkdir "$work/unpacked"
    tar -xz --no-same-owner -f "$work"/*.tar.gz -C "$work/unpacked" # Maven's own way shortens long names.
    rm -rf "$directory"
    # Most archives have one folder, which names the version.
    set -- "$work"/unpacked/*
    if [ $# = 1 ]; then mv "$1" "$directory"; else mv "$work/unpacked" "$directory"; fi
    echo "$artifact" >"$directory/.installed"
    rm -rf "$work"
}
