#!/usr/bin/env bash
# Runs librdkafka's own tests, from Debian's source of it, against a node: librdkafka.sh PROGRAM DIRECTORY. What does not pass is in librdkafka.txt,
# with the reason; the list only shrinks. Tests of the client alone, with no node, are left out.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
program=$1 out=$2
tests=${TESTS:-0001 0002 0003 0005 0007 0008 0011 0012 0013 0014 0015 0017 0018 0019 0020 0021 0022 0026 0029 0030 0031 0033 0034 0035 0036 0037
  0039 0040 0041 0042 0044 0045 0046 0048 0050 0051 0052 0054 0055 0056 0057 0059 0060 0061 0063 0064 0065 0067 0069 0070 0073 0074 0082 0083
  0084 0085 0086 0089 0090 0091 0092 0093 0095 0099 0102 0106 0109 0110 0112 0113 0114 0116 0118 0120 0121 0122 0123 0125 0129 0130 0132 0137}

debian gcc g++ make zlib1g-dev curl dpkg-dev python3-minimal
debian_source librdkafka "$out/librdkafka"
cd "$out/librdkafka"
if [ ! -x tests/test-runner ]; then
  echo "building librdkafka and its tests, which takes a few minutes"
  (./configure --disable-gssapi --disable-ssl && make libs && make -C tests build) >build.log 2>&1 || { tail -n 20 build.log && exit 1; }
fi
cd tests

serve "$program" 4
echo "bootstrap.servers=127.0.0.1:$kafka_port" >test.conf
: >failed
# one TEST runs a test. Its exit code is the test's, and bash says nothing of one that aborts.
one() { (LD_LIBRARY_PATH=../src:../src-cpp TESTS=$1 timeout 180 ./test-runner -p1 -Q -E >"log.$1" 2>&1 || exit 1) 2>/dev/null; }
for name in $tests; do
  # Some are about what happens within a few microseconds in the client, so that one failure says nothing.
  if one "$name" || one "$name"; then
    echo "PASS $name"
  else
    echo "FAIL $name"
    printf '%s\t%s\n' "$name" "$(grep -a -m 1 -A 1 'failed at' "log.$name" | tr -d '\n' || true)" >>failed
  fi
done
[ -n "${TESTS:-}" ] || compare "$here/librdkafka.txt" failed
