#!/usr/bin/env bash
# Runs `jaxrl train` on every host of a Cloud TPU VM slice, from a workstation.
#
#   tpu_vm.sh install                            this commit, and its packages
#   tpu_vm.sh start CONFIG [--OPTION VALUE ...]  as for `jaxrl train`
#   tpu_vm.sh status | log | stop                stop saves first
#
# Environment: TPU (name of the TPU VM) and ZONE must be set; PROJECT (default:
# gcloud's own), FOLDER on the hosts (default jaxrl_llm, below the home),
# PYTHON on the hosts (3.11 or newer), RESTARTS and PAUSE as in restart.sh.
# `--runs` must name a folder that all hosts share.
set -euo pipefail

die() {
  echo "tpu_vm.sh: $*" >&2
  exit 2
}

command="${1:-}"
case $command in
install | start | status | log | stop) shift ;;
*) die "say install, start CONFIG, status, log or stop; got '$command'." ;;
esac
[ -n "${TPU:-}" ] || die "TPU is not set; export the name of the TPU VM."
[ -n "${ZONE:-}" ] || die "ZONE is not set; export the zone of the TPU VM."
command -v gcloud >/dev/null ||
  die "gcloud is missing; install the Google Cloud CLI."
folder="${FOLDER:-jaxrl_llm}"
[[ "$folder" =~ ^[A-Za-z0-9._/-]+$ ]] ||
  die "FOLDER is a path of letters, digits and ._/-, got '$folder'."
where=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"})

on_all() {
  gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --worker=all \
    --command="$1"
}

install() {
  local root archive
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
  archive="$(mktemp -d)"
  trap 'rm -r "$archive"' EXIT
  git -C "$root" archive --format=tar.gz -o "$archive/jaxrl_llm.tar.gz" HEAD ||
    die "$root is no git checkout; clone the repository."
  gcloud compute tpus tpu-vm scp "$archive/jaxrl_llm.tar.gz" \
    "$TPU:jaxrl_llm.tar.gz" "${where[@]}" --worker=all
  on_all "mkdir -p $folder && tar xzf jaxrl_llm.tar.gz -C $folder &&
    cd $folder && ${PYTHON:+PYTHON=$(printf %q "$PYTHON")} bash -c \
    '. scripts/install.sh && install_project tpu \"[tpu]\"'"
}

# nohup: the run outlives this connection. Arguments are quoted for the hosts.
start() {
  [ $# -gt 0 ] || die "say which config: tpu_vm.sh start CONFIG [...]"
  [[ " $*" == *" --runs"* ]] ||
    die "--runs is missing; name a folder that all hosts share."
  on_all "cd $folder || exit 2
    if kill -0 \$(cat launch.pid 2>/dev/null) 2>/dev/null; then
      echo \"\$(hostname): a run is going on; stop it first\" >&2
      exit 2
    fi
    export JAXRL=.venv/bin/jaxrl RESTARTS=${RESTARTS:-20} PAUSE=${PAUSE:-30}
    nohup scripts/launch/restart.sh $(printf '%q ' "$@") \
      >launch.log 2>&1 </dev/null &
    echo \$! >launch.pid"
}

status() {
  on_all "cd $folder || exit 2
    if kill -0 \$(cat launch.pid) 2>/dev/null; then
      echo \"\$(hostname): running\"
    else
      echo \"\$(hostname): ended: \$(tail -n 1 launch.log)\"
    fi"
}

log() {
  gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --worker=0 \
    --command="tail -n 100 -f $folder/launch.log"
}

stop() {
  on_all "kill -TERM \$(cat $folder/launch.pid)"
}

"$command" "$@"
