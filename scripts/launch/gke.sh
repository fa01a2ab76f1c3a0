#!/usr/bin/env bash
# Runs `jaxrl train` on GKE TPU slices with a JobSet (jobset.yaml).
#
#   gke.sh print CONFIG [--OPTION VALUE ...]    the manifest, nothing else
#   gke.sh start CONFIG [--OPTION VALUE ...]    kubectl apply
#   gke.sh status | log | stop
#
# Environment: NAME of the run, IMAGE with the package in it, TOPOLOGY as
# `jaxrl plan` has it (v5e:8x8) and CLAIM, a PersistentVolumeClaim that all pods
# may write, must be set; it is mounted as /runs, where the run is written.
# SLICES (default 1), CHIPS_PER_HOST (default 4; 8 for v5e:2x4 and v6e:2x4 on
# one host), RESTARTS (default 20). The cluster has JobSet installed.
set -euo pipefail

die() {
  echo "gke.sh: $*" >&2
  exit 2
}

whole() {
  [[ "$2" =~ ^[1-9][0-9]*$ ]] || die "$1 is a positive whole number, got '$2'."
}

# Words for the manifest from TOPOLOGY: ACCELERATOR, SHAPE, HOSTS.
# shellcheck disable=SC2034 # manifest reads them by their names
read_topology() {
  local chips
  [[ "${TOPOLOGY:-}" =~ ^(v5e|v5p|v6e):([0-9]+(x[0-9]+){1,2})$ ]] ||
    die "TOPOLOGY is v5e, v5p or v6e, a colon and a shape, as in v5e:8x8; got" \
      "'${TOPOLOGY:-}'."
  SHAPE="${BASH_REMATCH[2]}"
  case ${BASH_REMATCH[1]} in
  v5e) ACCELERATOR=tpu-v5-lite-podslice ;;
  v5p) ACCELERATOR=tpu-v5p-slice ;;
  v6e) ACCELERATOR=tpu-v6e-slice ;;
  esac
  chips=$((${SHAPE//x/*}))
  ((chips % CHIPS_PER_HOST == 0)) ||
    die "CHIPS_PER_HOST=$CHIPS_PER_HOST does not divide the $chips chips."
  HOSTS=$((chips / CHIPS_PER_HOST))
}

# A JSON list, which is YAML too.
as_list() {
  local argument text=
  for argument in "$@"; do
    argument="${argument//\\/\\\\}"
    text+="\"${argument//\"/\\\"}\", "
  done
  echo "[${text%, }]"
}

manifest() {
  local text word
  [ $# -gt 0 ] || die "say which config: gke.sh print|start CONFIG [...]"
  [[ " $*" != *" --runs"* ]] ||
    die "--runs is /runs, where CLAIM is mounted; leave it out."
  for word in IMAGE CLAIM; do
    [ -n "${!word:-}" ] || die "$word is not set; gke.sh says what it is."
  done
  SLICES="${SLICES:-1}" RESTARTS="${RESTARTS:-20}"
  CHIPS_PER_HOST="${CHIPS_PER_HOST:-4}"
  for word in SLICES RESTARTS CHIPS_PER_HOST; do whole "$word" "${!word}"; done
  read_topology
  text="$(cat "$(dirname "${BASH_SOURCE[0]}")/jobset.yaml")"
  for word in NAME RESTARTS SLICES HOSTS ACCELERATOR SHAPE IMAGE \
    CHIPS_PER_HOST CLAIM; do
    text="${text//\$$word/${!word}}"
  done
  # Last, so that nothing in an argument is taken for a word.
  text="${text//\$ARGUMENTS/"$(as_list "$@" --runs /runs --auto-resume)"}"
  printf '%s\n' "$text"
}

needs_kubectl() {
  command -v kubectl >/dev/null || die "kubectl is missing; install it."
}

[[ "${NAME:-}" =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
  die "NAME is the run's, at most 40 of a-z, 0-9 and -; got '${NAME:-}'."
command="${1:-}"
[ $# -eq 0 ] || shift
pods="jobset.sigs.k8s.io/jobset-name=$NAME"
case $command in
print) manifest "$@" ;;
start)
  needs_kubectl
  text="$(manifest "$@")"
  kubectl apply -f - <<<"$text"
  ;;
status)
  needs_kubectl
  kubectl get "jobset/$NAME"
  kubectl get pods --selector "$pods"
  ;;
log)
  needs_kubectl
  # Only process 0 says how training goes.
  kubectl logs -f --tail 100 \
    --selector "$pods,batch.kubernetes.io/job-completion-index=0"
  ;;
stop)
  needs_kubectl
  kubectl delete "jobset/$NAME"
  ;;
*) die "say print, start CONFIG, status, log or stop; got '$command'." ;;
esac
