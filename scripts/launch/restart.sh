#!/usr/bin/env bash
# Trains on this host and starts again after a failure, where the last
# checkpoint ended. tpu_vm.sh runs it on every host of a slice.
#
#   restart.sh CONFIG [--OPTION VALUE ...]    as for `jaxrl train`
#
# Exit code of jaxrl: 0 done, 2 a mistake in what was typed, 143 told to stop
# and saved: none of them starts again. All others do (3: another process was
# lost), RESTARTS times at most (default 20), PAUSE seconds apart (default 30).
# SIGTERM goes on to jaxrl, which saves. JAXRL names the program.
set -uo pipefail

child=
stopped=
stop() {
  stopped=1
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT

die() {
  echo "restart.sh: $*" >&2
  exit 2
}

[ $# -gt 0 ] || die "say which config: restart.sh CONFIG [--OPTION VALUE ...]"
jaxrl="${JAXRL:-jaxrl}"
command -v "$jaxrl" >/dev/null ||
  die "JAXRL=$jaxrl is no program here; install the package, or name it."
limit="${RESTARTS:-20}" pause="${PAUSE:-30}"
[[ "$limit$pause" =~ ^[0-9]+$ ]] ||
  die "RESTARTS and PAUSE are whole numbers, got '$limit' and '$pause'."

for ((tried = 0; ; tried++)); do
  "$jaxrl" train "$@" --auto-resume &
  child=$!
  wait "$child"
  code=$?
  # A signal ends `wait` before jaxrl has saved: wait for its own code.
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
  done
  case $code in 0 | 2 | 143) exit "$code" ;; esac
  [ -z "$stopped" ] || exit "$code"
  if [ "$tried" -ge "$limit" ]; then
    echo "restart.sh: exit code $code after $limit restarts; giving up." >&2
    exit "$code"
  fi
  echo "restart.sh: exit code $code; restart $((tried + 1)) of $limit in" \
    "$pause s." >&2
  sleep "$pause" &
  wait $!
  [ -z "$stopped" ] || exit 143
done
