#!/usr/bin/env bash
# Install the Debian packages that are missing: bash setup-apt.sh [LIST]. Safe to repeat.
# LIST is a file beside this one, apt-packages.txt unless said otherwise.
set -euo pipefail
cd "$(dirname "$0")"
missing=()
while read -r package; do
  [[ -z $package || $package == \#* ]] && continue
  command=$package
  case $package in
    default-jre-headless) command=java ;;
    maven) command=mvn ;;
    nodejs) command=node ;;
    qemu-system-x86) command=qemu-system-x86_64 ;;
    bpftool | cargo | clang | conntrack | curl | npm | openssl | wrk) command=$package ;;
    *) command= ;;
  esac
  [[ -n $command ]] && command -v "$command" >/dev/null && continue
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' && continue
  missing+=("$package")
done <"${1:-apt-packages.txt}"
if ((${#missing[@]} == 0)); then
  echo "==> Debian packages: all there"
  exit 0
fi
echo "==> Debian packages: installing ${missing[*]}"
if ! command -v apt-get >/dev/null; then
  echo "no apt-get here: install these yourself: ${missing[*]}" >&2
  exit 1
fi
run=()
((EUID == 0)) || run=(sudo)
"${run[@]}" apt-get update -qq
# apt's full chatter hides its errors; one line per package is enough to see it move.
"${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" |
  sed -un 's/^Setting up \(.*\) \.\.\.$/    \1/p'
