#!/usr/bin/env bash
# Installs what the tests need and runs them, two files at a time in the order
# of tests/conftest.py, long ones first. Arguments go to pytest, for example
#
#   ./scripts/test.sh tests/advantages -k centred
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
install_project test "[test,parity]"
cd "$ROOT"

exec .venv/bin/python -m pytest \
  -n 2 --dist loadfile --no-loadscope-reorder "$@"
