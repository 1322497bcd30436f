#!/usr/bin/env bash
# Finetune a Hugging Face GPT-2 on plain text, with random-LTD and dense, and compare perplexities.
#
#     bash examples/gpt2_finetune/run.sh gpt2-medium train.txt valid.txt [--out DIR] [FLAGS]
#     TINY=1 bash examples/gpt2_finetune/run.sh       a tiny model on text that Python brings along: a minute on a CPU
#
# gpt2-medium is a folder with config.json, safetensors, vocab.json and merges.txt, or the folder of a run's checkpoints
# with these two files. recipe.yaml and random_ltd.yaml hold the numbers; flags of pretrain_gpt_ltd.py, such as --bf16, go
# to both runs and win. The same command continues where it was stopped.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

out="runs/gpt2-finetune" tiny=() epochs=5 evaluations=100 batch=4 seq_length=1024
if [[ "$TINY" == 1 ]]; then
    out+="-tiny" tiny=("$here/tiny.yaml") epochs=1 evaluations=4 batch=8 seq_length=64
else
    [[ $# -ge 3 && "$1$2$3" != *--* ]] || refuse "give the folder of a GPT-2 and two text files, or set TINY=1"
    [[ -d "$1" && -f "$2" && -f "$3" ]] || refuse "$1 $2 $3: the first must be a folder, the others files of plain text"
    weights="$1" train="$2" valid="$3" && shift 3
fi
[[ "${1:-}" != --out ]] || { out="${2:?"a folder is missing after --out"}" && shift 2 && [[ "$out" == /* ]] || out="$PWD/$out"; }

stage "set up"
set_up plot
claim "$out"

stage "weights and text"
if [[ "$TINY" == 1 ]]; then
    weights="$out/tiny/weights" train="$out/tiny/train.txt" valid="$out/tiny/valid.txt"
    [[ -f "$valid" ]] || "$python" "$root/examples/tiny.py" --example gpt2_finetune --out "$out/tiny"
fi
tokenizer=(--tokenizer-type GPT2BPETokenizer --vocab-file "$weights/vocab.json" --merge-file "$weights/merges.txt")
for split in train valid; do
    there "$out/${split}_text_document.json" "${!split}" "$weights" || "$python" "$root/tools/preprocess_data.py" \
        --input "${!split}" --output-prefix "$out/$split" --overwrite "${tokenizer[@]}"
done

# The dense run's steps: whole batches in so many passes over the training text.
tokens="$("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["tokens"])' "$out/train_text_document.json")"
steps=$((epochs * ((tokens - 1) / seq_length / batch)))
((steps > 0)) || refuse "$train: $tokens tokens are less than one batch of $batch samples of $seq_length tokens"
interval=$((steps / evaluations > 0 ? steps / evaluations : 1))

# finetune NAME FLAGS...: from the weights at first, and then from where the run was stopped.
finetune() {
    "$python" "$root/pretrain_gpt_ltd.py" --config "$here/recipe.yaml" "$here/$1.yaml" ${tiny[@]+"${tiny[@]}"} \
        --train-data-path "$out/train_text_document" --valid-data-path "$out/valid_text_document" "${tokenizer[@]}" \
        --train-tokens $((steps * batch * seq_length)) --eval-interval "$interval" --log-interval "$interval" \
        --save "$out/$1" --load "$out/$1" --pretrained-checkpoint "$weights" --save-interval $(((steps + 4) / 5)) "${@:2}"
}
stage "finetune with random-LTD"
finetune random_ltd --ltd-growth-steps $((steps * 30 / 100 > 0 ? steps * 30 / 100 : 1)) "$@"
stage "finetune dense, for comparison"
finetune dense "$@"

stage "compare"
"$python" "$root/tools/summarize_runs.py" --runs "$out/random_ltd" "$out/dense" --names random-LTD dense --plot "$out/loss.png"
printf '\nthe checkpoints, figures and logs are in %s\n' "$out"
