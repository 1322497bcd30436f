#!/usr/bin/env bash
# Pretrain a small GPT on real text with random-LTD in blocks, dense for the same FLOPs and dense for the same steps, and
# compare: about six minutes on two CPU cores.
#
#     bash examples/quickstart/run.sh [--out DIR] [FLAGS]    the whole, set-up included, to runs/quickstart or DIR
#     TINY=1 bash examples/quickstart/run.sh                 a small version: about a minute after the set-up
#
# recipe.yaml and random_ltd.yaml hold the numbers; flags of pretrain_gpt_ltd.py win. The same command continues.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

out="$PWD/runs/quickstart" tiny=() vocab_size=2048
[[ "$TINY" != 1 ]] || { out+="-tiny" tiny=("$here/tiny.yaml") vocab_size=1024; }
[[ "${1:-}" != --out ]] || { out="${2:?"a folder is missing after --out"}" && shift 2 && [[ "$out" == /* ]] || out="$PWD/$out"; }

stage "set up"
set_up plot
claim "$out"
stage "corpus: the English prose that Python brings along, some of it held out"
there "$out/corpus/corpus.json" || "$python" "$root/tools/builtin_corpus.py" \
    --output-dir "$out/corpus" --text prose
stage "tokenizer: SentencePiece, $vocab_size pieces"
there "$out/tokenizer.model" || "$python" "$root/tools/train_tokenizer.py" \
    --input "$out/corpus/train.jsonl" --vocab-size "$vocab_size" --output-prefix "$out/tokenizer"
tokenizer=(--tokenizer-type SentencePieceTokenizer --tokenizer-model "$out/tokenizer.model")
stage "tokens: from text to Megatron's indexed format"
for split in train valid; do
    there "$out/${split}_text_document.json" || "$python" "$root/tools/preprocess_data.py" \
        --input "$out/corpus/$split.jsonl" --output-prefix "$out/$split" --append-eod --overwrite --workers 2 "${tokenizer[@]}"
done

# pretrain NAME VARIANT FLAGS...: --load beside --save continues a run that was stopped, and starts it where there is none.
pretrain() {
    "$python" "$root/pretrain_gpt_ltd.py" --config "$here/recipe.yaml" ${2:+"$here/$2.yaml"} ${tiny[@]+"${tiny[@]}"} \
        --train-data-path "$out/train_text_document" --valid-data-path "$out/valid_text_document" "${tokenizer[@]}" \
        --save "$out/$1" --load "$out/$1" "${@:3}"
}
stage "train with random-LTD in blocks"
pretrain random-ltd random_ltd "$@"
stage "plan a dense run that takes as many FLOPs"
rm -f "$out/plan.json"
pretrain random-ltd random_ltd "$@" --plan --plan-json "$out/plan.json" | grep -e "^FLOPs" -e "^equivalent dense tokens"
read -r steps dense_steps < <("$python" -c 'import json, sys
totals = json.load(open(sys.argv[1]))["totals"]
print(totals["steps"], round(totals["steps"] * totals["flops"] / totals["dense_flops"]))' "$out/plan.json")
echo "$dense_steps dense steps take as many FLOPs as $steps with random-LTD"
stage "train dense, for the same FLOPs"
pretrain dense-equal-flops "" "$@" --train-iters "$dense_steps"
stage "train dense, for the same steps"
pretrain dense "" "$@"

stage "compare"
"$python" "$root/tools/summarize_runs.py" --runs "$out/random-ltd" "$out/dense-equal-flops" "$out/dense" \
    --names random-LTD "dense, same FLOPs" "dense, same steps" --plot "$out/loss.png"
stage "a sample from the random-LTD model, which is an ordinary dense checkpoint"
"$python" "$root/tools/generate_text.py" --load "$out/random-ltd" --prompt "If the file" --num-tokens-to-generate 80 \
    --temperature 0.6 --top-p 0.8 --seed 1
stage ""
printf '\nall done in %s s; the checkpoints, figures and logs are in %s\n' "$SECONDS" "$out"
