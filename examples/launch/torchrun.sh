#!/usr/bin/env bash
# Start a script on this node, alone or as one of several: torchrun with settings that suit this project.
#
#     bash examples/launch/torchrun.sh --config recipe.yaml ...     flags of pretrain_gpt_ltd.py, or of SCRIPT
#     DRY_RUN=1 bash examples/launch/torchrun.sh ...                show the command, start nothing
#
# A cluster sets the environment variables below; README.md of this folder lists them. SIGTERM, Ctrl-C and a closed
# terminal ask the run to save and exit; a second Ctrl-C ends it at once.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

count_gpus() { { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null || true; } | wc -l | tr -d ' '; }
count_cores() { nproc 2>/dev/null || getconf _NPROCESSORS_ONLN; }
whole_number() { [[ "${!1}" =~ ^[0-9]+$ ]] || refuse "$1 '${!1}': give a whole number"; }

GPUS_PER_NODE="${GPUS_PER_NODE:-$(count_gpus)}"  # 0: on the CPU
whole_number GPUS_PER_NODE
NPROC="${NPROC:-$((GPUS_PER_NODE > 0 ? GPUS_PER_NODE : 1))}" # processes of this node: one a GPU, or any number on the CPU
NNODES="${NNODES:-1}"
NODE_RANK="${NODE_RANK:-${SLURM_NODEID:-0}}"     # 0 on the node at MASTER_ADDR, to which the others connect
MASTER_ADDR="${MASTER_ADDR:-}"                   # that node's name or address; needed with several nodes
MASTER_PORT="${MASTER_PORT:-29500}"
RUN_ID="${RUN_ID:-megatron-ltd}"                 # the same on all nodes, another for each run
MAX_RESTARTS="${MAX_RESTARTS:-0}"                # times that the processes are started again when one dies
SCRIPT="${SCRIPT:-pretrain_gpt_ltd.py}"          # what to run: a script of this repository
PYTHON="${PYTHON:-}"                             # empty: .venv if there is one, else python
for name in NPROC NNODES NODE_RANK MASTER_PORT MAX_RESTARTS; do whole_number "$name"; done
((NPROC >= 1 && NNODES >= 1)) || refuse "NPROC $NPROC, NNODES $NNODES: both must be at least 1"
((NODE_RANK < NNODES)) || refuse "NODE_RANK $NODE_RANK: with NNODES $NNODES nodes count from 0 to $((NNODES - 1))"
((NNODES == 1)) || [[ -n "$MASTER_ADDR" ]] || refuse "MASTER_ADDR is missing: with NNODES $NNODES name the first node"
[[ -f "$root/$SCRIPT" ]] || refuse "SCRIPT '$SCRIPT': there is no such file in the checkout; give one such as pretrain_gpt_ltd.py"
if [[ -z "$PYTHON" ]]; then
    PYTHON=python
    [[ ! -x "$root/.venv/bin/python" ]] || PYTHON="$root/.venv/bin/python"
fi

settings=(
    "OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((cores = $(count_cores) / NPROC) > 0 ? cores : 1))}"
    # By default torchrun kills the processes 30 s after SIGTERM, saved or not, and fails; the processes handle it.
    "PET_SIGNALS_TO_HANDLE=SIGQUIT"
)
if ((GPUS_PER_NODE > 0)); then
    settings+=("CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}" "NCCL_DEBUG=${NCCL_DEBUG:-WARN}")
    # Kept tokens grow, and with them the sizes of activations: segments that grow too leave no gaps.
    settings+=("PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}}")
else
    settings+=("CUDA_VISIBLE_DEVICES=")
fi

command=("$PYTHON" "$here/torchrun.py" --nproc-per-node "$NPROC" --max-restarts "$MAX_RESTARTS")
if ((NNODES == 1)); then
    command+=(--standalone)
else
    command+=(--nnodes "$NNODES" --rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT" --rdzv-id "$RUN_ID")
    command+=(--rdzv-conf "is_host=$((NODE_RANK == 0))")
fi
command+=("$root/$SCRIPT" "$@")

if [[ "$DRY_RUN" == 1 ]]; then
    printf '%q ' env "${settings[@]}" "${command[@]}"
    echo
    exit 0
fi

# A mistake in the flags is said here, once, before any process is started.
if [[ "$SCRIPT" =~ ^(pretrain|finetune)_ && " $* " != *" --plan "* ]]; then
    "$PYTHON" "$root/$SCRIPT" "$@" --plan --plan-gpus "$((NPROC * NNODES))" >/dev/null || exit
fi

# The processes that train: the launcher's children.
trainers() {
    cat /proc/"$launcher"/task/*/children 2>/dev/null || pgrep -P "$launcher" || true
}

# ask_to_stop: they save and exit together with status 0, and so does the launcher.
ask_to_stop() {
    signalled=1
    # shellcheck disable=SC2046  # one word per process
    kill -TERM $(trainers) 2>/dev/null || true
}

# stop_tool: a tool has nothing to save, and is interrupted without a report of the launcher.
stop_tool() {
    local processes _
    read -ra processes <<<"$(trainers | tr '\n' ' ')"
    kill -KILL "$launcher" 2>/dev/null || true
    wait "$launcher" 2>/dev/null || true # or the shell says that it was killed
    kill -INT "${processes[@]}" 2>/dev/null || true
    for _ in {1..50}; do
        kill -0 "${processes[@]}" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "${processes[@]}" 2>/dev/null || true
}

interrupt() {
    if ((interrupted)); then
        # shellcheck disable=SC2046
        kill -KILL "$launcher" $(trainers) 2>/dev/null || true
    elif [[ "$SCRIPT" == tools/* ]]; then
        stop_tool
    else
        echo "torchrun.sh: asked the run to save and exit; a second Ctrl-C ends it at once" >&2
        ask_to_stop
    fi
    signalled=1 interrupted=1
}

signalled=0 interrupted=0 status=0
# A scheduler may signal every process of a job: the launcher ignores what its children handle.
(trap '' TERM INT HUP && exec env "${settings[@]}" "${command[@]}") &
launcher=$!
trap ask_to_stop TERM HUP
trap interrupt INT
while :; do
    signalled=0
    wait "$launcher" 2>/dev/null && ended=0 || ended=$?
    ((ended == 127)) || status=$ended # 127: it ended just before the signal that asked us to look again
    ((signalled)) || break
done
((interrupted)) && exit 130
exit "$status"
