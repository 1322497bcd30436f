#!/usr/bin/env bash
# Turn a corpus, JSON lines with a document in each "text", into the tokens that all sizes of GPT-3 train on.
#
#     bash examples/gpt3/prepare_data.sh --input 'corpus/*.jsonl'                   the whole corpus on this machine
#     bash examples/gpt3/prepare_data.sh --input 'corpus/*.jsonl' --shard 3/16      the third of 16 parts, in any order
#     bash examples/gpt3/prepare_data.sh --merge 16                                 the 16 parts to one, when all are there
#     DRY_RUN=1 bash ...                                                            show the command, start nothing
#     TINY=1 bash examples/gpt3/prepare_data.sh                                     text that Python brings along
#
# First copy GPT-2's vocabulary, encoder.json and vocab.bpe, to runs/gpt3-data, where the tokens go too. Other flags are
# those of tools/preprocess_data.py, or with --merge of tools/merge_datasets.py. In a Slurm job array each task takes its
# --shard by itself. What is there already stays, unless --input is another.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

data="runs/gpt3-data"
set_up
if [[ "$TINY" == 1 ]]; then
    data="runs/gpt3-tiny-data"
    [[ -f "$data/done" ]] || run "$python" "$root/examples/tiny.py" --example gpt3 --out "$data"
    [[ " $* " == *" --merge "* ]] || set -- --input "$data/text-*.jsonl" "$@"
fi

[[ "$DRY_RUN" == 1 ]] || mkdir -p "$data/parts"

# part I N: the start of the I-th part's file names.
part() { printf '%s/parts/corpus-%04d-of-%04d' "$data" "$1" "$2"; }

if [[ "${1:-}" == --merge ]]; then
    [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || refuse "--merge ${2:-}: give the number of parts, such as 16"
    parts=()
    for ((number = 1; number <= $2; number++)); do parts+=("$(part "$number" "$2")_text_document"); done
    there "$data/corpus_text_document.json" "$@" || run "$python" "$root/tools/merge_datasets.py" \
        --input "${parts[@]}" --output-prefix "$data/corpus_text_document" "${@:3}"
    exit
fi
if [[ -n "${SLURM_ARRAY_TASK_COUNT:-}" && " $* " != *" --shard "* ]]; then
    set -- --shard "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))/$SLURM_ARRAY_TASK_COUNT" "$@"
fi
output="$data/corpus"
[[ ! " $* " =~ " --shard "([0-9]+)/([0-9]+)" " ]] || output="$(part "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}")"
there "${output}_text_document.json" "$@" || run "$python" "$root/tools/preprocess_data.py" \
    --tokenizer-type GPT2BPETokenizer --vocab-file "$data/encoder.json" --merge-file "$data/vocab.bpe" \
    --output-prefix "$output" --append-eod --overwrite --log-interval 1000000 --workers "$(nproc)" "$@"
