# What the scripts beside it share. They are run with bash, and have set -euo pipefail.

# debian PACKAGE... installs Debian packages that are not there.
debian() {
  local missing=() as_root=()
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok' || missing+=("$package")
  done
  [ "${#missing[@]}" -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
  "${as_root[@]}" apt-get update -q
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}"
}

# debian_source PACKAGE FOLDER unpacks a package's source as its authors made it, from wherever this system has its packages.
debian_source() {
  local package=$1 folder=$2 apt
  [ ! -e "$folder/.whole" ] || return 0
  rm -rf "$folder"
  mkdir -p "$folder/apt/parts" "$folder/apt/lists/partial"
  for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [ ! -e "$list" ] || sed -n 's/^deb /deb-src /p' "$list" >"$folder/apt/parts/$(basename "$list" .list).list"
  done
  for list in /etc/apt/sources.list.d/*.sources; do
    [ ! -e "$list" ] || sed 's/^Types:.*/Types: deb-src/' "$list" >"$folder/apt/parts/$(basename "$list")"
  done
  apt=(-q -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$folder/apt/parts" -o "Dir::State::lists=$folder/apt/lists" -o APT::Sandbox::User=)
  (
    cd "$folder"
    apt-get "${apt[@]}" update
    apt-get "${apt[@]}" source --download-only "$package"
    tar xzf "$package"_*.orig.tar.gz --strip-components 1
    rm -rf apt "$package"_*
    touch .whole
  )
}

# free_ports N prints that many ports of this machine that nobody uses.
free_ports() {
  /usr/bin/python3 -c '
import socket, sys
s = [socket.socket() for _ in range(int(sys.argv[1]))]
for x in s:
    x.bind(("127.0.0.1", 0))
print(*(x.getsockname()[1] for x in s))' "$1"
}

# serve PROGRAM SHARDS starts a node in memory; it ends with the script. Its ports are in redis_port and kafka_port.
serve() {
  local etcd_port http_port
  read -r redis_port kafka_port etcd_port http_port < <(free_ports 4)
  "$1" dev --shards "$2" --redis "127.0.0.1:$redis_port" --kafka "127.0.0.1:$kafka_port" --etcd "127.0.0.1:$etcd_port" --http "127.0.0.1:$http_port" &
  node=$!
  trap 'kill "$node" 2>/dev/null; wait "$node" || true' EXIT
  curl -sf --retry 30 --retry-connrefused --retry-delay 1 "http://127.0.0.1:$http_port/readyz" >/dev/null
}

# compare LIST FAILED: both files have a test's name, a tab and whatever in each line. The run fails unless they name the same tests.
compare() {
  local new old
  new=$(comm -13 <(grep -v '^#' "$1" | cut -f 1 | sort) <(cut -f 1 "$2" | sort))
  old=$(comm -23 <(grep -v '^#' "$1" | cut -f 1 | sort) <(cut -f 1 "$2" | sort))
  [ -z "$new" ] || printf 'fails, and is not on the list: %s\n' "${new//$'\n'/, }"
  [ -z "$old" ] || printf 'passes, take it off the list: %s\n' "${old//$'\n'/, }"
  [ -z "$new$old" ]
}
