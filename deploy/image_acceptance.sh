#!/bin/sh
# Builds the image without a container engine and runs every process of it: `make image-test`, as root, on Debian.
#
#   deploy/image_acceptance.sh [FOLDER]     FOLDER keeps base and layers for the next run (default: a temporary one)
#
# The base is a Debian made here by debootstrap, in the place of the published Python image (`--build-arg BASE`); it takes
# this machine's certificates and package settings along, so that the build fetches as this machine does. It is for this test
# only. Then tests/deploy/run_image.py runs each process in namespaces of its own: as PID 1, user 10001, without
# capabilities, on a read-only root, against an embedded log and database.
#
# What it cannot show: that the published base works (its Python is newer), seccomp and AppArmor profiles, limits of memory
# where cgroups are not ours to make (then the peak is measured and compared), and Kubernetes' own network.
set -eu
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo "image-test needs root: it makes namespaces and a Debian" >&2; exit 2; }
missing=""
for tool in buildah debootstrap unshare setpriv; do command -v "$tool" >/dev/null || missing="$missing $tool"; done
[ -z "$missing" ] || { echo "image-test needs$missing; on Debian: apt-get install buildah debootstrap util-linux" >&2; exit 2; }

if [ $# -gt 0 ]; then
  work=$1
  mkdir -p "$work"
else
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
fi
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
build() { command=$1; shift; buildah --root "$work/store" --runroot "$work/run" --storage-driver vfs "$command" "$@"; }

if [ ! -e "$work/base.tar" ]; then
  rm -rf "$work/debian"
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$work/debian" > "$work/debootstrap.log"
  rm -f "$work/debian/etc/resolv.conf"
  for file in /etc/ssl/certs/ca-certificates.crt /etc/pip.conf /etc/uv/uv.toml; do
    if [ -e "$file" ]; then install -D -m 644 "$file" "$work/debian$file"; fi
  done
  tar -C "$work/debian" -c . > "$work/base.tar"
  rm -rf "$work/debian"
fi

started=$(date +%s)
container=$(build from scratch)
build add "$container" "$work/base.tar" / > /dev/null
build config --env SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt "$container"
build commit --quiet "$container" localhost/sluice-base > /dev/null
build rm "$container" > /dev/null

rm -rf "$work/source"
mkdir "$work/source"
git archive HEAD | tar -x -C "$work/source"
build bud --isolation chroot --format docker --build-arg BASE=localhost/sluice-base \
  --build-arg BUILD_PACKAGES="gcc libc6-dev python3-dev python3-venv" \
  --tag localhost/sluice "$work/source" > "$work/build.log" 2>&1 || { tail -30 "$work/build.log" >&2; exit 1; }
echo "built in $(($(date +%s) - started)) s"

container=$(build from localhost/sluice)
root=$(build mount "$container")
echo "size: $(du -sm "$root" | cut -f1) MB, of which Sluice and its packages $(du -sm "$root/opt/sluice" | cut -f1) MB"
build inspect --type image localhost/sluice > "$work/image.json"
code=0
PYTHONPATH="$PWD" .venv/bin/python -m tests.deploy.run_image "$root" "$work/image.json" || code=$?
build umount "$container" > /dev/null
build rm "$container" > /dev/null
exit "$code"
