# What the scripts of the examples share. A script sources this file first: --help then prints the script's comment.
# Sets `root`, the checkout, `examples` in it, and `here`, the folder of the script. Paths stay relative to the caller.
# shellcheck shell=bash disable=SC2034

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
examples="$root/examples"
here="$(cd "$(dirname "${BASH_SOURCE[1]}")" && pwd)"
TINY="${TINY:-0}"       # 1: everything in small, on text that Python brings along
DRY_RUN="${DRY_RUN:-0}" # 1: show the commands, start nothing

for word in "$@"; do
    if [[ "$word" == -h || "$word" == --help ]]; then
        sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[1]}"
        exit
    fi
done

refuse() {
    echo "${0##*/}: error: $*" >&2
    exit 2
}

# set_up EXTRAS...: sets `python`: an active virtual environment's that has the dependencies, or .venv's, made if missing.
set_up() {
    local find='from importlib.util import find_spec as find; find("torch").name, find("megatron.core").name'
    python="${VIRTUAL_ENV:-}/bin/python"
    if [[ -z "${VIRTUAL_ENV:-}" ]] || ! "$python" -c "$find" 2>/dev/null; then
        python="$root/.venv/bin/python"
        if [[ "$DRY_RUN" != 1 && "${NNODES:-1}" == 1 ]]; then
            bash "$root/tools/setup_env.sh" "$@"
        fi
        [[ "$DRY_RUN" == 1 || -x "$python" ]] ||
            refuse ".venv is missing: run bash tools/setup_env.sh $* once, before several nodes do"
    fi
    export PYTHON="$python" PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
}

# settings_file NAME FOLDER...: the path of a settings file by its name in one of the folders, or by its own path.
settings_file() {
    local folder
    for folder in "${@:2}"; do
        [[ ! -f "$folder/$1.yaml" ]] || { echo "$folder/$1.yaml" && return; }
    done
    [[ -f "$1" ]] || refuse "$1: there are no settings of this name; give a YAML file, or the name of one of ${*:2}"
    echo "$1"
}

# run COMMAND...: or show it.
run() {
    if [[ "$DRY_RUN" == 1 ]]; then
        printf '%q ' "$@" && echo
    else
        "$@"
    fi
}

# train SCRIPT FLAGS...: on every GPU of this node, through torchrun (see examples/launch/README.md). Never returns: what
# Slurm or a terminal signals goes to torchrun.sh itself.
train() { SCRIPT="$1" exec bash "$examples/launch/torchrun.sh" "${@:2}"; }

# stage TITLE: a heading, after the time that the stage before it took.
stage() {
    [[ -z "${stage_start:-}" ]] || echo "-- $((SECONDS - stage_start)) s"
    stage_start=$SECONDS
    [[ -z "$1" ]] || printf '\n== %s\n' "$1"
}

# there FILE WORDS...: whether it is there already, which is said. What is made with other words the next time is refused.
there() {
    if [[ ! -f "$1" ]]; then
        [[ $# == 1 || "$DRY_RUN" == 1 ]] || echo "${*:2}" >"$1.made-with"
        return 1
    fi
    [[ $# == 1 || ! -f "$1.made-with" || "$(<"$1.made-with")" == "${*:2}" ]] ||
        refuse "${1%.json}: it was made with other input or flags ($(<"$1.made-with")); move it away, or give the same"
    echo "there already: ${1%.json}"
}

# claim FOLDER: make it, or go on in it if this example made it.
claim() {
    local made_by="${here#"$examples/"} TINY=$TINY"
    [[ ! -d "$1" || -z "$(ls -A "$1")" || "$(cat "$1/made-by" 2>/dev/null)" == "$made_by" ]] ||
        refuse "--out $1: the folder is not empty, and was not made by this example; choose another one"
    mkdir -p "$1" && echo "$made_by" >"$1/made-by" || refuse "--out $1: the folder cannot be made; choose another one"
    echo "everything goes to $1"
}

trap 'echo; echo "stopped; the same command goes on from here"; exit 130' INT
