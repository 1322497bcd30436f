# Settings and helpers that the GPT-3 examples share: sourced by their scripts, before the recipe.sh of their folder. It
# leads to the root of the checkout. Every setting can be given from outside, as NAME=value before the command.
# shellcheck shell=bash disable=SC2034,SC2153  # recipe.sh sets, and the scripts read, what this file does not

if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0" # the comment that the script opens with
    exit
fi
called_from="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
source examples/common.sh
trap 'echo; echo "stopped; the same command goes on from here"; exit 130' INT

TINY="${TINY:-0}"       # 1: everything in small, on two CPU processes and text that Python brings along
DRY_RUN="${DRY_RUN:-0}" # 1: show the command and the plan, start and write nothing
if [[ "$TINY" == 1 ]]; then
    # The same flags with other values: what is set here is not set again below, nor by recipe.sh.
    GPUS_PER_NODE="${GPUS_PER_NODE:-0}"
    NPROC="${NPROC:-2}"
    BILLION="${BILLION:-50}"
    NUM_LAYERS="${NUM_LAYERS:-4}"
    HIDDEN_SIZE="${HIDDEN_SIZE:-64}"
    NUM_HEADS="${NUM_HEADS:-4}"
    SEQ_LENGTH="${SEQ_LENGTH:-128}"
    VOCAB_SIZE="${VOCAB_SIZE:-257}"
    GLOBAL_BATCH="${GLOBAL_BATCH:-8}"
    MICRO_BATCH="${MICRO_BATCH:-2}"
    LR="${LR:-3e-3}"
    LTD_LAYERS="${LTD_LAYERS:-2-3}"
    MIN_KEPT_TOKENS="${MIN_KEPT_TOKENS:-32}"
    GROWTH_STEPS="${GROWTH_STEPS:-8}"
    SAVE_INTERVAL="${SAVE_INTERVAL:-10}"
    EVAL_INTERVAL="${EVAL_INTERVAL:-10}"
    EVAL_BATCHES="${EVAL_BATCHES:-2}"
    LOG_INTERVAL="${LOG_INTERVAL:-5}"
    TIMEOUT_MINUTES="${TIMEOUT_MINUTES:-5}"
    TASKS="${TASKS:-lambada_openai}"
    DATA_DIR="${DATA_DIR:-$PWD/runs/gpt3-tiny-data}"
fi

# --------------------------------------------------------------------------------- settings that all sizes have alike

# What is computed: the published recipe.
SEQ_LENGTH="${SEQ_LENGTH:-2048}"             # tokens in a sample
VOCAB_SIZE="${VOCAB_SIZE:-50257}"            # of GPT-2's tokenizer
DROPOUT="${DROPOUT:-0.1}"                    # of attention and of hidden states
BILLION="${BILLION:-1000000000}"             # what the B of 300B means
WARMUP_BILLIONS="${WARMUP_BILLIONS:-3}"      # warm-up, in tokens on the run's clock (layer tokens / layers)
MIN_LR="${MIN_LR:-1e-6}"                     # where the cosine ends, with the run
ADAM_BETA1="${ADAM_BETA1:-0.9}"
ADAM_BETA2="${ADAM_BETA2:-0.95}"
ADAM_EPS="${ADAM_EPS:-1e-8}"
WEIGHT_DECAY="${WEIGHT_DECAY:-0.1}"
CLIP_GRAD="${CLIP_GRAD:-1.0}"
SEED="${SEED:-1234}"
SPLIT="${SPLIT:-949,50,1}"                   # shares of the documents for training, validation and, unread, testing
LTD_LAYERS="${LTD_LAYERS:-2-23}"             # random-LTD: all layers but the first and the last,
MIN_KEPT_TOKENS="${MIN_KEPT_TOKENS:-128}"    # kept tokens of these at the first step,
GRANULARITY="${GRANULARITY:-16}"             # and in steps of this until they keep all, after GROWTH_STEPS;
BLOCK_SIZE="${BLOCK_SIZE:-1}"                # neighbouring tokens that are kept or dropped together; 1: single tokens

# How it is computed: for nodes of eight GPUs with 80 GB each. None of this changes what is learned.
PRECISION="${PRECISION:-bf16}"               # or fp16, as published; fp32
TENSOR_PARALLEL="${TENSOR_PARALLEL:-1}"      # both sizes fit a GPU whole, and data parallelism sends least
PIPELINE_PARALLEL="${PIPELINE_PARALLEL:-1}"
RECOMPUTE="${RECOMPUTE:-none}"               # mlp or full (as published, on 32 GB) where memory is short; see README.md
SAVE_INTERVAL="${SAVE_INTERVAL:-1000}"       # steps between checkpoints,
KEEP_LAST="${KEEP_LAST:-3}"                  # of which so many stay
EVAL_INTERVAL="${EVAL_INTERVAL:-1000}"       # steps between evaluations on held-out documents,
EVAL_BATCHES="${EVAL_BATCHES:-10}"           # in batches of GLOBAL_BATCH
LOG_INTERVAL="${LOG_INTERVAL:-100}"
TIMEOUT_MINUTES="${TIMEOUT_MINUTES:-60}"     # at the first start all wait for the index of some hundred billion tokens

# Where things are.
DATA_DIR="${DATA_DIR:-$PWD/runs/gpt3-data}"  # what prepare_data.sh writes, for every size
DATA_PATH="${DATA_PATH:-}"                   # data sets, "WEIGHT PREFIX WEIGHT PREFIX"; empty: that of DATA_DIR
BLEND="${BLEND:-}"                           # or a file of lines WEIGHT PREFIX, # starts a comment
VOCAB_FILE="${VOCAB_FILE:-}"                 # GPT-2's encoder.json and
MERGE_FILE="${MERGE_FILE:-}"                 # vocab.bpe; empty: those of DATA_DIR
OUT="${OUT:-}"                               # runs and results; empty: runs/ and the model's name
VENV="${VENV:-}"                             # an environment with the dependencies; empty: .venv, made where missing

# What DRY_RUN=1 plans for.
PLAN_GPUS="${PLAN_GPUS:-}"                   # empty: GPUS_PER_NODE (8 where there is none) x NNODES
PLAN_GPU="${PLAN_GPU:-a100}"
PLAN_MFU="${PLAN_MFU:-0.4}"                  # share of that GPU's peak that training reaches
PLAN_FLAGS="${PLAN_FLAGS:-}"                 # more flags of the plan, such as --plan-target-saving 0.333

# ---------------------------------------------------------------------------------------------------------- helpers

# A path as the caller meant it.
absolute() { [[ -z "$1" || "$1" == /* ]] && echo "$1" || echo "$called_from/$1"; }

# settle_paths: the same paths from wherever the script was called.
settle_paths() {
    local name tiny=""
    [[ "$TINY" != 1 ]] || tiny=-tiny
    for name in DATA_DIR BLEND VOCAB_FILE MERGE_FILE OUT VENV; do
        printf -v "$name" %s "$(absolute "${!name}")"
    done
    OUT="${OUT:-$PWD/runs/$MODEL$tiny}"
    VOCAB_FILE="${VOCAB_FILE:-$DATA_DIR/encoder.json}"
    MERGE_FILE="${MERGE_FILE:-$DATA_DIR/vocab.bpe}"
}

# use_python EXTRAS...: sets `python`. Several nodes share an environment that is there before they start.
use_python() {
    if [[ "$DRY_RUN" == 1 ]]; then
        python=python
        [[ ! -x .venv/bin/python ]] || python="$PWD/.venv/bin/python"
        [[ -z "$VENV" ]] || python="$VENV/bin/python"
        return
    fi
    if [[ -z "$VENV" && "${NNODES:-1}" != 1 ]]; then
        [[ -x .venv/bin/python ]] ||
            refuse ".venv is missing: run bash tools/setup_env.sh $* once, before several nodes do"
        VENV="$PWD/.venv"
    fi
    set_up "$@"
}

# run COMMAND...: or show it.
run() {
    if [[ "$DRY_RUN" == 1 ]]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

is_first_node() { [[ "${NODE_RANK:-${SLURM_NODEID:-0}}" == 0 ]]; }

# write_tiny: the text, vocabulary and task that TINY=1 takes in place of yours.
write_tiny() {
    [[ "$TINY" == 1 && "$DRY_RUN" != 1 && ! -f "$DATA_DIR/tiny/done" ]] || return 0
    "$python" examples/gpt3/tiny.py "$DATA_DIR/tiny"
}

# start SCRIPT FLAGS...: through torchrun, on every GPU of the node; never returns.
start() {
    export SCRIPT="$1" PYTHON="$python"
    [[ "$TINY" != 1 ]] || export NPROC GPUS_PER_NODE
    exec bash examples/launch/torchrun.sh "${@:2}"
}
