#!/usr/bin/env bash
# Makes sure that a Kubernetes is there, of which tests start nodes of their own. Idempotent.
# It is compiled in some minutes, once for all clones, to $BROKERMESH_SDKS; without Go, or with one that is too old, it is left out.
set -euo pipefail
. "$(dirname "$0")/debian.bash"
. "$(dirname "$0")/go.bash"

command -v containerd >/dev/null || provide "containerd" containerd
command -v runc >/dev/null || provide "runc" runc
command -v ip >/dev/null || provide "ip" iproute2
command -v nft >/dev/null || provide "nft" nftables
[ -x /usr/lib/cni/ptp ] || provide "the network plugins of containers" containernetworking-plugins

sources=$(cd "$(dirname "$0")/../support/kubernetes" && pwd)
version=$(sed -n 's/^\tk8s.io\/kubernetes //p' "$sources/go.mod")
told="-X k8s.io/component-base/version.gitVersion=$version -X k8s.io/client-go/pkg/version.gitVersion=$version"
CGO_ENABLED=0 build "Kubernetes" "$sources" kubernetes -gcflags=all=-dwarf=false -ldflags "-s -w $told"
CGO_ENABLED=0 build "the first process of pods" "$sources/pause" pause
CGO_ENABLED=0 build "Helm" "$(cd "$(dirname "$0")/../support/helm" && pwd)" helm -gcflags=all=-dwarf=false
