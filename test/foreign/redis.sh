#!/usr/bin/env bash
# Runs Redis' own tests, from Debian's source of it, against a node: redis.sh PROGRAM DIRECTORY. Only the units for what is served are run.
#
# A test that needs a command which is refused by name does not count. Others that do not pass are in redis.txt, with the reason; the list
# only shrinks.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
program=$1 out=$2
units=${TESTS:-type/string type/incr type/hash expire scan keyspace multi protocol quit info-command introspection-2}

debian tcl curl dpkg-dev python3-minimal
debian_source redis "$out/redis"
cd "$out/redis"
# The tests set limits of a running server, and empty it of functions, whether they need it or not. A test that fails in the middle
# of a transaction would take all after it along.
sed -i 's/^    r function flush/    catch {r function flush}/; s/^        r config set \$param \$val/        catch {r config set $param $val}/' tests/support/server.tcl
sed -i 's/^    if {\[catch {set retval \[uplevel 1 \$code\]} error\]} {$/& if {[string match *multi* $::curfile]} {catch {r discard}; catch {r unwatch}}/' \
  tests/support/test.tcl
sed -i 's/\br config set \([a-z].*\)$/catch {r config set \1}/; /memory_usage/d' tests/unit/type/hash.tcl

serve "$program" 1
: >failed
for unit in $units; do
  ./runtest --host 127.0.0.1 --port "$redis_port" --singledb --clients 1 --durable --ignore-encoding --ignore-digest \
    --tags "-slow -needs:repl -needs:debug" --single "unit/$unit" 2>&1 | sed 's/\x1b\[[0-9;]*m//g' >"log.${unit//\//-}" || true
  if ! grep -q 'Execution time of different units' "log.${unit//\//-}"; then
    echo "unit $unit did not run to its end: see $out/redis/log.${unit//\//-}" >&2
    exit 1
  fi
  # A failure is a line that names the test, and lines with the error up to the next result.
  awk -v unit="$unit" '
    function flush() {
      if (name == "") return
      if (text ~ /unsupported command|orted command/) unserved++
      else { failed++; print unit ": " name "\t" text >>"failed" }
      name = ""
    }
    /^\[(ok|err|ignore)\]/ { flush() }
    /^\[ok\]/ { passed++ }
    /^\[err\]/ { name = $0; sub(/^\[err\]: /, "", name); sub(/ in tests\/unit\/.*/, "", name); text = ""; next }
    name != "" { text = text $0 " " }
    END { flush(); printf "%-16s %3d passed, %2d failed, %2d need commands that are not served\n", unit, passed, failed, unserved }
  ' "log.${unit//\//-}"
done
[ -n "${TESTS:-}" ] || compare "$here/redis.txt" failed
