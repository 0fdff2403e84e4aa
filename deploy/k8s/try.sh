#!/bin/sh
# A whole mirror in a Kubernetes cluster on this machine, in one command: builds the image, makes the cluster, applies the overlay `local`.
#
#   deploy/k8s/try.sh             with kind, or with k3d if there is no kind; the cluster is called sluice
#   deploy/k8s/try.sh delete      removes the cluster with everything in it
#
# It mirrors the relay in overlays/local/settings.env. It may run again: then it rebuilds the image and restarts the processes.
set -eu
cd "$(dirname "$0")/../.."

die() { echo "try.sh: $1" >&2; exit 2; }
for tool in docker kubectl; do command -v "$tool" >/dev/null || die "$tool is not on the PATH: install it"; done
if command -v kind >/dev/null; then
  maker=kind context=kind-sluice
elif command -v k3d >/dev/null; then
  maker=k3d context=k3d-sluice
else
  die "neither kind nor k3d is on the PATH: install one of them (https://kind.sigs.k8s.io, https://k3d.io)"
fi
docker info >/dev/null 2>&1 || die "Docker does not answer: start it"

if [ "${1:-}" = delete ]; then
  if [ "$maker" = kind ]; then exec kind delete cluster --name sluice; else exec k3d cluster delete sluice; fi
fi
[ $# = 0 ] || die "$1 is unknown: give nothing or delete"

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
image=sluice:$version
again=no
docker build --tag "$image" .
if [ "$maker" = kind ]; then
  if kind get clusters | grep -qx sluice; then again=yes; else kind create cluster --name sluice; fi
  kind load docker-image --name sluice "$image"
else
  if k3d cluster list sluice >/dev/null 2>&1; then again=yes; else k3d cluster create sluice; fi
  k3d image import --cluster sluice "$image"
fi

in_cluster() { kubectl --context "$context" "$@"; }
in_cluster apply -k deploy/k8s/overlays/local
# the tag is the same after a rebuild: without this the processes would keep the old image
[ "$again" = no ] || in_cluster -n sluice rollout restart deployment,statefulset --selector=app.kubernetes.io/name=sluice
in_cluster -n sluice rollout status deployment --timeout=15m
in_cluster -n sluice rollout status statefulset --timeout=15m
in_cluster -n sluice exec deploy/sluice-control -- sluice status
echo "look again: kubectl --context $context -n sluice exec deploy/sluice-control -- sluice status"
