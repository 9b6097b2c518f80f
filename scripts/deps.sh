#!/usr/bin/env bash
# Installs what the tests need besides Go, make and git, on Debian and its children: a C compiler for the race detector,
# and the stock clients that Quorate is tested with. It does nothing if all of it is there.
set -euo pipefail

declare -A package_of=(
  [gcc]=gcc
  [redis-server]=redis-server
  [redis-cli]=redis-tools
  [kcat]=kcat
  [etcdctl]=etcd-client
  [curl]=curl
  [perl]=perl
)

missing=()
for command in gcc redis-server redis-cli kcat etcdctl curl perl; do
  command -v "$command" >/dev/null 2>&1 || missing+=("${package_of[$command]}")
done
# A compiler alone is not enough: the race detector links against libc.
if [ -n "$(command -v dpkg)" ] && ! dpkg -s libc6-dev >/dev/null 2>&1; then
  missing+=(libc6-dev)
fi
# etcd's client for Python, which Debian has for its own Python only.
if [ -n "$(command -v dpkg)" ] && ! dpkg -s python3-etcd3 >/dev/null 2>&1; then
  missing+=(python3-etcd3)
fi
if [ "${#missing[@]}" -eq 0 ]; then
  echo "all there"
  exit 0
fi

if ! command -v apt-get >/dev/null 2>&1; then
  echo "these are missing, and there is no apt-get to install them with: ${missing[*]}" >&2
  echo "install redis (server and tools), kcat, etcd-client, curl, perl and a C compiler, then try again" >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null 2>&1; then
    echo "run this as root once: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

# The tests start the servers that they need themselves: the packages must not start theirs. A policy that was there
# before stays.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
  trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi

export DEBIAN_FRONTEND=noninteractive
install=("${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}")
echo "installing ${missing[*]}"
# Package lists may be absent or old: then the first try fails, and the second one has new ones.
"${install[@]}" >/dev/null 2>&1 || { "${as_root[@]}" apt-get update -q && "${install[@]}"; }
