#!/usr/bin/env bash
# Pretrain BERT-large (336M) with random-LTD by the paper's recipe, and finetune it on labelled sentences.
#
#     TEXT=corpus.jsonl VALID_TEXT=held_out.jsonl VOCAB_FILE=vocab.txt bash examples/bert_large/run.sh
#     STAGE=finetune TRAIN=train.tsv DEV=dev.tsv VOCAB_FILE=vocab.txt bash examples/bert_large/run.sh
#     TINY=1 bash examples/bert_large/run.sh    everything in small, on text that Python brings along: a minute on a CPU
#     DRY_RUN=1 ... bash examples/bert_large/run.sh                     show the commands of the stages, start nothing
#
# Every setting below can be given the same way; arguments of the script go to pretraining and finetuning (such as
# --bf16). The same command again goes on where it was stopped. See README.md in this folder.

set -euo pipefail

# ------------------------------------------------------------------------------------------------------- settings

called_from="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

TINY="${TINY:-0}"
METHOD="${METHOD:-random-ltd}"                 # or dense, token-bypass, layer-drop
if [[ "$TINY" == 1 ]]; then
    OUT="${OUT:-$PWD/runs/bert-large-tiny-$METHOD}"
    STAGE="${STAGE:-all}"
    STEPS="${STEPS:-40}"
    LR="${LR:-2e-3}"
    NUM_LAYERS="${NUM_LAYERS:-4}"
    HIDDEN_SIZE="${HIDDEN_SIZE:-64}"
    NUM_HEADS="${NUM_HEADS:-4}"
    SEQ_LENGTH="${SEQ_LENGTH:-64}"
    GLOBAL_BATCH="${GLOBAL_BATCH:-8}"
    MICRO_BATCH="${MICRO_BATCH:-8}"
    WARMUP_STEPS="${WARMUP_STEPS:-4}"
    MIN_KEPT_TOKENS="${MIN_KEPT_TOKENS:-16}"
    EVAL_INTERVAL="${EVAL_INTERVAL:-20}"
    LOG_INTERVAL="${LOG_INTERVAL:-10}"
    EPOCHS="${EPOCHS:-15}"
    FINETUNE_LR="${FINETUNE_LR:-2e-3}"
    FINETUNE_BATCH="${FINETUNE_BATCH:-16}"
    FINETUNE_SEQ_LENGTH="${FINETUNE_SEQ_LENGTH:-32}"
    EVAL_BATCHES="${EVAL_BATCHES:-2}"
else
    OUT="${OUT:-$PWD/runs/bert-large-$METHOD}" # everything is written here
    STAGE="${STAGE:-pretrain}"                 # prepare, pretrain (after prepare), finetune, or all
    STEPS="${STEPS:-1000000}"                  # dense steps' worth of layer tokens: 524B tokens; 2000000 are 1049B
    LR="${LR:-2e-4}"                           # for 524B tokens; the recipe takes 1.5e-4 for 703B and 1e-4 for 1049B
    NUM_LAYERS="${NUM_LAYERS:-24}"
    HIDDEN_SIZE="${HIDDEN_SIZE:-1024}"
    NUM_HEADS="${NUM_HEADS:-16}"
    SEQ_LENGTH="${SEQ_LENGTH:-512}"            # tokens in a sample
    GLOBAL_BATCH="${GLOBAL_BATCH:-1024}"       # samples a step
    MICRO_BATCH="${MICRO_BATCH:-16}"           # of these a GPU computes so many at a time
    WARMUP_STEPS="${WARMUP_STEPS:-10000}"
    MIN_KEPT_TOKENS="${MIN_KEPT_TOKENS:-128}"  # random-LTD: kept tokens of a middle layer at the first step
    EVAL_INTERVAL="${EVAL_INTERVAL:-1000}"
    LOG_INTERVAL="${LOG_INTERVAL:-100}"
    EPOCHS="${EPOCHS:-12}"                     # of finetuning
    FINETUNE_LR="${FINETUNE_LR:-5e-5}"
    FINETUNE_BATCH="${FINETUNE_BATCH:-128}"
    FINETUNE_SEQ_LENGTH="${FINETUNE_SEQ_LENGTH:-128}"
    EVAL_BATCHES="${EVAL_BATCHES:-10}"
fi
GROWTH_STEPS="${GROWTH_STEPS:-$STEPS}"         # random-LTD: steps until a middle layer keeps all tokens
GRANULARITY="${GRANULARITY:-16}"
TEXT="${TEXT:-}"                               # JSON lines, a document a line in "text": to pretrain on
VALID_TEXT="${VALID_TEXT:-}"                   # the same, held out
VOCAB_FILE="${VOCAB_FILE:-}"                   # WordPiece vocabulary, such as BERT's own; capitals are folded
TRAIN="${TRAIN:-}"                             # labelled sentences, .tsv or .jsonl: to finetune on
DEV="${DEV:-}"                                 # the same, held out
TEXT_COLUMN="${TEXT_COLUMN:-text}"             # what their columns, or keys, are called
PAIR_COLUMN="${PAIR_COLUMN:-}"                 # that of the second sentence, where samples are pairs
LABEL_COLUMN="${LABEL_COLUMN:-label}"
SEED="${SEED:-1234}"
VENV="${VENV:-}" # an environment that holds the dependencies; empty: .venv, made by tools/setup_env.sh

# ---------------------------------------------------------------------------------------------------------- helpers

source examples/common.sh

stage() { printf '\n== %s\n' "$1"; }
wants() { [[ "$STAGE" == "$1" || "$STAGE" == all ]]; }
absolute() { [[ -z "$1" || "$1" == /* ]] && echo "$1" || echo "$called_from/$1"; }

# run SCRIPT FLAGS...: through torchrun, on all GPUs of this node or one CPU process (see examples/launch/README.md).
run() {
    local script="$1"
    shift
    PYTHON="$python" SCRIPT="$script" bash examples/launch/torchrun.sh "$@"
}

trap 'echo; echo "stopped; the same command goes on from here"; exit 130' INT

for name in OUT TEXT VALID_TEXT VOCAB_FILE TRAIN DEV VENV; do
    printf -v "$name" %s "$(absolute "${!name}")"
done
[[ "$STAGE" =~ ^(prepare|pretrain|finetune|all)$ ]] ||
    refuse "STAGE is '$STAGE': give prepare, pretrain, finetune or all"
case "$METHOD" in
random-ltd)
    method=(--random-ltd --ltd-min-kept-tokens "$MIN_KEPT_TOKENS" --ltd-granularity "$GRANULARITY"
        --ltd-growth-steps "$GROWTH_STEPS")
    ;;
token-bypass) method=(--token-bypass) ;;
layer-drop) method=(--layer-drop --layer-drop-theta 0.5 --layer-drop-gamma "$(awk "BEGIN { print 100 / $STEPS }")") ;;
dense) method=() ;;
*) refuse "METHOD is '$METHOD': give random-ltd, token-bypass, layer-drop or dense" ;;
esac

# needs NAME WHAT: a file that this stage reads.
needs() {
    [[ -f "${!1}" ]] || refuse "$1 is '${!1}', which is no file: name $2, or set TINY=1"
}
if [[ "$TINY" != 1 ]]; then
    needs VOCAB_FILE "a WordPiece vocabulary (vocab.txt)"
    if wants prepare; then
        needs TEXT "JSON lines to pretrain on"
        needs VALID_TEXT "held-out JSON lines"
    fi
    if wants finetune; then
        needs TRAIN "labelled sentences to finetune on"
        needs DEV "held-out labelled sentences"
    fi
fi

settings="METHOD=$METHOD STEPS=$STEPS LR=$LR NUM_LAYERS=$NUM_LAYERS HIDDEN_SIZE=$HIDDEN_SIZE NUM_HEADS=$NUM_HEADS"
settings+=" SEQ_LENGTH=$SEQ_LENGTH GLOBAL_BATCH=$GLOBAL_BATCH WARMUP_STEPS=$WARMUP_STEPS GROWTH_STEPS=$GROWTH_STEPS"
settings+=" MIN_KEPT_TOKENS=$MIN_KEPT_TOKENS GRANULARITY=$GRANULARITY SEED=$SEED"

if [[ "${DRY_RUN:-0}" == 1 ]]; then
    python="${VENV:+$VENV/bin/}python"
else
    check_out "$settings"
    stage "set up"
    set_up bert
    claim_out "$settings"
fi

# -------------------------------------------------------------------------------------------------------------- data

if [[ "$TINY" == 1 && "${DRY_RUN:-0}" != 1 ]]; then
    stage "text that Python brings along, a vocabulary, and sentences labelled by whether they say \"if\""
    [[ -f "$OUT/tiny/dev.jsonl" ]] || "$python" examples/bert_large/tiny.py "$OUT/tiny"
fi
if [[ "$TINY" == 1 ]]; then
    TEXT="$OUT/tiny/train.jsonl" VALID_TEXT="$OUT/tiny/valid.jsonl" VOCAB_FILE="$OUT/tiny/words-vocab.txt"
    TRAIN="$OUT/tiny/labelled.jsonl" DEV="$OUT/tiny/dev.jsonl"
fi

tokenizer=(--tokenizer-type BertWordPieceLowerCase --vocab-file "$VOCAB_FILE")
if wants prepare && [[ "${DRY_RUN:-0}" != 1 ]]; then
    stage "documents to sentences to tokens"
    for split in train valid; do
        text="$TEXT"
        [[ "$split" == train ]] || text="$VALID_TEXT"
        if [[ -f "$OUT/${split}_text_sentence.json" ]]; then
            echo "there already: $OUT/${split}_text_sentence"
        else
            "$python" tools/preprocess_data.py --input "$text" --output-prefix "$OUT/$split" --split-sentences \
                --workers 2 --overwrite "${tokenizer[@]}"
        fi
    done
fi

# ---------------------------------------------------------------------------------------------------------- training

model=(
    --num-layers "$NUM_LAYERS" --hidden-size "$HIDDEN_SIZE" --num-attention-heads "$NUM_HEADS"
    --max-position-embeddings "$SEQ_LENGTH" --init-method-std 0.02 --seed "$SEED"
)
step_tokens=$((GLOBAL_BATCH * SEQ_LENGTH))

if wants pretrain; then
    [[ "${DRY_RUN:-0}" == 1 ]] || stage "pretrain: $METHOD"
    run pretrain_bert_ltd.py "${model[@]}" "${tokenizer[@]}" --seq-length "$SEQ_LENGTH" \
        --train-data-path "$OUT/train_text_sentence" --valid-data-path "$OUT/valid_text_sentence" \
        --micro-batch-size "$MICRO_BATCH" --global-batch-size "$GLOBAL_BATCH" \
        --train-tokens $((STEPS * step_tokens)) --lr-warmup-tokens $((WARMUP_STEPS * step_tokens)) \
        --lr "$LR" --min-lr 1e-5 --lr-decay-style linear \
        --adam-beta1 0.9 --adam-beta2 0.95 --weight-decay 0.01 --clip-grad 1.0 \
        --eval-interval "$EVAL_INTERVAL" --eval-iters "$EVAL_BATCHES" --log-interval "$LOG_INTERVAL" \
        --save "$OUT/pretrained" --load "$OUT/pretrained" --save-interval "$EVAL_INTERVAL" --keep-last 2 \
        ${method[@]+"${method[@]}"} "$@"
fi

if wants finetune; then
    [[ "${DRY_RUN:-0}" == 1 ]] || stage "finetune on labelled sentences, dense"
    rows=1000
    [[ ! -f "$TRAIN" ]] || rows="$(wc -l <"$TRAIN" | tr -d ' ')"
    columns=(--text-column "$TEXT_COLUMN" --label-column "$LABEL_COLUMN")
    [[ -z "$PAIR_COLUMN" ]] || columns+=(--text-pair-column "$PAIR_COLUMN")
    run finetune_bert_ltd.py "${model[@]}" "${tokenizer[@]}" --seq-length "$FINETUNE_SEQ_LENGTH" "${columns[@]}" \
        --train-data-path "$TRAIN" --valid-data-path "$DEV" \
        --micro-batch-size "$((FINETUNE_BATCH < MICRO_BATCH ? FINETUNE_BATCH : MICRO_BATCH))" \
        --global-batch-size "$FINETUNE_BATCH" --train-samples $((EPOCHS * rows)) \
        --lr "$FINETUNE_LR" --lr-decay-style linear --lr-warmup-fraction 0.065 --weight-decay 0.1 \
        --eval-interval 100 --log-interval 10 \
        --save "$OUT/finetuned" --load "$OUT/finetuned" --pretrained-checkpoint "$OUT/pretrained" \
        --save-interval 500 --keep-last 1 "$@"
fi

[[ "${DRY_RUN:-0}" == 1 ]] || printf '\n%s\n' "the checkpoints and logs are in $OUT"
