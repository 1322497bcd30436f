#!/usr/bin/env bash
# Finetune a Hugging Face GPT-2 on plain text, with random-LTD and dense, and compare perplexities.
#
#     WEIGHTS=gpt2-medium TRAIN_TEXT=train.txt VALID_TEXT=valid.txt bash examples/gpt2_finetune/run.sh
#     TINY=1 bash examples/gpt2_finetune/run.sh       a tiny model on text that Python brings along: a minute on a CPU
#
# Every setting below can be given the same way; arguments of the script go to both runs (such as --bf16). The same
# command again goes on where it was stopped. See README.md in this folder.

set -euo pipefail

# ------------------------------------------------------------------------------------------------------- settings

called_from="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

TINY="${TINY:-0}"
if [[ "$TINY" == 1 ]]; then
    OUT="${OUT:-$PWD/runs/gpt2-finetune-tiny}"
    WEIGHTS="${WEIGHTS:-$OUT/tiny/weights}"     # made by tiny.py
    TRAIN_TEXT="${TRAIN_TEXT:-$OUT/tiny/train.txt}"
    VALID_TEXT="${VALID_TEXT:-$OUT/tiny/valid.txt}"
    SEQ_LENGTH="${SEQ_LENGTH:-64}"
    EPOCHS="${EPOCHS:-1}"
    LR="${LR:-3e-3}"
    MIN_KEPT_TOKENS="${MIN_KEPT_TOKENS:-16}"
    EVALUATIONS="${EVALUATIONS:-4}"
    BATCH_SIZE="${BATCH_SIZE:-8}"
    MICRO_BATCH_SIZE="${MICRO_BATCH_SIZE:-8}"
else
    OUT="${OUT:-$PWD/runs/gpt2-finetune}"       # everything is written here
    WEIGHTS="${WEIGHTS:-}"                      # folder with config.json and safetensors, or of a run's checkpoints
    TRAIN_TEXT="${TRAIN_TEXT:-}"                # plain text: one document
    VALID_TEXT="${VALID_TEXT:-}"                # held-out text, all of which every evaluation takes
    SEQ_LENGTH="${SEQ_LENGTH:-1024}"            # tokens in a sample
    EPOCHS="${EPOCHS:-5}"                       # length in passes over the training text, counted in layer tokens
    LR="${LR:-1e-4}"                            # falls linearly to 0 on the same clock, without warm-up
    MIN_KEPT_TOKENS="${MIN_KEPT_TOKENS:-128}"   # random-LTD: kept tokens of a middle layer at the first step
    EVALUATIONS="${EVALUATIONS:-100}"           # evaluations in the dense run's steps, beside the one before them
fi
BATCH_SIZE="${BATCH_SIZE:-4}"                   # samples a step
MICRO_BATCH_SIZE="${MICRO_BATCH_SIZE:-2}"       # of these a process computes so many at a time
GROWTH_PERCENT="${GROWTH_PERCENT:-30}"          # of the dense run's steps, until a middle layer keeps all tokens
GRANULARITY="${GRANULARITY:-8}"                 # kept tokens are a multiple of this
SEED="${SEED:-1234}"
VOCAB_FILE="${VOCAB_FILE:-}"                    # GPT-2's tokenizer; empty: vocab.json and merges.txt in WEIGHTS
MERGE_FILE="${MERGE_FILE:-}"
VENV="${VENV:-}" # an environment that holds the dependencies; empty: .venv, made by tools/setup_env.sh

# ---------------------------------------------------------------------------------------------------------- helpers

source examples/common.sh

stage() { printf '\n== %s\n' "$1"; }

# A path as the caller meant it.
absolute() { [[ -z "$1" || "$1" == /* ]] && echo "$1" || echo "$called_from/$1"; }

trap 'echo; echo "stopped; the same command goes on from here"; exit 130' INT

for name in OUT WEIGHTS TRAIN_TEXT VALID_TEXT VOCAB_FILE MERGE_FILE VENV; do
    printf -v "$name" %s "$(absolute "${!name}")"
done
if [[ "$TINY" != 1 ]]; then
    [[ -d "$WEIGHTS" ]] || refuse "WEIGHTS='$WEIGHTS' is no folder: name that of a Hugging Face GPT-2, or set TINY=1"
    for name in TRAIN_TEXT VALID_TEXT; do
        [[ -f "${!name}" ]] || refuse "$name='${!name}' is no file: name one of plain text, or set TINY=1"
    done
fi

settings="WEIGHTS=$WEIGHTS TRAIN_TEXT=$TRAIN_TEXT VALID_TEXT=$VALID_TEXT SEQ_LENGTH=$SEQ_LENGTH EPOCHS=$EPOCHS LR=$LR"
settings+=" MIN_KEPT_TOKENS=$MIN_KEPT_TOKENS EVALUATIONS=$EVALUATIONS BATCH_SIZE=$BATCH_SIZE"
settings+=" GROWTH_PERCENT=$GROWTH_PERCENT GRANULARITY=$GRANULARITY SEED=$SEED arguments: $*"
check_out "$settings"

# ------------------------------------------------------------------------------------------------------------ set-up

stage "set up"
set_up plot
claim_out "$settings"

# ------------------------------------------------------------------------------------------------- weights and text

stage "weights and text"
[[ "$TINY" != 1 || -f "$OUT/tiny/valid.txt" ]] || "$python" examples/gpt2_finetune/tiny.py "$OUT/tiny"
tokenizer=(
    --tokenizer-type GPT2BPETokenizer
    --vocab-file "${VOCAB_FILE:-$WEIGHTS/vocab.json}" --merge-file "${MERGE_FILE:-$WEIGHTS/merges.txt}"
)
for split in train valid; do
    text="$TRAIN_TEXT"
    [[ "$split" == train ]] || text="$VALID_TEXT"
    if [[ -f "$OUT/${split}_text_document.json" ]]; then
        echo "there already: $OUT/${split}_text_document"
    else
        "$python" tools/preprocess_data.py --input "$text" --output-prefix "$OUT/$split" --overwrite "${tokenizer[@]}"
    fi
done

# ---------------------------------------------------------------------------------------------------------- training

# The dense run's steps: whole batches in so many passes over the training text.
tokens="$("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["tokens"])' "$OUT/train_text_document.json")"
steps=$((EPOCHS * ((tokens - 1) / SEQ_LENGTH / BATCH_SIZE)))
((steps > 0)) || refuse "TRAIN_TEXT holds $tokens tokens: less than one batch of $BATCH_SIZE samples of $SEQ_LENGTH"
interval=$((steps / EVALUATIONS > 0 ? steps / EVALUATIONS : 1))
growth=$((steps * GROWTH_PERCENT / 100 > 0 ? steps * GROWTH_PERCENT / 100 : 1))

common=(
    --train-data-path "$OUT/train_text_document" --valid-data-path "$OUT/valid_text_document" "${tokenizer[@]}"
    --use-checkpoint-args --seq-length "$SEQ_LENGTH" --seed "$SEED"
    --micro-batch-size "$MICRO_BATCH_SIZE" --global-batch-size "$BATCH_SIZE"
    --train-tokens $((steps * BATCH_SIZE * SEQ_LENGTH)) --lr "$LR" --min-lr 0 --lr-decay-style linear --weight-decay 0
    --full-validation --eval-at-start --eval-interval "$interval" --log-interval "$interval"
    --save-interval $(((steps + 4) / 5)) --keep-last 1
)

# The vocabulary of Hugging Face's weights is not padded, so that perplexities are those of the weights.
[[ ! -f "$WEIGHTS/config.json" ]] || common+=(--make-vocab-size-divisible-by 1)

# train NAME FLAGS...: from the weights at first, and then from where the run was stopped.
train() {
    local folder="$OUT/$1"
    shift
    "$python" pretrain_gpt_ltd.py "${common[@]}" --save "$folder" --load "$folder" --pretrained-checkpoint "$WEIGHTS" "$@"
}

stage "finetune with random-LTD"
train random-ltd --random-ltd --ltd-min-kept-tokens "$MIN_KEPT_TOKENS" --ltd-growth-steps "$growth" \
    --ltd-granularity "$GRANULARITY" "$@"

stage "finetune dense, for comparison"
train dense "$@"

# ----------------------------------------------------------------------------------------------------------- results

stage "compare"
"$python" tools/summarize_runs.py --runs "$OUT/random-ltd" "$OUT/dense" --names random-LTD dense --plot "$OUT/loss.png"
echo
echo "the checkpoints, figures and logs are in $OUT"
