# shellcheck shell=bash
# What every script here uses: where things are, how to talk to a person, how to fail.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
OUT="$REPO/out"
export REPO OUT

STARTED=$SECONDS

step() { printf '%3ds  %s\n' "$((SECONDS - STARTED))" "$*"; }

note() { printf '      %s\n' "$*"; }

# die WHAT-IS-WRONG [WHAT-TO-DO]
die() {
  printf '%s: %s\n' "$(basename "$0")" "$1" >&2
  if [ -n "${2-}" ]; then printf '  %s\n' "$2" >&2; fi
  exit 1
}

# The comment at the head of a script is its help.
usage() {
  sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$1"
  exit "${2:-0}"
}

bad_usage() {
  printf '%s: %s\n\n' "$(basename "$0")" "$1" >&2
  usage "$0" 2 >&2
}

# need_root COMMAND
need_root() {
  [ "$(id -u)" = 0 ] || die "needs root (network namespaces, mounts, cgroups)" "sudo $1"
}

# cargo, as root or, where only the person behind sudo has Rust, as that person.
run_cargo() {
  if command -v cargo >/dev/null; then
    (cd "$REPO" && cargo "$@")
  elif [ -n "${SUDO_USER-}" ] && sudo -u "$SUDO_USER" -H bash -lc 'command -v cargo' >/dev/null 2>&1; then
    # shellcheck disable=SC2016 # Expanded by the inner shell.
    sudo -u "$SUDO_USER" -H bash -lc 'cd "$1" && shift && exec cargo "$@"' cargo "$REPO" "$@"
  else
    die "cargo is missing" "install Rust 1.90 or newer: https://rustup.rs"
  fi
}

# target_dir PROFILE: where cargo puts what it builds so.
target_dir() {
  local folder=$1
  case $1 in dev | test) folder=debug ;; bench) folder=release ;; esac
  echo "${CARGO_TARGET_DIR:-$REPO/target}/$folder"
}
