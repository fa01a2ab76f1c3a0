#!/usr/bin/env bash
# Teaches SmolLM2-135M two-digit addition on this machine's CPU and shows that
# it learned. Arguments go to `jaxrl train demo_addition`, for example
#
#   ./scripts/demo.sh --steps 5 --evaluation.examples 50
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
install_project demo
cd "$ROOT"

export TRANSFORMERS_NO_ADVISORY_WARNINGS=1 # torch is not missed

case " $* " in
  *" --help "* | *" -h "*) exec .venv/bin/jaxrl train demo_addition "$@" ;;
  *" --resume "*) ;;
  *) set -- "$@" --overwrite ;; # a second demo replaces the first
esac
.venv/bin/jaxrl train demo_addition "$@"
.venv/bin/python scripts/show_run.py "$@"
