#!/usr/bin/env bash
# Pretrain BERT-large (336M) by the paper's recipe: with random-LTD, another method, or dense.
#
#     bash examples/bert_large/pretrain.sh random_ltd --bf16    or token_bypass, layer_drop, dense
#     DRY_RUN=1 bash examples/bert_large/pretrain.sh ...        show the command, start nothing
#     TINY=1 bash examples/bert_large/pretrain.sh random_ltd    everything in small: a minute on a CPU
#
# The names are YAML files of this folder, or yours by their paths; recipe.yaml holds every number, and flags of
# pretrain_bert_ltd.py win over them. The data are those of prepare_data.sh. A run goes to runs/bert-large of the current
# folder, and the same command continues it. See README.md in this folder.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

out="runs/bert-large" name="" settings=("$here/recipe.yaml")
[[ "$TINY" != 1 ]] || out+="-tiny"
while [[ $# -gt 0 && "$1" != -* ]]; do
    file="$(settings_file "$1" "$here")" || exit
    settings+=("$file")
    name+="${name:+-}$(basename "$1" .yaml)"
    shift
done
[[ -n "$name" ]] || refuse "no variant is given: name random_ltd, token_bypass, layer_drop or dense"
[[ "$TINY" != 1 ]] || settings+=("$here/tiny.yaml")

set_up logging bert
train pretrain_bert_ltd.py --config "${settings[@]}" \
    --train-data-path "$out/data/train_text_sentence" --valid-data-path "$out/data/valid_text_sentence" \
    --vocab-file "$out/data/vocab.txt" --save "$out/$name" --load "$out/$name" "$@"
