#!/usr/bin/env bash
# Create or update the virtual environment .venv in the root of the checkout, with the versions of constraints.txt.
#
#     bash tools/setup_env.sh [EXTRA...]            EXTRA: bert data eval hf logging mlflow plot vision gpu gpu-cu12 docs dev
#
# If nothing has changed since the last time, it returns in well under a second. Extras accumulate: those installed
# before are kept. An interrupted set-up is repaired by the next one, and concurrent set-ups wait for each other.
#
#     PYTHON            the interpreter for .venv (3.10 to 3.13); by default that of .venv, else one from PATH
#     TORCH_INDEX_URL   one more package index, for another build of torch than pip's default (remove .venv to switch)
#     PIP_*             pip's own settings are respected
#
# Exit status: 0 ready, 1 an installation failed (the error names its log), 2 invalid arguments or no suitable Python.

set -euo pipefail
if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit
fi

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
venv="$root/.venv"
stamp="$venv/.megatron-ltd-stamp"           # first line: the fingerprint; second line: "extras:" and their names
unfinished="$venv/.megatron-ltd-unfinished" # exists from the creation of .venv to the end of the first set-up
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { echo "setup: $*"; }

refuse() {
    echo "setup_env.sh: error: $*" >&2
    exit 2
}

version_of() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }

supported() { [[ "$1" =~ ^3\.(10|11|12|13)\. ]]; }

# The extras that pyproject.toml declares, one per line.
declared_extras() {
    sed -n '/^\[project\.optional-dependencies\]/,/^\[tool/s/^\([a-z0-9-]*\) = \[.*/\1/p' pyproject.toml
}

# Sets `python` and `version`: PYTHON, else .venv's interpreter, else the first suitable one on PATH.
choose_python() {
    local candidate candidates=() seen=""
    if [[ -n "${PYTHON:-}" ]]; then
        python="$PYTHON"
        version="$(version_of "$python")" || refuse "PYTHON=$python does not run: set it to a Python 3.10 to 3.13"
        supported "$version" || refuse "PYTHON=$python is Python $version, and 3.10 to 3.13 is needed: set PYTHON to one"
        return
    fi
    [[ -f "$unfinished" ]] || candidates=("$venv/bin/python")
    for candidate in ${candidates[@]+"${candidates[@]}"} python3 python python3.13 python3.12 python3.11 python3.10; do
        python="$candidate"
        version="$(version_of "$python")" || continue
        supported "$version" && return
        seen="$seen $candidate is $version,"
    done
    refuse "no Python 3.10 to 3.13 found (${seen:- no Python at all,} on PATH): install one, or name it with PYTHON="
}

# A checksum of everything the environment depends on: if any of it changes, the stamp is outdated.
fingerprint() {
    { echo "$root $version" && cat constraints.txt pyproject.toml setup.py; } | cksum
}

# Sets `extras`: those requested and those already installed, sorted and separated by spaces.
collect_extras() {
    local extra known
    known="$(declared_extras)"
    for extra in "$@"; do
        grep -qxF -- "$extra" <<<"$known" || refuse "extra $extra is not one of: $(echo $known)"
    done
    local before=""
    [[ ! -f "$stamp" ]] || before="$(sed -n 's/^extras: //p' "$stamp")"
    extras="$(printf '%s\n' "$@" $before | { grep . || true; } | sort -u | xargs)"
}

make_venv() {
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        refuse "$python cannot make a virtual environment with pip (no ensurepip): install it" \
            "(Debian, Ubuntu: the package python${version%.*}-venv), or set PYTHON= to another Python"
    say "making .venv with Python $version"
    mkdir -p "$venv"
    touch "$unfinished"
    "$python" -m venv "$venv" >"$log" 2>&1 || fail "making .venv"
}

# Remove an unusable environment: its first set-up was interrupted, or its interpreter is missing or of another version.
clear_unusable() {
    local found
    [[ -d "$venv" ]] || return 0
    if [[ -f "$unfinished" ]]; then
        say "the last set-up did not finish: starting again"
    elif ! found="$(version_of "$venv/bin/python")"; then
        say ".venv has no working interpreter: making it again"
    elif [[ "$found" != "$version" ]]; then
        say ".venv is Python $found and Python $version is asked for: making it again"
    else
        return 0
    fi
    rm -rf "$venv"
}

fail() {
    local kept=""
    if [[ -f "$unfinished" ]]; then
        rm -rf "$venv"
        kept="; .venv was removed"
    fi
    tail -n 3 "$log" >&2
    echo "setup_env.sh: error: $1 failed after ${SECONDS} s$kept; the whole log is $log" >&2
    trap - EXIT
    exit 1
}

# install WHAT ARGUMENTS...: run pip install, with its output in the log.
install() {
    local what="$1"
    shift
    say "installing $what"
    "$venv/bin/python" -m pip install --constraint constraints.txt "$@" >"$log" 2>&1 || fail "installing $what"
    say "  done, ${SECONDS} s so far"
}

main() {
    local torch_index=()
    choose_python
    collect_extras "$@"
    # Locking this script itself leaves no lock file behind, however the set-up ends.
    if command -v flock >/dev/null; then
        exec 9<"$root/tools/setup_env.sh"
        flock -n 9 || { say "another set-up is running: waiting for it" && flock 9; } || true
        collect_extras "$@"
    fi
    if [[ -f "$stamp" && ! -f "$unfinished" && -x "$venv/bin/python" &&
        "$(cat "$stamp")" == "$(fingerprint)"$'\n'"extras: $extras" ]]; then
        say ".venv is ready (extras: ${extras:-none})"
        return
    fi

    log="$(mktemp "${TMPDIR:-/tmp}/megatron-ltd-setup.XXXXXX")"
    trap 'rm -f "$log"' EXIT
    clear_unusable
    [[ -d "$venv" ]] || make_venv
    printf 'stale\nextras: %s\n' "$extras" >"$stamp"
    [[ -n "${TORCH_INDEX_URL:-}" ]] && torch_index=(--extra-index-url "$TORCH_INDEX_URL")
    install "torch (the largest part)" torch setuptools ${torch_index[@]+"${torch_index[@]}"}
    # setuptools is already installed at its pinned version: without build isolation no other version is downloaded.
    # compat mode uses a .pth file, not an import hook: `megatron` is a namespace package shared with Megatron-Core.
    install "megatron-ltd${extras:+ with $extras}" --no-build-isolation --config-settings editable_mode=compat \
        --editable ".${extras:+[${extras// /,}]}"
    "$venv/bin/python" - >"$log" 2>&1 <<<'
from importlib.util import find_spec
missing = [name for name in ("megatron.core", "megatron.ltd") if find_spec(name) is None]
raise SystemExit(f"cannot be found: {missing}" if missing else 0)' || fail "checking megatron.core beside megatron.ltd"
    printf '%s\nextras: %s\n' "$(fingerprint)" "$extras" >"$stamp"
    rm -f "$unfinished"
    say ".venv is ready (extras: ${extras:-none}), ${SECONDS} s"
}

main "$@"
