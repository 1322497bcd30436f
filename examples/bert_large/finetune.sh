#!/usr/bin/env bash
# Finetune a pretrained BERT-large on labelled sentences.
#
#     bash examples/bert_large/finetune.sh random_ltd train.tsv dev.tsv --bf16
#     bash examples/bert_large/finetune.sh dense train.jsonl dev.jsonl --text-column premise --text-pair-column hypothesis
#     DRY_RUN=1 bash ...                                        show the command, start nothing
#     TINY=1 bash examples/bert_large/finetune.sh random_ltd    after TINY=1 of pretrain.sh: which sentences say "if"
#
# The first word is the variant that pretrain.sh trained. The files are .tsv, whose first line names the columns, or JSON
# lines. finetune.yaml holds the numbers, and flags of finetune_bert_ltd.py win over them. A run goes to
# runs/bert-large/VARIANT-finetuned of the current folder, and the same command continues it.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

out="runs/bert-large" epochs=12 settings=("$here/finetune.yaml")
if [[ "$TINY" == 1 ]]; then
    out+="-tiny" epochs=15 settings+=("$here/tiny_finetune.yaml")
    set -- "${1:-}" "$out/data/labelled.jsonl" "$out/data/dev.jsonl" "${@:2}"
fi
[[ $# -ge 3 && -n "$1" && "$1$2$3" != *--* ]] ||
    refuse "give the pretrained variant and two files of labelled sentences: random_ltd train.tsv dev.tsv"
pretrained="$out/$1" train="$2" valid="$3"
shift 3
[[ -f "$train" || "$DRY_RUN" == 1 ]] || refuse "$train: there is no such file"
rows="$([[ ! -f "$train" ]] && echo 1000 || wc -l <"$train" | tr -d ' ')"

set_up logging bert
train finetune_bert_ltd.py --config "${settings[@]}" \
    --train-data-path "$train" --valid-data-path "$valid" --train-samples $((epochs * rows)) \
    --vocab-file "$out/data/vocab.txt" --pretrained-checkpoint "$pretrained" \
    --save "$pretrained-finetuned" --load "$pretrained-finetuned" "$@"
