#!/usr/bin/env bash
# Train a vision transformer with random-LTD: a small one on digits, or ViT-B/16 on your images.
#
#     bash examples/vit/run.sh                                  digits: a minute or two on a CPU, after the set-up
#     METHOD=dense bash examples/vit/run.sh                     the same without a method
#     TRAIN=images/train VALID=images/valid LOAD=checkpoints/pretrained bash examples/vit/run.sh         ViT-B/16
#     DRY_RUN=1 TRAIN=... bash examples/vit/run.sh              show the command, start nothing
#
# Every setting below can be given the same way. See README.md in this folder.

set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

# ------------------------------------------------------------------------------------------------------- settings

TRAIN="${TRAIN:-}"                                # folder with one sub-folder a class, or a .npz file; empty: digits
VALID="${VALID:-}"                                # the same, to evaluate on
LOAD="${LOAD:-}"                                  # --save folder of a run whose weights this one starts from
METHOD="${METHOD:-random-ltd}"                    # or dense
SEED="${SEED:-1234}"
VENV="${VENV:-}"                                  # an environment with scikit-learn and pillow; empty: .venv, made here
if [[ -z "$TRAIN" ]]; then
    OUT="${OUT:-$root/runs/vit-digits-$METHOD}"   # everything is written here
    STEPS="${STEPS:-600}"
    MIN_KEPT_TOKENS="${MIN_KEPT_TOKENS:-5}"       # of 17: 16 patches of 2 x 2 pixels and [CLS]
    GRANULARITY="${GRANULARITY:-1}"
    GROWTH_STEPS="${GROWTH_STEPS:-$((STEPS * 3 / 4))}"
else
    OUT="${OUT:-$root/runs/vit-$METHOD}"
    STEPS="${STEPS:-140000}"                      # 14 epochs of ImageNet's 1.28 million images
    MIN_KEPT_TOKENS="${MIN_KEPT_TOKENS:-32}"      # of 197, as in the paper: 196 patches of 16 x 16 pixels and [CLS]
    GRANULARITY="${GRANULARITY:-8}"               # as in the paper
    GROWTH_STEPS="${GROWTH_STEPS:-$((STEPS * 61 / 100))}" # then 77.7 % of the layer tokens are computed, the paper's figure
    MICRO_BATCH="${MICRO_BATCH:-16}"              # images that a GPU computes at a time
    GLOBAL_BATCH="${GLOBAL_BATCH:-128}"
    LR="${LR:-5e-5}"
fi

# ------------------------------------------------------------------------------------------------------------ run

refuse() {
    echo "run.sh: error: $*" >&2
    exit 2
}

case "$METHOD" in
random-ltd)
    method=(--random-ltd --ltd-min-kept-tokens "$MIN_KEPT_TOKENS" --ltd-granularity "$GRANULARITY"
        --ltd-growth-steps "$GROWTH_STEPS")
    ;;
dense) method=() ;;
*) refuse "METHOD is '$METHOD': give random-ltd or dense" ;;
esac

if [[ -z "$VENV" ]]; then
    VENV="$root/.venv"
    [[ "${DRY_RUN:-0}" == 1 ]] || bash "$root/tools/setup_env.sh" vision
fi
export PYTHON="$VENV/bin/python"

common=(--train-iters "$STEPS" --seed "$SEED" ${method[@]+"${method[@]}"})
if [[ -z "$TRAIN" ]]; then
    # shellcheck disable=SC2207  # a word each
    digits=($(cd "$root" && "$PYTHON" -c "from finetune_vit_ltd import DIGITS; print(DIGITS)"))
    flags=("${digits[@]}" "${common[@]}" --device cpu)
else
    [[ -n "$VALID" ]] || refuse "VALID is missing: name the images to evaluate on"
    flags=(
        --train-data-path "$TRAIN" --valid-data-path "$VALID"
        --image-mean 0.485 0.456 0.406 --image-std 0.229 0.224 0.225
        --img-h 224 --img-w 224 --patch-dim 16 --num-channels 3
        --num-layers 12 --hidden-size 768 --num-attention-heads 12 --norm-epsilon 1e-6
        --attention-dropout 0 --hidden-dropout 0 --bf16
        --micro-batch-size "$MICRO_BATCH" --global-batch-size "$GLOBAL_BATCH"
        --lr "$LR" --lr-decay-style cosine --lr-warmup-fraction 0.05 --clip-grad 1.0
        --eval-interval 10000 --save-interval 10000 --use-distributed-optimizer "${common[@]}"
    )
fi
[[ -z "$LOAD" ]] || flags+=(--pretrained-checkpoint "$LOAD")
SCRIPT=finetune_vit_ltd.py exec bash "$root/examples/launch/torchrun.sh" "${flags[@]}" --save "$OUT" --load "$OUT"
