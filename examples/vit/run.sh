#!/usr/bin/env bash
# Train a vision transformer with random-LTD: a small one on digits, or ViT-B/16 on your images.
#
#     bash examples/vit/run.sh                                  digits: a minute or two on a CPU, after the set-up
#     bash examples/vit/run.sh digits                           the same without a method
#     bash examples/vit/run.sh recipe random_ltd --train-data-path images/train --valid-data-path images/valid
#     DRY_RUN=1 bash examples/vit/run.sh recipe ...             show the command, start nothing
#
# The names are YAML files of this folder, or yours by their paths, in which every number stands; flags of
# finetune_vit_ltd.py win over them. A run goes to runs/vit-NAMES of the current folder, and the same command continues
# it. See README.md in this folder.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

[[ $# -gt 0 && "$1" != -* ]] || set -- digits digits_random_ltd "$@"
out="runs/vit" settings=()
while [[ $# -gt 0 && "$1" != -* ]]; do
    [[ "$1" != digits ]] || export GPUS_PER_NODE=0
    file="$(settings_file "$1" "$here")" || exit
    settings+=("$file")
    out+="-$(basename "$1" .yaml)"
    shift
done

set_up vision
train finetune_vit_ltd.py --config "${settings[@]}" --save "$out" --load "$out" "$@"
