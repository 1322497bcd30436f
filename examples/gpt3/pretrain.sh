# Pretraining for the GPT-3 examples: sourced by their scripts after settings.sh and the recipe.sh of their folder.
# shellcheck shell=bash disable=SC2153,SC2154  # what those two set

# pretrain METHOD VARIANT FLAGS...: never returns. The recipe's `variant` says what VARIANT means.
pretrain() {
    local method="$1" name="$1-${2:-}" flags settings folder
    (($# >= 2)) || refuse "say how long: $VARIANTS, such as bash examples/${MODEL/-/_}/${0##*/} 300B"
    variant "$2"
    shift 2
    settle_paths
    folder="$OUT/$name"
    flags=()
    model_flags
    data_flags
    training_flags
    layout_flags
    flags+=(
        --save "$folder" --load "$folder" --save-interval "$SAVE_INTERVAL" --keep-last "$KEEP_LAST"
        --eval-interval "$EVAL_INTERVAL" --eval-iters "$EVAL_BATCHES" --log-interval "$LOG_INTERVAL"
        --tensorboard-dir "$folder/tensorboard"
    )
    [[ "$method" == dense ]] || flags+=(
        --random-ltd --ltd-layers "$LTD_LAYERS" --ltd-min-kept-tokens "$MIN_KEPT_TOKENS"
        --ltd-granularity "$GRANULARITY" --ltd-growth-steps "$GROWTH_STEPS" --ltd-block-size "$BLOCK_SIZE"
    )
    flags+=("$@")
    [[ "$DRY_RUN" != 1 ]] || show_plan
    check_data
    settings="$MODEL $name: NUM_LAYERS=$NUM_LAYERS HIDDEN_SIZE=$HIDDEN_SIZE NUM_HEADS=$NUM_HEADS SEQ_LENGTH=$SEQ_LENGTH"
    settings+=" INIT_STD=$INIT_STD DROPOUT=$DROPOUT GLOBAL_BATCH=$GLOBAL_BATCH LR=$LR SEED=$SEED"
    settings+=" TRAIN_TOKENS=$((BILLIONS * BILLION))"
    [[ "$method" == dense ]] || settings+=" LTD_LAYERS=$LTD_LAYERS MIN_KEPT_TOKENS=$MIN_KEPT_TOKENS"
    [[ "$method" == dense ]] || settings+=" GRANULARITY=$GRANULARITY GROWTH_STEPS=$GROWTH_STEPS"
    [[ "$method" == dense || "$BLOCK_SIZE" == 1 ]] || settings+=" BLOCK_SIZE=$BLOCK_SIZE"
    ! is_first_node || OUT="$folder" check_out "$settings"
    use_python logging eval
    check_flags
    ! is_first_node || OUT="$folder" claim_out "$settings"
    # In place of this shell: what Slurm or a terminal signals goes to torchrun.sh itself.
    start pretrain_gpt_ltd.py "${flags[@]}"
}

# These add to `flags`.

model_flags() {
    flags+=(
        --num-layers "$NUM_LAYERS" --hidden-size "$HIDDEN_SIZE" --num-attention-heads "$NUM_HEADS"
        --seq-length "$SEQ_LENGTH" --max-position-embeddings "$SEQ_LENGTH" --init-method-std "$INIT_STD"
        --attention-dropout "$DROPOUT" --hidden-dropout "$DROPOUT"
    )
}

data_flags() {
    local word
    data=()
    [[ -z "$BLEND" || -z "$DATA_PATH" ]] || refuse "BLEND=$BLEND and DATA_PATH=$DATA_PATH are both given: keep one"
    if [[ -n "$BLEND" ]]; then
        [[ -f "$BLEND" ]] || refuse "BLEND=$BLEND is no file: name one with a line WEIGHT PREFIX for each data set"
        read -rd '' -a data < <(sed 's/#.*//' "$BLEND") || true
        ((${#data[@]})) || refuse "BLEND=$BLEND holds nothing: write a line WEIGHT PREFIX for each data set"
    else
        for word in ${DATA_PATH:-"$DATA_DIR/corpus_text_document"}; do
            [[ "$word" =~ ^[0-9.eE+-]+$ ]] || word="$(absolute "$word")"
            data+=("$word")
        done
    fi
    flags+=(
        --data-path "${data[@]}" --split "$SPLIT" --data-cache-path "$DATA_DIR/cache"
        --tokenizer-type GPT2BPETokenizer --vocab-file "$VOCAB_FILE" --merge-file "$MERGE_FILE"
        --vocab-size "$VOCAB_SIZE"
    )
}

training_flags() {
    flags+=(
        --global-batch-size "$GLOBAL_BATCH" --train-tokens $((BILLIONS * BILLION)) --seed "$SEED"
        --lr "$LR" --min-lr "$MIN_LR" --lr-decay-style cosine --lr-decay-tokens $((BILLIONS * BILLION))
        --lr-warmup-tokens $((WARMUP_BILLIONS * BILLION))
        --adam-beta1 "$ADAM_BETA1" --adam-beta2 "$ADAM_BETA2" --adam-eps "$ADAM_EPS"
        --weight-decay "$WEIGHT_DECAY" --clip-grad "$CLIP_GRAD"
    )
}

layout_flags() {
    flags+=(
        --micro-batch-size "$MICRO_BATCH"
        --tensor-model-parallel-size "$TENSOR_PARALLEL" --pipeline-model-parallel-size "$PIPELINE_PARALLEL"
        --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
        --distributed-timeout-minutes "$TIMEOUT_MINUTES"
    )
    case "$PRECISION" in
    bf16) flags+=(--bf16) ;;
    fp16) flags+=(--fp16 --initial-loss-scale 2048 --loss-scale-window 500 --hysteresis 2) ;;
    fp32) ;;
    *) refuse "PRECISION is '$PRECISION': give bf16, fp16 or fp32" ;;
    esac
    case "$RECOMPUTE" in
    none) ;;
    mlp) flags+=(--recompute-granularity selective --recompute-modules mlp) ;;
    full) flags+=(--recompute-granularity full --recompute-method uniform --recompute-num-layers 1) ;;
    *) refuse "RECOMPUTE is '$RECOMPUTE': give none, mlp or full" ;;
    esac
}

# check_data: what the run reads is there. Nodes see it alike, so the first one looks.
check_data() {
    local word
    is_first_node || return 0
    for word in "$VOCAB_FILE" "$MERGE_FILE"; do
        [[ -f "$word" ]] ||
            refuse "$word is not there: run prepare_data.sh, or name GPT-2's files with VOCAB_FILE and MERGE_FILE"
    done
    for word in "${data[@]}"; do
        [[ "$word" =~ ^[0-9.eE+-]+$ || -f "$word.idx" ]] ||
            refuse "$word.idx is not there: make it with prepare_data.sh, or name your data with DATA_PATH or BLEND"
    done
}

# check_flags: a flag that cannot be is said once and at once, and ends the script. Every process would find it too, but
# only after minutes on many nodes, and with a traceback of torchrun's behind it.
check_flags() {
    local gpus="${GPUS_PER_NODE:-$(count_gpus)}"
    [[ "$gpus${NPROC:-0}${NNODES:-1}" =~ ^[0-9]+$ ]] || return 0 # torchrun.sh refuses it
    [[ " ${flags[*]}" != *" --plan"* ]] || return 0              # it is planned in any case
    "$python" pretrain_gpt_ltd.py "${flags[@]}" \
        --plan --plan-gpus $((${NPROC:-$((gpus > 0 ? gpus : 1))} * ${NNODES:-1})) >/dev/null || exit
}

count_gpus() { { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null || true; } | wc -l | tr -d ' '; }

# show_plan: the command that would start this node's processes, and what the run will do and cost; ends the script.
show_plan() {
    local gpus more planned=() asked="" place
    gpus="$(count_gpus)"
    ((gpus)) || gpus=8
    export GPUS_PER_NODE="${GPUS_PER_NODE:-$gpus}"
    read -ra more <<<"$PLAN_FLAGS"
    # What the plan is asked to find is not told to it.
    [[ "$PLAN_FLAGS" != *--plan-target-saving* ]] || asked+=" --ltd-growth-steps "
    [[ "$PLAN_FLAGS" != *--plan-gpu-hours* ]] || asked+=" --train-tokens --lr-decay-tokens "
    for ((place = 0; place < ${#flags[@]}; place++)); do
        if [[ "$asked" == *" ${flags[place]} "* ]]; then
            place=$((place + 1))
        else
            planned+=("${flags[place]}")
        fi
    done
    use_python
    (start pretrain_gpt_ltd.py "${flags[@]}") # which refuses numbers that are none
    [[ -n "$PLAN_GPUS" ]] || PLAN_GPUS=$((${NPROC:-$GPUS_PER_NODE} * ${NNODES:-1}))
    echo
    PYTHONPATH="$PWD" exec "$python" pretrain_gpt_ltd.py "${planned[@]}" \
        --plan --plan-gpus "$PLAN_GPUS" --plan-gpu "$PLAN_GPU" --plan-mfu "$PLAN_MFU" ${more[@]+"${more[@]}"}
}
