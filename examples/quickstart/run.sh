#!/usr/bin/env bash
# Pretrain a small GPT on real text with random-LTD in blocks, dense for the same FLOPs and dense for the same steps, and
# compare: about twelve minutes on two CPU cores.
#
#     bash examples/quickstart/run.sh              the whole, set-up included
#     QUICK=1 bash examples/quickstart/run.sh      a small version of everything: about a minute after the set-up
#
# Every setting below can be given the same way. What is finished stays: the same command again goes on where it was
# stopped. See README.md in this folder.

set -euo pipefail

# ------------------------------------------------------------------------------------------------------- settings

called_from="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

QUICK="${QUICK:-0}"
if [[ "$QUICK" == 1 ]]; then
    OUT="${OUT:-$PWD/runs/quickstart-quick}"    # everything is written here
    CORPUS_MB="${CORPUS_MB:-2}"                 # at most this much text
    VOCAB_SIZE="${VOCAB_SIZE:-1024}"
    NUM_LAYERS="${NUM_LAYERS:-4}"
    HIDDEN_SIZE="${HIDDEN_SIZE:-64}"
    SEQ_LENGTH="${SEQ_LENGTH:-128}"             # tokens in a sample
    STEPS="${STEPS:-30}"                        # of the runs that are equally long
    LR="${LR:-3e-3}"
    EVAL_INTERVAL="${EVAL_INTERVAL:-10}"
    EVAL_BATCHES="${EVAL_BATCHES:-4}"           # global batches of held-out text in an evaluation
else
    OUT="${OUT:-$PWD/runs/quickstart}"
    CORPUS_MB="${CORPUS_MB:-20}"                # more than there is: all of it
    VOCAB_SIZE="${VOCAB_SIZE:-2048}"            # small, so that the layers and not the LM head do the work
    NUM_LAYERS="${NUM_LAYERS:-8}"
    HIDDEN_SIZE="${HIDDEN_SIZE:-256}"
    SEQ_LENGTH="${SEQ_LENGTH:-512}"
    STEPS="${STEPS:-240}"
    LR="${LR:-1e-3}"
    EVAL_INTERVAL="${EVAL_INTERVAL:-40}"
    EVAL_BATCHES="${EVAL_BATCHES:-8}"
fi
NUM_HEADS="${NUM_HEADS:-4}"
BATCH_SIZE="${BATCH_SIZE:-4}"                             # samples a step
MIN_KEPT_TOKENS="${MIN_KEPT_TOKENS:-$((SEQ_LENGTH / 4))}" # random-LTD: kept tokens of a middle layer at the first step,
GROWTH_STEPS="${GROWTH_STEPS:-$((STEPS * 3 / 4))}"        # steps until it keeps all,
BLOCK_SIZE="${BLOCK_SIZE:-16}"                            # and neighbouring tokens that are kept or dropped together
SEED="${SEED:-1234}"
PROMPT="${PROMPT:-def }"
VENV="${VENV:-}" # an environment that holds the dependencies; empty: .venv, made by tools/setup_env.sh

# ---------------------------------------------------------------------------------------------------------- helpers

source examples/common.sh

# stage TITLE: say what comes, and how long what came before took.
stage_name="" stage_start=0
stage() {
    [[ -z "$stage_name" ]] || echo "-- $((SECONDS - stage_start)) s"
    stage_name="$1" stage_start=$SECONDS
    [[ -z "$1" ]] || printf '\n== %s\n' "$1"
}

# Ctrl-C: the step under way saves a checkpoint and leaves.
trap 'echo; echo "stopped; the same command goes on from here"; exit 130' INT

[[ "$OUT" == /* ]] || OUT="$called_from/$OUT"
[[ -z "$VENV" || "$VENV" == /* ]] || VENV="$called_from/$VENV"

settings="CORPUS_MB=$CORPUS_MB VOCAB_SIZE=$VOCAB_SIZE NUM_LAYERS=$NUM_LAYERS HIDDEN_SIZE=$HIDDEN_SIZE"
settings+=" NUM_HEADS=$NUM_HEADS SEQ_LENGTH=$SEQ_LENGTH BATCH_SIZE=$BATCH_SIZE STEPS=$STEPS LR=$LR"
settings+=" MIN_KEPT_TOKENS=$MIN_KEPT_TOKENS GROWTH_STEPS=$GROWTH_STEPS BLOCK_SIZE=$BLOCK_SIZE EVAL_INTERVAL=$EVAL_INTERVAL"
settings+=" EVAL_BATCHES=$EVAL_BATCHES SEED=$SEED"
check_out "$settings"

# ------------------------------------------------------------------------------------------------------------ set-up

stage "set up"
set_up plot
claim_out "$settings"

# -------------------------------------------------------------------------------------------------------------- data

stage "corpus: the text that Python brings along, some of it held out"
if [[ -f "$OUT/corpus/corpus.json" ]]; then
    echo "there already: $OUT/corpus"
else
    "$python" tools/builtin_corpus.py --output-dir "$OUT/corpus" --max-mb "$CORPUS_MB"
fi

stage "tokenizer: SentencePiece, $VOCAB_SIZE pieces"
if [[ -f "$OUT/tokenizer.model" ]]; then
    echo "there already: $OUT/tokenizer.model"
else
    "$python" tools/train_tokenizer.py --input "$OUT/corpus/train.jsonl" --vocab-size "$VOCAB_SIZE" \
        --output-prefix "$OUT/tokenizer"
fi

tokenizer=(--tokenizer-type SentencePieceTokenizer --tokenizer-model "$OUT/tokenizer.model")

stage "tokens: from text to Megatron's indexed format"
for split in train valid; do
    if [[ -f "$OUT/${split}_text_document.json" ]]; then
        echo "there already: $OUT/${split}_text_document"
    else
        "$python" tools/preprocess_data.py --input "$OUT/corpus/$split.jsonl" --output-prefix "$OUT/$split" \
            --append-eod --overwrite --workers 2 "${tokenizer[@]}"
    fi
done

# ---------------------------------------------------------------------------------------------------------- training

common=(
    --train-data-path "$OUT/train_text_document" --valid-data-path "$OUT/valid_text_document" "${tokenizer[@]}"
    --num-layers "$NUM_LAYERS" --hidden-size "$HIDDEN_SIZE" --num-attention-heads "$NUM_HEADS"
    --seq-length "$SEQ_LENGTH" --position-embedding-type rope --attention-dropout 0 --hidden-dropout 0
    --micro-batch-size "$BATCH_SIZE" --seed "$SEED"
    --lr "$LR" --min-lr 1e-4 --lr-decay-style cosine --lr-warmup-fraction 0.1 --weight-decay 0.1 --adam-beta2 0.95
    --eval-interval "$EVAL_INTERVAL" --eval-iters "$EVAL_BATCHES" --log-interval "$EVAL_INTERVAL"
)
random_ltd=(
    --random-ltd --ltd-min-kept-tokens "$MIN_KEPT_TOKENS" --ltd-growth-steps "$GROWTH_STEPS" --ltd-granularity 16
    --ltd-block-size "$BLOCK_SIZE"
)

# train NAME STEPS FLAGS...: --load beside --save continues a run that was stopped, and starts one where there is none.
train() {
    local folder="$OUT/$1" steps="$2"
    shift 2
    if [[ "$(cat "$folder/latest_checkpointed_iteration.txt" 2>/dev/null)" == "$steps" ]]; then
        echo "finished already: $folder"
    else
        "$python" pretrain_gpt_ltd.py "${common[@]}" --train-iters "$steps" --save "$folder" --load "$folder" "$@"
    fi
}

stage "train with random-LTD in blocks of $BLOCK_SIZE tokens"
train random-ltd "$STEPS" "${random_ltd[@]}"

stage "plan a dense run that takes as many FLOPs"
rm -f "$OUT/plan.json"
"$python" pretrain_gpt_ltd.py "${common[@]}" "${random_ltd[@]}" --train-iters "$STEPS" \
    --plan --plan-json "$OUT/plan.json" | grep -e "^FLOPs" -e "^equivalent dense tokens"
dense_steps="$("$python" -c 'import json, sys
totals = json.load(open(sys.argv[1]))["totals"]
print(round(totals["steps"] * totals["flops"] / totals["dense_flops"]))' "$OUT/plan.json")"
echo "$dense_steps dense steps take as many FLOPs as $STEPS with random-LTD"

stage "train dense, for the same FLOPs"
train dense-equal-flops "$dense_steps"

stage "train dense, for the same steps"
train dense "$STEPS"

# ----------------------------------------------------------------------------------------------------------- results

stage "compare"
"$python" tools/summarize_runs.py --runs "$OUT/random-ltd" "$OUT/dense-equal-flops" "$OUT/dense" \
    --names random-LTD "dense, same FLOPs" "dense, same steps" --plot "$OUT/loss.png"

stage "a sample from the random-LTD model, which is an ordinary dense checkpoint"
"$python" tools/generate_text.py --load "$OUT/random-ltd" --prompt "$PROMPT" --num-tokens-to-generate 80 \
    --temperature 0.7 --top-k 40 --seed "$SEED"

stage ""
echo
echo "all done in $SECONDS s; the checkpoints, figures and logs are in $OUT"
